"""Few-shot abstraction as in SEAL's ARC protocol, at the size of a model that is trained in the run.

A base reads grids as tokens. It is trained on augmented tasks of its own; then each task of the test is met once, from
the same base, and what was learned for it is thrown away after it:

    in context      the demonstrations are read
    TTT             test-time training: each demonstration behind the others, in all views; low-rank in the MLPs
    TTT full        the same with every parameter
    random edits    SEAL without reinforcement: self-edits drawn at random, each applied by itself
    trials          as many drawn; each tried with one demonstration left out; the best is applied
    dreaming        the same, but those that are tried are chosen among more by their gradients
    TTT long        TTT with as many steps as all of dreaming
    ReST-EM         SEAL: a policy over edits, learned on tasks for practice that the base has not seen
    ReST-EM + selection   Sleep: the same, with what is tried there chosen by its gradients among four times as many

SEAL and Sleep take a model of 1B parameters that has read the internet. This one has seen some dozen tasks.
"""

import json
import random
import time
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from circadia.evals import edits, fit, grids, networks, plots
from circadia.evals.edits import Edit, Policy
from circadia.evals.grids import Puzzle
from circadia.evals.metrics import mean, percent, spread
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table, key
from circadia.evals.tuning import group
from circadia.models.retrofit import retrofit
from circadia.sleep.dream import Dreaming
from circadia.sleep.fit import Meter
from circadia.sleep.student import Student, Teacher

FLOORS = ("copy", "majority")
DREAMING, LONG, RANDOM, ORACLE = "dreaming", "TTT long", "random edits", "oracle of random edits"
CLONED, CHOSEN = "ReST-EM", "ReST-EM + selection"
ARMS = (*FLOORS, "in context", "TTT", "TTT full", RANDOM, "trials", DREAMING, LONG, CLONED, CHOSEN)
# Per cent of tries that are right, of a model of 1B parameters: SEAL's paper; Sleep's, table 4.
PUBLISHED = {"in context": "0; 0", RANDOM: "20; 10", CLONED: "72.5; 72.5", CHOSEN: "-; 80", ORACLE: "100; -"}
SIZES: tuple[dict[str, int], ...] = (
    {"side": 6, "tokens": 260, "tested": 8, "practice": 4, "width": 64, "layers": 3, "mlp": 256, "steps": 600,
     "rank": 8, "examples": 16, "edits": 3, "candidates": 8, "tries": 6, "views": 4},
    {"side": 10, "tokens": 512, "tested": 16, "practice": 8, "width": 96, "layers": 4, "mlp": 384, "steps": 2000,
     "rank": 16, "examples": 32, "edits": 4, "candidates": 12, "tries": 8, "views": 8},
    {"side": 10, "tokens": 1024, "tested": 40, "practice": 12, "width": 128, "layers": 4, "mlp": 448, "steps": 10_000,
     "rank": 16, "examples": 64, "edits": 5, "candidates": 60, "tries": 15, "views": 8},
)  # fmt: skip
SCORES = ("exact", "two", "sized", "cells", "forced", "nats")

Attempt = tuple[Teacher | Student, int, dict[str, Any]]  # who answers, the steps it took, what is told of it


def runs(options: Options, done: list[Record]) -> list[Run]:
    tasks, listed = _read(options.folder("arc_agi"))
    common = dict(options.pick(*SIZES))
    common["steps"] = options.steps or common["steps"]
    arms = options.chosen(ARMS, ARMS)
    _split(tasks, listed, common)  # refuses what is too little
    if LONG in arms:  # as long as dreaming took
        arms = tuple(arm for arm in ARMS if arm in {*arms, DREAMING})
    known = {key(one.run): one.scores for one in done}
    found = []
    for seed in range(options.seeds or options.pick(1, 3, 3)):
        for arm in arms:
            run = {"seed": seed, "arm": arm, **common}
            if arm == LONG:
                dreamt = known.get(key({**run, "arm": DREAMING}))
                if dreamt is None:
                    continue
                run["updates"] = max(1, round(mean([one["steps"] for one in dreamt["tasks"].values()])))
            if arm not in FLOORS or seed == 0:
                found.append(run)
    return found


