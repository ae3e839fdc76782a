"""MAD (Poli et al. 2024; Table 4 of the paper): six small tasks, accuracy over all answers and over classes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circadia.evals import fit, mad_tasks, networks, plots, sequences
from circadia.evals.mad_tasks import BASE, Setting
from circadia.evals.metrics import majority, mean, percent
from circadia.evals.sequences import NOTHING, Sequences
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested, tuned

MODELS = ("hope", "hope-attention", "titans-lmm", "gated-deltanet", "deltanet", "transformer++")
RATES = (0.003, 0.001)
# Smaller than the paper's baselines, for a CPU.
SMALL: dict[str, dict[str, Any]] = {
    "in-context-recall": {"length": 64},
    "noisy": {"length": 64},
    "fuzzy": {"length": 64},
    "selective-copying": {"length": 64, "copy": 8},
}
# What the paper varies, one at a time.
HARDER: dict[str, dict[str, tuple]] = {
    "in-context-recall": {"vocabulary": (32, 64, 128), "length": (256, 512, 1024), "train": (6400, 3200, 1600, 800)},
    "noisy": {"vocabulary": (48, 80, 144), "length": (256, 512, 1024), "train": (6400, 3200, 1600, 800),
              "noise": (0.4, 0.6, 0.8)},
    "fuzzy": {"vocabulary": (32, 64, 128), "length": (256, 512, 1024), "train": (6400, 3200, 1600, 800)},
    "selective-copying": {"vocabulary": (32, 64, 128), "length": (512, 1024), "train": (6400, 3200, 1600, 800),
                          "copy": (32, 64, 96)},
    "compression": {"vocabulary": (32, 64, 128), "length": (64, 128, 256), "train": (6400, 3200, 1600, 800)},
    "memorization": {"vocabulary": (512, 1024, 2048, 4096, 8192)},
}  # fmt: skip
# Table 4, per cent.
PUBLISHED = {
    name: dict(zip(("compression", "in-context-recall", "fuzzy", "selective-copying", "memorization"), row))
    for name, row in {
        "transformer++": (49.4, 100.0, 47.9, 96.2, 83.7),
        "titans-lmm": (49.8, 100.0, 50.0, 99.4, 83.4),
        "hope": (51.2, 100.0, 52.1, 99.7, 85.2),
    }.items()
}


def settings(task: str, depth: str) -> list[dict[str, Any]]:
    """What differs from the task's baseline, for each difficulty."""
    if depth != "full":
        return [SMALL.get(task, {})]
    return [{}, *({name: value} for name, values in HARDER[task].items() for value in values)]


def runs(options: Options, done: list[Record]) -> list[Run]:
    shown = options.pick(("hope", "deltanet", "transformer++"), MODELS, MODELS)
    common = {
        "steps": options.steps or options.pick(150, 800, 20_000),
        "batch": options.pick(32, 32, 128),
        "width": options.pick(64, 64, 128),
        "strings": options.pick(256, 640, 1280),  # tested
    }
    cells = [
        {"model": model, "task": task, "setting": setting, **common}
        for task in BASE
        for setting in settings(task, options.depth)
        for model in options.chosen(networks.NAMES, shown)
    ]
    return tuned(cells, options.seeds or options.pick(1, 3, 3), options.pick(RATES[:1], RATES, RATES), done, _goal)


_goal = sequences.goal


def data(setting: Setting, strings: int, generator: torch.Generator) -> list[Sequences]:
    """Test, validation, training, none of them in another."""
    whole = sequences.apart(lambda n, g: mad_tasks.draw(setting, n, g, True), (strings, 128), generator)
    held = {row.tobytes() for part in whole for row in part.tokens.numpy()}
    (train,) = sequences.apart(lambda n, g: mad_tasks.draw(setting, n, g, False), (setting.train,), generator)
    kept = [i for i, row in enumerate(train.tokens.numpy()) if row.tobytes() not in held]
    return [*whole, train.rows(torch.tensor(kept))]


def run(run: Run, options: Options) -> dict[str, Any]:
    setting = replace(BASE[run["task"]], **run["setting"])
    generator = fit.start(run["seed"], options.device)
    test, valid, train = data(setting, run["strings"], generator)
    shape = networks.Shape(setting.vocabulary, width=run["width"], own={"chunk": 16})
    if run["task"] == "compression":
        return _compress(run, options, shape, train, valid, test, generator)
    return sequences.experiment(run, options, shape, train, valid, {"test": test}, generator)


class Decoder(nn.Module):
    """A token for every place, from the state at the last token: two layers as wide as the model."""

    def __init__(self, width: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, vocabulary))
        angles = torch.arange(length)[:, None] * torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
        self.places: Tensor
        self.register_buffer("places", torch.stack((angles.sin(), angles.cos()), 2).flatten(1))

    def forward(self, last: Tensor) -> Tensor:
        return self.layers(last[:, None] + self.places)


