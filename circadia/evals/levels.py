"""How many levels, and how slow (Figure 7 of the paper): Hope with 0 to 4 levels that learn, by its slowest period.

Each level ticks twice as often as the next slower one, so that all levels matter at the lengths that are read, and all
models have as many parameters. Where the paper asks about documents and scientific papers, facts of bAbI are spread
over a book here. The paper adapts a pretrained model; here each one is trained on the task.
"""

from pathlib import Path
from typing import Any

from circadia.evals import babilong, niah, plots
from circadia.evals.metrics import percent
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested, tuned

NEEDLE, QA = "MK-NIAH-1", "qa1"
NAMES = ("none", "1 level", "2 levels", "3 levels", "4 levels")
RATES = (0.003,)  # one for all: the suite compares one model with itself


def periods(count: int, slowest: int) -> list[int]:
    """Of so many levels, fastest first; of none, MLPs that never learn."""
    return [slowest >> (count - 1 - i) for i in range(count)] if count else [0]


def runs(options: Options, done: list[Record]) -> list[Run]:
    for folder in ("books", "babi"):
        options.folder(folder)
    shared = {
        "model": "hope",
        "steps": options.steps or options.pick(60, 800, 20_000),
        "batch": options.pick(8, 16, 64),
        "width": options.pick(32, 64, 512),
        "layers": options.pick(1, 2, 8),
    }
    each = {
        NEEDLE: {
            "tasks": [NEEDLE],
            "length": options.pick(96, 192, 8192),  # in training, in words
            "digits": options.pick(1, 2, 7),
            "strings": options.pick(16, 128, 200),
            "words": options.pick(300, 500, 4000),
        },
        QA: {
            "task": QA,
            "trained": options.pick(96, 256, 8192),
            "words": options.pick(300, 500, 4000),
            "lengths": options.pick([96, 192], [256, 512, 1024, 2048], [8192, 16_384, 32_768, 65_536]),
            "budget": options.pick(10_000, 100_000, 10_000_000),
            "samples": options.pick(16, 100, 1000),
        },
    }
    counts = [NAMES.index(name) for name in options.chosen(NAMES, options.pick(NAMES[:3], NAMES, NAMES))]
    slowest = options.pick((32,), (32, 128, 512), (512, 2048, 8192))
    cells = [
        {"of": name, "levels": count, "slowest": slow, "periods": periods(count, slow), **shared, **own}
        for name, own in each.items()
        for count in counts
        for slow in (slowest if count else (0,))
    ]
    return tuned(cells, options.seeds or options.pick(1, 3, 3), RATES, done, goal)


def goal(scores: dict[str, Any]) -> float:
    return (niah.goal if isinstance(scores["valid"], dict) else babilong.goal)(scores)


def run(run: Run, options: Options) -> dict[str, Any]:
    return (niah if run["of"] == NEEDLE else babilong).run(run, options)


def _shares(one: Record) -> dict[str, float]:
    """Right answers by the length that was read, as a multiple of that in training."""
    test = one.scores["test"]
    if one.run["of"] == NEEDLE:
        return dict(test[NEEDLE])
    return {f"{int(length) / one.run['trained']:g}": part["accuracy"] for length, part in test.items()}


def table(records: list[Record]) -> list[Table]:
    tables = []
    for (name,), same in group(tested(records), "of").items():
        rows = []
        lengths = list(_shares(same[0]))
        for (count, slow), own in group(same, "levels", "slowest").items():
            cells = [percent([_shares(one)[length] for one in own]) for length in lengths]
            shown = " ".join(map(str, own[0].run["periods"])) if count else "-"
            parameters = f"{own[0].scores['parameters']:,}"
            rows.append((str(count), str(slow or "-"), shown, parameters, str(len(own)), *cells))
        scores = same[0].scores
        floor = scores["chance"][NEEDLE] if name == NEEDLE else scores["majority"]
        trained = same[0].run["length" if name == NEEDLE else "trained"]
        notes = (
            f"Per cent right at multiples of the length of training, {trained} words; "
            f"{'chance' if name == NEEDLE else 'the commonest answer'} {100 * floor:.1f}. The paper shows a figure: "
            "more levels are better, and so are faster slowest levels, down to 512 tokens.",
        )
        columns = ("levels", "slowest", "periods", "parameters", "seeds", *(f"{x}x, %" for x in lengths))
        title = "four keys in a haystack" if name == NEEDLE else "facts in a book"
        tables.append(Table(f"Levels: {title}", columns, rows, notes))
    return tables


def plot(records: list[Record], path: Path) -> None:
    """By the number of levels, a curve for each slowest period, at the longest text."""
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    found = tested(records)
    for one in found:
        slow = [one.run["slowest"]] if one.run["levels"] else sorted({x.run["slowest"] for x in found} - {0})
        last = list(_shares(one).items())[-1]
        for each in slow:
            curve = panels.setdefault(f"{one.run['of']} at {last[0]}x", {}).setdefault(f"slowest {each}", {})
            curve.setdefault(float(one.run["levels"]), []).append(100 * last[1])
    if panels:
        plots.lines(panels, "levels", "right, %", path, log=False)


SUITE = Suite(
    name="levels",
    summary="0 to 4 levels and how slow the slowest is (Fig. 7): four keys in a haystack, facts in a book",
    needs=Needs(
        data=("books", "babi"),
        time={"quick": "3 minutes", "default": "12 hours (estimated)", "full": "days (not timed)"},
        models=NAMES,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