@lru_cache(maxsize=1)
def _read(folder: Path) -> tuple[dict[str, Puzzle], list[str]]:
    return grids.read(folder)


def _split(tasks: dict[str, Puzzle], listed: list[str], run: Run) -> dict[str, list[str]]:
    return grids.split(tasks, listed, run["side"], run["tokens"], run["tested"], run["practice"])


class Lab:
    """What all arms of a seed share: the split, the base, what was found out on the tasks for practice."""

    def __init__(self, run: Run, folder: Path, device: str) -> None:
        tasks, listed = _read(folder)
        self.run, self.names = run, _split(tasks, listed, run)
        self.tasks = {part: [tasks[name] for name in names] for part, names in self.names.items()}
        generator = fit.start(run["seed"], device)
        shape = networks.Shape(
            grids.VOCABULARY, width=run["width"], layers=run["layers"], mlp=run["mlp"], own={"chunk": 64}
        )
        self.parameters = networks.size("transformer++", shape, run["tokens"])["parameters"]
        net = networks.build("transformer++", shape).to(device)
        self.trained = _base(net, self.tasks["base"], run["steps"], generator, device)
        net.requires_grad_(False)
        self.low = retrofit(net, [64], capacity="lowrank", rank=run["rank"], slots=1, gate="always")
        # Its parameters are swapped while it learns; the forms of `low` in its MLPs wear nothing then.
        self.whole = retrofit(net, [64], target="all")
        self.longest = run["side"] * (run["side"] + 1) + 1
        self.policies: dict[str, tuple[Policy, int]] = {}

    def how(self, keep: int, candidates: int) -> Dreaming:
        """One of those that are kept is there by chance. The length of a step is in the gradients already."""
        return Dreaming(select="greats", keep=keep - 1, random=1, candidates=candidates, eta=1.0)

    @cached_property
    def rates(self) -> dict[str, float]:
        """For plain training: the best on the tasks for practice."""
        return {"TTT": self._rate(self.low, edits.FIELDS["rate"]), "TTT full": self._rate(self.whole, edits.WHOLE)}

    def _rate(self, model: Any, offered: tuple[float, ...]) -> float:
        def reached(rate: float) -> float:
            own = [(task, self.trained_on(task, edits.plain(rate), "rate", model)) for task in self.tasks["practice"]]
            return mean([edits.mean_nats(student, task) for task, student in own])

        return min(offered, key=reached)

    def trained_on(self, task: Puzzle, edit: Edit, name: str, model: Any = None, steps: int = 0) -> Student:
        seed = f"{self.run['seed']} {task.name} {name}"
        return edits.trained(
            self.low if model is None else model, task.shown, edit, self.run["examples"], seed, Meter(), steps
        )

    def policy(self, arm: str) -> tuple[Policy, int]:
        """Learned for this arm, and the steps that it took."""
        if arm not in self.policies:
            tries = self.run["tries"]
            how = self.how(tries, 4 * tries) if arm == CHOSEN else None
            self.policies[arm] = edits.practised(
                self.low, self.tasks["practice"], tries, self.run["examples"], how, str(self.run["seed"]), Meter()
            )
        return self.policies[arm]


def _base(
    net: Any, tasks: list[Puzzle], steps: int, generator: torch.Generator, device: str, rows: int = 8
) -> dict[str, Any]:
    """Trained on outputs behind what stands before them: any order of all pairs of a task, any view."""
    chance = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    # Neighbours in length are a batch, so that little of it is padding.
    tasks = sorted(tasks, key=lambda task: len(grids.written([*task.shown, task.asked[0]])))

    def loss(step: int) -> torch.Tensor:
        first = chance.randrange(max(1, len(tasks) - rows + 1))
        drawn = []
        for task in chance.choices(tasks[first : first + rows], k=rows):
            pairs = [*task.shown, chance.choice(task.asked)]
            chance.shuffle(pairs)
            drawn.append(edits.labelled(grids.view(chance).pairs(pairs), "output"))
        return edits.rows_loss(lambda ids: net(ids, use_cache=False).logits, drawn, torch.device(device))

    return fit.fit(net, loss, fit.Recipe(steps, 2e-3, decay=0.01))


