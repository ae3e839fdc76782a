"""`circadia eval`: the suites, what they need, and the page of their results."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup


class _Suites(TyperGroup):
    """`circadia eval formal` is `circadia eval run formal`."""

    def resolve_command(self, ctx, args):
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


evals = typer.Typer(
    cls=_Suites, no_args_is_help=True, help="Evaluate: `circadia eval list`, then `circadia eval SUITE --quick`."
)


@evals.command()
def run(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="As `circadia eval list` names them.")],
    models: Annotated[str | None, typer.Option(metavar="A,B,C", help="Instead of those that the suite shows.")] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", help="Seeds 0 to N-1, beside the one for tuning.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes on 2 cores, one seed.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The paper's protocol, for a GPU.")] = False,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder that holds the data sets.")] = None,
    base: Annotated[
        str | None, typer.Option(metavar="A,B", help="Folders of models, where a suite starts from one; or `bundled`.")
    ] = None,
    hope: Annotated[
        str | None, typer.Option(metavar="A,B", help="Folders of models trained from scratch to carry a memory.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Instead of runs/eval/SUITE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the runs in --out.")] = False,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Of training in each run: to try a suite out.")] = None,
    threads: Annotated[int, typer.Option(metavar="N", help="Of torch; small models gain nothing from more.")] = 1,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu or cuda; what there is.")] = None,
) -> None:
    """Run a suite; stopped at any moment, it goes on with --resume, run by run."""
    import torch
    from rich.console import Console

    from circadia.evals import load
    from circadia.evals.runner import evaluate
    from circadia.evals.suite import Options
    from circadia.models.bundled import located

    if quick and full:
        raise ValueError("--quick and --full are two depths: give one of them")
    if threads < 1:
        raise ValueError(f"--threads {threads}: must be at least 1")
    own = load(suite)
    given = tuple(name.strip() for name in models.split(",") if name.strip()) if models else ()
    options = Options(
        depth="quick" if quick else "full" if full else "default",
        models=given,
        seeds=seeds,
        steps=steps,
        data=data,
        bases=tuple(Path(located(name)) for name in base.split(",") if name) if base else (),
        hopes=tuple(Path(name) for name in hope.split(",") if name) if hope else (),
        device=_device(device),
    )
    torch.set_num_threads(threads)
    folder = out or Path("runs/eval") / suite
    console = Console(stderr=True)
    outcome = evaluate(own, options, folder, resume=resume, console=console)
    if outcome.records:
        _show(own.table(outcome.records))
        console.print(f"{folder}: {suite}.json, {suite}.md, {suite}.png", highlight=False)
    if outcome.stopped is not None:
        left = f"{outcome.left} runs are left" if outcome.left else "nothing is left"
        console.print(
            f"stopped by {signal.Signals(outcome.stopped).name}; {left}: go on with --resume", highlight=False
        )
        raise typer.Exit(128 + outcome.stopped)


@evals.command("list")
def listed(
    suite: Annotated[str | None, typer.Argument(metavar="[SUITE]", help="One of them, in full.")] = None,
) -> None:
    """What there is, and what each suite needs."""
    from rich.console import Console

    from circadia.evals import load

    console = Console()
    if suite is None:
        console.print(_overview())
        console.print(
            "One in full, with its models and its time at every depth: circadia eval list SUITE", highlight=False
        )
        return
    own = load(suite)
    console.print(f"[bold]{own.name}[/]: {own.summary}", highlight=False)
    console.print(f"data: {', '.join(own.needs.data) or 'none'}", highlight=False)
    console.print(f"models: {', '.join(own.needs.models)}", highlight=False)
    for depth, time in own.needs.time.items():
        console.print(f"{depth}: {time}", highlight=False)


def _overview():
    from rich import box
    from rich.table import Table

    from circadia.evals import SUITES, load

    table = Table(box=box.SIMPLE_HEAD)
    for name, width in (("suite", 11), ("what", None), ("--data", 12), ("--quick", 10)):
        table.add_column(name, style="bold" if name == "suite" else None, width=width)
    for name in SUITES:
        own = load(name)
        quick = own.needs.time["quick"].partition(" (")[0].partition(" for ")[0]
        table.add_row(name, own.summary, ", ".join(own.needs.data) or "-", quick)
    return table


@evals.command()
def report(
    results: Annotated[Path, typer.Option(metavar="DIR", help="The JSON files that the page is made of.")] = Path(
        "docs/results"
    ),
    to: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("docs/results.md"),
    add: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="First take over the results in it.")] = None,
) -> None:
    """Rebuild docs/results.md from JSON; nothing in it is typed by hand."""
    from circadia.evals import report as pages

    pages.add(results, add or [])
    count = pages.rebuild(results, to)
    typer.echo(f"{to}: {count} suite{'s' * (count > 1)}")


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except Exception as error:  # unknown, not built in, not there: each has its own class
        raise ValueError(f"--device {name!r} cannot be used here: use cpu") from error
    return name


def _show(tables: list) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file is not cut
    for one in tables:
        table = Table(title=one.title, box=box.SIMPLE_HEAD, title_justify="left")
        for column in one.columns:
            table.add_column(column, overflow="fold")
        for row in one.rows:
            table.add_row(*row)
        console.print(table, *one.notes, markup=False)
