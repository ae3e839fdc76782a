"""What each part of Hope is worth: Table 6 of the paper at a small size, its column beside ours.

The whole model of the paper has momentum and a memory that makes the queries (its table takes both away); ours has
neither unless told, and stands in the last row. Every other row changes one thing of the first:

without DGD           plain gradient descent on the L2 objective at the chunk start: no factor (alpha - eta k k^T)
without momentum      of the memories' inner optimizer
without weight decay  the retention alpha is 1: nothing is forgotten
without CMS           one MLP that never learns in context, as wide as the three levels together
static k, v, q        that projection comes from a memory that keeps its start; q: from the input alone

All are trained on the same rows of novels, in the same order, and tested on authors that they never read.
"""

import json
import signal
import tempfile
from pathlib import Path
from typing import Any

from circadia.evals import plots
from circadia.evals.metrics import mean, spread
from circadia.evals.runner import Interrupted
from circadia.evals.streams import HELD_OUT
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested, tuned
from circadia.train import Diverged, TrainConfig, load, train
from circadia.train.log import read

WHOLE = {"inertia": True, "adaptive_q": True}
# Name -> settings of the self-modifying rule, and of the model.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hope": (WHOLE, {}),
    "without DGD": ({**WHOLE, "erase": False, "objective": "l2"}, {}),
    "without momentum": ({**WHOLE, "inertia": False}, {}),
    "without weight decay": ({**WHOLE, "decays": False}, {}),
    "without CMS": (WHOLE, {"periods": [0]}),
    "static k": ({**WHOLE, "static": ["k"]}, {}),
    "static v": ({**WHOLE, "static": ["v"]}, {}),
    "static q": ({**WHOLE, "adaptive_q": False}, {}),
    "default hope": ({}, {}),
}
# Perplexity and accuracy on reasoning in Table 6 of "Nested Learning" (1.3B parameters, 100B tokens).
PAPER = {
    "hope": (12.24, 58.1),
    "without DGD": (13.41, 56.5),
    "without momentum": (13.58, 56.9),
    "without weight decay": (13.71, 57.2),
    "without CMS": (13.04, 57.3),
    "static k": (13.77, 56.9),
    "static v": (13.90, 55.1),
    "static q": (12.19, 57.4),
}
RATES = (1e-3, 2e-3, 4e-3)
TUNING = 4  # runs that choose the rate read a part of the text: one of so many


def runs(options: Options, done: list[Record]) -> list[Run]:
    options.folder("novels100")
    sizes = {
        "size": options.pick("tiny", "tiny", "small"),
        "tokens": options.pick(32_768, 1_000_000, 20_000_000),
        "length": options.pick(512, 1024, 1024),
        "batch": options.pick(8, 16, 16),
        "eval_tokens": options.pick(16_384, 200_000, 1_000_000),
    }
    names = options.chosen(tuple(VARIANTS), options.pick(("hope", "without CMS"), tuple(VARIANTS), tuple(VARIANTS)))
    rates = options.pick(RATES[1:2], RATES, RATES)
    # The differences are to the whole model.
    cells = [{"model": name, **sizes} for name in dict.fromkeys(("hope", *names))]
    return tuned(cells, options.seeds or options.pick(1, 3, 3), rates, done, goal)


def goal(scores: dict[str, Any]) -> float:
    """Held-out text, as in the report: rates are chosen with a seed, and a part of the text, of their own."""
    return -float("inf") if scores["bits"] is None else -scores["bits"]


