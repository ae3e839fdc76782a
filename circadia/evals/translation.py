"""New languages one after another (CTNL, Fig. 8 of the paper): are both known at the end, as well as each alone?

An arm reads `LANGUAGE: sentence / English: translation`, all pairs of one language, then all of the other, and is asked
for the English of unseen sentences of both. Small bases translate badly, so that the reference counts first: its bits
per byte and the share of its tokens that are the likeliest, both with the right beginning given; then chrF of what is
written. Recovered: of what learning a language alone gains over the base, the share that is there after both.
"""

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circadia.evals import arms, continual, continual_report, pairs
from circadia.evals.arms import Arm, Example
from circadia.evals.bases import Base, answers, written
from circadia.evals.metrics import mean, percent, spread
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import TUNING_SEED, group, tested

ARMS = tuple(arms.ARMS)
QUICK = ("frozen", "sliding window", "MLPs", "2 levels", "3 levels", "joint")
COURSES = ("Manx Potawatomi", "Kalamang Manx")
BOTH = "both"
LONGEST = 256  # tokens of a translation
# Name -> unit, factor, is less better?
METRICS = {"bits": ("bits per byte of the reference", 1.0, True), "tokens": ("right tokens, %", 100.0, False),
           "chrf": ("chrF", 100.0, False)}  # fmt: skip


def runs(options: Options, done: list[Record]) -> list[Run]:
    chosen = arms.pairs(options, ARMS, options.pick(QUICK, (*arms.DEFAULT, "4 levels"), arms.FULL))
    courses = options.pick(COURSES[:1], COURSES, COURSES)
    for course in courses:
        for name in course.split():
            options.folder(pairs.folder(name))
    sizes = {
        "train": options.pick(40, 200, None),  # pairs of each language
        "test": options.pick(10, 60, None),
        "written": options.pick(2, 10, 50),  # of them are translated for chrF
        "epochs": options.pick(1, 2, 2),
    }
    cells = [
        {"base": base, "course": course, "learned": BOTH, "arm": arm, **sizes}
        for course in courses
        for base, arm in chosen
    ]
    seeds = options.seeds or options.pick(1, 3, 3)
    plan = continual_report.planned(options, cells, arms.rates, seeds, done, goal)
    # Alone with the rate of both, so that nothing but the other language differs.
    alone = [
        {**run, "learned": name}
        for run in plan
        if run["stage"] == "test" and run["arm"] not in ("frozen", "joint")
        for name in run["course"].split()
    ]
    return plan + alone


def goal(scores: dict[str, Any]) -> float:
    """The reference at the end, of sentences that are not tested on."""
    return -mean(scores["metrics"]["bits"]["matrix"][-1])


def example(language: str, text: str, english: str) -> Example:
    return Example(f"{language}: {text}\nEnglish:", f" {english}\n\n")


def run(run: Run, options: Options) -> dict[str, Any]:
    base = Base.load(options.model_folder(run["base"]), options.device)
    seed = run["seed"]
    names = run["course"].split() if run["learned"] == BOTH else [run["learned"]]
    if seed == TUNING_SEED:
        names = names[::-1]  # rates are chosen on another order, and other sentences
    learned, asked = [], []
    for name in names:
        # By language, so that alone it meets the same sentences in the same order.
        chance = random.Random(f"{seed} {name}")
        found = pairs.load(options.folder(pairs.folder(name)).parent, name)
        train, unseen = (found.train, found.valid) if seed == TUNING_SEED else (found.train + found.valid, found.test)
        rows = [example(name, *pair) for pair in _few(train, run["train"], chance)]
        learned.append([one for _ in range(run["epochs"]) for one in chance.sample(rows, len(rows))])
        asked.append([example(name, *pair) for pair in _few(unseen, run["test"], chance)])
    arm = arms.make(run["arm"], base, run["rate"], seed)
    spent = 0.0

    def score(i: int, j: int) -> dict[str, float]:
        nonlocal spent
        began = time.perf_counter()
        found = scored(arm, base, asked[j], run["written"])
        spent += time.perf_counter() - began
        return found

    began = time.perf_counter()
    metrics = continual.in_turn(arm, learned, score)
    whole = time.perf_counter() - began
    return {
        "tasks": names,
        "metrics": metrics,
        "cost": {"seconds": round(whole - spent, 2), "asking": round(spent, 2), **arm.cost()},
    }


def _few(rows: list, count: int | None, chance: random.Random) -> list:
    return rows if count is None else chance.sample(rows, min(count, len(rows)))


