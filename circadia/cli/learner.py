"""`circadia learner`: one model with one life, from new to forget."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circadia.cli import learner_show as show

if TYPE_CHECKING:
    from circadia.live import Learner

learner = typer.Typer(no_args_is_help=True, help="A model that lives: it observes, answers, remembers and forgets.")

NAME = Annotated[str, typer.Argument(metavar="NAME", help="The learner.")]
STORE = Annotated[Path, typer.Option(metavar="DIR", envvar="CIRCADIA_STORE", help="The folder of the store.")]
BASE = Annotated[str | None, typer.Option(metavar="SRC", help="The base, where it has moved.")]
BRANCH = Annotated[str, typer.Option(metavar="NAME", help="The branch to work on.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HERE = Path("store")


def _key() -> str | None:
    """A passphrase does not belong on a command line."""
    import os

    return os.environ.get("CIRCADIA_KEY")


@contextmanager
def _opened(store: Path, name: str, base: str | None = None, branch: str = "main") -> Iterator["Learner"]:
    from circadia.live import Learner

    with Learner.open(store, name, base, branch=branch, key=_key()) as found:
        for text in found.found:
            print(f"circadia: {text}", file=sys.stderr)
        yield found


@contextmanager
def _store(store: Path) -> Iterator[Any]:
    """For what needs no base."""
    from circadia.live import Store

    with Store.open(store, _key(), create=False) as found:
        yield found


@learner.command()
def new(
    name: NAME,
    base: Annotated[
        str, typer.Option(metavar="SRC", help="A model's folder or Hub id, a retrofit's folder, or `bundled`.")
    ] = "bundled",
    store: STORE = HERE,
    periods: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Tokens between updates, fastest first. Default 512,2048,8192."),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens before a chunk that it sees.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate of every level.")] = None,
    decay: Annotated[float | None, typer.Option(help="Of what is learned, at each update.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="bytes or a folder; default the base's.")] = None,
    gate: Annotated[bool, typer.Option(help="Weigh what is learned.")] = True,
    journal: Annotated[bool, typer.Option(help="Keep what is observed; exact forgetting needs it.")] = True,
    probes: Annotated[Path | None, typer.Option(metavar="FILE", help="Checks for the guard, YAML or JSONL.")] = None,
    every: Annotated[int | None, typer.Option(help="Tokens between two versions of a long stream.")] = None,
    sleep: Annotated[
        str | None, typer.Option(metavar="POLICY", help="When it sleeps by itself: period, tokens=N, hour=H, ...")
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Between chunks, go over windows of its nights.")
    ] = False,
    conversations: Annotated[
        bool, typer.Option("--conversations", help="What is said with it teaches it, unless told otherwise.")
    ] = False,
    json: JSON = False,
) -> None:
    """Make a learner that has learned nothing."""
    from circadia.live import Learner

    given: dict[str, Any] = {"context": context, "rate": rate, "decay": decay, "every": every}
    if periods is not None:
        try:
            given["periods"] = [int(part) for part in periods.split(",")]
        except ValueError:
            raise ValueError(f"--periods={periods!r}: give whole numbers such as 512,2048") from None
    given = {key: value for key, value in given.items() if value is not None}
    with Learner.create(
        store, base, name, tokenizer=tokenizer, gate=gate, journal=journal, probes=probes or (), key=_key(),
        sleep=sleep, rehearse=rehearse, conversations=conversations, **given,
    ) as made:  # fmt: skip
        show.status(made.status(), json)


@learner.command()
def observe(
    name: NAME,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE ...", help="Text; - or nothing: standard input.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="This text in place of files.")] = None,
    source: Annotated[str | None, typer.Option(help="Where it comes from; default the file's name.")] = None,
    trust: Annotated[float, typer.Option(help="From 0 to 1.")] = 1.0,
    store: STORE = HERE,
    base: BASE = None,
    branch: BRANCH = "main",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json: JSON = False,
) -> None:
    """Read text: predict each chunk, then learn it. Ctrl-C ends it with what was learned committed."""
    if text is not None and files:
        raise ValueError("--text and FILE exclude each other: give one")
    given: list[tuple[str, Any]] = [("user", text)] if text is not None else []
    for file in [] if given else files or ["-"]:
        if file != "-" and not Path(file).is_file():
            raise ValueError(f"{file}: no such file; give text files, or --text")
        given.append(("stdin", sys.stdin) if file == "-" else (Path(file).name, Path(file)))
    with _opened(store, name, base, branch) as me:
        for usual, what in given:
            named = usual if source is None else source
            found = me.observe(what, named, trust, progress=not (quiet or json) and sys.stderr.isatty())
            show.observed(found, named, json)
            if found.interrupted:
                raise typer.Exit(130)


@learner.command()
def chat(
    name: NAME,
    learn: Annotated[
        bool | None, typer.Option("--learn/--no-learn", help="Observe the conversation, too; default its policy.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Of an answer at most.")] = 128,
    store: STORE = HERE,
    base: BASE = None,
    branch: BRANCH = "main",
    json: JSON = False,
) -> None:
    """Ask line by line, until an empty line or Ctrl-D; `circadia chat` learns what you say and has commands."""
    turns: list[dict[str, str]] = []
    with _opened(store, name, base, branch) as me:
        while line := _line():
            turns.append({"role": "user", "content": line})
            answer = me.chat(turns, max_new_tokens=tokens, learn=False)
            turns.append({"role": "assistant", "content": answer.text})
            show.answer(answer, json)
        if turns and (me.conversations if learn is None else learn):
            show.observed(me.observe(turns, "conversation"), "conversation", json)


def _line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


@learner.command()
def ask(
    name: NAME,
    question: Annotated[str, typer.Argument(metavar="TEXT", help="A question, or with --raw the start of a text.")],
    raw: Annotated[bool, typer.Option("--raw", help="Go on with the text.")] = False,
    learn: Annotated[
        bool | None, typer.Option("--learn/--no-learn", help="Observe question and answer, too; default its policy.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Keep the answer, so that feedback can be given.")] = True,
    tokens: Annotated[int, typer.Option(help="Of the answer at most.")] = 128,
    store: STORE = HERE,
    base: BASE = None,
    branch: BRANCH = "main",
    json: JSON = False,
) -> None:
    """Ask one thing."""
    with _opened(store, name, base, branch) as me:
        say = me.generate if raw else me.chat
        show.answer(say(question, max_new_tokens=tokens, learn=learn, keep=keep), json)


@learner.command()
def feedback(
    name: NAME,
    answer: Annotated[int, typer.Argument(metavar="ID", help="Of the answer.")],
    good: Annotated[bool, typer.Option("--good", help="It was good.")] = False,
    bad: Annotated[bool, typer.Option("--bad", help="It was bad.")] = False,
    correction: Annotated[str | None, typer.Option(help="What would have been right.")] = None,
    about: Annotated[str | None, typer.Option(help="A sentence about what was wrong.")] = None,
    store: STORE = HERE,
    base: BASE = None,
    branch: BRANCH = "main",
    json: JSON = False,
) -> None:
    """Say what an answer was worth; it is learned at once."""
    if good and bad:
        raise ValueError("--good and --bad exclude each other: give one")
    with _opened(store, name, base, branch) as me:
        done = me.feedback(answer, True if good else False if bad else None, correction=correction, about=about)
        show.feedback(done, json)


@learner.command()
def status(
    name: NAME,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the life as .svg or .png.")] = None,
    store: STORE = HERE,
    base: BASE = None,
    branch: BRANCH = "main",
    json: JSON = False,
) -> None:
    """Levels, clocks, what was learned when, surprise over time."""
    with _opened(store, name, base, branch) as me:
        show.status(me.status(), json)
        if picture is not None:
            me.picture(picture)


@learner.command("set")
def set_(
    name: NAME,
    conversations: Annotated[
        bool | None,
        typer.Option("--conversations/--no-conversations", help="What is said with it teaches it, or does not."),
    ] = None,
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """Change a setting, on all branches; no rollback undoes it."""
    from circadia.live.conversations import change

    if conversations is None:
        raise ValueError("nothing is to be set: give --conversations or --no-conversations")
    with _store(store) as found, found.writer(name) as writer:
        change(writer, conversations)
        show.plain({"name": name, "conversations": conversations}, json)


@learner.command()
def versions(
    name: NAME,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest so many.")] = None,
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """What was committed, newest first."""
    with _store(store) as found:
        from circadia.live.sleeping import nights

        slept = {night.version: night for night in nights(found, name, "main")}
        show.versions(found.versions(name, limit), found.learner(name).branches, slept, json)


@learner.command()
def diff(
    name: NAME,
    a: Annotated[int, typer.Argument(metavar="A", help="A version.")],
    b: Annotated[int, typer.Argument(metavar="B", help="Another one.")],
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """How far each level moved from A to B, and which probes changed."""
    with _store(store) as found:
        from circadia.live.status import group

        show.diff(found.diff(name, a, b, group), a, b, json)


@learner.command()
def rollback(
    name: NAME,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="0 is the base.")],
    reason: Annotated[str, typer.Option(help="For the log.")] = "rollback",
    branch: BRANCH = "main",
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """Go back to a version; nothing is lost by it."""
    with _store(store) as found, found.writer(name, branch) as writer:
        now = writer.rollback(version or None, reason)
        show.plain({"name": name, "branch": branch, "version": now.number if now else None}, json)


@learner.command()
def branch(
    name: NAME,
    new_branch: Annotated[str, typer.Argument(metavar="BRANCH", help="Its name.")],
    version: Annotated[int | None, typer.Option(help="Where it begins; default the current version.")] = None,
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """A second way to go on from a version."""
    with _store(store) as found, found.writer(name) as writer:
        writer.branch(new_branch, version)
        show.plain({"name": name, "branches": found.learner(name).branches}, json)


@learner.command()
def forget(
    name: NAME,
    source: Annotated[str | None, typer.Option(help="All that came from there.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="ISO time, such as 2026-11-21T14:00.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Up to then.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The whole life.")] = False,
    store: STORE = HERE,
    base: BASE = None,
    branch: BRANCH = "main",
    json: JSON = False,
) -> None:
    """Remove experience and its effect, from memory and disk."""
    with _opened(store, name, base, branch) as me:
        show.forgotten(me.forget(source, since=since, until=until, all=everything), json)


@learner.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One learner; default the whole store.")] = None,
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """Compute every hash again and compare; exit code 1 where something is wrong."""
    with _store(store) as found:
        done = found.verify(name)
        show.verified(done, json)
        if done.faults:
            raise typer.Exit(1)


@learner.command()
def export(
    name: NAME,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """The whole life in one file."""
    with _store(store) as found:
        show.plain(vars(found.export(name, file)), json)


@learner.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote.")],
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """A learner out of a file, checked to the last hash."""
    from circadia.live import Store

    with Store.open(store, _key()) as found:
        life = found.import_(file, name)
        show.plain({"name": life.name, "base": life.base, "branches": life.branches}, json)


@learner.command()
def gc(
    name: NAME,
    keep: Annotated[int | None, typer.Option(help="How many of the newest versions stay; default all.")] = None,
    store: STORE = HERE,
    json: JSON = False,
) -> None:
    """Remove old versions, and files that nobody needs."""
    with _store(store) as found:
        show.plain(vars(found.gc(keep, name)[name]), json)
