"""`circadia models`: the presets, with what they cost."""

from typing import Annotated

import typer


def models(
    size: Annotated[str, typer.Option(metavar="SIZE", help="tiny, small, 30m, 100m, 340m, 760m, 1.3b or 8b.")] = "tiny",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the architectures with their parameters, state and operations per token."""
    from dataclasses import asdict

    from circadia.models.measure import cost
    from circadia.models.presets import ARCHITECTURES, preset

    found = {name: (preset(name, size), cost(preset(name, size))) for name in ARCHITECTURES}
    if json:
        import json as encoder

        rows = {n: {"mixers": config.mixers, **asdict(costs)} for n, (config, costs) in found.items()}
        typer.echo(encoder.dumps({"size": size, "models": rows}, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from circadia.levels.level import bytes_text, count_text

    table = Table(
        title=f"size {size}: one sequence in float32, forward operations per token over 2,048",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("model", style="bold", no_wrap=True)
    table.add_column("mixers")
    for name in ("parameters", "state", "+ a token", "FLOPs"):
        table.add_column(name, justify="right")
    for name, (config, costs) in found.items():
        grows = bytes_text(costs.bytes_per_token) if costs.bytes_per_token else "-"
        flops = count_text(costs.flops_per_token)
        state, parameters = bytes_text(costs.state_bytes), count_text(costs.parameters)
        table.add_row(name, ", ".join(config.mixers), parameters, state, grows, flops)
    Console().print(table)
