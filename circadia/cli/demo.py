"""`circadia demo`: the product's main job in a few minutes, in the terminal and as a page."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="For demo.html and demo.json.")] = Path("runs/demo"),
    base: Annotated[
        str, typer.Option(metavar="SRC", help="A base that reads bytes; its folder, or `bundled`.")
    ] = "bundled",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each fact is read.")] = 10,
) -> None:
    """Watch a small model read, answer, be corrected, sleep, forget and go back, beside the same model fine-tuned."""
    from circadia.demo.show import run

    try:
        run(out, base, rounds)
    except OSError as error:
        raise ValueError(f"--out={str(out)!r}: {error}") from error
