"""Our optimizers against AdamW and Muon: ``python -m benchmarks.optim --tasks digits --out DIR``.

digits     a small ViT on scikit-learn's images of digits, which need no download
images     the same ViT on any folder of images with a folder for each class (--data DIR)
novels     transformer++ `tiny` on novels (--data DIR)
hope       Hope `tiny` on the same
hope-small the same with 64 channels and 3 blocks
continual  transformer++ `tiny` on four domains one after another: what is left of the first?

Every optimizer trains the hidden matrices; all else is trained by the same AdamW at the same rate under each of them.
For each one learning rate and weight decay are tuned in one and the same way on the validation loss of one seed, then
runs of other seeds are reported. Every run is a line in runs.jsonl, and a run that is there is not made again, so the
command can be stopped and given again; the report names what is missing.

As it is, a task takes about 45 minutes of one thread of a free machine, hope twice as long: runs of the grid are short
(which favours rates that are fast at first), and the second decay is tried at the best rate and its neighbours only.
--full is what one would rather have: every rate with every decay, longer runs; hours a task.
"""

import itertools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import harness
from benchmarks.optim_tasks import TASKS
from circadia.optim import Combined, build, groups

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
DECAYS = (0.0, 0.1)
TUNING_SEED = 1000  # the reported ones are 0, 1, 2
FORMAT = 1  # of a line; another one's runs are made again

# Name -> name in `build`, settings. A period of M3 is a twentieth of the run, so that its slow memory is written often.
# All that differs from run to run stands here, not in the defaults, which may change.
FAST = {"periods": (1,), "betas": (0.95,), "weights": (1.0,)}
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("adamw", {}),
    "Muon": ("muon", {}),
    "AdaMuon": ("adamuon", {}),
    "M3": ("m3", {"slow": True, "betas": (0.95, 0.9), "weights": (1.0, 0.1)}),
    "M3, slow level at half": ("m3", {"slow": True, "betas": (0.95, 0.9), "weights": (1.0, 0.5)}),
    "M3, fast level alone": ("m3", FAST),
    "M3 literal": ("m3_literal", {"slow": True}),
    "DGD": ("dgd", {}),
    "delta momentum": ("delta_momentum", {}),
    "DMGD": ("dmgd", {}),
    "SGD": ("sgd", {}),
}