@lru_cache(maxsize=8)  # one arm of each seed comes when all others are done
def _lab(run: str, folder: Path, device: str) -> Lab:
    return Lab(json.loads(run), folder, device)


def run(run: Run, options: Options) -> dict[str, Any]:
    folder = options.folder("arc_agi")
    if run["arm"] in FLOORS:
        tasks, listed = _read(folder)
        names = _split(tasks, listed, run)
        guess = (lambda task, grid: grid) if run["arm"] == "copy" else grids.majority
        return {"split": names, "tasks": {name: floor(tasks[name], guess) for name in names["test"]}}
    common = {name: x for name, x in run.items() if name not in ("arm", "updates")}
    lab = _lab(key(common), folder, options.device)
    result: dict[str, Any] = {"split": lab.names, "parameters": lab.parameters, "base": lab.trained}
    by_task: dict[str, Any] = {}
    if run["arm"] in (CLONED, CHOSEN):
        began = time.perf_counter()
        policy, steps = lab.policy(run["arm"])
        seconds = round(time.perf_counter() - began, 1)
        result |= {"policy": policy.table, "practice": {"steps": steps, "seconds": seconds}}
    elif run["arm"] in ("TTT", "TTT full", LONG):
        result["rate"] = lab.rates["TTT" if run["arm"] == LONG else run["arm"]]
    for task in lab.tasks["test"]:
        began = time.perf_counter()
        tried = attempts(run, lab, task)
        seconds = time.perf_counter() - began
        found = [
            {**edits.judged(who, task, run["views"], lab.longest, f"{run['seed']} {task.name}"), "steps": steps, **told}
            for who, steps, told in tried
        ]
        by_task[task.name] = {**together(found), "seconds": round(seconds / len(found), 3)}
        if "edit" in found[0]:
            by_task[task.name]["tried"] = found
    return {**result, "tasks": by_task}


def attempts(run: Run, lab: Lab, task: Puzzle) -> list[Attempt]:
    """Who answers a task: one, or several whose mean counts."""
    arm, seed, count = run["arm"], f"{run['seed']} {task.name}", run["examples"]
    if arm == "in context":
        return [(Teacher(lab.low, None), 0, {})]
    if arm in ("TTT", "TTT full", LONG):
        edit = edits.plain(lab.rates["TTT" if arm == LONG else arm])
        model = lab.whole if arm == "TTT full" else lab.low
        steps = run.get("updates", edit.steps(count))
        return [(lab.trained_on(task, edit, arm, model, steps), steps, {})]
    chance = random.Random(f"{seed} edits")
    if arm in (RANDOM, CLONED, CHOSEN):
        policy = Policy.uniform() if arm == RANDOM else lab.policy(arm)[0]
        drawn = [policy.draw(chance) for _ in range(run["edits"])]
        return [
            (lab.trained_on(task, edit, f"edit {i}"), edit.steps(count), {"edit": edits.asdict(edit)})
            for i, edit in enumerate(drawn)
        ]
    # The first of the candidates are those of the arm of random edits.
    drawn = [Policy.uniform().draw(chance) for _ in range(run["candidates"])]
    picked, values = list(range(run["edits"])), None
    if arm == DREAMING:
        how = lab.how(run["edits"], run["candidates"])
        picked, values = edits.selected(lab.low, task.shown, drawn, count, how, seed, Meter())
    trials = []
    for place, i in enumerate(picked):
        one = edits.trial(lab.low, task.shown, drawn[i], count, f"{seed} trial", Meter())
        if values is not None:
            one |= {"importance": values[i], "by": "chance" if place == run["edits"] - 1 else "importance"}
        trials.append((one["after"], i, one))
    steps = sum(drawn[i].steps(count) for i in picked)
    told: dict[str, Any] = {"edit": None, "trials": [one for _, _, one in trials]}
    _, best, one = min(trials, key=lambda x: x[:2])
    if not one["reward"]:  # none helped: it stays as it was
        return [(Teacher(lab.low, None), steps, told)]
    told["edit"] = edits.asdict(drawn[best])
    return [(lab.trained_on(task, drawn[best], "best"), steps + drawn[best].steps(count), told)]


