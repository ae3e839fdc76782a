"""Knowledge incorporation as in SEAL: a passage is learned into weights, then asked about with the passage gone.

    single     one passage, learned by the base as it comes; for every passage anew
    sequence   all passages one after another, then all questions
    matrix     eight passages one after another, all questions after each of them

An arm that sleeps has a night after each passage, and is asked in the morning. `implications` first writes what follows
from a passage, and learns that beside it.

SEAL and Sleep let a large model judge free answers of a 7B model. A base of this size answers nothing freely, so that
three things are told: nats of a token of the gold answer, how often it is likelier than nine answers to questions on
other passages, and how often a greedy answer contains it.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circadia.evals import arms, continual, continual_report, plots
from circadia.evals.arms import Arm, Example
from circadia.evals.bases import Base, answers, written
from circadia.evals.metrics import mean, percent, spread
from circadia.evals.recall import contains, documents
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested

# Of arms that read out of a context `retrieval` is the one that finds a passage again; with one passage that is the
# ceiling: it stands before the question.
ARMS = tuple(name for name in arms.ARMS if name != "joint")
QUICK = ("frozen", "retrieval", "full", "MLPs")
MODES = ("single", "sequence", "matrix")
MATRIX = 8
CANDIDATES = 10
LONGEST = 24  # tokens of a free answer
# Per cent, judged by GPT-4.1: one passage, 200 passages. Sleep's paper, table 3; SEAL's own figures differ a little.
PUBLISHED = {
    "Qwen2.5-7B": (31.9, 31.9),
    "fine-tuned on the passage": (33.4, 32.0),
    "SEAL": (46.7, 43.2),
    "Sleep, 4 levels": (48.9, 46.2),
    "Sleep without dreaming": (35.7, 36.2),
}


def runs(options: Options, done: list[Record]) -> list[Run]:
    options.folder("squad")
    sizes = {
        "passages": options.pick(6, 50, 200),
        "questions": options.pick(2, 5, None),  # of each passage, at most
        "epochs": options.pick(4, 10, 10),
    }
    default, full = (tuple(name for name in own if name in ARMS) for own in (arms.DEFAULT, arms.FULL))
    cells = [
        {"base": base, "mode": mode, "arm": arm, **sizes, **({"passages": MATRIX} if mode == "matrix" else {})}
        for mode in options.pick(MODES[:2], MODES, MODES)
        for base, arm in arms.pairs(
            options, ARMS, options.pick(QUICK, (*default, "implications"), (*full, "implications"))
        )
    ]
    seeds = options.seeds or options.pick(1, 3, 3)
    return continual_report.planned(options, cells, arms.rates, seeds, done, goal)


def goal(scores: dict[str, Any]) -> float:
    """Nats: at this size they move where answers do not yet."""
    if "metrics" in scores:
        return -mean(scores["metrics"]["nats"]["matrix"][-1])
    return -float(scores["after"]["nats"])


@dataclass(frozen=True)
class Passage:
    """Text, its questions, and for each of them answers to others."""

    text: str
    asked: tuple[tuple[str, str, tuple[str, ...]], ...]


def passages(data: Path, count: int, questions: int | None, seed: int) -> list[Passage]:
    """Drawn by the seed. No wrong answer stands in the passage."""
    found = documents(data)
    if len(found) < count:
        raise ValueError(f"--data: squad has {len(found)} passages, and {count} are asked for")
    chance = random.Random(f"squad {seed}")
    chosen = chance.sample(found, count)
    pool = sorted({one["answer"] for doc in found for one in doc["questions"]})
    made = []
    for doc in chosen:
        rows = doc["questions"]
        if questions is not None and len(rows) > questions:
            rows = chance.sample(rows, questions)
        context = doc["context"].lower()
        strange = [answer for answer in pool if answer.lower() not in context]
        if len(strange) < CANDIDATES - 1:
            raise ValueError(
                f"--data: squad has {len(strange)} answers that do not stand in the passage {doc['title']!r}, and "
                f"{CANDIDATES - 1} wrong ones are compared with the right one: give more passages"
            )
        asked = []
        for one in rows:
            others = chance.sample(strange, CANDIDATES - 1)
            asked.append((one["question"], one["answer"], tuple(others)))
        made.append(Passage(f"{doc['title']}\n{doc['context']}\n\n", tuple(asked)))
    return made


def question(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def run(run: Run, options: Options) -> dict[str, Any]:
    base = Base.load(options.model_folder(run["base"]), options.device)
    given = passages(options.folder("squad").parent, run["passages"], run["questions"], run["seed"])
    asking, began = 0.0, time.perf_counter()

    def make() -> Arm:
        return arms.make(run["arm"], base, run["rate"], run["seed"])

    def ask(arm: Arm, about: list[Passage]) -> dict[str, float]:
        nonlocal asking
        start = time.perf_counter()
        found = asked(arm, base, about)
        asking += time.perf_counter() - start
        return found

    lesson = {one.text: [Example("", one.text)] * run["epochs"] for one in given}
    result: dict[str, Any] = {"chance": 1 / CANDIDATES, "asked": sum(len(one.asked) for one in given)}
    arm = make()
    if run["mode"] == "matrix":
        result["tasks"] = [str(i + 1) for i in range(len(given))]
        tasks = [lesson[one.text] for one in given]
        result["metrics"] = continual.in_turn(arm, tasks, lambda i, j: ask(arm, [given[j]]))
    else:
        result["before"] = ask(arm, given)
        if run["mode"] == "sequence":
            for one in given:
                arm.learn(lesson[one.text])
                arm.finish()
            result["after"] = ask(arm, given)
        else:
            each, earlier = [], dict.fromkeys(("tokens", "flops"), 0)
            for one in given:
                earlier = {name: count + arm.cost()[name] for name, count in earlier.items()}
                arm = make()
                arm.learn(lesson[one.text])
                arm.finish()
                each += [ask(arm, [one])] * len(one.asked)
            result["after"] = {name: mean([x[name] for x in each]) for name in each[0]}
    cost = arm.cost()
    if run["mode"] == "single":  # of all passages, as the seconds are
        cost |= {name: count + cost[name] for name, count in earlier.items()}
    result["cost"] = {"seconds": round(time.perf_counter() - began - asking, 2), **cost}
    return result


def asked(arm: Arm, base: Base, given: list[Passage]) -> dict[str, float]:
    """Means over all questions."""
    nats, right, said = [], [], []
    with arm.reading() as module:
        for text, gold, others in (row for one in given for row in one.asked):
            prompt = arm.prompt(question(text))
            found = answers(base, module, [(prompt, f" {answer}\n") for answer in (gold, *others)])
            each = [one.nats / one.tokens for one in found]
            nats.append(each[0])
            right.append(float(each[0] < min(each[1:])))
            said.append(float(contains(written(base, module, prompt, LONGEST), gold)))
    return {"nats": mean(nats), "right": mean(right), "contains": mean(said)}


def table(records: list[Record]) -> list[Table]:
    records, tables = tested(records), []
    for (mode,), own in group([one for one in records if one.run["mode"] != "matrix"], "mode").items():
        rows = []
        for (base, arm), each in group(own, "base", "arm").items():
            cells = [_pm([one.scores[when]["nats"] for one in each]) for when in ("before", "after")]
            cells += [percent([one.scores[when]["right"] for one in each]) for when in ("before", "after")]
            cells += [percent([one.scores["after"]["contains"] for one in each])]
            rates = ", ".join(dict.fromkeys(f"{one.run['rate']:g}" for one in each))
            cost = [mean([float(one.scores["cost"][what]) for one in each]) for what in ("seconds", "flops", "bytes")]
            rows.append((base, arm, rates, str(len(each)), *cells, f"{cost[0]:,.0f}", f"{cost[1] / 1e12:,.3f}",
                         f"{cost[2] / 2**20:,.2f}"))  # fmt: skip
        place = ("single", "sequence").index(mode)
        rows += [("published", name, "-", "-", "-", "-", "-", f"{figures[place]:g} judged", *"----")
                 for name, figures in PUBLISHED.items()]  # fmt: skip
        columns = ("base", "arm", "rate", "seeds", "nats before", "nats after", "right before, %", "right after, %",
                   "contains, %", "seconds", "TFLOP", "MiB kept")  # fmt: skip
        notes = (
            f"{own[0].run['passages']} passages, each read {own[0].run['epochs']} times; {own[0].scores['asked']} "
            "questions. Nats of a token of the gold answer. Right: likelier, by token, than nine answers to questions "
            f"on other passages; chance {100 / CANDIDATES:.0f} %.",
        )
        tables.append(Table(f"Incorporation, {mode}", columns, rows, notes))
    own = [one for one in records if one.run["mode"] == "matrix"]
    if own:
        by = ("base", "arm")
        tables.append(continual_report.table(own, by, "nats", "Incorporation, eight passages", 1.0, True, 3))
        tables.append(continual_report.matrices(own, by, "nats", "Incorporation, eight passages", 1.0, 3))
    return tables


def _pm(values: list[float]) -> str:
    around = spread(values)
    return f"{mean(values):.3f}" + ("" if around is None else f" ±{around:.3f}")


def plot(records: list[Record], path: Path) -> None:
    groups: dict[str, dict[str, list[float]]] = {}
    for one in tested(records):
        if one.run["mode"] != "matrix":
            gained = one.scores["before"]["nats"] - one.scores["after"]["nats"]
            groups.setdefault(one.run["mode"], {}).setdefault(one.run["arm"], []).append(gained)
    if groups:
        plots.bars(groups, "nats of an answer's token gained", path)


SUITE = Suite(
    name="incorporate",
    summary="SEAL's protocol on SQuAD: a passage is learned, then asked about with the passage gone",
    needs=Needs(
        data=("squad",),
        time={"quick": "5 minutes (1M parameters)", "default": "hours (not timed)", "full": "hours (not timed)"},
        models=ARMS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
