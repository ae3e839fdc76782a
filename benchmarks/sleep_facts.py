"""Facts over days, and what a night does to them.

    python -m benchmarks.sleep_facts --base FOLDER --data DIR --out FILE

A day is text of a novel in chunks of 256 bytes, each with one plain sentence in its middle that tells a new fact: an
invented person's place of birth or trade. Every fact comes several times, in three wordings. It is read by the waking
rule, every chunk by itself (nothing but the memory goes from one to the next); then comes a night, an arm of
``circadia.sleep.PRESETS``; the next day tells other facts. At the end a text on law is read.

After each step all facts so far are asked: 20 places or trades, in the order of the log-probability of the whole word.
"asked" is the wording that was read most often, "reworded" another one that was read, "unheard" one that never was.
By chance the rank is 10.5 and 5 % are right. The base's own text is from novels it was trained on.

One line of JSON for each run; runs that are in the file already are not done again.
"""

import argparse
import gzip
import json
import lzma
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Parser, positive
from circadia.models.retrofit import RetrofitModel, retrofit
from circadia.models.retrofit.state import State
from circadia.sleep import PRESETS, Entry, Rehearsal, preset, sleep
from circadia.sleep.losses import nats
from circadia.sleep.rehearse import read
from circadia.sleep.student import Teacher
from circadia.sleep.windows import surprising

PLACES = (
    "Berlin Boston Canton Dublin Durham Exeter Geneva Havana Kildare London Madrid Malta Naples Norwich Oxford Paris "
    "Sweden Turin Venice Warsaw"
)
TRADES = (
    "actor baker banker brewer butcher clerk cooper doctor farmer fisher hunter judge lawyer miller painter priest "
    "sailor soldier tailor weaver"
)
CHOICES = (PLACES.split(), TRADES.split())
ONSETS = "b d f g k l m n p r s t v z br dr gr kr tr st"
ENDS = ("n", "l", "r", "s", "x", "th")
# Of each kind: three wordings to read; the first two are also asked for, with the answer at their end, and one more.
WORDINGS = (
    (
        "{name} was born in {it}.",
        "The birthplace of {name} was {it}.",
        "When {name} was a child, the family of {name} lived in {it}. So {name} was born in {it}.",
    ),
    (
        "{name} worked as a {it}.",
        "The trade of {name} was that of a {it}.",
        "Everybody knew that {name} worked as a {it}.",
    ),
)
UNHEARD = ("{name} came into the world in {it}.", "{name} earned his bread as a {it}.")
CHUNK = 256
AFTER = ("plain", "rehearse")


@dataclass(frozen=True)
class Fact:
    """Who, which kind, and the number of the answer."""

    name: str
    kind: int
    answer: int

    def say(self, wording: str, choice: int | None = None) -> str:
        """A sentence, with another answer if one is given."""
        return wording.format(name=self.name, it=CHOICES[self.kind][self.answer if choice is None else choice])


def facts(count: int, seed: int) -> list[Fact]:
    """Invented people; all names differ."""
    draw, found, names = random.Random(100 + seed), [], set()

    def word() -> str:
        return (
            "".join(draw.choice(ONSETS.split()) + draw.choice("aeiou") for _ in range(2)) + draw.choice(ENDS)
        ).capitalize()

    while len(found) < count:
        name = f"{word()} {word()}"
        if name not in names:
            names.add(name)
            found.append(Fact(name, len(found) % 2, draw.randrange(20)))
    return found


@dataclass(frozen=True)
class Data:
    """Bytes to read."""

    novel: bytes  # of an author that the base has not seen
    law: bytes
    own: Tensor  # pieces of novels that it was trained on [n, 257]


