"""BABILong (Figure 9 of the paper): questions about facts that are spread over a book, read as a stream.

Trained with growing lengths, tested on streams of up to millions of tokens at the memory of one piece.
"""

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.evals import babi, fit, networks, plots
from circadia.evals.babi import LABELS, Book, Question
from circadia.evals.metrics import majority, mean, percent
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested, tuned
from circadia.models import HopeCache, HopeForCausalLM

MODELS = ("hope", "titans-lmm", "gated-deltanet")
RATES = (0.003, 0.001)
LENGTHS = {
    "quick": (0, 256, 1024),
    "default": (0, 256, 1024, 4096, 16_384, 65_536),
    "full": (0, 1024, 4096, 16_384, 131_072, 1_048_576, 10_485_760),
}
PIECE = 1024  # tokens that are read at once


def runs(options: Options, done: list[Record]) -> list[Run]:
    options.folder("babi")
    options.folder("books")
    common = {
        "steps": options.steps or options.pick(200, 2000, 20_000),
        "batch": options.pick(16, 16, 64),
        "trained": options.pick(192, 256, 4096),  # the longest in training
        "width": options.pick(64, 64, 512),
        "layers": options.pick(2, 2, 8),
        "words": options.pick(300, 2000, 4000),  # of the books
        "lengths": list(LENGTHS[options.depth]),
        "budget": options.pick(20_000, 300_000, 50_000_000),  # tokens read at each length
        "samples": options.pick(50, 100, 1000),  # at each length, if the budget allows; not fewer than 4
    }
    cells = [
        {"model": model, "task": task, **common}
        for task in options.pick(("qa1",), tuple(LABELS), tuple(LABELS))
        for model in options.chosen(networks.NAMES, options.pick(("hope", "gated-deltanet"), MODELS, MODELS))
    ]
    return tuned(cells, options.seeds or options.pick(1, 3, 3), options.pick(RATES[:1], RATES, RATES), done, goal)


def goal(scores: dict[str, Any]) -> float:
    return scores["valid"]


def run(run: Run, options: Options) -> dict[str, Any]:
    fit.start(run["seed"], options.device)
    book = babi.load(options.folder("babi"), options.folder("books"), run["task"], run["words"])
    shape = networks.Shape(len(book.words), width=run["width"], layers=run["layers"], **networks.levels(run))
    net = networks.build(run["model"], shape).to(options.device)
    rng = random.Random(f"train {run['seed']}")
    # A tenth of the questions for training is kept for tuning.
    pool = list(book.train)
    random.Random(f"split {run['task']}").shuffle(pool)
    held = max(1, len(pool) // 10)
    valid, train = pool[:held], pool[held:]
    least = sorted(map(book.shortest, train))[len(train) // 2]  # half of all questions fit from the start

    def loss(step: int) -> Tensor:
        top = least + (max(run["trained"], least) - least) * min(1.0, 0.1 + 2 * step / run["steps"])
        length = rng.randint(least, int(top))
        chosen: list[Question] = []
        while len(chosen) < run["batch"]:
            if book.shortest(one := rng.choice(train)) <= length:
                chosen.append(one)
        tokens = torch.stack([book.sample(one, length, rng, test=False) for one in chosen]).to(options.device)
        answers = torch.tensor([book.number[one.answer] for one in chosen], device=options.device)
        return F.cross_entropy(net(tokens, use_cache=False, logits_to_keep=1).logits[:, -1].float(), answers)

    trained = fit.fit(net, loss, fit.Recipe(run["steps"], run["rate"]))
    found: dict[str, dict[str, float]] = {}
    for length in run["lengths"]:
        count = max(4, min(run["samples"], run["budget"] // max(length, 100)))
        picked = random.Random(f"test {run['seed']} {length}")
        some = picked.sample(book.test, min(count, len(book.test)))
        found[str(length)] = score(net, book, some, length, picked, options.device, test=True)
    picked = random.Random(f"valid {run['seed']}")
    some = picked.sample(valid, min(60, len(valid)))
    answers = [one.answer for one in book.test]
    return {
        **trained,
        "parameters": networks.size(run["model"], shape, 64)["parameters"],
        "valid": score(net, book, some, run["trained"], picked, options.device, test=False)["accuracy"],
        "test": found,
        "majority": majority(answers),
        "random": mean([1 / len(babi.allowed(run["task"], one)) for one in book.test]),
    }


@torch.no_grad()
def score(
    net: HopeForCausalLM, book: Book, some: list[Question], length: int, rng: random.Random, device: str, test: bool
) -> dict[str, float]:
    """Right answers, tokens read, and the largest state that was carried from piece to piece."""
    right, read, largest = 0, 0, 0
    for one in some:
        cache, out = HopeCache(net.config.num_hidden_layers), None
        for piece in book.stream(one, length, PIECE, rng, test):
            out = net(piece[None].to(device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            read += len(piece)
            held = [x for state in cache.states for x in state.values()]
            largest = max(largest, sum(x.numel() * x.element_size() for x in held))
        assert out is not None
        right += babi.correct(book.task, one, book.words[int(out.logits[0, -1].argmax())])
    return {"accuracy": right / len(some), "samples": len(some), "tokens": read, "state_bytes": largest}


def table(records: list[Record]) -> list[Table]:
    found = tested(records)
    lengths = list(dict.fromkeys(length for one in found for length in one.scores["test"]))
    rows = []
    for (task,), same in group(found, "task").items():
        for (model,), own in group(same, "model").items():
            first = own[0]
            cells = [percent([one.scores["test"][n]["accuracy"] for one in own if n in one.scores["test"]])
                     for n in lengths]  # fmt: skip
            state = max(part["state_bytes"] for one in own for part in one.scores["test"].values())
            rows.append((task, model, f"{first.scores['parameters']:,}", f"{state:,}", f"{first.run['rate']:g}",
                         str(len(own)), *cells))  # fmt: skip
        for name in ("majority", "random"):
            rows.append((task, f"({name})", *["-"] * 4, *[percent([same[0].scores[name]])] * len(lengths)))
    columns = (
        "task",
        "model",
        "parameters",
        "state, bytes",
        "rate",
        "seeds",
        *(f"{int(n):,} words, %" for n in lengths),
    )
    notes = (
        f"Per cent by BABILong's scoring of the word that is said greedily. Streams are read in pieces of {PIECE} "
        "words; the state is the largest that was carried between two of them. 0: the facts alone. Words are the "
        "tokens; test questions and test books are not those of training. Longer streams have fewer samples (in the "
        "JSON). The paper shows a figure, no numbers.",
    )
    return [Table("BABILong", columns, rows, notes)]


def plot(records: list[Record], path: Path) -> None:
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for one in tested(records):
        for length, part in one.scores["test"].items():
            for title, value in ((one.run["task"], 100 * part["accuracy"]), ("state, bytes", part["state_bytes"])):
                curve = panels.setdefault(title, {}).setdefault(one.run["model"], {})
                curve.setdefault(max(64, int(length)), []).append(value)
    if panels:
        plots.lines(panels, "words", "right, %; bytes", path)


SUITE = Suite(
    name="babilong",
    summary="BABILong (Fig. 9): facts of bAbI spread over books, streamed at the memory of one piece",
    needs=Needs(
        data=("babi", "books"),
        time={"quick": "4 minutes", "default": "6 hours", "full": "a day (not timed)"},
        models=MODELS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
