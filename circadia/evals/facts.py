"""Facts in plain sentences: are they known, in the same words and in others, and after how many other sentences?

An arm reads facts about people who do not exist, among them some that change later, then sentences of books. It is
asked right after the facts and after 10, 100, 1,000 other sentences, with nothing of them in its context unless the arm
puts it there: which of the 16 values of the kind is the likeliest end of the sentence, verbatim, and in words in which
the fact was never said? An arm that sleeps has a night after the facts and one after each of these blocks of other
sentences; it is asked the next morning, and after the facts in the evening, too.
Of facts that changed the last value is right; how often the old one is said is counted too.
And over two facts: everybody's best friend is told, and where that friend lives is asked.
"""

import gzip
import random
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from circadia.evals import arms, continual_report, fact_sets, plots
from circadia.evals.arms import Arm, Example
from circadia.evals.bases import Base, answers
from circadia.evals.fact_sets import Fact, Link
from circadia.evals.metrics import mean, percent
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested

# An arm that learns all at once would have to know what comes later.
ARMS = tuple(name for name in arms.ARMS if name != "joint")
QUICK = ("frozen", "retrieval", "full", "MLPs", "3 levels")
ASKED = ("verbatim", "in other words", "changed", "over two facts")


def runs(options: Options, done: list[Record]) -> list[Run]:
    options.folder("books")
    default, full = (tuple(name for name in own if name in ARMS) for own in (arms.DEFAULT, arms.FULL))
    shown = options.pick(QUICK, default, full)
    sizes = {
        "people": options.pick(4, 12, 11),
        "changed": options.pick(1, 4, 5),  # people whose facts change
        "said": options.pick(2, 4, 4),  # times that each fact is said
        "after": options.pick([0, 10, 50], [0, 10, 100, 1000], [0, 10, 100, 1000, 10000]),  # other sentences
    }
    cells = [{"base": base, "arm": arm, **sizes} for base, arm in arms.pairs(options, ARMS, shown)]
    seeds = options.seeds or options.pick(1, 3, 3)
    return continual_report.planned(options, cells, arms.rates, seeds, done, goal)


def goal(scores: dict[str, Any]) -> float:
    """Verbatim, over all waits: a rate that learns much and loses it at once is no good one."""
    return mean([one["verbatim"]["right"] for one in scores["waits"]])


def run(run: Run, options: Options) -> dict[str, Any]:
    base = Base.load(options.model_folder(run["base"]), options.device)
    seed, chance = run["seed"], random.Random(run["seed"])
    told = fact_sets.facts(run["people"], run["changed"], seed)
    friends = fact_sets.links(told, seed)
    others = sentences(options.folder("books"), run["after"][-1], seed)
    arm = arms.make(run["arm"], base, run["rate"], seed)
    asking, began, done = 0.0, time.perf_counter(), 0
    waits = []
    before = asked(arm, base, told, friends)
    arm.learn([Example("", one.sentence()) for _ in range(run["said"]) for one in chance.sample(friends, len(friends))])
    # The old values first, all of them, then what is true.
    for value in ("old", "value"):
        now = [one for one in told if value == "value" or one.old is not None]
        arm.learn([
            Example("", one.sentence(getattr(one, value)))
            for _ in range(run["said"])
            for one in chance.sample(now, len(now))
        ])  # fmt: skip
    paused = time.perf_counter()
    evening = asked(arm, base, told, friends) if arm.sleeps else None
    asking += time.perf_counter() - paused
    arm.finish()
    for wait in run["after"]:
        if wait > done:
            arm.learn([Example("", text) for text in others[done:wait]])
            arm.finish()
        done = wait
        paused = time.perf_counter()
        waits.append(asked(arm, base, told, friends))
        asking += time.perf_counter() - paused
    whole = time.perf_counter() - began
    return {
        "before": before,
        **({} if evening is None else {"evening": evening}),
        "waits": waits,
        "facts": len(told),
        "chance": mean([1 / len(one.values) for one in told]),
        "cost": {"seconds": round(whole - asking, 2), **arm.cost()},
    }


def asked(arm: Arm, base: Base, told: Sequence[Fact], friends: Sequence[Link] = ()) -> dict[str, Any]:
    """Of facts that have not changed: how many are right, the mean rank of the right value (1 is best), and its nats.
    Of those that have: how often the new and the old value is the likeliest.
    """
    found: dict[str, Any] = {}
    with arm.reading() as module:
        for how in ("verbatim", "in other words"):
            ranks, nats, changed = [], [], []
            for fact in told:
                question = fact.question() if how == "verbatim" else fact.other_words()
                prompt = arm.prompt(question)
                each = answers(base, module, [(prompt, f" {value}.") for value in fact.values])
                scores = dict(zip(fact.values, (one.nats for one in each)))
                best = min(scores, key=scores.__getitem__)
                if fact.old is not None:
                    changed.append((float(best == fact.value), float(best == fact.old)))
                else:
                    ranks.append(1 + sum(x < scores[fact.value] for x in scores.values()))
                    nats.append(scores[fact.value])
            if ranks:
                found[how] = {"right": mean([float(x == 1) for x in ranks]), "rank": mean(ranks), "nats": mean(nats)}
            if changed and how == "verbatim":
                found["changed"] = {"right": mean([x for x, _ in changed]), "old": mean([x for _, x in changed])}
        ranks = []
        for link in friends:
            prompt, home = arm.prompt(link.question()), link.friend
            nats = [one.nats for one in answers(base, module, [(prompt, f" {value}.") for value in home.values])]
            ranks.append(1 + sum(x < nats[home.values.index(home.value)] for x in nats))
        if ranks:
            found["over two facts"] = {"right": mean([float(x == 1) for x in ranks]), "rank": mean(ranks)}
    return found


