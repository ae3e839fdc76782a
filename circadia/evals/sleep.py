"""Days and nights: new facts every day, a night after each of them, and what is left of every day.

A day is text of a novel in chunks, some with one plain sentence in them that tells a fact about somebody invented,
several times in three wordings. It is read by the waking rule, every chunk by itself: nothing but the memory goes from
one to the next. Then comes a night, an arm of `circadia.sleep.PRESETS`. Every evening and every morning all facts so
far are asked, in a wording that was read, in another one, and in one that never was: which of 20 answers is the
likeliest? At the end text on law is read and all is asked once more.

    arms   every arm with its own settings
    cost   what does a night have to cost? The default with fewer and fewer presentations; ended by a budget of so many
           days of reading; and fitted to it, fewer windows as often as ever (`circadia.sleep.fitted`)
"""

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from circadia.evals import plots, streams
from circadia.evals.bases import Base
from circadia.evals.metrics import mean, percent, spread
from circadia.evals.sleep_days import ASKED, Fact, asked, day, facts
from circadia.evals.stream import text_bits
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group
from circadia.models.retrofit import RetrofitModel, retrofit
from circadia.models.retrofit.state import State
from circadia.sleep import DEFAULT, PRESETS, Entry, Rehearsal, Window, fitted, preset, sleep
from circadia.sleep.pool import PARTS
from circadia.sleep.rehearse import read

CHUNK = 256
RATE = 0.3  # of the waking rule: the best for reading, see suite `read`
REHEARSED = {"rehearsal alone": "no-sleep", f"{DEFAULT}, rehearsed": DEFAULT}  # awake, windows of the days before
ARMS = (*PRESETS, *REHEARSED)
SHOWN = ("no-sleep", "inner-steps", "fine-tune", "rehearsal alone", "self-generated", "literal-seeding", "two-teacher",
         "journal-replay-unguarded", "day-alone", DEFAULT, f"{DEFAULT}, rehearsed")  # fmt: skip
QUICK = ("no-sleep", "day-alone", DEFAULT)
PRESENTATIONS = (3.0, 6.0, 12.0, 25.0)  # of the arms of `cost`; the default's are the preset's
BUDGETS = (0.5, 2.0, 8.0)  # in days of reading
HOW = ("cut", "fitted")


def runs(options: Options, done: list[Record]) -> list[Run]:
    bases = options.base_folders()
    for folder in ("novels100", "domains"):
        options.folder(folder)
    sizes = {
        "days": options.pick(2, 8, 16),
        "facts": options.pick(3, 5, 20),  # of a day
        "repeats": options.pick(4, 4, 4),
        "other": options.pick(0, 1, 4),  # chunks without a fact for each one that has one
        "reading": options.pick(2048, 50 * 1024, 50 * 1024),  # bytes of law at the end
        "memory": "full",
    }
    chosen = options.chosen(ARMS, options.pick(QUICK, SHOWN, ARMS))
    seeds = options.seeds or options.pick(1, 5, 5)
    cells: list[Run] = [{"mode": "arms", "arm": arm, **sizes} for arm in chosen]
    if options.depth != "quick" and DEFAULT in chosen:
        short = {**sizes, "days": 1}
        cells += [{"mode": "cost", "arm": DEFAULT, "presentations": p, **short} for p in PRESENTATIONS]
        cells += [{"mode": "cost", "arm": DEFAULT, "budget": b, "how": h, **short} for b in BUDGETS for h in HOW]
        # A memory that a few days fill.
        cells += [{"mode": "arms", "arm": arm, **sizes, "memory": "rank 4"} for arm in ("no-sleep", DEFAULT)]
    return [{"base": base, "seed": seed, **cell} for seed in range(seeds) for base in bases for cell in cells]


def _preset(arm: str) -> str:
    return REHEARSED.get(arm, arm)


def made(base: Base, arm: str, memory: str) -> RetrofitModel:
    """One level for all, but for what moves knowledge between two."""
    settings = preset(_preset(arm))
    levels: dict[str, Any] = {"periods": [CHUNK], "rate": RATE, "decay": 0.0, "context": 0}
    if settings.seeding is not None or settings.into == "last":
        levels |= {"periods": [CHUNK, 4 * CHUNK], "capacity": ["full", "lowrank"], "slots": [1, 6], "rank": 16}
    elif memory != "full":
        levels |= {"capacity": "lowrank", "rank": 4, "optimizer": "adamw", "rate": 0.003}
    return retrofit(base.model, **levels)


@lru_cache(maxsize=2)
def _texts(data: Path) -> tuple[str, str, str]:
    """A novel of an author that the base has not read, law, and text of the base's own kind."""
    novel, law = (streams.source_text(data, name).decode("utf-8", "ignore") for name in ("Kipling", "legal"))
    return novel, law, streams.own_text(data, 16).decode("utf-8", "ignore")


