"""`circadia levels`: any model, with an optimizer, as a nested system of memories."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from circadia.levels import LevelsView


class OptimizerName(StrEnum):
    """Optimizers that can be put on the model for the view."""

    adamw = "adamw"
    muon = "muon"
    sgd = "sgd"
    none = "none"


def levels(
    model: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_HUB_ID",
            help="A model's folder or Hub id, a PEFT adapter's folder, or `bundled`.",
        ),
    ],
    optimizer: Annotated[
        OptimizerName,
        typer.Option(help="Show the model in training with this optimizer; none: as it is served."),
    ] = OptimizerName.none,
    tokens_per_step: Annotated[
        float | None, typer.Option(metavar="N", help="Tokens between two optimizer steps: batch x length.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Write the picture to this file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show which parts of a model are written how often, from every token to never.

    Only the config is read: no weights are downloaded or allocated.
    """
    from circadia.cli import skeleton
    from circadia.levels import levels as view_levels

    if picture is not None and not picture.parent.is_dir():
        raise ValueError(f"--picture: the folder {picture.parent} does not exist; make it first or choose another")
    module = skeleton.build(model)
    view = view_levels(module, skeleton.optimizers(optimizer.value, module), tokens_per_step=tokens_per_step)
    if picture is not None:
        picture.write_text(view.svg(), encoding="utf-8")
    if json:
        print(view.to_json())
    else:
        _print(view)
        if picture is not None:
            print(f"picture written to {picture}")


def _print(view: "LevelsView") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from circadia.levels.level import count_text

    console = Console()
    size = f"{count_text(view.parameters)} parameters on {len(view.levels)} levels"
    console.print(f"[bold]{view.model}[/]: {size}, fastest first\n")
    summary = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("level", "written every", "learns from", "size"):
        summary.add_column(column)
    details = Table.grid(padding=(0, 2, 0, 0))
    for level in view.levels:
        period = level.period_text(view.tokens_per_step)
        # Text objects, because brackets in names and equations are no markup.
        summary.add_row(Text(level.name, "bold"), Text(period), Text(level.learns_from), Text(level.size_text()))
        names = [member.pattern for member in level.members]
        where = ", ".join(names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "")
        details.add_row("", "")
        details.add_row(Text(level.name, "bold"), Text(where, "dim"))
        facts = {
            "objective": level.objective,
            "rule": level.rule,
            "knowledge enters": level.enters,
            "and leaves": level.leaves,
            "note": level.note,
        }
        for fact, text in facts.items():
            if text:
                details.add_row(Text(f"  {fact}", "dim"), Text(text))
    console.print(summary, details)
