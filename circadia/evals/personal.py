"""One base, several lives: what becomes of learners that read different texts, and of one that reads too much.

two lives   two learners of one base, each with a text of its own: bits per byte of unseen text of one's own kind, of
            the other's, and of the base's own text
too much    a learner with a small low-rank memory reads ten times what the memory could hold at two bits a number
            (Allen-Zhu and Li 2024 find at most so many bits of knowledge in a parameter): what does it still know
            better than the base, of what it read first, second, ... last?
"""

import random
import time
from pathlib import Path
from typing import Any

from circadia.evals import arms, continual_report, plots, streams
from circadia.evals.arms import CHUNK, Example, Streamed
from circadia.evals.bases import Base
from circadia.evals.metrics import mean, spread
from circadia.evals.stream import bits
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested

LIVES, MUCH = "two lives", "too much"
ARMS = ("full", "LoRA", "MLPs", "MLPs + decay", "last 2 MLPs", "2 levels", "3 levels")
_SMALL: dict[str, Any] = {"periods": [CHUNK], "capacity": "lowrank", "rank": 4, "optimizer": "adamw", "anchor": None}
SMALL: dict[str, dict[str, Any]] = {
    "rank 4": _SMALL,
    "rank 4 + decay": {**_SMALL, "anchor": "base", "decay": 0.01},
}
SMALL_RATES = (0.001, 0.003, 0.01)
SOURCES = ("legal", "medical", "code", "maths", *streams.HELD_OUT)
BITS, TIMES = 2.0, 10  # bits that a number holds; how much more is read than fits


def runs(options: Options, done: list[Record]) -> list[Run]:
    bases = options.base_folders()
    for folder in ("domains", "novels100"):
        options.folder(folder)
    shown = options.pick(("full", "MLPs", "rank 4"), (*ARMS, *SMALL), (*ARMS, *SMALL))
    chosen = options.chosen((*ARMS, *SMALL), shown)
    lives = [
        {"mode": LIVES, "base": base, "arm": arm, "kilobytes": options.pick(16, 100, 200)}
        for base in bases
        for arm in chosen
        if arm in ARMS
    ]
    much = [
        {"mode": MUCH, "base": base, "arm": arm, "times": options.pick(4, TIMES, TIMES)}
        for base in bases
        for arm in chosen
        if arm in SMALL
    ]
    seeds = options.seeds or options.pick(1, 3, 3)
    return continual_report.planned(options, lives + much, rates, seeds, done, goal)


def rates(arm: str) -> tuple[float, ...]:
    return SMALL_RATES if arm in SMALL else arms.rates(arm)


def goal(scores: dict[str, Any]) -> float:
    """Bits gained on one's own kind of text; or of all that was read."""
    return mean(scores["gained"]) if "gained" in scores else mean([scores[who]["own kind"] for who in ("one", "two")])


def run(run: Run, options: Options) -> dict[str, Any]:
    base = Base.load(options.base_folders()[run["base"]], options.device)
    data = options.folder("domains").parent
    return (_lives if run["mode"] == LIVES else _much)(run, base, data)


def _lives(run: Run, base: Base, data: Path) -> dict[str, Any]:
    """Gains over the base, in bits per byte; less than nothing where a learner reads worse than it."""
    chance = random.Random(f"lives {run['seed']}")
    names = chance.sample(SOURCES, 2)
    texts = [passage(data, name, 1024 * run["kilobytes"], chance) for name in names]
    own = streams.own_text(data, 16).decode("utf-8", "ignore")
    frozen = arms.make("frozen", base, 0.0, run["seed"])
    before = {text: bits(frozen, base, text) for text in (texts[0][1], texts[1][1], own)}
    found: dict[str, Any] = {"sources": names}
    began, asking, cost = time.perf_counter(), 0.0, {}
    for who, (me, you) in {"one": (0, 1), "two": (1, 0)}.items():
        arm = arms.make(run["arm"], base, run["rate"], run["seed"])
        arm.learn([Example("", texts[me][0])])
        arm.finish()
        paused = time.perf_counter()
        unseen = {"own kind": texts[me][1], "the other's": texts[you][1], "the base's": own}
        found[who] = {name: before[text] - bits(arm, base, text) for name, text in unseen.items()}
        asking += time.perf_counter() - paused
        cost = arm.cost()
    return {**found, "cost": {"seconds": round(time.perf_counter() - began - asking, 2), **cost}}


def passage(data: Path, name: str, length: int, chance: random.Random) -> tuple[str, str]:
    """Text to learn and 16 kB that is not, from a place in the source."""
    text, tested = streams.source_text(data, name), 16 * 1024
    if len(text) < length + tested:
        raise ValueError(f"--data: {name} has {len(text):,} bytes, and {length + tested:,} are needed")
    start = chance.randrange(len(text))
    turned = (text[start:] + text[:start])[: length + tested]
    learned, unseen = turned[:length], turned[length:]
    return learned.decode("utf-8", "ignore"), unseen.decode("utf-8", "ignore")