def run(run: Run, options: Options) -> dict[str, Any]:
    base = Base.load(options.base_folders()[run["base"]], options.device)
    novel, law, own = _texts(options.folder("novels100").parent)
    torch.manual_seed(run["seed"])
    life = Life(base, run, own)
    told = facts(run["days"] * run["facts"], run["seed"])
    days = [told[i * run["facts"] :][: run["facts"]] for i in range(run["days"])]
    before = life.measured(days)
    for number, new in enumerate(days):
        seed = run["seed"] + 31 * number
        life.day(day(base, new, run["repeats"], run["other"], novel, CHUNK, seed))
        life.evenings.append(life.measured(days[: number + 1]))
        life.night(seed)
        life.mornings.append(life.measured(days[: number + 1]))
    awake, start = life.awake, run["seed"] * 60_000 % len(law)
    life.read([torch.tensor(x) for x in _split(base.encode(law[start : start + run["reading"]]))])
    return {
        "before": before,
        "evenings": life.evenings,
        "mornings": life.mornings,
        "after": life.measured(days),
        "nights": life.nights,
        "awake": awake,
        "seconds": {name: round(value, 2) for name, value in life.seconds.items()},
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "numbers": sum(x.numel() for name, x in life.state.items() if name.split("/")[1] in PARTS),
    }


def _split(tokens: list[int]) -> list[list[int]]:
    return [tokens[at : at + CHUNK] for at in range(0, len(tokens), CHUNK)]


class Life:
    """A model that reads by day and sleeps by night."""

    def __init__(self, base: Base, run: Run, own: str) -> None:
        self.base, self.run, self.own = base, run, own
        self.model = made(base, run["arm"], run["memory"])
        self.state: State = self.model.start()
        self.slept: State | None = None
        self.settings = preset(_preset(run["arm"]))
        if "presentations" in run:
            self.settings = self.settings.but(replay={"presentations": run["presentations"], "enough": 2.0})
        self.rehearsal = Rehearsal([], seed=run["seed"])
        self.journal: list[Entry] = []
        self.kept: list[list[Window]] = []  # of earlier nights
        self.evenings: list[dict[str, Any]] = []
        self.mornings: list[dict[str, Any]] = []
        self.nights: list[dict[str, Any]] = []
        self.awake = 0  # tokens learned by reading the days
        self.seconds = {"day": 0.0, "night": 0.0}

    def day(self, chunks: list[torch.Tensor]) -> None:
        begin = time.perf_counter()
        self.read(chunks)
        self.seconds["day"] += time.perf_counter() - begin
        at = len(self.nights) * 100_000
        self.journal = [Entry(chunk, "novel", 1.0, at + i) for i, chunk in enumerate(chunks)]

    def read(self, chunks: list[torch.Tensor]) -> None:
        """The context is gone after each chunk."""
        for chunk in chunks:
            start = {**self.model.fresh(self.state), "clock/tokens": self.state["clock/tokens"]}
            _, self.state = read(self.model, chunk, start, self.rehearsal)
            self.awake += len(chunk)

    def night(self, seed: int) -> None:
        begin = time.perf_counter()
        settings, work = self.settings, None
        if "budget" in self.run:
            tokens = sum(entry.tokens.numel() for entry in self.journal)
            work = 3.0 * self.run["budget"] * tokens
            settings = settings if self.run["how"] == "cut" else fitted(settings, tokens, self.run["budget"])
        self.state, report = sleep(
            self.model, self.state, self.journal, settings, seed=seed, slept=self.slept, earlier=self.kept, work=work,
            decode=self.base.decode,
        )  # fmt: skip
        self.slept, self.kept = self.state, report.kept
        if self.run["arm"] in REHEARSED:
            self.rehearsal.rows = [window.tokens for night in self.kept for window in night]
        self.seconds["night"] += time.perf_counter() - begin
        cost = {name: int(report.cost[name]) for name in ("learned", "read", "made")}
        self.nights.append(
            {"bound": list(report.bound), "older": list(report.older), "dropped": report.dropped, **cost}
        )

    def measured(self, days: list[list[Fact]]) -> dict[str, Any]:
        """The facts of each day in each wording, and the base's own text."""
        with self.model.wearing(self.state) as module:
            found: dict[str, Any] = {
                name: [asked(self.base, module, told, wordings) for told in days] for name, wordings in ASKED.items()
            }
            return {**found, "own": text_bits(self.base, module, self.own, [])}


def _right(measured: dict[str, Any], how: str) -> float:
    """Of all days so far."""
    return mean([one["right"] for one in measured[how]])


def _cost(one: Record) -> float:
    """Work of the nights by that of the days; a token learned is 3, one read or made 1."""
    nights = sum(3 * night["learned"] + night["read"] + night["made"] for night in one.scores["nights"])
    return nights / (3 * one.scores["awake"])


