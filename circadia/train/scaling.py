"""What a run on many GPUs would need, computed: bytes of each process, operations in all. Nothing is allocated.

    python -m circadia.train.scaling hope/1.3b hope/8b --gpus 8,64 --length 2048 --tokens 100e9

Under FSDP2 (`train.parallel: fsdp`) weights, gradients and the two moments of AdamW, all in float32, are divided over
the processes; one block at a time is gathered, and the next one while it computes. Fast weights are activations: every
process holds those of its own rows, and none is divided.
"""

import argparse
import sys
from dataclasses import dataclass

import torch

from circadia.models import HopeConfig, preset
from circadia.models.measure import activation_bytes, cost
from circadia.models.model import HopeBlock

FLOAT = 4


@dataclass(frozen=True)
class Need:
    """Of one process, in bytes; and of the whole run."""

    parameters: int
    weights: int
    gradients: int
    moments: int
    gathered: int  # two blocks' weights and one block's gradient, whole
    activations: int  # of its rows, counted as float32: under bf16 they are less
    state: int  # fast weights of one sequence, which are in the activations too
    flops: float  # forward and backward over all tokens

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.gathered + self.activations


def need(config: HopeConfig, *, gpus: int, rows: int, length: int, tokens: float, recompute: bool) -> Need:
    """``rows`` of one forward pass in a process; ``tokens`` of the whole run."""
    counted = cost(config, length)
    with torch.device("meta"):
        blocks = [sum(p.numel() for p in HopeBlock(config, i).parameters()) for i in range(config.num_hidden_layers)]
    share = -(-counted.parameters * FLOAT // gpus)
    return Need(
        parameters=counted.parameters,
        weights=share,
        gradients=share,
        moments=2 * share,
        gathered=3 * FLOAT * max(blocks) if gpus > 1 else 0,
        activations=rows * activation_bytes(config, length, recompute),
        state=counted.state_bytes + counted.bytes_per_token * length,
        # A backward pass costs two forward passes, recomputation one more.
        flops=(4 if recompute else 3) * counted.flops_per_token * tokens,
    )


def table(names: list[str], gpus: list[int], rows: int, length: int, tokens: float, recompute: bool) -> list[str]:
    """In Markdown, GiB."""
    lines = [
        "| model | parameters | GPUs | weights, gradients, moments | gathered blocks | activations | a GPU in all | "
        "fast weights of a sequence | FLOPs of the run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        architecture, _, size = name.partition("/")
        for count in gpus:
            config = preset(architecture, size)
            n = need(config, gpus=count, rows=rows, length=length, tokens=tokens, recompute=recompute)
            gib = [
                f"{x / 2**30:.1f}" for x in (n.weights + n.gradients + n.moments, n.gathered, n.activations, n.total)
            ]
            lines.append(
                f"| {name} | {n.parameters / 1e9:.2f} B | {count} | {' | '.join(gib)} | {n.state / 2**20:.0f} MiB | "
                f"{n.flops:.2g} |"
            )
    return lines


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m circadia.train.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+", metavar="ARCHITECTURE/SIZE")
    parser.add_argument("--gpus", default="8,64", help="processes, with commas")
    parser.add_argument("--rows", type=int, default=1, help="of one forward pass in a process (train.micro)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--tokens", type=float, default=100e9)
    parser.add_argument("--keep", action="store_true", help="keep activations (train.checkpointing: false)")
    given = parser.parse_args(arguments)
    try:
        gpus = [int(text) for text in given.gpus.split(",")]
        if min([*gpus, given.rows, given.length]) < 1:
            raise ValueError("--gpus, --rows and --length must be at least 1")
        print("\n".join(table(given.presets, gpus, given.rows, given.length, given.tokens, not given.keep)))
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