def floor(task: Puzzle, guess: Callable[[Puzzle, grids.Grid], grids.Grid]) -> dict[str, Any]:
    """Without a model; the size is not given to it, so that no cell is right of a wrong size."""
    said = [(guess(task, grid), wanted) for grid, wanted in task.asked]
    shares = [grids.cells(own, wanted) for own, wanted in said]
    sized = [share for share in shares if share is not None]
    exact = float(all(own == wanted for own, wanted in said))
    return {"exact": exact, "two": exact, "sized": len(sized) / len(said), "cells": mean(sized) if sized else None,
            "forced": None, "nats": None, "steps": 0, "seconds": 0.0}  # fmt: skip


def together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over what was tried; of cells over those of the right size."""
    result = {}
    for name in (*SCORES, "steps"):
        values = [one[name] for one in found if one[name] is not None]
        result[name] = mean(values) if values else None
    return result


def oracle(records: list[Record]) -> list[Record]:
    """Of the random edits of each task the one that is best by its true answer: what choosing could reach."""
    found = []
    for one in records:
        if one.run["arm"] == RANDOM:
            tasks = {}
            for name, own in one.scores["tasks"].items():
                best = min(own["tried"], key=lambda x: (-x["exact"], -x["two"], x["nats"]))
                steps = sum(x["steps"] for x in own["tried"])
                tasks[name] = {**best, "steps": steps, "seconds": own["seconds"] * len(own["tried"])}
            found.append(Record({**one.run, "arm": ORACLE}, {**one.scores, "tasks": tasks}, one.seconds, one.where))
    return found


def over_tasks(one: Record, name: str) -> float | None:
    values = [task[name] for task in one.scores["tasks"].values() if task[name] is not None]
    return mean(values) if values else None


def _cell(records: list[Record], name: str) -> str:
    values = [x for one in records if (x := over_tasks(one, name)) is not None]
    if name != "nats":
        return percent(values)
    around = spread(values)
    return "-" if not values else f"{mean(values):.3f}" + ("" if around is None else f" ±{around:.3f}")


def table(records: list[Record]) -> list[Table]:
    if not records:
        return []
    arms = {arm: own for (arm,), own in group([*records, *oracle(records)], "arm").items()}
    rows: list[tuple[str, ...]] = []
    for arm in (*ARMS, ORACLE):
        if own := arms.get(arm):
            steps, seconds = (mean([over_tasks(one, what) or 0.0 for one in own]) for what in ("steps", "seconds"))
            rows.append((arm, str(len(own)), *(_cell(own, name) for name in SCORES), f"{steps:.0f}", f"{seconds:.2f}",
                         PUBLISHED.get(arm, "-")))  # fmt: skip
    columns = ("arm", "seeds", "pass@1, %", "pass@2, %", "right size, %", "cells of the right size, %",
               "cells, size given, %", "nats", "steps a task", "s a task", "published, %: SEAL; Sleep")  # fmt: skip
    first = records[0].run
    parts = {name: len(part) for name, part in records[0].scores["split"].items()}
    notes = [
        f"{parts['test']} tasks of ARC-AGI-1 whose grids are {first['side']} x {first['side']} at most, with "
        f"{first['tokens']} tokens at most; the base was trained on {parts['base']} others, policy and rates were "
        f"found on {parts['practice']} more. Several edits of an arm, each applied by itself, count as their mean. "
        "Size given: each cell behind the true ones before it. Nats of a token of the true answer. Pass@2: two grids "
        f"that {first['views']} views voted for. What selection costs is in the seconds, not in the steps.",
        "Published: tries that are right, of Llama-3.2-1B on 8 tasks chosen because it can solve them; not comparable.",
    ]
    notes += _cost(records)
    made = [Table("ARC, few-shot", columns, rows, tuple(notes)), _by_task(arms)]
    return [one for one in (*made, _trials(records), _policies(records)) if one.rows]


def _cost(records: list[Record]) -> list[str]:
    found = []
    bases = [one for one in records if "base" in one.scores]
    if bases:
        trained = bases[0].scores["base"]
        found.append(f"The base: {bases[0].scores['parameters']:,} parameters, {trained['steps']} steps.")
    for arm in (CLONED, CHOSEN):
        own = [one.scores["practice"] for one in records if one.run["arm"] == arm]
        if own:
            steps, seconds = (mean([float(x[what]) for x in own]) for what in ("steps", "seconds"))
            found.append(f"{arm}: {steps:.0f} steps of practice before the first task, {seconds:.0f} s.")
    return found


def _by_task(arms: dict[str, list[Record]]) -> Table:
    shown = [arm for arm in (*ARMS, ORACLE) if arm in arms]
    rows = []
    for name in next(iter(arms.values()))[0].scores["tasks"]:
        cells = []
        for arm in shown:
            own = [one.scores["tasks"][name] for one in arms[arm]]
            right = percent([mean([one["exact"] for one in own])], 0)
            kind = "cells" if arm in FLOORS else "forced"
            share = [one[kind] for one in own if one[kind] is not None]
            cells.append(f"{right}; {percent([mean(share)], 0) if share else '-'}")
        rows.append((name, *cells))
    note = "Per cent over seeds: exact grids; cells with the size given (of the floors: of outputs of the right size)."
    return Table("ARC, by task", ("task", *shown), rows, (note,))


def _trials(records: list[Record]) -> Table:
    """Does selection find what helps?"""
    rows: list[tuple[str, ...]] = []
    for by in ("importance", "chance"):
        own = [trial for one in records if one.run["arm"] == DREAMING for task in one.scores["tasks"].values()
               for tried in task.get("tried", []) for trial in tried["trials"] if trial["by"] == by]  # fmt: skip
        if own:
            gain = mean([trial["before"] - trial["after"] for trial in own])
            steps = mean([float(trial["edit"]["epochs"]) for trial in own])
            rewarded = percent([mean([float(trial["reward"]) for trial in own])])
            rows.append((by, str(len(own)), rewarded, f"{gain:+.3f}", f"{steps:.2f}"))
    columns = ("kept by", "trials", "rewarded, %", "nats gained", "epochs")
    return Table("Trials of dreaming, on the demonstration that was left out", columns, rows)


def _policies(records: list[Record]) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in (CLONED, CHOSEN):
        own = [one.scores["policy"] for one in records if one.run["arm"] == arm]
        for name, of in edits.FIELDS.items() if own else ():
            shares = [mean([table[name][i] for table in own]) for i in range(len(of))]
            rows.append((arm, name, "; ".join(f"{x}: {100 * share:.0f}" for x, share in zip(of, shares))))
    return Table("What ReST-EM learned", ("arm", "field", "per cent of each choice, mean over seeds"), rows)


def plot(records: list[Record], path: Path) -> None:
    """Exact grids, and cells with the size given."""
    groups: dict[str, dict[str, list[float]]] = {}
    for title, name in (("pass@1", "exact"), ("pass@2", "two"), ("cells, size given", "forced")):
        for (arm,), own in group([*records, *oracle(records)], "arm").items():
            values = [100 * x for one in own if (x := over_tasks(one, name)) is not None]
            if values:
                groups.setdefault(title, {})[arm] = values
    if groups:
        plots.bars(groups, "per cent", path)


SUITE = Suite(
    name="arc",
    summary="SEAL's protocol on small ARC tasks: test-time training, self-edits, dreaming, ReST-EM",
    needs=Needs(
        data=("arc_agi",),
        time={"quick": "3 minutes", "default": "1.5 hours (not run)", "full": "a day (not run)"},
        models=ARMS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
