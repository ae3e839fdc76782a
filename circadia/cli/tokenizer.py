"""`circadia tokenizer train`: a vocabulary from your own text."""

from pathlib import Path
from typing import Annotated

import typer

tokenizer = typer.Typer(no_args_is_help=True, help="Make a tokenizer from text.")


@tokenizer.callback()
def main() -> None:
    """With a callback, `train` stays a command of its own."""


@tokenizer.command("train")
def train(
    paths: Annotated[list[str], typer.Argument(metavar="PATH ...", help="Files, folders or hf:NAME.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; give it as data.tokenizer.")],
    size: Annotated[int, typer.Option(metavar="N", help="Tokens in the vocabulary.")] = 32000,
    text: Annotated[str, typer.Option(metavar="FIELD", help="The field of JSONL and Parquet.")] = "text",
) -> None:
    """Train byte-level BPE and save it as a Hugging Face tokenizer."""
    from circadia.train.sources import Source
    from circadia.train.tokens import train_tokenizer

    made = train_tokenizer(Source(tuple(paths), text).documents(), size, out)
    print(f"{made} tokens in {out}; use it with data.tokenizer={out}")