def _compress(
    run: Run,
    options: Options,
    shape: networks.Shape,
    train: Sequences,
    valid: Sequences,
    test: Sequences,
    generator: torch.Generator,
) -> dict[str, Any]:
    """The autoencoder: the state at the end alone must tell every token."""
    net = networks.build(run["model"], shape).to(options.device)
    decoder = Decoder(shape.width, shape.vocabulary, test.tokens.shape[1]).to(options.device)
    whole = train.to(options.device)

    def told(part: Sequences) -> Tensor:
        hidden = net.model(part.tokens, use_cache=False).last_hidden_state[:, -1]
        return decoder(hidden)[part.asked != NOTHING]

    def loss(step: int) -> Tensor:
        part = whole.rows(torch.randint(len(whole), (run["batch"],), generator=generator).to(options.device))
        return F.cross_entropy(told(part), sequences.wanted(part))

    @torch.no_grad()
    def scored(part: Sequences) -> dict[str, float]:
        pieces = [part.rows(index) for index in torch.arange(len(part)).split(run["batch"])]
        said = torch.cat([told(piece.to(options.device)).argmax(-1).cpu() for piece in pieces])
        return sequences.accuracy(sequences.wanted(part), said)

    trained = fit.fit(nn.ModuleList([net, decoder]), loss, fit.Recipe(run["steps"], run["rate"]))
    return {
        **trained,
        **networks.size(run["model"], shape, test.tokens.shape[1]),
        "valid": scored(valid),
        "test": {"test": scored(test)},
        "majority": {"test": majority(sequences.wanted(test).tolist())},
    }


def table(records: list[Record]) -> list[Table]:
    found = tested(records)
    tasks = [task for task in BASE if any(one.run["task"] == task for one in found)]
    tables = []
    for kind, said in (("micro", "over all answers"), ("macro", "the mean over the classes of answers")):
        rows = []
        for (model,), own in group(found, "model").items():
            shares = {task: _by_seed([x for x in own if x.run["task"] == task], kind) for task in tasks}
            theirs = PUBLISHED.get(model, {})
            cells = [percent(shares[t]) + (f" ({theirs[t]:g})" if t in theirs else "") for t in tasks]
            seeds = {len(each) for each in shares.values()}
            average = [mean(each) for each in zip(*shares.values())] if len(seeds) == 1 else []
            size = max(one.scores["parameters"] for one in own), max(one.scores["state_bytes"] for one in own)
            rows.append((model, f"{size[0]:,}", f"{size[1]:,}", str(max(seeds)), *cells, percent(average)))
        if found and kind == "micro":
            for name in ("majority", "chance"):
                cells = [_floor(name, [one for one in found if one.run["task"] == task]) for task in tasks]
                rows.append((f"({name})", "-", "-", "-", *cells, "-"))
        columns = ("model", "parameters, at most", "state, bytes, at most", "seeds", *tasks, "average")
        tables.append(Table(f"MAD, accuracy {said}", columns, rows))
    lengths = ", ".join(f"{t} {replace(BASE[t], **SMALL.get(t, {})).length}" for t in BASE)
    notes = (
        "Per cent; in brackets Table 4 of the paper, which trains other sizes for longer and averages over "
        "difficulties. "
        f"Quick and default run one difficulty a task, at lengths {lengths}; full runs those of MAD. Two blocks.",
    )
    return [*tables[:-1], replace(tables[-1], notes=notes)]


def _by_seed(records: list[Record], kind: str) -> list[float]:
    """For every seed the mean over the difficulties."""
    return [mean([one.scores["test"]["test"][kind] for one in own]) for own in group(records, "seed").values()]


def _floor(name: str, records: list[Record]) -> str:
    if name == "majority":
        return percent([mean([one.scores["majority"]["test"] for one in records])])
    each = [1 / replace(BASE[one.run["task"]], **one.run["setting"]).values for one in records]
    return percent([mean(each)])


def plot(records: list[Record], path: Path) -> None:
    groups = {
        task: {model: [100 * x for x in _by_seed(each, "micro")] for (model,), each in group(own, "model").items()}
        for (task,), own in group(tested(records), "task").items()
    }
    if groups:
        plots.bars(groups, "right answers, %", path)


SUITE = Suite(
    name="mad",
    summary="MAD (Table 4): recall, noisy and fuzzy recall, selective copying, compression, memorization",
    needs=Needs(
        data=(),
        time={"quick": "6 minutes", "default": "4 hours", "full": "8 hours (not timed)"},
        models=MODELS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
