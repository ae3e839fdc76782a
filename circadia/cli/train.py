"""`circadia train`: a configuration, or a preset and a path, to a trained model."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE ...]",
            help="A YAML or TOML file, or the folder of a run with --resume; then changes such as optim.lr=3e-4.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME/SIZE", help="model.preset, as `circadia models` lists them.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="data.path: a file, a folder or hf:NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in `out` if there is one.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show levels, cost and an estimated time; train nothing.")
    ] = False,
) -> None:
    """Train a model; killed at any moment, it goes on with --resume as if nothing had happened.

    Several processes: torchrun --nproc-per-node 8 -m circadia train CONFIG
    """
    from rich.console import Console

    from circadia.train import Diverged, load
    from circadia.train import train as run

    given = list(arguments or [])
    source = given.pop(0) if given and "=" not in given[0] else None
    if source is not None and Path(source).is_dir():
        if not resume and not dry_run:
            raise ValueError(f"{source} is a folder: add --resume to go on with the run in it, or give its config.yaml")
        given.append(f"out={source}")
        source = str(Path(source) / "config.yaml")
    given += [f"model.preset={preset}"] if preset is not None else []
    given += [f"data.path={data}"] if data is not None else []
    config = load(source, given)
    console = Console(stderr=True)
    if dry_run:
        from circadia.train.plan import plan

        plan(config, Console())
        return
    try:
        result = run(config, resume=resume, console=console)
    except Diverged as error:
        print(f"circadia: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    if result.stopped.startswith("SIG"):
        raise typer.Exit(128 + getattr(signal, result.stopped))