def scored(arm: Arm, base: Base, asked: Sequence[Example], count: int) -> dict[str, float]:
    """Of the references, and of translations of the first `count`."""
    with arm.reading() as module:
        found = answers(base, module, [(arm.prompt(one.before), one.after) for one in asked])
        said = [
            written(base, module, arm.prompt(one.before), min(LONGEST, 2 * len(base.encode(one.after))))
            for one in asked[:count]
        ]
    size = sum(len(one.after.encode()) for one in asked)
    return {
        "bits": sum(one.nats for one in found) / math.log(2) / size,
        "tokens": sum(one.right for one in found) / sum(one.tokens for one in found),
        "chrf": chrf(said, [one.after.strip() for one in asked[:count]]),
    }


def chrf(said: Sequence[str], references: Sequence[str]) -> float:
    """By sacrebleu's default, 0 to 1."""
    try:
        from sacrebleu.metrics import CHRF
    except ImportError as error:
        raise ValueError("chrF needs sacrebleu: pip install 'circadia[eval]'") from error
    return CHRF().corpus_score(list(said), [list(references)]).score / 100


def recovered(records: list[Record], metric: str, name: str) -> list[float]:
    """Of one cell: (after both - base) / (alone - base), seed by seed where alone has gained anything."""
    sign = -1 if METRICS[metric][2] else 1
    values = []
    alone = {one.run["seed"]: one for one in records if one.run["learned"] == name}
    for one in records:
        other = alone.get(one.run["seed"])
        if one.run["learned"] == BOTH and other is not None:
            start, end = _ends(one, metric, name)
            gained = sign * (_ends(other, metric, name)[1] - start)
            if gained > 0:
                values.append(sign * (end - start) / gained)
    return values


def _ends(record: Record, metric: str, name: str) -> tuple[float, float]:
    """The score on a language before everything and at the end."""
    found, j = record.scores["metrics"][metric], record.scores["tasks"].index(name)
    return found["start"][j], found["matrix"][-1][j]


def table(records: list[Record]) -> list[Table]:
    tables = []
    for (course,), own in group(tested(records), "course").items():
        for metric, (unit, scale, less) in METRICS.items():
            tables.append(_recovery(own, course, metric, unit, scale, less))
        both = [one for one in own if one.run["learned"] == BOTH]
        title = f"{course.replace(' ', ', then ')}: bits per byte of the reference"
        by = ("base", "arm")
        tables.append(continual_report.table(both, by, "bits", title, 1.0, less=True, digits=3))
        tables.append(continual_report.matrices(both, by, "bits", title, 1.0, digits=3))
    return tables


def _recovery(records: list[Record], course: str, metric: str, unit: str, scale: float, less: bool) -> Table:
    names, digits = course.split(), 3 if scale == 1.0 else 1
    rows = []
    for (base, arm), own in group(records, "base", "arm").items():
        cells = []
        for name in names:
            both = [_ends(one, metric, name) for one in own if one.run["learned"] == BOTH]
            alone = [_ends(one, metric, name)[1] for one in own if one.run["learned"] == name]
            cells += [_pm(each, scale, digits) for each in ([x for x, _ in both], alone, [x for _, x in both])]
            cells.append(percent(recovered(own, metric, name)))
        rates = ", ".join(dict.fromkeys(f"{one.run['rate']:g}" for one in own))
        seeds = len({one.run["seed"] for one in own})
        rows.append((base, arm, rates, str(seeds), *cells))
    what = ("before", "alone", "after both", "recovered, %")
    columns = ("base", "arm", "rate", "seeds", *(f"{name} {one}" for name in names for one in what))
    notes = (
        f"{unit}, {'less' if less else 'more'} is better. The sliding window is the paper's ICL, with no additional "
        "level; MLPs, 2 levels and 3 levels have 1, 2 and 3. Recovered: of the gain of a language learned alone, what "
        "is there after both, where there is a gain. The paper's Figure 8 prints no numbers. Verses of the test are of "
        "other chapters than all that is learned; Kalamang is a split of our own, not comparable with MTOB.",
    )
    return Table(f"{course.replace(' ', ', then ')}: {unit}", columns, rows, notes)


def _pm(values: list[float], scale: float, digits: int) -> str:
    if not values:
        return "-"
    around = spread(values)
    return f"{scale * mean(values):.{digits}f}" + ("" if around is None else f" ±{scale * around:.{digits}f}")


def plot(records: list[Record], path: Path) -> None:
    from circadia.evals import plots

    groups: dict[str, dict[str, list[float]]] = {}
    for (course, arm), own in group(tested(records), "course", "arm").items():
        for name in course.split():
            values = recovered(own, "bits", name)
            if values:
                groups.setdefault(f"{name} of {course}", {})[arm] = [100 * x for x in values]
    if groups:
        plots.bars(groups, "recovered after both, %", path)


SUITE = Suite(
    name="languages",
    summary="two new languages one after the other against each alone (Fig. 8): recovered, reference, chrF",
    needs=Needs(
        data=("bible_pairs", "kalamang"),
        time={
            "quick": "15 minutes (1M parameters)",
            "default": "8 hours, 3 more for arms that sleep (estimated)",
            "full": "hours (not timed)",
        },
        models=ARMS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