def make(model: nn.Module, name: str, lr: float, decay: float, rest: float, steps: int) -> torch.optim.Optimizer:
    """The optimizer with rate and decay on the hidden matrices; AdamW at a fixed rate on all else."""
    rule, settings = OPTIMIZERS[name]
    settings = dict(settings)
    if settings.pop("slow", False):
        settings["periods"] = (1, max(2, steps // 20))
    if rule == "sgd":
        split = groups(model)
        own = list(split.matrices.values())
        other = [p for name, held in split.items() if name != "matrices" for p in held.values()]
        optimizer: torch.optim.Optimizer = Combined(
            [
                torch.optim.SGD([{"params": own, "name": "sgd"}], lr=lr, momentum=0.9, weight_decay=decay),
                torch.optim.AdamW([{"params": other, "name": "vectors"}]),
            ]
        )
    else:
        optimizer = build(model, rule, lr=lr, weight_decay=decay, **settings)
    for group in optimizer.param_groups:
        if group["name"] in ("embeddings", "head", "vectors", "memories"):
            group |= {"lr": rest, "weight_decay": 0.0}
    assert isinstance(optimizer, Combined) or rule == "adamw"
    return optimizer


def train(task: Any, name: str, lr: float, decay: float, seed: int, steps: int) -> dict[str, Any]:
    """One run: what is measured at its end."""
    torch.manual_seed(seed)
    model = task.model()
    generator = torch.Generator().manual_seed(seed)
    optimizer = make(model, name, lr, decay, task.rest, steps)
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warm)
        return rise if task.constant else rise * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    curve, marks, wanted = [], [], set(task.marks(steps))
    begin = time.perf_counter()
    for step in range(steps):
        optimizer.zero_grad()
        loss = task.loss(model, step, steps, generator)
        curve.append(loss.item())
        if not math.isfinite(curve[-1]):
            break
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step + 1 in wanted:
            marks.append(_measured(task, model))
    seconds = time.perf_counter() - begin
    found = _measured(task, model) if len(curve) == steps else {}
    width = max(1, steps // 50)
    smooth = [sum(curve[i : i + width]) / len(curve[i : i + width]) for i in range(0, len(curve), width)]
    diverged = not found or not all(map(math.isfinite, _numbers(found)))
    return {
        "measured": None if diverged else found,
        "marks": None if diverged else marks,
        "curve": [x if math.isfinite(x) else None for x in smooth],
        "seconds": round(seconds, 2),
    }


def _measured(task: Any, model: nn.Module) -> dict[str, Any]:
    model.eval()
    with torch.no_grad():
        found = task.measure(model)
    model.train()
    return found


def _numbers(found: Mapping[str, Any]) -> list[float]:
    return [x for value in found.values() for x in (_numbers(value) if isinstance(value, dict) else [value])]


class Runs:
    """The lines of a file, by what makes a run the one it is."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last one of a run that was stopped while it was written
            if row.get("format") == FORMAT:
                self.held[self.key(row)] = row

    @staticmethod
    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("task", "model", "optimizer", "lr", "weight_decay", "seed", "steps"))

    def add(self, row: dict[str, Any]) -> None:
        self.held[self.key(row)] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def at(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The run of a row of a plan, if it is made."""
        return self.held.get(self.key(row))


def grid(runs: Runs, fixed: Mapping[str, Any], full: bool) -> tuple[list[dict[str, Any]], bool]:
    """The runs of the grid, made or not, and whether they are all: further ones depend on the first.

    By default every rate with the first decay, then the other decays at the best rate and its two neighbours.
    """
    fixed = {**fixed, "seed": TUNING_SEED}
    if full:
        return [{**fixed, "lr": lr, "weight_decay": d} for lr, d in itertools.product(RATES, DECAYS)], True
    rows = [{**fixed, "lr": lr, "weight_decay": DECAYS[0]} for lr in RATES]
    if any(runs.at(row) is None for row in rows):
        return rows, False
    if found := best(runs, rows):
        place = RATES.index(found["lr"])
        near = RATES[max(0, place - 1) : place + 2]
        rows += [{**fixed, "lr": lr, "weight_decay": d} for lr, d in itertools.product(near, DECAYS[1:])]
    return rows, True


def best(runs: Runs, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The run whose validation loss is least; None if none converges, or one is missing."""
    found = [runs.at(row) for row in rows]
    done = [row for row in found if row and row["measured"]]
    return min(done, key=lambda row: row["measured"]["valid"]) if done and all(found) else None


@dataclass(frozen=True)
class Plan:
    """All runs of an optimizer at a task."""

    tuning: list[dict[str, Any]]  # of the grid
    tuned: bool  # are all of these made?
    chosen: dict[str, Any] | None  # the best of them
    reported: list[dict[str, Any]]  # one a seed, at the best of the grid

    def missing(self, runs: Runs) -> list[dict[str, Any]]:
        """What is still to be made."""
        return [row for row in [*self.tuning, *self.reported] if runs.at(row) is None]


def plan(runs: Runs, task: str, model: str, optimizer: str, args: Any) -> Plan:
    """First the grid, then the seeds at its best."""
    tune, steps = lengths(args.tasks[task], args)
    fixed = {"format": FORMAT, "task": task, "model": model, "optimizer": optimizer}
    tuning, whole = grid(runs, {**fixed, "steps": tune}, args.full)
    tuned = whole and all(runs.at(row) for row in tuning)
    chosen = best(runs, tuning) if tuned else None
    setting = {name: chosen[name] for name in ("lr", "weight_decay")} if chosen else {}
    reported = [{**fixed, **setting, "seed": seed, "steps": steps} for seed in range(args.seeds)] if chosen else []
    return Plan(tuning, tuned, chosen, reported)


def lengths(task: Any, args: Any) -> tuple[int, int]:
    """Steps of a run of the grid, and of a reported one."""
    tune, steps = (task.full_tune_steps, task.full_steps) if args.full else (task.tune_steps, task.steps)
    return args.tune_steps or args.steps or tune, args.steps or steps


def main(argv: Sequence[str] | None = None) -> int:
    args = options(argv)
    torch.set_flush_denormal(True)
    if args.threads:
        torch.set_num_threads(args.threads)
    runs = Runs(args.out / "runs.jsonl")
    begin, over, made = time.perf_counter(), False, 0
    for name, optimizer in itertools.product(args.tasks, args.optimizers):
        task = args.tasks[name]
        while not over and (left := plan(runs, name, task.architecture, optimizer, args).missing(runs)):
            for row in left:
                if args.budget_minutes and time.perf_counter() - begin > 60 * args.budget_minutes:
                    over = True
                    break
                if sys.stderr.isatty():
                    print(f"\r{name}, {optimizer}: {row['lr']:g}, {row['weight_decay']:g}  ", end="", file=sys.stderr)
                found = train(task, optimizer, row["lr"], row["weight_decay"], row["seed"], row["steps"])
                runs.add({**row, **found, "threads": torch.get_num_threads(), "torch": torch.__version__})
                made += 1
    print(f"{made} runs made in {(time.perf_counter() - begin) / 60:.1f} minutes", file=sys.stderr)
    from benchmarks import optim_report

    optim_report.show(runs, args)
    return 0


def options(argv: Sequence[str] | None) -> Any:
    parser = harness.Parser(
        prog="python -m benchmarks.optim",
        description="Our optimizers against AdamW and Muon. A task takes about 45 minutes of one thread; the runs of "
        "the grid are short, and the second weight decay is tried near the best rate only. --full: the thorough form.",
    )
    parser.add_argument("--tasks", default="digits", help=f"any of {','.join(TASKS)} (digits)")
    parser.add_argument("--optimizers", help=f"any of these, separated by ';': {'; '.join(OPTIMIZERS)} (all)")
    parser.add_argument("--steps", type=harness.positive, help="of a reported run (by task: 160 or 200)")
    parser.add_argument("--tune-steps", type=harness.positive, help="of a run of the grid (by task; else as --steps)")
    parser.add_argument("--full", action="store_true", help="the whole grid, longer runs: hours a task")
    parser.add_argument("--seeds", type=harness.positive, default=3, help="reported ones (3); one more is for tuning")
    parser.add_argument("--data", type=Path, help="folder with novels*/ and domains/, or of images")
    parser.add_argument("--out", type=Path, default=Path("runs/optim"), help="folder for runs, tables and pictures")
    parser.add_argument("--budget-minutes", type=float, help="begin no run after so long")
    parser.add_argument("--threads", type=harness.positive, help="threads of torch (its own choice)")
    args = parser.parse_args(argv)
    names = {}
    for option, table, split in (("tasks", TASKS, ","), ("optimizers", OPTIMIZERS, ";")):
        given = getattr(args, option)
        names[option] = [x.strip() for x in given.split(split) if x.strip()] if given else list(table)
        if wrong := [x for x in names[option] if x not in table]:
            parser.error(f"--{option} {wrong[0]!r} is unknown: use any of {split.join(table)}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        args.tasks = {name: TASKS[name](args.data, args.full) for name in names["tasks"]}
    except OSError as error:
        parser.error(f"--out {args.out} cannot be made ({error.strerror}): give another folder")
    except ImportError as error:
        parser.error(f"{error.name} is missing: pip install 'circadia[eval]'")
    except ValueError as error:
        parser.error(str(error))
    args.optimizers = names["optimizers"]
    return args


if __name__ == "__main__":
    sys.exit(main())