def sentences(folder: Path, count: int, seed: int) -> list[str]:
    """So many from a place in the books that the seed says, one a line; round the end if there are fewer."""
    known = _sentences(folder)
    start = random.Random(f"books {seed}").randrange(len(known))
    return [known[(start + i) % len(known)] for i in range(count)]


@lru_cache(maxsize=1)
def _sentences(folder: Path) -> list[str]:
    texts = []
    for path in sorted([*folder.glob("*.txt"), *folder.glob("*.txt.gz")]):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", errors="ignore") as file:
            texts.append(re.sub(r"\s+", " ", file.read()))
    found = [one for text in texts for one in re.split(r"(?<=[.!?]) (?=[A-Z])", text) if 30 <= len(one) <= 200]
    if not found:
        raise ValueError(f"{folder}: no sentences in it; it must hold books as .txt or .txt.gz")
    return [one + "\n" for one in found]


def table(records: list[Record]) -> list[Table]:
    records = tested(records)
    if not records:
        return []
    waits = records[0].run["after"]
    tables = []
    for how in ASKED:
        rows = []
        for (base, arm), own in group(records, "base", "arm").items():
            columns: list[list[dict[str, float]]] = [
                [part[how] for one in own if how in (part := _times(one.scores)[i])] for i in range(len(waits) + 2)
            ]
            cells = [percent([x["right"] for x in own_]) for own_ in columns]
            second = "old" if how == "changed" else "rank"
            cells += [_mean([x[second] for x in own_], 100 if second == "old" else 1) for own_ in columns]
            rates = ", ".join(dict.fromkeys(f"{one.run['rate']:g}" for one in own))
            cost = [mean([float(one.scores["cost"][what]) for one in own]) for what in ("seconds", "flops", "bytes")]
            rows.append((base, arm, rates, str(len(own)), *cells, f"{cost[0]:,.0f}", f"{cost[1] / 1e12:,.3f}",
                         f"{cost[2] / 2**20:,.2f}"))  # fmt: skip
        places = ["before", "evening", *(f"after {wait:,}" for wait in waits)]
        second = "old value, %" if how == "changed" else "rank"
        columns_ = ("base", "arm", "rate", "seeds", *(f"{p}: right, %" for p in places),
                    *(f"{p}: {second}" for p in places), "seconds", "TFLOP", "MiB kept")  # fmt: skip
        floor = 100 * mean([one.scores["chance"] for one in records])
        notes = (
            f"Chance {floor:.1f} %, mean rank by chance 8.5. Each of {records[0].scores['facts']} facts is said "
            f"{records[0].run['said']} times; columns: other sentences since. "
            + ("Right: the value said last is the likeliest of 16; then how often the one before it is."
               if how == "changed" else "Right: the value is the likeliest of 16; then its mean rank.")
            + (" Who is whose friend is said as often; where a friend lives is asked." if "two" in how else ""),
        )  # fmt: skip
        tables.append(Table(f"Facts, {how}", columns_, rows, notes))
    return tables


def _times(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Before, in the evening, and after each wait. Only arms that sleep know an evening that is not the morning."""
    return [scores["before"], scores.get("evening", scores["waits"][0]), *scores["waits"]]


def _mean(values: list[float], scale: float) -> str:
    return f"{scale * mean(values):.1f}" if values else "-"


def plot(records: list[Record], path: Path) -> None:
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for one in tested(records):
        for how in ASKED:
            for wait, found in zip(one.run["after"], one.scores["waits"]):
                if how in found:
                    curve = panels.setdefault(how, {}).setdefault(one.run["arm"], {})
                    curve.setdefault(1.0 + wait, []).append(100 * found[how]["right"])
    if panels:
        plots.lines(panels, "1 + other sentences since", "right, %", path)


SUITE = Suite(
    name="facts",
    summary="new facts in plain sentences, asked verbatim, in other words, after other text; and facts that change",
    needs=Needs(
        data=("books",),
        time={
            "quick": "10 minutes (1M parameters)",
            "default": "8 hours, 4 more for arms that sleep (estimated)",
            "full": "hours (not timed)",
        },
        models=ARMS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