def _much(run: Run, base: Base, data: Path) -> dict[str, Any]:
    """Gains over the base on each part, right after it was read and at the end."""
    chance = random.Random(f"much {run['seed']}")
    source = chance.choice(streams.HELD_OUT)
    arm = Streamed(base, run["seed"], {**SMALL[run["arm"]], "rate": run["rate"]})
    frozen = arms.make("frozen", base, 0.0, run["seed"])
    numbers = sum(x.numel() for name, x in arm.state.items() if name.startswith(("level0/a/", "level0/b/")))
    text, _ = passage(data, source, 64 * 1024, chance)
    part = int(BITS * numbers / bits(frozen, base, text))  # bytes that would fit
    if part < 2 * CHUNK:
        raise ValueError(f"arm={run['arm']!r} holds {part} bytes of this base's text: too little for a measurement")
    whole, _ = passage(data, source, part * run["times"], chance)
    parts = [whole[len(whole) * i // run["times"] : len(whole) * (i + 1) // run["times"]] for i in range(run["times"])]
    before = [bits(frozen, base, one) for one in parts]
    after, began, asking = [], time.perf_counter(), 0.0
    for one, bits_ in zip(parts, before):
        arm.learn([Example("", one)])
        paused = time.perf_counter()
        after.append(bits_ - bits(arm, base, one))
        asking += time.perf_counter() - paused
    seconds = time.perf_counter() - began - asking
    gained = [old - bits(arm, base, one) for one, old in zip(parts, before)]
    return {
        "source": source,
        "numbers": numbers,
        "part": part,
        "at once": after,
        "gained": gained,
        "cost": {"seconds": round(seconds, 2), **arm.cost()},
    }


def table(records: list[Record]) -> list[Table]:
    found = tested(records)
    parts = [[one for one in found if one.run["mode"] == mode] for mode in (LIVES, MUCH)]
    return [make(own) for make, own in zip((_two_lives, _too_much), parts) if own]


def _two_lives(records: list[Record]) -> Table:
    rows = []
    kinds = ("own kind", "the other's", "the base's")
    for (base, arm), own in group(records, "base", "arm").items():
        each = [one.scores[who] for one in own for who in ("one", "two")]
        cells = [_pm([life[kind] for life in each]) for kind in kinds]
        apart = _pm([life["own kind"] - life["the other's"] for life in each])
        rows.append((base, arm, _rates(own), str(len(own)), *cells, apart, _seconds(own)))
    columns = ("base", "arm", "rate", "pairs", *kinds, "own less the other's", "seconds")
    note = (
        "Bits per byte gained over the base on unseen text, mean and deviation over both learners of each pair; "
        f"each reads {records[0].run['kilobytes']} kB. A learner that specialises gains on its own kind and "
        "not on the other's; below zero it has become worse than the base."
    )
    return Table("Two lives of one base", columns, rows, (note,))


def _too_much(records: list[Record]) -> Table:
    rows = []
    count = max(len(one.scores["gained"]) for one in records)
    for (base, arm), own in group(records, "base", "arm").items():
        for when, said in (("at once", "right after it"), ("gained", "at the end")):
            cells = [_pm([one.scores[when][i] for one in own]) for i in range(count)]
            rows.append((base, arm, _rates(own), str(len(own)), said, *cells))
    columns = ("base", "arm", "rate", "seeds", "asked", *(f"part {i + 1}" for i in range(count)))
    sizes = [one.scores["part"] for one in records]
    note = (
        f"Bits per byte gained over the base on text that was read. A part has {min(sizes):,} to {max(sizes):,} "
        f"bytes, what the memory could hold at {BITS:g} bits a number."
    )
    return Table(f"{count} times what it holds", columns, rows, (note,))


def _rates(own: list[Record]) -> str:
    return ", ".join(dict.fromkeys(f"{one.run['rate']:g}" for one in own))


def _seconds(own: list[Record]) -> str:
    return f"{mean([one.scores['cost']['seconds'] for one in own]):,.0f}"


def _pm(values: list[float]) -> str:
    around = spread(values)
    return f"{mean(values):+.3f}" + ("" if around is None else f" ±{around:.3f}")


def plot(records: list[Record], path: Path) -> None:
    """Gains by kind of text, and by part."""
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for one in tested(records):
        if one.run["mode"] == MUCH:
            for when, title in (("at once", "a part right after it was read"), ("gained", "each part at the end")):
                curve = panels.setdefault(title, {}).setdefault(one.run["arm"], {})
                for i, x in enumerate(one.scores[when]):
                    curve.setdefault(i + 1.0, []).append(x)
        else:
            for who in ("one", "two"):
                curve = panels.setdefault("unseen: own kind, the other's, the base's", {}).setdefault(
                    one.run["arm"], {}
                )
                for i, kind in enumerate(("own kind", "the other's", "the base's")):
                    curve.setdefault(i + 1.0, []).append(one.scores[who][kind])
    if panels:
        plots.lines(panels, "kind of text, or part", "bits per byte gained over the base", path, log=False)


SUITE = Suite(
    name="personal",
    summary="two learners of one base with different lives; and one that reads ten times what its memory holds",
    needs=Needs(
        data=("domains", "novels100"),
        time={"quick": "3 minutes (1M parameters)", "default": "3 hours (estimated)", "full": "hours (not timed)"},
        models=(*ARMS, *SMALL),
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
