"""What does it cost that an MLP learns in the sequence? ``python -m benchmarks.cms_level``.

Forward and backward of a level of the continuum memory system that learns by the local signal, against the same level
with a period of 0 (a plain MLP), interleaved, by period and width.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.harness import Contest, Contestant
from circadia.models import HopeConfig
from circadia.models.context import Context
from circadia.models.levels import Levels


def level(width: int, period: int, kind: str, x: torch.Tensor) -> Callable[[], None]:
    """One forward and backward pass, as in training: nothing is kept for later tokens."""
    torch.manual_seed(0)
    config = HopeConfig(hidden_size=width, num_attention_heads=1, periods=[period], mlp_kind=kind, widths=[4 * width])
    model = Levels(config)
    for module in model.modules():
        if hasattr(module, "init_weights"):
            module.init_weights()

    def run() -> None:
        model(x, {}, Context(keep=False))[0].sum().backward()

    return run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--periods", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/cms_level"))
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in ("gelu", "swiglu"):
        for width in given.widths:
            x = torch.randn(given.batch, given.tokens, width, requires_grad=True)
            plain = Contestant("plain MLP", level(width, 0, kind, x))
            for period in given.periods:
                learning = Contestant("level", level(width, period, kind, x))
                contest = Contest({"kind": kind, "width": width, "period": period}, [plain, learning], x.shape[1])
                rows.append(harness.result(contest, harness.measure([contest], given.reps)[0]))
    harness.write_json(given.out / "cms_level.json", {"machine": harness.machine("cpu"), "rows": rows})
    print("| MLP | width | period | times a plain MLP (least-most) |\n|---|---|---|---|")
    for row in rows:
        r = row["ratios"]["level"]
        print(
            f"| {row['kind']} | {row['width']} | {row['period']} | {r['median']:.2f} ({r['min']:.2f}-{r['max']:.2f}) |"
        )


if __name__ == "__main__":
    main()
