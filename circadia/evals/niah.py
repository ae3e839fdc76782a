"""Needles in a haystack (Table 1 of the paper): trained on short texts, tested on as long and 2, 4, 8 times longer."""

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.evals import fit, needles, networks, plots
from circadia.evals.metrics import mean, percent
from circadia.evals.needles import TASKS, Haystack, Prompt
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested, tuned
from circadia.models import HopeForCausalLM

MODELS = ("hope", "hope-attention", "titans-lmm", "gated-deltanet", "transformer++")
FACTORS = (1, 2, 4, 8)  # of the length of training
RATES = (0.003, 0.001)
# Table 1: per cent at 4K, 8K and 16K tokens.
PUBLISHED = {
    model: dict(zip(TASKS, rows))
    for model, rows in {
        "transformer++": ("88.6 / 76.4 / 79.8", "100 / 98.8 / 94.2", "78.0 / 69.2 / 40.8", "79.4 / 83.0 / 61.4",
                          "58.9 / 48.0 / 29.8", "37.5 / 34.1 / 21.5"),
        "hope-attention": ("100 / 100 / 100", "100 / 98.4 / 94.4", "76.8 / 68.8 / 42.4", "80.2 / 84.8 / 60.8",
                           "60.4 / 47.8 / 30.6", "35.2 / 34.4 / 24.8"),
        "titans-lmm": ("100 / 100 / 100", "99.6 / 84.6 / 75.4", "74.2 / 42.8 / 21.2", "26.4 / 23.6 / 8.2",
                       "22.8 / 19.8 / 9.4", "24.6 / 15.1 / 8.2"),
        "hope": ("100 / 100 / 100", "99.2 / 88.4 / 78.2", "73.2 / 46.2 / 24.8", "29.4 / 24.8 / 14.8",
                 "31.7 / 24.8 / 14.2", "31.4 / 17.2 / 11.4"),
    }.items()
}  # fmt: skip


def runs(options: Options, done: list[Record]) -> list[Run]:
    options.folder("books")
    shown = options.pick(("hope", "gated-deltanet", "transformer++"), MODELS, MODELS)
    common = {
        "steps": options.steps or options.pick(150, 1500, 20_000),
        "batch": options.pick(16, 16, 64),
        "length": options.pick(128, 192, 1024),  # in training, in words
        "digits": options.pick(1, 2, 7),
        "strings": options.pick(32, 128, 200),  # tested for each task and length
        "words": options.pick(300, 500, 4000),  # of the books
        "width": options.pick(64, 64, 512),
        "layers": options.pick(2, 2, 8),
    }
    cells = [{"model": model, **common} for model in options.chosen(networks.NAMES, shown)]
    return tuned(cells, options.seeds or options.pick(1, 3, 3), options.pick(RATES[:1], RATES, RATES), done, goal)


def goal(scores: dict[str, Any]) -> float:
    return mean(list(scores["valid"].values()))