def configured(run: Run, data: Path, out: Path, device: str) -> TrainConfig:
    """The run as `circadia train` does it; every variant has the width of the preset."""
    rule, model = VARIANTS[run["model"]]
    changes = {**model, **({"rules": {"self_modifying": rule}} if rule else {})}
    texts = sorted(data.glob("*.jsonl*"))
    if not texts:
        raise ValueError(f"{data}: no .jsonl or .jsonl.xz of novels in it")
    tokens = run["tokens"] // TUNING if run["stage"] == "tune" else run["tokens"]
    steps = max(1, round(tokens / (run["batch"] * run["length"])))
    tree = {
        "model": {"preset": f"hope/{run['size']}", "config": json.loads(json.dumps(changes))},
        "data": {"path": str(texts[0]), "text": "text", "tokenizer": "bytes", "length": run["length"], "reset": True,
                 "heldout": [f"author={name}" for name in HELD_OUT]},
        "optim": {"name": "adamw", "lr": run["rate"], "settings": {"betas": [0.9, 0.95], "weight_decay": 0.1},
                  "schedule": "cosine", "warmup": 0.02, "floor": 0.1, "clip": 1.0},
        "train": {"tokens": tokens, "batch": run["batch"], "micro": min(4, run["batch"]), "precision": "fp32",
                  "eval_every": -(-steps // (1 if run["stage"] == "tune" else 5)),
                  "eval_tokens": run["eval_tokens"], "device": device},
        "out": str(out),
        "seed": run["seed"],
    }  # fmt: skip
    return load(tree)


def run(run: Run, options: Options) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = configured(run, options.folder("novels100"), Path(folder) / "run", options.device)
        good = True
        try:
            result = train(config)
        except Diverged:
            good = False
        else:
            if result.stopped.startswith("SIG"):  # training takes signals for itself
                raise Interrupted(getattr(signal, result.stopped))
        lines = read(Path(config.out))
    steps = [line for line in lines if line["kind"] == "step"]
    each = run["batch"] * run["length"]
    curve = [(line["step"] * each, line["bits_per_byte"]) for line in lines if line["kind"] == "eval"]
    return {
        "bits": curve[-1][1] if good and curve else None,  # of a run that diverged there are none
        "curve": [point for point in curve if point[1] is not None],
        "parameters": next(line["parameters"] for line in lines if line["kind"] == "stage"),
        "tokens": sum(line["tokens"] for line in steps),
        "seconds": sum(line["seconds"] for line in steps),
    }


def table(records: list[Record]) -> list[Table]:
    records = tested(records)
    if not records:
        return []
    whole = {one.run["seed"]: one.scores["bits"] for one in records if one.run["model"] == "hope"}
    rows: list[tuple[str, ...]] = []
    for (name,), own in group(records, "model").items():
        good = [one for one in own if one.scores["bits"] is not None]
        paper = [f"{x:g}" for x in PAPER.get(name, ())] or ["-", "-"]
        # Seed by seed: the same order of the text on both sides.
        each = [one.scores["bits"] - whole[one.run["seed"]] for one in good if whole.get(one.run["seed"]) is not None]
        speed = sum(one.scores["tokens"] for one in own) / max(1e-9, sum(one.scores["seconds"] for one in own))
        rows.append(
            (name, _pm([one.scores["bits"] for one in good], ""), "-" if name == "hope" else _pm(each, "+"),
             f"{len(good)} of {len(own)}", f"{own[0].run['rate']:g}", f"{own[0].scores['parameters']:,}",
             f"{speed:,.0f}", *paper)
        )  # fmt: skip
    first = records[0].run
    notes = (
        f"Bits per byte on held-out authors after {first['tokens']:,} bytes in rows of {first['length']:,}, "
        f"{first['batch']} rows a step; the difference to the whole model is taken seed by seed, above zero where the "
        "part helps. Rates are chosen with another seed. The paper's figures are of its Table 6: another size, other "
        "text.",
    )
    columns = ("", "bits per byte", "difference", "seeds", "rate", "parameters", "tokens/s", "paper: perplexity",
               "paper: accuracy")  # fmt: skip
    return [Table("Ablation of Hope", columns, rows, notes)]


def _pm(values: list[float], sign: str) -> str:
    if not values:
        return "-"
    around = spread(values)
    return f"{mean(values):{sign}.4f}" + ("" if around is None else f" ±{around:.4f}")


def plot(records: list[Record], path: Path) -> None:
    curves: dict[str, dict[float, list[float]]] = {}
    for one in tested(records):
        for tokens, value in one.scores["curve"]:
            curves.setdefault(one.run["model"], {}).setdefault(float(tokens), []).append(value)
    if curves:
        plots.lines({"held-out authors": curves}, "bytes read", "bits per byte", path, log=False)


SUITE = Suite(
    name="ablation",
    summary="what each part of Hope is worth (Table 6): eight variants trained on novels",
    needs=Needs(
        data=("novels100",),
        time={"quick": "5 minutes", "default": "a day (not timed)", "full": "hours (not timed)"},
        models=tuple(VARIANTS),
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