def table(records: list[Record]) -> list[Table]:
    tables = []
    for (mode,), same in group(records, "mode").items():
        rows = []
        for (base, arm, memory), each in group(same, "base", "arm", "memory").items():
            for priced, own in _priced(each).items():
                rises = [[one.scores[when][at]["own"] - one.scores["before"]["own"] for one in own]
                         for when, at in (("mornings", 0), ("mornings", -1))]  # fmt: skip
                first = [percent([one.scores["mornings"][0][how][0]["right"] for one in own]) for how in ASKED]
                last = [percent([_right(one.scores["mornings"][-1], how) for one in own]) for how in ASKED]
                worst = percent([min(x["right"] for x in one.scores["mornings"][-1]["verbatim"]) for one in own])
                after = percent([_right(one.scores["after"], "verbatim") for one in own])
                name = f"{arm}, {priced}" if priced else arm
                name += "" if memory == "full" else f", {memory}"
                rows.append(
                    (base, name, str(len(own)), *first, _pm(rises[0]), *last, worst, _pm(rises[1]), after,
                     f"{mean([_cost(one) for one in own]):.1f}",
                     f"{mean([one.scores['seconds']['night'] / one.run['days'] for one in own]):,.0f}")
                )  # fmt: skip
        days = same[0].run["days"]
        columns = (
            "base", "arm", "seeds", *(f"first morning: {how}, %" for how in ASKED), "own text, bits",
            *(f"morning {days}: {how}, %" for how in ASKED), "worst day, %", "own text, bits ", "after reading, %",
            "nights / days", "seconds a night",
        )  # fmt: skip
        run = same[0].run
        notes = (
            f"{run['facts']} facts a day, each said {run['repeats']} times; {days} days; chance 5 %. Morning {days}: "
            "the facts of all days. Own text: rise of bits per byte on text of the kind that the base was trained on. "
            f"After reading: verbatim, after {run['reading']:,} bytes of law. Nights / days: work asleep by work awake "
            "in tokens, learned ones three times.",
        )
        tables.append(Table(f"Sleep, {mode}", columns, rows, notes))
    long = [one for one in records if one.run["mode"] == "arms" and one.run["memory"] == "full"]
    if long:
        rows = []
        for (base, arm), own in group(long, "base", "arm").items():
            for i, measured in enumerate(own[0].scores["mornings"]):
                cells = [f"{100 * x['right']:.0f}" for x in measured["verbatim"]]
                rows.append((base, arm, f"morning {i + 1}", *cells, *["-"] * (own[0].run["days"] - len(cells))))
        columns = ("base", "arm", "", *(f"day {i + 1}" for i in range(long[0].run["days"])))
        tables.append(Table("Sleep: facts of each day, verbatim, % right, first seed", columns, rows))
    return tables


def _priced(own: list[Record]) -> dict[str, list[Record]]:
    """By what makes a night of the default cheaper; nothing for the arms."""
    found: dict[str, list[Record]] = {}
    for one in own:
        run, name = one.run, ""
        if "presentations" in run:
            name = f"{run['presentations']:g} presentations"
        elif "budget" in run:
            name = f"{run['how']} to {run['budget']:g} days"
        found.setdefault(name, []).append(one)
    return found


def _pm(values: list[float]) -> str:
    around = spread(values)
    return f"{mean(values):+.2f}" + ("" if around is None else f" ±{around:.2f}")


def plot(records: list[Record], path: Path) -> None:
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for one in records:
        if one.run["mode"] != "arms" or one.run["memory"] != "full":
            continue
        for i, measured in enumerate(one.scores["mornings"]):
            rise = measured["own"] - one.scores["before"]["own"]
            shown = {
                "facts of all days, verbatim, %": 100 * _right(measured, "verbatim"),
                "facts of the first day, %": 100 * measured["verbatim"][0]["right"],
                "own text, rise in 1/100 bits": 100 * rise,
            }
            for title, value in shown.items():
                panels.setdefault(title, {}).setdefault(one.run["arm"], {}).setdefault(i + 1.0, []).append(value)
    for own in _priced([one for one in records if one.run["mode"] == "cost"]).values():
        price, kind = mean([_cost(one) for one in own]), own[0].run.get("how", "fewer presentations")
        for one in own:
            morning = one.scores["mornings"][0]
            shown = {f"a fact after a night of this cost, {how}, %": 100 * _right(morning, how) for how in ASKED}
            shown["own text after it, rise in 1/100 bits"] = 100 * (morning["own"] - one.scores["before"]["own"])
            for title, value in shown.items():
                panels.setdefault(title, {}).setdefault(kind, {}).setdefault(price, []).append(value)
    if panels:
        plots.lines(panels, "morning, or nights / days", "", path, log=False)


SUITE = Suite(
    name="sleep",
    summary="new facts every day, a night after each: what is left of every day, what the base pays, what nights cost",
    needs=Needs(
        data=("novels100", "domains"),
        time={"quick": "5 minutes (1M parameters)", "default": "a day (estimated)", "full": "days (not timed)"},
        models=ARMS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
