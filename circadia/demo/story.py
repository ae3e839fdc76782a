"""The run: every number of the page comes from here, and all of it is computed now."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circadia.demo import facts as told
from circadia.demo.facts import Fact, day
from circadia.demo.measure import Naive, bits, known, nats
from circadia.live import Learner, picture

PERIODS = (64, 512)
RATES = (3e-4, 1e-3)  # of the arms that are fine-tuned: a careful one and a usual one for so small a model
SETTINGS: dict[str, Any] = {"periods": list(PERIODS), "rate": 0.3, "decay": 0.01, "gate": {"new": 0}}
DAYS: dict[str, Sequence[Fact]] = {"last week": told.LAST_WEEK, "today": told.TODAY}
NIGHT: dict[str, Any] = {"dreams": 64, "replay": {"rate": 1e-3}, "corrections": 10}
PRESENTED = 50  # times that a night goes over a fact: every reading of it is a window
Tell = Callable[[str], None]
Seen = Callable[[int, float, list[int]], None]  # position, surprise of the chunk, updates of each level so far
Asleep = Callable[[str, int, int], None]  # the part of the night, the step, the steps at most


class Story:
    """One life and the arms beside it, in a folder for its stores."""

    def __init__(self, folder: Path, base: str = "bundled", rounds: int = 10, tell: Tell = print,
                 seen: Seen | None = None, asleep: Asleep | None = None) -> None:  # fmt: skip
        self.folder, self.base, self.rounds = folder, base, rounds
        self.tell, self.seen, self.asleep = tell, seen, asleep
        self.days = dict(DAYS)  # what is right by now
        self.night = {**NIGHT, "replay": {**NIGHT["replay"], "presentations": PRESENTED / rounds}}
        self.me = Learner.create(folder / "store", base, "demo", **SETTINGS)
        if not self.me.reader.words.bytes:
            self.me.close()
            raise ValueError(
                f"base={base!r} does not read bytes: the demo needs one that does, such as the bundled one"
            )
        chunk = self.me.model.settings.chunk
        self.naive = {f"fine-tuned, {rate:g}": Naive(self.me.model.base, chunk, rate) for rate in RATES}
        self.found: dict[str, Any] = {"base": base, "rounds": rounds, **SETTINGS}
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """All parts in their order."""
        with self.me:
            parts = (self.week, self.today, self.ask, self.correct, self.sleep, self.forget, self.rollback)
            for part in parts:
                begin = time.perf_counter()
                part()
                self.seconds[part.__name__] = round(time.perf_counter() - begin, 1)
            self.found["versions"] = [
                {"number": v.number, "parent": v.parent, "reason": v.reason, "tokens": v.tokens}
                for v in self.me.versions()
            ]
            self.found["picture"] = picture.draw(self.me)
        return {**self.found, "seconds": self.seconds}

    # Who is asked

    def learner(self, ids: Tensor) -> Tensor:
        """Logits with what was learned so far."""
        with torch.no_grad():
            return self.me.model(ids, state=self.me.state, use_cache=False).logits

    def frozen(self, ids: Tensor) -> Tensor:
        """Logits of the base."""
        with torch.no_grad():
            return self.me.model(ids, use_cache=False).logits

    def measure(self) -> dict[str, Any]:
        """What each arm knows now."""
        tuned = {name: arm.logits for name, arm in self.naive.items()}
        arms = {"frozen": self.frozen, **tuned, "learner": self.learner}
        return {name: known(logits, self.days) for name, logits in arms.items()}

    def asked(self) -> list[dict[str, str]]:
        """In its own words, nothing but the question before it."""
        found = []
        for fact in self.days["today"]:
            said = self.me.generate(fact.prompt, max_new_tokens=len(fact.value) + 2, keep=False).text
            found.append({"prompt": fact.prompt, "said": said.partition(".")[0], "value": fact.value})
            self.tell(f"  {fact.prompt} ...{found[-1]['said']}")
        return found

    # The parts

    def read(self, me: Learner, facts: list[Fact], reason: str) -> list[tuple[int, float]]:
        """Sentence by sentence, each with its own source, and a version at the end."""
        curve: list[tuple[int, float]] = []
        for fact in facts:
            done = me.observe(fact.sentence(), source=fact.name, commit=False)
            for position, surprise, _ in done.curve:
                curve.append((position, surprise))
                if self.seen is not None and me is self.me:
                    self.seen(position, surprise, [me.tokens // period for period in PERIODS])
        me.commit(reason)
        return curve

    def week(self) -> None:
        """What was learned some days ago."""
        self.tell("last week: it reads five facts, each several times")
        self._day("last week", 1)

    def today(self) -> None:
        """The day that is shown live."""
        self.tell("today: it reads five others")
        self._day("today", 2)

    def _day(self, name: str, seed: int) -> None:
        facts = day(tuple(DAYS[name]), self.rounds, seed)
        self.found[f"curve of {name}"] = self.read(self.me, facts, name)
        for arm in self.naive.values():
            arm.read("".join(fact.sentence() for fact in facts))
        self.found[f"after {name}"] = self.measured()

    def measured(self) -> dict[str, Any]:
        """The same, told."""
        found = self.measure()
        for arm, scores in found.items():
            right = ", ".join(f"{d}: {scores[d]['right']} of {scores[d]['of']}" for d in DAYS)
            self.tell(f"  {arm}: {right}; mother tongue {scores['mother_tongue']:.2f} bits per byte")
        return found

    def ask(self) -> None:
        """Before anything else happens to it."""
        self.found["asked"] = self.asked()

    def correct(self) -> None:
        """Until it is believed, five times at most."""
        fact = next(fact for fact in told.TODAY if fact.name == told.CORRECTED)
        both = [fact.value, told.CORRECTION]
        self.tell(f"correction: {fact.prompt} {told.CORRECTION}, not {fact.value}")
        steps = [nats(self.learner, fact.prompt, both)]
        while steps[-1][0] <= steps[-1][1] and len(steps) <= 5:
            self._correction(self.me, fact)
            steps.append(nats(self.learner, fact.prompt, both))
        self.found["correction"] = {"prompt": fact.prompt, "old": both[0], "new": both[1], "nats": steps}
        # The arms that are fine-tuned are told as often.
        for arm in self.naive.values():
            arm.read(f"{fact.prompt} {told.CORRECTION}. " * (len(steps) - 1))
        self.days["today"] = [replace(one, value=told.CORRECTION) if one is fact else one for one in told.TODAY]
        self.tell(f"  after {len(steps) - 1} it holds {both[steps[-1][0] > steps[-1][1]]!r} likelier")

    def _correction(self, me: Learner, fact: Fact) -> None:
        answer = me.generate(fact.prompt, max_new_tokens=8)
        assert answer.id is not None
        me.feedback(answer.id, correction=f" {told.CORRECTION}.")

    def sleep(self) -> None:
        """One night over all that it ever observed; then it is asked again."""
        self.tell("in the evening")
        self.found["evening"] = self.measured()
        before = self._norms()
        self.tell("a night: surprising windows again, beside dreams of the base")
        night = self.me.sleep(progress=self.asleep or False, **self.night)
        report = night.report
        kept = ("preset", "entries", "windows", "moved", "superseded", "dropped", "parts", "bound", "older", "dreams",
                "cost")  # fmt: skip
        self.found["night"] = {
            "settings": self.night,
            "action": night.action,
            "reasons": list(night.reasons),
            "version": night.version,
            "parent": night.parent,
            "seconds": round(night.seconds, 1),
            "tokens read by day": self.me.tokens,
            "levels": [[*pair] for pair in zip(PERIODS, before, self._norms())],
            **{name: report[name] for name in kept},
        }
        for text in report["moved"]:
            self.tell(f"  moved: {text}")
        for one in report["superseded"]:
            self.tell(f"  left out: {left_out(one)}")
        self.tell(f"  learned {report['cost']['learned']:,} tokens, where the days had {self.me.tokens:,}")
        for dream in report["dreams"]:
            self.tell(f"  dreamt: {' '.join(dream['text'].split())[:80]}")
        self.tell("it wakes up and is asked again")
        self.found["asked after the night"] = self.asked()
        self.found["after the night"] = self.measured()
        fact = next(fact for fact in told.TODAY if fact.name == told.CORRECTED)
        self.found["correction"]["after the night"] = nats(self.learner, fact.prompt, [fact.value, told.CORRECTION])

    def _norms(self) -> list[float]:
        """How far each level is from the base."""
        return [level["norm"] for level in self.me.status()["levels"]]

    def forget(self) -> None:
        """One fact, and the proof: the bits of a second life in which nobody ever told it."""
        fact = next(fact for fact in told.TODAY if fact.name == told.FORGOTTEN)
        self.tell(f"forget: {fact.sentence().strip()}")
        before, held = nats(self.learner, fact.prompt, [fact.value])[0], self._files(fact.prompt)
        done = self.me.forget(source=fact.name)
        steps = len(self.found["correction"]["nats"]) - 1
        with Learner.create(self.folder / "never", self.base, "never", **SETTINGS) as never:
            self.read(never, day(told.LAST_WEEK, self.rounds, 1), "last week")
            kept = [one for one in day(told.TODAY, self.rounds, 2) if one.name != fact.name]
            self.read(never, kept, "today")
            corrected = next(one for one in told.TODAY if one.name == told.CORRECTED)
            for _ in range(steps):
                self._correction(never, corrected)
            never.sleep(**self.night)
            mine, theirs = self.me.state, never.state
            same = mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
        left = self._files(fact.prompt)
        assert done.erased is not None
        self.found["forgot"] = {
            "sentence": fact.sentence().strip(),
            "experiences": len(done.experiences),
            "versions": list(done.erased.versions),
            "learned again": done.replayed,
            "nats before": before,
            "nats after": nats(self.learner, fact.prompt, [fact.value])[0],
            "nats of the base": nats(self.frozen, fact.prompt, [fact.value])[0],
            "same bits as a life without it": same,
            "tensors compared": len(mine),
            "nights compared": int(mine["slept/nights"]),
            "files with its words, before": held,
            "files with its words": left,
        }
        self.tell(
            f"  bits equal to a life without it: {same}; files with its words: {len(held)} before, {len(left)} now"
        )
        self.found["after forgetting"] = self.measure()

    def _files(self, words: str) -> list[str]:
        """Of the store, those that hold these words."""
        files = [file for file in (self.folder / "store").rglob("*") if file.is_file()]
        return [file.name for file in files if words.encode() in file.read_bytes()]

    def rollback(self) -> None:
        """To the end of last week, and forth again."""
        now = self.me.version
        assert now is not None
        first = next(v for v in self.me.versions() if v.reason == "last week")
        self.me.rollback(first.number, "to show it")
        self.found["rolled back"] = {"from": now.number, "to": first.number, "known": known(self.learner, DAYS)}
        self.me.rollback(now.number, "and forth again")
        self.found["mother tongue, and forth again"] = bits(self.learner)
        scores = self.found["rolled back"]["known"]
        self.tell(f"rolled back to version {first.number}: last week {scores['last week']['right']} of "
                  f"{scores['last week']['of']}, today {scores['today']['right']}; then forth again")  # fmt: skip


def left_out(one: dict[str, Any]) -> str:
    """A telling that the night does not go over, and the later one."""
    return f"{one['beginning']}{one['was']}, for {one['now'].strip()!r} was said later"
