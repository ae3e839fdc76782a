"""Class-incremental text (Fig. 6 of the paper): classes come in tasks, and a text is put into any class seen so far.

Labels are text. An arm reads `TEXT / Topic: LABEL`, task after task; at a test, which names no task, the model writes
the likeliest of all label texts so far, token by token. Class means, Gaussians and InCA sort by the base's features.
"""

import random
import time
from pathlib import Path
from typing import Any

from circadia.evals import arms, class_sets, continual, continual_report
from circadia.evals.arms import Arm, Example
from circadia.evals.arms.features import ClassMeans, Gaussians, InCA
from circadia.evals.bases import Base, chosen
from circadia.evals.metrics import majority, mean
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import TUNING_SEED, group, tested

SORTERS: dict[str, type[ClassMeans]] = {"class means": ClassMeans, "Gaussians": Gaussians, "InCA": InCA}
ARMS = (*arms.ARMS, *SORTERS)
QUICK = (*arms.QUICK, "Gaussians")
SETS = ("clinc150", "dbpedia")  # Banking77 joins where --data has it


def rates(arm: str) -> tuple[float, ...]:
    """Sorters have none."""
    return (0.0,) if arm in SORTERS else arms.rates(arm)


def runs(options: Options, done: list[Record]) -> list[Run]:
    chosen = arms.pairs(options, ARMS, options.pick(QUICK, (*arms.DEFAULT, *SORTERS), (*arms.FULL, *SORTERS)))
    names = [name for name in class_sets.SETS if name in SETS or (options.data and (options.data / name).is_dir())]
    for name in names:
        options.folder(name)
    sizes = {
        "tasks": options.pick(3, None, None),
        "train": options.pick(4, 10, None),  # of each class
        "test": options.pick(1, 2, None),
        "epochs": options.pick(1, 2, 3),
        "characters": options.pick(100, 160, 400),  # of a text
    }
    cells = [
        {"base": base, "set": name, "arm": arm, **sizes}
        for name in options.pick(names[:1], names, names)
        for base, arm in chosen
    ]
    seeds = options.seeds or options.pick(1, 3, 3)
    return continual_report.planned(options, cells, rates, seeds, done, goal)


def goal(scores: dict[str, Any]) -> float:
    """Final accuracy over all classes, on texts that are not tested on."""
    return mean(scores["metrics"]["accuracy"]["matrix"][-1])


def example(text: str, label: str, characters: int) -> Example:
    """As it is read. Every label ends with an empty line."""
    return Example(" ".join(text[:characters].split()) + "\nTopic:", f" {label}\n\n")


def made(run: Run, base: Base) -> Arm:
    if run["arm"] in SORTERS:
        return SORTERS[run["arm"]](base, run["seed"])
    return arms.make(run["arm"], base, run["rate"], run["seed"])


def run(run: Run, options: Options) -> dict[str, Any]:
    base = Base.load(options.model_folder(run["base"]), options.device)
    found = class_sets.load(options.folder(run["set"]).parent, run["set"])
    seed, characters = run["seed"], run["characters"]
    chance = random.Random(seed)
    tasks = found.tasks(seed)[: run["tasks"]]
    if len(tasks) < 2:
        raise ValueError(f"--data: {run['set']} has classes for {len(tasks)} task; two are needed")
    learned, asked = [], []
    for names in tasks:
        rows = [example(*row, characters) for row in class_sets.few(found.train, names, run["train"], chance)]
        learned.append([one for _ in range(run["epochs"]) for one in chance.sample(rows, len(rows))])
        unseen = found.valid if seed == TUNING_SEED else found.test
        asked.append([example(*row, characters) for row in class_sets.few(unseen, names, run["test"], chance)])
    arm = made(run, base)
    seconds = 0.0

    def score(i: int, j: int) -> dict[str, float] | None:
        nonlocal seconds
        if j > i:
            return None  # classes that nobody has named yet
        began = time.perf_counter()
        options_ = [example("", name, 0).after for names in tasks[: i + 1] for name in names]
        right = answered(arm, base, [one.before for one in asked[j]], options_)
        seconds += time.perf_counter() - began
        return {"accuracy": mean([float(a == one.after) for a, one in zip(right, asked[j])])}

    began = time.perf_counter()
    metrics = continual.in_turn(arm, learned, score)
    whole = time.perf_counter() - began
    everything = [one.after for task in asked for one in task]
    return {
        "tasks": [str(i + 1) for i in range(len(tasks))],
        "classes": tasks,
        "metrics": metrics,
        "cost": {"seconds": round(whole - seconds, 2), "asking": round(seconds, 2), **arm.cost()},
        "majority": majority(everything),
        "chance": 1 / sum(map(len, tasks)),
    }


def answered(arm: Arm, base: Base, questions: list[str], labels: list[str]) -> list[str]:
    """The arm's label for each question."""
    if isinstance(arm, ClassMeans):
        return arm.classify(questions, labels)
    with arm.reading() as module:
        return [labels[i] for i in chosen(base, module, [arm.prompt(text) for text in questions], labels)]


def table(records: list[Record]) -> list[Table]:
    tables = []
    for (name,), own in group(tested(records), "set").items():
        floors = own[0].scores
        notes = (
            f"Per cent. At the end {sum(map(len, floors['classes']))} classes: chance {100 * floors['chance']:.1f}, "
            f"the commonest class {100 * floors['majority']:.1f}. Classes to come are not asked for, so that FWT is "
            "not defined. Rates were chosen on another order and other texts. The paper's Figure 6 prints no numbers.",
        )
        by = ("base", "arm")
        tables.append(continual_report.table(own, by, "accuracy", f"Classes, {name}", 100.0, notes=notes))
        tables.append(continual_report.matrices(own, by, "accuracy", f"Classes, {name}", 100.0))
    return tables


def plot(records: list[Record], path: Path) -> None:
    continual_report.plot(records, "set", "accuracy", "accuracy over the classes so far, %", 100.0, path)


SUITE = Suite(
    name="classes",
    summary="class-incremental text with labels as text (Fig. 6): CLINC150, DBpedia, Banking77",
    needs=Needs(
        data=SETS,
        time={
            "quick": "10 minutes (1M parameters)",
            "default": "5 hours, 13 more for arms that sleep (estimated)",
            "full": "hours (not timed)",
        },
        models=ARMS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
