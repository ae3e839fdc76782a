"""Recall in which the code changes inside the sequence: what self-modification is for.

Pairs of a key and a value come one after another, from a table that is fresh in every sequence; where a key has been
shown before, its value is asked. Between them come instructions that change what the symbols mean from then on:

plain          none, the control
shift-keys     "shift by j": key a is from now on written as the symbol j further round
shift-values   the same for values
swap           "swap a b": a now means what b meant, and b what a meant
context        "context c": a key has another value in each context; returning to a context returns to its values

"changed" are the questions whose key has last been shown before the latest change, "same" those after it.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from circadia.evals import fit, networks, plots, sequences
from circadia.evals.metrics import mean, percent
from circadia.evals.sequences import NOTHING, Sequences
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested, tuned

MODELS = ("hope", "hope-static", "titans-lmm", "gated-deltanet", "deltanet", "lstm", "transformer++")
TASKS = ("plain", "shift-keys", "shift-values", "swap", "context")
KEYS = VALUES = 8
SHIFTS = (1, 2, 3)  # or three contexts
FIRST = KEYS + VALUES  # the first token of an instruction
SYMBOLS = FIRST + len(SHIFTS) + 1  # the last one is "swap"
CHANGE = 0.15  # share of the events that are instructions
RATES = (0.01, 0.003, 0.001)


@dataclass
class Code:
    """What the symbols mean now. A slot of the table is a key, or a key in a context."""

    table: list[int]
    slot: list[int]  # of every key symbol
    turn: int = 0  # of the values

    @staticmethod
    def fresh(task: str, rng: random.Random) -> "Code":
        contexts = len(SHIFTS) if task == "context" else 1
        return Code([rng.randrange(VALUES) for _ in range(KEYS * contexts)], list(range(KEYS)))

    def change(self, task: str, rng: random.Random) -> list[int]:
        """Change it; returns the instruction."""
        if task == "swap":
            a, b = rng.sample(range(KEYS), 2)
            self.slot[a], self.slot[b] = self.slot[b], self.slot[a]
            return [SYMBOLS - 1, a, b]
        which = rng.randrange(len(SHIFTS))
        if task == "shift-keys":
            self.slot = [self.slot[(k - SHIFTS[which]) % KEYS] for k in range(KEYS)]
        elif task == "shift-values":
            self.turn = (self.turn + SHIFTS[which]) % VALUES
        else:
            self.slot = [which * KEYS + k for k in range(KEYS)]
        return [FIRST + which]

    def value(self, key: int) -> int:
        return KEYS + (self.table[self.slot[key]] + self.turn) % VALUES


def draw(task: str, length: int, n: int, generator: torch.Generator) -> tuple[Sequences, torch.Tensor]:
    """Sequences, and which of their questions are about a code that has changed since."""
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    tokens, asked, changed = [], [], []
    for _ in range(n):
        code = Code.fresh(task, rng)
        text: list[int] = []
        answers: list[int] = []
        late: list[bool] = []
        shown: dict[int, int] = {}  # slot -> changes before it was shown last
        changes = 0
        while len(text) < length:
            if task != "plain" and text and rng.random() < CHANGE:
                said = code.change(task, rng)
                asks, changes, old = [NOTHING] * len(said), changes + 1, False
            else:
                key = rng.randrange(KEYS)
                slot, value = code.slot[key], code.value(key)
                said, asks = [key, value], [value if slot in shown else NOTHING, NOTHING]
                old = slot in shown and shown[slot] < changes
                shown[slot] = changes
            text += said
            answers += asks
            late += [old] * len(said)
        tokens.append(text[:length])
        asked.append(answers[:length])
        changed.append(late[:length])
    labels = torch.tensor(asked)
    return Sequences(torch.tensor(tokens), labels, labels), torch.tensor(changed)


def runs(options: Options, done: list[Record]) -> list[Run]:
    shown = options.pick(("hope", "hope-static", "deltanet"), MODELS, MODELS)
    common = {
        "steps": options.steps or options.pick(200, 1500, 20_000),
        "batch": options.pick(32, 32, 128),
        "train": options.pick(4000, 20_000, 100_000),
        "strings": options.pick(128, 512, 1000),  # tested
        "length": options.pick(64, 64, 256),
        "layers": 2,
    }
    cells = [
        {"model": model, "task": task, **common}
        for task in options.pick(("plain", "shift-keys"), TASKS, TASKS)
        for model in options.chosen(networks.NAMES, shown)
    ]
    seeds = options.seeds or options.pick(1, 3, 5)
    return tuned(cells, seeds, options.pick(RATES[1:2], RATES[:2], RATES), done, sequences.goal)


def data(task: str, length: int, sizes: tuple[int, ...], generator: torch.Generator) -> list[Sequences]:
    return sequences.apart(lambda n, g: draw(task, length, n, g)[0], sizes, generator)


def kinds(part: Sequences, changed: torch.Tensor) -> dict[str, Sequences]:
    """The same sequences with a part of the questions."""
    found = {"changed": part.asked.masked_fill(~changed, NOTHING), "same": part.asked.masked_fill(changed, NOTHING)}
    return {name: replace(part, asked=asked) for name, asked in found.items() if bool((asked != NOTHING).any())}


def run(run: Run, options: Options) -> dict[str, Any]:
    generator = fit.start(run["seed"], options.device)
    task, length = run["task"], run["length"]
    tests: dict[str, Sequences] = {}
    held = set()
    for factor in (1, 2):  # at the length of training and twice that
        part, changed = draw(task, factor * length, run["strings"], generator)
        held |= {row.tobytes() for row in part.tokens.numpy()}
        tests |= {f"{name} x{factor}": one for name, one in kinds(part, changed).items()}
    valid, train = data(task, length, (128, run["train"]), generator)
    valid, train = (
        part.rows(torch.tensor([i for i, row in enumerate(part.tokens.numpy()) if row.tobytes() not in held]))
        for part in (valid, train)
    )
    shape = networks.Shape(SYMBOLS, layers=run["layers"], own={"chunk": 16})
    return sequences.experiment(run, options, shape, train, valid, tests, generator)


TESTS = ("changed x1", "same x1", "changed x2", "same x2")


def table(records: list[Record]) -> list[Table]:
    found = tested(records)
    rows = []
    for (task,), own in group(found, "task").items():
        for (model,), each in group(own, "model").items():
            first = each[0]
            cells = [percent(_shares(each, name)) for name in TESTS]
            rows.append((task, model, f"{first.scores['parameters']:,}", f"{first.scores['state_bytes']:,}",
                         f"{first.run['rate']:g}", str(len(each)), *cells))  # fmt: skip
        floor = own[0].scores["majority"]
        rows.append((task, "(majority)", *["-"] * 4, *(percent([floor[n]]) if n in floor else "-" for n in TESTS)))
    columns = ("task", "model", "parameters", "state, bytes", "rate", "seeds", *(f"{n}, %" for n in TESTS))
    notes = (
        f"Per cent of the right values, chance {100 / VALUES:g}; x1 at the length of training, x2 at twice that. "
        "Changed: the code has changed since the key was last shown. Two blocks. New: no paper has this task.",
    )
    differences = []
    for (task,), own in group(found, "task").items():
        pair = [{one.run["seed"]: one for one in own if one.run["model"] == m} for m in ("hope", "hope-static")]
        seeds = sorted(pair[0].keys() & pair[1].keys())
        if seeds:
            cells = []
            for name in TESTS:
                both = [[_shares([p[seed]], name) for p in pair] for seed in seeds]
                cells.append(percent([a[0] - b[0] for a, b in both if a and b]))
            differences.append((task, str(len(seeds)), *cells))
    tables = [Table("Recall under a changing code", columns, rows, notes)]
    if differences:
        title = "Hope less hope with static projections, points on the same seeds"
        tables.append(Table(title, ("task", "seeds", *TESTS), differences))
    return tables


def _shares(records: list[Record], name: str) -> list[float]:
    return [one.scores["test"][name]["micro"] for one in records if name in one.scores["test"]]


def plot(records: list[Record], path: Path) -> None:
    groups = {
        task: {
            model: [100 * mean(shares)]
            for (model,), each in group(own, "model").items()
            if (shares := _shares(each, "same x1" if task == "plain" else "changed x1"))
        }
        for (task,), own in group(tested(records), "task").items()
    }
    if groups:
        plots.bars(groups, "right after a change, %", path)


SUITE = Suite(
    name="recode",
    summary="recall in which the code itself changes inside the sequence: shifted, swapped, other by context",
    needs=Needs(
        data=(),
        time={"quick": "3 minutes", "default": "6 hours", "full": "4 hours (not timed)"},
        models=MODELS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
