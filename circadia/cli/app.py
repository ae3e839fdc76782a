"""The `circadia` command: what it offers, and how it fails.

Nothing here may import torch: `circadia --help` has to answer at once. Every command imports what it needs
inside its function.
"""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from circadia import __version__
from circadia.cli.chat import chat
from circadia.cli.demo import demo
from circadia.cli.doctor import doctor
from circadia.cli.evals import evals
from circadia.cli.learner import learner
from circadia.cli.levels import levels
from circadia.cli.models import models
from circadia.cli.optimizers import optimizers
from circadia.cli.retrofit import retrofit
from circadia.cli.rules import rules
from circadia.cli.serve import key, serve
from circadia.cli.sleep import kept
from circadia.cli.tokenizer import tokenizer
from circadia.cli.train import train

# The story that `circadia --help` tells: look, build, live, judge.
STORY = "doctor demo models levels rules optimizers train retrofit tokenizer chat learner serve key eval"


class _Commands(TyperGroup):
    """A user's mistake, which the package reports as ValueError, is one line on stderr and exit code 2; so is a file or
    folder that cannot be read or written.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=STORY.split().index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # nobody reads any more: click ends it
        except (ValueError, OSError) as error:
            print(f"circadia: {' '.join(str(error).split())}", file=sys.stderr)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="circadia",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    # Any other exception is our bug; its plain traceback is what a report needs.
    pretty_exceptions_enable=False,
    help="Models that keep learning: nested memories, written at different frequencies, awake and asleep.",
    epilog="Start with `circadia chat`: it works at once, offline, on a small model that comes with the package.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"circadia {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """See `help` above; the callback only carries the options that stand before a command."""


LOOK = "Look: what there is, and any model as nested memories"
app.command(rich_help_panel=LOOK)(doctor)
app.command(rich_help_panel=LOOK)(demo)
app.command(rich_help_panel=LOOK)(models)
app.command(rich_help_panel=LOOK)(levels)
app.command(rich_help_panel=LOOK)(rules)
app.command(rich_help_panel=LOOK)(optimizers)

BUILD = "Build: a model that can learn while it is used"
app.command(rich_help_panel=BUILD)(train)
app.command(rich_help_panel=BUILD)(retrofit)
app.add_typer(tokenizer, name="tokenizer", rich_help_panel=BUILD)

LIVE = "Live: one model, one life"
app.command(rich_help_panel=LIVE)(chat)
learner.add_typer(kept, name="quarantine")
app.add_typer(learner, name="learner", rich_help_panel=LIVE)
app.command(rich_help_panel=LIVE)(serve)
app.add_typer(key, name="key", rich_help_panel=LIVE)

JUDGE = "Judge: does it remember, and what did that cost"
app.add_typer(evals, name="eval", rich_help_panel=JUDGE)
