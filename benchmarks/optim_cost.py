"""What a step of each optimizer costs: ``python -m benchmarks.optim_cost --out DIR``.

model    the step alone, on the matrices of a transformer with about 10 million parameters
small    the step alone, on 64 matrices of 64 x 64
layers   forward, backward and step of a stack of linear layers: DGD watches the inputs of each, so the cost of its
         hooks counts; SGD has the same number of hooks, which do nothing

Contestants of one task run in turns, and a ratio is taken within a turn. A run is ten steps. A step of M3 whose slow
momentum is due does Newton-Schulz twice: with a period of 10 that is one step of every run. With the default's 100 it
is one in a hundred, which would add about 1 % and falls into none of these runs.

`torch.optim.Muon` does the products of Newton-Schulz in bfloat16, so the contestants that an aim is for do, too; M3's
own default is float32, which is a row of its own. With --threads 1 the clock is the processor time of this process, so
that other work on the machine disturbs less.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.harness import Contest, Contestant
from circadia.optim import DGD, DMGD, M3, AdaMuon, DeltaMomentum, LearnedPreconditioner, Muon, PreconditionedMomentum

BLOCK = [(256, 256)] * 4 + [(1024, 256), (256, 1024)]
BLOCKS = 12  # 9.4 million parameters
SMALL = [(64, 64)] * 64
PERIOD = 10
TOKENS = 512  # of a pass through the layers
# The first of a task is what the others are compared with.
AIMS = {("model", "M3"): 1.10, ("small", "M3"): 0.25, ("layers", "DGD"): 1.3}

Make = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
half = torch.bfloat16  # of the products in Newton-Schulz, as torch's Muon always has it
OPTIMIZERS: dict[str, Make] = {
    "torch Muon": torch.optim.Muon,
    "M3": lambda p: M3(p, ns_dtype=half),
    "M3, period 10": lambda p: M3(p, periods=(1, PERIOD), ns_dtype=half),
    "M3, float32": M3,
    "M3 literal": lambda p: M3(p, mode="literal", betas=(0.9, 0.9), ns_dtype=half),
    "Muon": lambda p: Muon(p, ns_dtype=half),
    "AdaMuon": lambda p: AdaMuon(p, ns_dtype=half),
    "AdamW": torch.optim.AdamW,
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "delta momentum": DeltaMomentum,
    "preconditioned momentum": PreconditionedMomentum,
    "learned preconditioner": LearnedPreconditioner,
    "DMGD": DMGD,
}


class Stack(nn.Module):
    """The layers of the blocks one after another."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=False) for _ in range(blocks) for m, n in BLOCK)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def hooked_sgd(model: nn.Module) -> torch.optim.Optimizer:
    """As many hooks as DGD has, which do nothing."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda layer, args, out: out.register_hook(lambda delta: None) and None)
    return torch.optim.SGD(model.parameters(), lr=1e-3)


def stepping(make: Make, shapes: Sequence[tuple[int, int]], steps: int) -> tuple[Callable[[], None], float]:
    """A run of so many steps on gradients that are there, and the bytes of state per parameter."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * 0.01
    optimizer = make(params)

    def run() -> None:
        for _ in range(steps):
            optimizer.step()

    optimizer.step()
    return run, state_bytes(optimizer) / sum(p.numel() for p in params)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Everything that is kept between steps but step counters."""
    return sum(x.numel() * x.element_size() for state in optimizer.state.values() for x in state.values() if x.ndim)


def passing(make: Callable[[nn.Module], torch.optim.Optimizer], blocks: int, tokens: int) -> Callable[[], None]:
    """Forward, backward and step."""
    torch.manual_seed(0)
    model = Stack(blocks)
    optimizer, x = make(model), torch.randn(tokens, BLOCK[0][1])

    def run() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return run


def programme(config: dict[str, Any]) -> tuple[list[Contest], dict[str, float]]:
    """What is to be timed, and bytes of state per parameter."""
    model, blocks, steps = BLOCK * config["blocks"], config["blocks"], config["steps"]
    contests, held = [], {}
    for task, shapes in (("model", model), ("small", SMALL)):
        runs = {}
        for name, make in OPTIMIZERS.items():
            runs[name], size = stepping(make, shapes, steps)
            held.setdefault(name, size)  # of the model, which comes first
        contests.append(Contest({"task": task}, [Contestant(*item) for item in runs.items()], steps))
    layers: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "SGD with hooks": hooked_sgd,
        "DGD": lambda net: DGD(net, lr=1e-3),
        "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=1e-3),
    }
    runs = {name: passing(make, blocks, config["tokens"]) for name, make in layers.items()}
    contests.append(Contest({"task": "layers"}, [Contestant(*item) for item in runs.items()], 1))
    return contests, held


def report(results: list[dict[str, Any]], held: dict[str, float]) -> str:
    """The tables as text: times as long as the first of a task, and whether an aim is met."""
    lines = []
    for result in results:
        task, first = result["task"], result["ours"]
        lines += ["", f"{task}: times as long as {first}, median (least to most) of the repetitions"]
        for name, found in result["contestants"].items():
            if "not_measured" in found:
                lines.append(f"  {name:26} not measured: {found['not_measured']}")
                continue
            ratio = result["ratios"].get(name)
            spread = f"{ratio['median']:6.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else f"{1:6.2f}"
            aim = AIMS.get((task, name))
            verdict = ""
            if aim and ratio:
                verdict = f"   aim {aim:g}: {'met' if ratio['median'] <= aim else 'missed'}"
            memory = f"{held[name]:6.2f} bytes of state per parameter" if task == "model" else ""
            milliseconds = 1e3 * found["median"] / (result["steps"])
            lines.append(f"  {name:26} {spread:24} {milliseconds:9.1f} ms a step  {memory}{verdict}".rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = harness.Parser(prog="python -m benchmarks.optim_cost", description="What a step of each optimizer costs.")
    parser.add_argument("--out", type=Path, default=Path("runs/optim_cost"), help="folder for the numbers")
    parser.add_argument("--reps", type=harness.positive, help="repetitions (7; quick: 2)")
    parser.add_argument("--threads", type=harness.positive, help="threads of torch (its own choice)")
    parser.add_argument("--quick", action="store_true", help="one block, for trying it out")
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out} cannot be made ({error.strerror}): give another folder")
    torch.set_flush_denormal(True)
    if args.reps and args.reps > 8:
        parser.error(f"--reps {args.reps}: give at most 8, or M3's slow momentum falls due in one of them")
    if args.threads:
        torch.set_num_threads(args.threads)
    config = {
        "blocks": 1 if args.quick else BLOCKS,
        "steps": PERIOD,
        "tokens": 64 if args.quick else TOKENS,
        "reps": args.reps or (2 if args.quick else 7),  # at most 8: see above
    }
    contests, held = programme(config)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    timings = harness.measure(contests, config["reps"], clock=clock)
    # Seconds of the others by those of the first: how many times as long.
    results = [{**harness.result(c, t), "steps": c.tokens} for c, t in zip(contests, timings)]
    harness.write_json(
        args.out / "optim_cost.json",
        {
            "benchmark": "optim_cost",
            "config": {**config, "clock": clock.__name__},
            "machine": harness.machine("cpu"),
            "aims": {f"{task}, {name}": aim for (task, name), aim in AIMS.items()},
            "bytes_per_parameter": held,
            "results": results,
        },
    )
    print(report(results, held))
    print(f"\nwrote {args.out / 'optim_cost.json'}")
    return 1 if any("not_measured" in found for r in results for found in r["contestants"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