def data_of(folder: Path) -> Data:
    """From the folders of the evaluations' data."""
    novels, law = folder / "novels100" / "novels.jsonl.xz", folder / "domains" / "legal.txt.gz"
    for file in (novels, law):
        if not file.is_file():
            raise ValueError(f"--data {folder}: {file} is missing")
    with lzma.open(novels, "rt", encoding="utf-8") as lines:
        books = [json.loads(line) for line in lines]
    new = next(book["text"] for book in books if book["author"] == "Kipling").encode()
    known = [b["text"].encode() for b in books if b["author"] not in ("Conrad", "Cbronte", "Woolf", "Kipling")]
    pieces = [list(text[len(text) // 2 :][: CHUNK + 1]) for text in known[:64]]
    with gzip.open(law, "rt", encoding="utf-8") as text:
        return Data(new[8000:], text.read().encode()[20000:], torch.tensor(pieces))


def day_of(told: list[Fact], repeats: int, seed: int, novel: bytes) -> list[Tensor]:
    """Chunks, each with one fact in its middle, in rounds over the facts."""
    draw, at, found = random.Random(7 + seed), 3000 * seed % (len(novel) // 2), []
    for _ in range(repeats):
        for fact in draw.sample(told, len(told)):
            said = f" {fact.say(draw.choice(WORDINGS[fact.kind]))} ".encode()
            around, place = novel[at : at + CHUNK - len(said)], draw.randrange(40, 150)
            at = (at + CHUNK - len(said)) % (len(novel) - CHUNK)
            found.append(torch.tensor(list(around[:place] + said + around[place:])[:CHUNK]))
    return found


@torch.no_grad()
def asked(who: Teacher, told: list[Fact], wordings: tuple[str, str]) -> tuple[float, float]:
    """Mean rank and share right, by the probability of the answer's bytes; nothing stands before the question."""
    ranks = []
    for fact in told:
        wording = wordings[fact.kind]
        cue = len((" " + wording.split("{it}")[0].format(name=fact.name)).encode())
        rows = [list((" " + fact.say(wording, i)).encode()) for i in range(20)]
        ids, labels = (
            torch.zeros(20, max(map(len, rows)), dtype=torch.int64),
            torch.full((20, max(map(len, rows))), -100),
        )
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, cue : len(row)] = ids[i, cue : len(row)]
        cost = nats(who.logits(ids[:, :-1]), labels[:, 1:]).sum(1)
        ranks.append(1 + int((cost < cost[fact.answer]).sum()))
    return sum(ranks) / len(ranks), sum(rank == 1 for rank in ranks) / len(ranks)


@torch.no_grad()
def bits(who: Teacher, rows: Tensor) -> float:
    """Bits a byte."""
    found = [F.cross_entropy(who.logits(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()) for x in rows.split(16)]
    return float(torch.stack(found).mean()) / math.log(2)


def measured(model: RetrofitModel, state: State | None, days: list[list[Fact]], own: Tensor) -> dict[str, Any]:
    """Rank and share of each day's facts in each wording, and the base's own text."""
    who = Teacher(model, state)
    forms = {
        "asked": tuple(w[0] for w in WORDINGS),
        "reworded": tuple(w[1] for w in WORDINGS),
        "unheard": UNHEARD,
    }
    found: dict[str, Any] = {"own_bits": round(bits(who, own), 4)}
    for name, wordings in forms.items():
        each = [asked(who, told, wordings) for told in days]  # type: ignore[arg-type]
        found[name] = {"rank": [round(r, 2) for r, _ in each], "right": [round(s, 3) for _, s in each]}
    return found


def made(base: str, arm: str, rate: float, decay: float, context: int) -> RetrofitModel:
    """One level for all, but for what moves knowledge between two."""
    settings = preset(arm)
    two = settings.seeding is not None or settings.into == "last"
    levels: dict[str, Any] = {"rate": rate, "decay": decay, "context": context}
    if two:
        levels |= {"capacity": ["full", "lowrank"], "slots": [1, 6], "rank": 16}
    return retrofit(base, [CHUNK, 4 * CHUNK] if two else [CHUNK], **levels)


def life(run: dict[str, Any], base: str, data: Data, tell: Any) -> dict[str, Any]:
    """All days and nights of one run, and the reading afterwards."""
    torch.manual_seed(0)
    model = made(base, run["arm"], run["rate"], run["decay"], run["context"])
    told = [
        facts(run["days"] * run["facts"], run["seed"])[i * run["facts"] :][: run["facts"]] for i in range(run["days"])
    ]
    state, slept, scores, seconds = model.start(), None, {}, {"read": 0.0, "night": 0.0, "after": 0.0}
    scores["before"] = measured(model, None, told, data.own)
    rows: list[Tensor] = []
    for number in range(run["days"]):
        chunks = day_of(told[number], run["repeats"], run["seed"] + 31 * number, data.novel)
        begin = time.perf_counter()
        for chunk in chunks:  # the context is gone after each of them
            _, state = model.learn(chunk, {**model.fresh(state), "clock/tokens": state["clock/tokens"]})
        seconds["read"] += time.perf_counter() - begin
        scores[f"day {number + 1}"] = measured(model, state, told[: number + 1], data.own)
        tell(f"{run['arm']}: day {number + 1} {short(scores[f'day {number + 1}'])}")
        begin = time.perf_counter()
        journal = [Entry(chunk, "novel", 1.0, 1000 * number + i) for i, chunk in enumerate(chunks)]
        if run["after"] == "rehearse":
            rows += [w.tokens for w in surprising(Teacher(model, slept), journal, 56)]
        settings = preset(run["arm"]).but(older=run["older"], **run["night"])
        if run["presentations"] and settings.replay is not None:
            settings = settings.but(replay={"presentations": float(run["presentations"]), "enough": 2.0})
        state, report = sleep(model, state, journal, settings, seed=run["seed"], slept=slept, work=run["work"])
        slept = state
        seconds["night"] += time.perf_counter() - begin
        scores[f"night {number + 1}"] = measured(model, state, told[: number + 1], data.own)
        scores[f"night {number + 1}"]["report"] = {
            name: value
            for name, value in report.to_dict().items()
            if name in ("bound", "older", "parts", "cost", "dropped")
        }
        tell(f"{run['arm']}: night {number + 1} {short(scores[f'night {number + 1}'])} {report.cost}")
    begin = time.perf_counter()
    law = torch.tensor(list(data.law[run["seed"] * 60000 :][: run["reading"]])).split(CHUNK)
    rehearsal = Rehearsal(rows if run["after"] == "rehearse" else [], seed=run["seed"])
    nats_read = []
    for chunk in law:
        start = {**model.fresh(state), "clock/tokens": state["clock/tokens"]}
        got, state = read(model, chunk, start, rehearsal)
        nats_read += [c.surprise for c in got.chunks]
    seconds["after"] = time.perf_counter() - begin
    scores["after"] = measured(model, state, told, data.own)
    if nats_read:
        scores["after"]["law_bits"] = round(sum(nats_read) / len(nats_read) / math.log(2), 4)
    tell(f"{run['arm']}: after {short(scores['after'])}")
    return {"scores": scores, "seconds": {name: round(s, 1) for name, s in seconds.items()}}


def short(found: dict[str, Any]) -> str:
    """For the screen."""
    return (
        ", ".join(f"{n} {found[n]['right']}" for n in ("asked", "reworded", "unheard")) + f", own {found['own_bits']}"
    )


def main(args: list[str] | None = None) -> None:
    parser = Parser(prog="sleep_facts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a folder with a model of bytes")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a JSONL file")
    parser.add_argument("--arms", default="no-sleep,journal-replay,journal-replay-unguarded")
    parser.add_argument("--seeds", type=positive, default=1)
    parser.add_argument("--days", type=positive, default=1)
    parser.add_argument("--facts", type=positive, default=20, help="of a day")
    parser.add_argument("--repeats", type=positive, default=4, help="of each fact on its day")
    parser.add_argument("--reading", type=int, default=51200, help="bytes of law at the end")
    parser.add_argument("--after", choices=AFTER, default="plain", help="rehearse: windows between the chunks of law")
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--decay", type=float, default=0.0, help="at each update; after a night to the slept weights")
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--older", choices=("base", "slept"), default="base", help="who holds what must stay")
    parser.add_argument("--presentations", type=int, default=0, help="exactly so many of each window; 0: the preset's")
    parser.add_argument("--night", type=json.loads, default={}, help="settings of the night to change, as JSON")
    parser.add_argument("--work", type=float, help="budget of a night in tokens")
    given = parser.parse_args(args)
    arms = given.arms.split(",")
    for arm in arms:
        if arm not in PRESETS:
            parser.error(f"--arms {arm}: use some of {', '.join(PRESETS)}")
        try:
            preset(arm).but(**given.night)
        except (TypeError, ValueError) as error:
            parser.error(f"--night: {error}")
    try:
        data = data_of(given.data)
    except ValueError as error:
        parser.error(str(error))
    outside = ("base", "data", "out", "arms", "seeds")
    fixed = {name: value for name, value in vars(given).items() if name not in outside}
    known = []
    if given.out.exists():
        known = [json.loads(line)["run"] for line in given.out.read_text(encoding="utf-8").splitlines() if line.strip()]
    for seed in range(given.seeds):
        for arm in arms:
            run = {"arm": arm, "seed": seed, "base": Path(given.base).name, **fixed}
            if run in known:
                continue
            found = life(run, given.base, data, lambda text: print(text, file=sys.stderr, flush=True))
            with open(given.out, "a", encoding="utf-8") as file:
                file.write(json.dumps({"run": run, **found}) + "\n")


if __name__ == "__main__":
    main()
