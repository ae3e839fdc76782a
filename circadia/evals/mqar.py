"""Multi-query recall (zoology, Arora et al. 2024) against the bytes of the state, also with keys that are overwritten.

Pairs of a key and a value open the sequence; then keys come again, each at most once, at gaps drawn by a power law, and
their values are asked. With overwriting a part of the keys is given a second value, and the last one counts.
"""

from pathlib import Path
from typing import Any

import torch

from circadia.evals import fit, networks, plots, sequences
from circadia.evals.metrics import mean, percent
from circadia.evals.sequences import NOTHING, Sequences
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested, tuned

MODELS = ("hope", "hope-static", "titans-lmm", "gated-deltanet", "deltanet", "mamba2", "transformer++")
TASKS = ("mqar", "overwritten")
RATES = (0.01, 0.003, 0.001)
POWER = 0.01  # of the law of gaps


def draw(vocabulary: int, length: int, pairs: int, overwritten: int, n: int, generator: torch.Generator) -> Sequences:
    """Keys 1 to V/2 - 1, values from V/2; ``overwritten`` of the keys have two values, the first of which is wrong."""
    written = pairs + overwritten
    rest = length - 2 * written
    if 2 * pairs > rest:
        raise ValueError(f"{written} writings and {pairs} questions do not fit in length={length}: take a longer one")
    half = vocabulary // 2
    keys = 1 + torch.rand(n, half - 1, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(half, vocabulary, (n, written), generator=generator)
    # The order of writing: first the keys that will be overwritten, shuffled in after that with all others.
    late = overwritten + torch.rand(n, pairs, generator=generator).argsort(1)
    place = torch.cat((torch.arange(overwritten).expand(n, -1), late), 1)  # of the writings of keys[:, owner]
    owner = torch.cat((torch.arange(overwritten), torch.arange(pairs)))
    order = place.argsort(1)
    key_at = keys.gather(1, owner[order])
    final = torch.zeros(n, pairs, dtype=torch.long).scatter(1, owner[order][:, overwritten:],
                                                           values[:, overwritten:])  # fmt: skip
    opening = torch.stack((key_at, values), 2).flatten(1)
    # p(gap) ~ POWER gap^(POWER - 1), without replacement: the smallest of exponential times over the weights.
    gaps = torch.arange(1, rest // 2 + 1, dtype=torch.float64)
    weight = POWER * gaps ** (POWER - 1)
    times = -torch.rand(n, rest // 2, generator=generator, dtype=torch.float64).clamp_min(1e-300).log() / weight
    at = 2 * times.argsort(1)[:, :pairs]
    asked_order = torch.rand(n, pairs, generator=generator).argsort(1)
    # What stands between are values, which no key can be mistaken for, and no answer follows a question.
    filler = torch.randint(half, vocabulary, (n, rest), generator=generator)
    filler = filler.scatter(1, at, keys.gather(1, asked_order))
    answers = torch.full((n, rest), NOTHING).scatter(1, at, final.gather(1, asked_order))
    tokens = torch.cat((opening, filler), 1)
    asked = torch.cat((torch.full_like(opening, NOTHING), answers), 1)
    return Sequences(tokens, asked, asked)


def sizes(task: str, options: Options) -> Run:
    """Pairs in training, and (length, pairs) of the tests; to overwrite half of the keys takes room."""
    if options.depth != "full":
        tests = options.pick([[64, 4], [64, 8]], [[64, 4], [64, 8], [64, 12], [128, 12]], None)
        return {"pairs": options.pick(8, 12, None), "tests": tests}
    if task == "overwritten":
        tests = [[64, 4], [64, 8], [64, 12], [128, 24], [256, 48], [512, 96], [1024, 192]]
        return {"pairs": 48, "tests": tests}
    return {"pairs": 64, "tests": [[64, 4], [64, 8], [64, 16], [128, 32], [256, 64], [512, 128], [1024, 256]]}


def runs(options: Options, done: list[Record]) -> list[Run]:
    shown = options.pick(("hope", "gated-deltanet", "transformer++"), MODELS, MODELS)
    common = {
        "steps": options.steps or options.pick(200, 1000, 12_000),
        "batch": options.pick(32, 32, 256),
        "train": options.pick(4000, 20_000, 100_000),
        "strings": options.pick(128, 512, 1000),  # tested
        "vocabulary": options.pick(64, 256, 8192),
        "length": options.pick(64, 64, 256),
    }
    cells = [
        {"model": model, "task": task, "width": width, **common, **sizes(task, options)}
        for task in TASKS
        for width in options.pick((64,), (32, 64), (64, 128, 256))
        for model in options.chosen(networks.NAMES, shown)
    ]
    return tuned(cells, options.seeds or options.pick(1, 3, 3), options.pick(RATES[1:2], RATES[:2], RATES), done,
                 sequences.goal)  # fmt: skip


def run(run: Run, options: Options) -> dict[str, Any]:
    """Trained on half and on all of the pairs in equal parts, tested on more and in longer sequences, too."""
    generator = fit.start(run["seed"], options.device)
    many, half = run["vocabulary"], run["pairs"] // 2

    def of(length: int, pairs: int) -> sequences.Draw:
        overwritten = pairs // 2 if run["task"] == "overwritten" else 0
        return lambda n, g: draw(many, length, pairs, overwritten, n, g)

    parts = {f"{length}/{pairs}": (length, pairs) for length, pairs in run["tests"]}
    tests = {name: sequences.apart(of(*one), (run["strings"],), generator)[0] for name, one in parts.items()}
    (valid,) = sequences.apart(of(run["length"], run["pairs"]), (128,), generator)
    held = {row.tobytes() for part in (*tests.values(), valid) for row in part.tokens.numpy()}
    trains = [sequences.apart(of(run["length"], p), (run["train"] // 2,), generator)[0] for p in (half, run["pairs"])]
    train = Sequences(*(torch.cat([getattr(t, name) for t in trains]) for name in ("tokens", "learn", "asked")))
    train = train.rows(torch.tensor([i for i, row in enumerate(train.tokens.numpy()) if row.tobytes() not in held]))
    shape = networks.Shape(many, width=run["width"], own={"chunk": 16})
    scores = sequences.experiment(run, options, shape, train, valid, tests, generator)
    return {**scores, "chance": 2 / many}


def table(records: list[Record]) -> list[Table]:
    found = tested(records)
    tables = []
    for (task,), own in group(found, "task").items():
        names = list(dict.fromkeys(name for one in own for name in one.scores["test"]))
        rows = []
        for (model, width), each in group(own, "model", "width").items():
            cells = [percent([x.scores["test"][n]["micro"] for x in each if n in x.scores["test"]]) for n in names]
            first = each[0]
            rows.append((model, str(width), f"{first.scores['parameters']:,}", f"{first.scores['state_bytes']:,}",
                         f"{first.run['rate']:g}", str(len(each)), *cells))  # fmt: skip
        for kind in ("majority", "chance"):
            each_floor = [
                own[0].scores["majority"].get(n) if kind == "majority" else own[0].scores["chance"] for n in names
            ]
            rows.append((f"({kind})", *["-"] * 5, *("-" if x is None else percent([x]) for x in each_floor)))
        columns = ("model", "width", "parameters", "state, bytes", "rate", "seeds", *(f"{n}, %" for n in names))
        title = "Multi-query recall" if task == "mqar" else "Multi-query recall, half of the keys overwritten"
        tables.append(Table(title, columns, rows))
    if tables:
        note = (
            "Columns: length / pairs of a test sequence. State after the length of training. Two blocks; the paper of "
            "the task shows curves, no table."
        )
        tables[-1] = Table(tables[-1].title, tables[-1].columns, tables[-1].rows, (note,))
    return tables


def plot(records: list[Record], path: Path) -> None:
    """Recall against the bytes of the state; the mean over the tests at the length of training."""
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for one in tested(records):
        own = [x["micro"] for name, x in one.scores["test"].items() if int(name.split("/")[0]) <= one.run["length"]]
        curve = panels.setdefault(one.run["task"], {}).setdefault(one.run["model"], {})
        curve.setdefault(one.scores["state_bytes"], []).append(100 * mean(own))
    if panels:
        plots.lines(panels, "state, bytes", "right answers, %", path)


SUITE = Suite(
    name="mqar",
    summary="multi-query recall against the bytes of the state; with overwritten keys, the last value counts",
    needs=Needs(
        data=(),
        time={"quick": "3 minutes", "default": "4 hours", "full": "2 hours (not timed)"},
        models=MODELS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
