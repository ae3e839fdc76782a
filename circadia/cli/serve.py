"""`circadia serve` and `circadia key`: one base, many learners, over HTTP."""

from pathlib import Path
from typing import Annotated, Any

import typer

STORE = Annotated[Path, typer.Option(metavar="DIR", envvar="CIRCADIA_STORE", help="The folder of the store.")]
HERE = Path("store")


def _needed() -> None:
    """The server's packages are an extra."""
    import importlib.util

    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing: pip install 'circadia[serve]'")


def serve(
    base: Annotated[
        str, typer.Option(metavar="SRC", help="A model's folder or Hub id, a retrofit's folder, or `bundled`.")
    ] = "bundled",
    store: STORE = HERE,
    host: Annotated[str, typer.Option(help="Other addresses than this machine's own need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[str, typer.Option(help="Of the frozen model; a learner is NAME@LEARNER.")] = "base",
    tokenizer: Annotated[str | None, typer.Option(help="bytes or a folder; default the base's.")] = None,
    by_user: Annotated[bool, typer.Option("--by-user", help="The field `user` chooses the learner, too.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A further Host.")] = None,
    origin: Annotated[list[str] | None, typer.Option(metavar="URL", help="Web pages that may call.")] = None,
    cache: Annotated[float, typer.Option(metavar="GB", help="For memories that are read.")] = 4.0,
    batch: Annotated[int, typer.Option(help="Answers made in one forward pass; 1: each by itself.")] = 8,
    readers: Annotated[int, typer.Option(help="Answers at once where each is made by itself.")] = 2,
    teachers: Annotated[int, typer.Option(help="Learners written at once.")] = 1,
    sleepers: Annotated[int, typer.Option(help="Nights at once, beside these.")] = 1,
    watch: Annotated[
        float, typer.Option(metavar="SECONDS", help="Between looks for nights by hour and idle; 0: never.")
    ] = 60.0,
    queue: Annotated[int, typer.Option(help="Requests that wait for an answer.")] = 64,
    seconds: Annotated[float, typer.Option(help="For one answer.")] = 300.0,
    tokens: Annotated[int, typer.Option(help="Of an answer, by default.")] = 256,
    rate: Annotated[int, typer.Option(help="Requests a minute of one key; 0: no limit.")] = 0,
) -> None:
    """Serve a base and its learners over HTTP, in the form that OpenAI's clients know."""
    import logging
    import math
    import os

    _needed()
    from circadia.serve import Settings
    from circadia.serve.app import Server, Service

    if not 0 <= cache < math.inf:
        raise ValueError(f"--cache={cache:g}: give gigabytes, 0 or more")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    settings = Settings(
        base=base, store=store, host=host, port=port, name=name, tokenizer=tokenizer, by_user=by_user,
        hosts=tuple(allow_host or ()), origins=tuple(origin or ()), cache=int(cache * 2**30), batch=batch,
        readers=readers, teachers=teachers, sleepers=sleepers, watch=watch, queue=queue, seconds=seconds, tokens=tokens,
        rate=rate,
    )  # fmt: skip
    Server(Service(settings, os.environ.get("CIRCADIA_KEY"))).run()


key = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of a server, each for some learners.")


def _keys(store: Path) -> Any:
    _needed()
    from circadia.serve import Keys

    if not store.is_dir():
        raise ValueError(f"--store={str(store)!r}: no such folder; give that of a store")
    return Keys(store)


@key.command("new")
def new(
    scope: Annotated[str, typer.Option(help="read, teach (and read), or admin (and both).")] = "teach",
    learner: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Whose; '*' for all. May repeat.")] = None,
    store: STORE = HERE,
) -> None:
    """Make a key. It is shown now and never again."""
    with _keys(store) as keys:
        number, made = keys.new(scope, learner or [])
    print(f"{number} {made}")


@key.command("list")
def list_(store: STORE = HERE) -> None:
    """All keys, without what would open anything."""
    with _keys(store) as keys:
        found = keys.listed()
    for one in found:
        state = "revoked" if one["revoked"] else "valid"
        print(f"{one['id']} {one['scope']:6} {state:8} {','.join(one['learners'])}")


@key.command("revoke")
def revoke(
    number: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")], store: STORE = HERE
) -> None:
    """Let a key open nothing any more."""
    with _keys(store) as keys:
        keys.revoke(number)
