"""`circadia learner sleep`, `nights`, `due` and `quarantine`: the offline half of a learner's life."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from circadia.cli import sleep_show as show
from circadia.cli.learner import BASE, BRANCH, HERE, JSON, NAME, STORE, _opened, _store, learner

NUMBERS = Annotated[list[int], typer.Argument(metavar="NUMBER ...", help="Of experiences; see `quarantine list`.")]
kept = typer.Typer(no_args_is_help=True, help="What a night's filter held back.")


@learner.command()
def sleep(
    name: NAME,
    preset: Annotated[str | None, typer.Option(metavar="ARM", help="What the night does; see docs/sleep.md.")] = None,
    minutes: Annotated[float | None, typer.Option(help="At most.")] = None,
    compute: Annotated[
        str | None, typer.Option(metavar="N", help='Tokens, one that is learned counts 3; or "0.5 days" of reading.')
    ] = None,
    fit: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Cost at most so many days of reading, with fewer windows.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default the number of the night.")] = None,
    days: Annotated[int, typer.Option(help="How many days it goes over; 0 for the whole life.")] = 1,
    filtered: Annotated[bool, typer.Option("--filter", help="Hold back what slow memory does not trust.")] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="PART.NAME=VALUE", help="Such as replay.presentations=20.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take up the night that was stopped or killed.")] = False,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as .html or .md.")] = None,
    store: STORE = HERE,
    base: BASE = None,
    branch: BRANCH = "main",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json: JSON = False,
) -> None:
    """Go over the day, and wake up as one new version if the guard lets it. Ctrl-C: nothing is changed."""
    given = (preset, minutes, compute, fit, seed, change, filtered or None, None if days == 1 else days)
    if resume and any(x is not None for x in given):
        raise ValueError("--resume takes up a night as it was asked for: give no other settings with it")
    writes(page)
    changes: dict[str, Any] = {"filter": {}} if filtered else {}
    for word in change or []:
        _change(changes, word)
    work = compute if compute is None or " " in compute.strip() else _number("--compute", compute)
    with _opened(store, name, base, branch) as me:
        night = me.sleep(
            preset, minutes=minutes, compute=work, seed=seed, days=days or None, resume=resume,
            progress=not (quiet or json) and sys.stderr.isatty(), fit=fit, **changes,
        )  # fmt: skip
        show.night(night, json)
        if page is not None:
            page.write_text(night.html() if page.suffix == ".html" else night.markdown(), encoding="utf-8")
    if night.action == "stopped":
        raise typer.Exit(130)


def writes(page: Path | None) -> None:
    """A page's name, before the night and not after it."""
    if page is not None and (page.suffix not in (".html", ".md") or not page.parent.is_dir()):
        raise ValueError(f"--page={str(page)!r}: give a file that ends in .html or .md, in a folder that exists")


def _change(changes: dict[str, Any], word: str) -> None:
    import json

    path, _, text = word.partition("=")
    part, _, name = path.partition(".")
    if not part or not text:
        raise ValueError(f"--set={word!r}: give PART.NAME=VALUE, such as replay.presentations=20 or dreams=64")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    value = tuple(value) if isinstance(value, list) else value
    if name:
        own = changes.setdefault(part, {})
        if not isinstance(own, dict):
            raise ValueError(f"--set={word!r}: {part}={own!r} is set already: give the one or the other")
        own[name] = value
    else:
        changes[part] = value


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'{option}={text!r}: give a number of tokens, or "0.5 days"') from None


@learner.command()
def nights(
    name: NAME,
    number: Annotated[int | None, typer.Option("--night", metavar="N", help="One, by its number in the list.")] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write its report as .html or .md.")] = None,
    branch: BRANCH = "main",
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """All nights; or the whole report of one, by default with --page of the last."""
    from circadia.live.sleeping import nights as all_of

    writes(page)
    with _store(store) as found:
        every = all_of(found, name, branch)
    if number is None and page is None:
        show.nights(every, json)
        return
    chosen = [night for night in every if number in (None, night.number)]
    if not chosen:
        raise ValueError(
            f"--night={number}: {name!r} has no night of this number; see `circadia learner nights {name}`"
        )
    if page is not None:
        page.write_text(chosen[0].html() if page.suffix == ".html" else chosen[0].markdown(), encoding="utf-8")
    else:
        show.report(chosen[0], json)


@learner.command()
def due(
    name: NAME, store: STORE = HERE, base: BASE = None, branch: BRANCH = "main", json: JSON = False
) -> None:  # fmt: skip
    """Whether and why to sleep now; exit code 1 where there is no reason."""
    with _opened(store, name, base, branch) as me:
        found = me.due()
        show.due(found, me.policy is not None, json)
    if not found:
        raise typer.Exit(1)


@kept.command("list")
def list_(name: NAME, store: STORE = HERE, base: BASE = None, branch: BRANCH = "main", json: JSON = False) -> None:
    """What was held back, why, and what became of it."""
    with _opened(store, name, base, branch) as me:
        show.quarantine(me.quarantine(), json)


@kept.command()
def admit(
    name: NAME, numbers: NUMBERS, store: STORE = HERE, base: BASE = None, branch: BRANCH = "main", json: JSON = False
) -> None:
    """Let the next night learn from these."""
    with _opened(store, name, base, branch) as me:
        show.quarantine(me.admit(*numbers), json)


@kept.command()
def drop(
    name: NAME, numbers: NUMBERS, store: STORE = HERE, base: BASE = None, branch: BRANCH = "main", json: JSON = False
) -> None:
    """Let no night learn from these; `forget` removes what reading them did."""
    with _opened(store, name, base, branch) as me:
        show.quarantine(me.drop(*numbers), json)
