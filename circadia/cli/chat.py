"""`circadia chat`: talk to a learner in the terminal. What you say is learned, what it says is not."""

from pathlib import Path
from typing import Annotated, Any

import typer

from circadia.cli.learner import BRANCH, HERE, STORE, _key

NAME = Annotated[str, typer.Argument(metavar="[NAME]", help="The learner; made if there is none.")]
GATE = {"new": 0}  # who repeats himself in a conversation means it
PERIODS = "64,512"  # a message is short: with the periods of a library nothing would be learned for an hour


def chat(
    name: NAME = "me",
    base: Annotated[
        str | None,
        typer.Option(metavar="SRC", help="A model's folder or Hub id, or a retrofit's folder; default `bundled`."),
    ] = None,
    store: STORE = HERE,
    branch: BRANCH = "main",
    learn: Annotated[bool, typer.Option(help="Learn what you say.")] = True,
    tokens: Annotated[int, typer.Option(min=1, help="Of an answer at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    periods: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help=f"Of a new learner: tokens between updates, fastest first. Default {PERIODS}."
        ),
    ] = None,
) -> None:
    """Talk to a learner; /help says what else it understands. Lines may come from a pipe.

    A large model is better retrofitted with --capacity lowrank first: `circadia retrofit SRC DST`, then --base DST.
    """
    from circadia.cli.talk import Talk

    with _learner(store, name, base, branch, periods) as me:
        Talk(me, learn, tokens, temperature).run()


def _learner(store: Path, name: str, base: str | None, branch: str, periods: str | None) -> Any:
    """The one of this name, or a new one."""
    from circadia.live import Learner, Store

    found = Store.open(store, _key())
    try:
        known = name in found.learners()
    finally:
        found.close()
    if known:
        return Learner.open(store, name, base, branch=branch, key=_key())
    if branch != "main":
        raise ValueError(f"--branch={branch!r}: there is no learner {name!r} yet: leave it out")
    base = base or "bundled"
    settings: dict[str, Any] = {}
    if not (Path(base).expanduser() / "retrofit.json").is_file():
        try:
            settings["periods"] = [int(part) for part in (periods or PERIODS).split(",")]
        except ValueError:
            raise ValueError(f"--periods={periods!r}: give whole numbers such as 64,512") from None
    try:
        return Learner.create(store, base, name, gate=GATE, key=_key(), **settings)
    except ValueError as error:
        if periods is not None or "levels learn in context already" not in str(error):
            raise
    return Learner.create(store, base, name, gate=GATE, key=_key())  # it has levels and periods of its own