def run(run: Run, options: Options) -> dict[str, Any]:
    """One model learns all tasks together: all of RULER's, or those that the run names (suite `levels`)."""
    tasks = {name: TASKS[name] for name in run.get("tasks", TASKS)}
    generator = fit.start(run["seed"], options.device)
    hay = needles.books(options.folder("books"), run["words"])
    own = {"chunk": 64}
    shape = networks.Shape(hay.size, width=run["width"], layers=run["layers"], own=own, **networks.levels(run))
    net = networks.build(run["model"], shape).to(options.device)
    rng = random.Random(f"train {run['seed']}")
    length, digits, steps = run["length"], run["digits"], run["steps"]

    def loss(step: int) -> Tensor:
        # A task a batch. What is written must be found before it can be kept: short texts first.
        task = list(tasks.values())[int(torch.randint(len(tasks), (), generator=generator))]
        least = shortest(hay, task, digits)
        top = least + (length - least) * min(1.0, 0.1 + 2 * step / steps)
        size = rng.randint(least, max(least, int(top)))
        prompts = [hay.draw(task, size, digits, rng, test=False) for _ in range(run["batch"])]
        tokens = torch.tensor([[*one.tokens, *one.answer] for one in prompts], device=options.device)
        answer = len(prompts[0].answer)
        logits = net(tokens, use_cache=False, logits_to_keep=answer + 1).logits[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, -answer:].flatten())

    trained = fit.fit(net, loss, fit.Recipe(steps, run["rate"]))

    def scored(name: str, size: int, count: int, kind: str) -> float:
        held = random.Random(f"{kind} {run['seed']} {name} {size}")
        prompts = [hay.draw(TASKS[name], size, digits, held, test=True) for _ in range(count)]
        return score(net, prompts, options.device, max(1, run["batch"] * length // size))

    return {
        **trained,
        **networks.size(run["model"], shape, length),
        "valid": {name: scored(name, length, 32, "valid") for name in tasks},
        "test": {
            name: {str(factor): scored(name, factor * length, run["strings"], "test") for factor in FACTORS}
            for name in tasks
        },
        "chance": {name: chance(task, digits) for name, task in tasks.items()},
    }


def shortest(hay: Haystack, task: needles.Task, digits: int) -> int:
    """Tokens of a prompt without a haystack."""
    try:
        hay.draw(task, 0, digits, random.Random(0), test=False)
    except ValueError as error:
        return int(str(error).split("take ")[1].split(" ")[0])
    raise AssertionError("nothing fits in no tokens")


def chance(task: needles.Task, digits: int) -> float:
    """That one value stands somewhere in an answer of random digits."""
    count, base = (round(digits * 32 / 7), 16.0) if task.uuids else (digits, 10.0)
    places = max(task.values, task.queries) * count - count + 1
    return 1 - (1 - base**-count) ** places


@torch.no_grad()
def score(net: HopeForCausalLM, prompts: list[Prompt], device: str, batch: int) -> float:
    """The mean share of the values in what the net says, greedily, after the question."""
    shares = []
    for i in range(0, len(prompts), batch):
        part = prompts[i : i + batch]
        now = torch.tensor([one.tokens for one in part], device=device)
        cache, said = None, []
        for _ in part[0].answer:
            out = net(now, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, now = out.past_key_values, out.logits.argmax(-1)
            said.append(now)
        outputs = torch.cat(said, 1).tolist()
        shares += [needles.found(output, one.values) for output, one in zip(outputs, part)]
    return mean(shares)


def table(records: list[Record]) -> list[Table]:
    found = tested(records)
    rows = []
    for (model,), own in group(found, "model").items():
        first = own[0]
        size = f"{first.scores['parameters']:,}", f"{first.scores['state_bytes']:,}", f"{first.run['rate']:g}"
        for name in TASKS:
            cells = [percent([one.scores["test"][name][str(f)] for one in own]) for f in FACTORS]
            rows.append((model, name, *size, str(len(own)), *cells, PUBLISHED.get(model, {}).get(name, "-")))
        average = [[mean([one.scores["test"][n][str(f)] for n in TASKS]) for one in own] for f in FACTORS]
        rows.append((model, "average", *size, str(len(own)), *map(percent, average), "-"))
    for name in TASKS:
        if found:
            floor = percent([found[0].scores["chance"][name]])
            rows.append(("(chance)", name, *["-"] * 4, *[floor] * len(FACTORS), "-"))
    columns = ("model", "task", "parameters", "state, bytes", "rate", "seeds",
               *(f"{f}x, %" for f in FACTORS), "Table 1, 4K / 8K / 16K")  # fmt: skip
    notes = (
        "RULER-books: the haystack is public-domain books, not the essays of RULER. Words are the tokens (frequent "
        "ones of the books, keys, digits); in quick and default numbers have fewer digits than RULER's 7. 1x is the "
        "length of training; decoding is greedy, and the score is the mean share of values in the output. All values "
        "are drawn at random, so a majority answer is at chance. Table 1 has models of other sizes, trained on "
        "language.",
    )
    return [Table("Needles in a haystack", columns, rows, notes)]


def plot(records: list[Record], path: Path) -> None:
    panels: dict[str, dict[str, dict[float, list[float]]]] = {name: {} for name in TASKS}
    for one in tested(records):
        for name in TASKS:
            curve = panels[name].setdefault(one.run["model"], {})
            for factor in FACTORS:
                share = one.scores["test"][name][str(factor)]
                curve.setdefault(factor * one.run["length"], []).append(100 * share)
    if tested(records):
        plots.lines(panels, "words", "values found, %", path)


SUITE = Suite(
    name="niah",
    summary="needles in a haystack (Table 1): one, several keys, queries and values, up to 8 times the trained length",
    needs=Needs(
        data=("books",),
        time={"quick": "4 minutes", "default": "5 hours", "full": "2 hours (not timed)"},
        models=MODELS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
