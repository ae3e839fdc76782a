"""A night, from a state to a state. Nothing is changed in place: stopped or refused, the day's self is still there."""

import copy
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.learn import reading
from circadia.models.retrofit.state import State
from circadia.sleep import pool
from circadia.sleep.consolidate import check as check_pair
from circadia.sleep.consolidate import consolidate, prospective
from circadia.sleep.dream import Task, dream, fitting, tasks_of
from circadia.sleep.dream import check as check_dreaming
from circadia.sleep.filter import check
from circadia.sleep.fit import Interrupted, Meter, Stopped
from circadia.sleep.latest import Decode, Latest
from circadia.sleep.presets import preset
from circadia.sleep.rehearse import anchored
from circadia.sleep.replay import Replay, replay
from circadia.sleep.report import Report
from circadia.sleep.sample import sample, starts
from circadia.sleep.seed import Judge, seed, texts
from circadia.sleep.settings import Settings
from circadia.sleep.student import Student, Teacher, apart, written
from circadia.sleep.windows import (
    Entry,
    Probe,
    Window,
    probes,
    said,
    scores,
    share_bound,
    spread,
    surprising,
    thinned,
)
from circadia.sleep.words import questions, variations


def sleep(
    model: RetrofitModel, state: State, journal: Sequence[Entry], settings: Settings | str | None = None, *,
    seed: int = 0, slept: State | None = None, earlier: Sequence[Sequence[Window]] = (),
    probes: Sequence[Probe] = (), tasks: Sequence[Task] = (),
    admitted: Sequence[int] = (), judge: Judge | None = None, start: int | None = None,
    seconds: float | None = None, work: float | None = None, stop: Callable[[], bool] | None = None,
    progress: Callable[[str, int, int], None] | None = None, resume: Mapping[str, Any] | None = None,
    decode: Callable[[list[int]], str] | None = None,
) -> tuple[State, Report]:  # fmt: skip
    """The self after a night, and what happened.

    journal   what was observed, as entries of tokens
    settings  of the night, or the name of a preset
    slept     the self after the last night: what it would find surprising is gone over, and with older="slept" it
              holds what must stay. None: the base
    earlier   windows of the nights before, as the last one's report has them: `report.kept`
    probes, tasks   beside those that are made from the journal; admitted: entries that the filter lets pass
    seconds, work   budgets: when one is used up, the night ends with what it has. Work is counted in tokens, read or
                    made 1, learned 3
    stop      asked between steps; True raises `Interrupted`, whose `progress`, given as `resume` with everything else
              the same, goes on with the same bits. Budgets count both parts
    progress  is called with the part, the step and the steps at most
    decode    text of tokens, for dreams in the report, and to know what was said otherwise later; bytes need none
    """
    if isinstance(settings, str) or settings is None:
        settings = preset(*([settings] if settings else []))
    if not isinstance(model, RetrofitModel):
        raise ValueError(f"model is a {type(model).__name__}: sleep moves knowledge between the levels of a retrofit: "
                         "give one, as circadia.retrofit(model) makes it")  # fmt: skip
    model.check(state)
    known = model.config.get_text_config().vocab_size
    if any(token >= known for token in settings.ask):
        raise ValueError(f"ask={settings.ask!r}: the model knows tokens 0 to {known - 1}")
    entries = [replace(entry, tokens=said(model, entry.tokens)) for entry in journal]
    for number, count in Counter(entry.number for entry in entries).items():
        if count > 1:
            raise ValueError(
                f"journal: {count} entries have number={number}: give each its own, windows are named by it"
            )
    kept: dict[str, Any] = dict(resume or {})
    meter = Meter(seconds, work, stop, progress)
    for name, value in kept.get("counts", {}).items():
        setattr(meter, name, value)
    night = _Night(model, state, entries, settings, seed, slept, earlier, meter, kept)
    night.able()
    try:
        with reading(model):
            return night.run(probes, tasks, admitted, judge, start, decode)
    except Stopped:
        raise Interrupted({"done": night.done, "held": night.held, "counts": meter.counts()}) from None


class _Night:
    """Parts in order. What a part returned is kept, so that after a stop it is not done again."""

    def __init__(
        self, model: RetrofitModel, state: State, journal: list[Entry], settings: Settings, seed: int,
        slept: State | None, earlier: Sequence[Sequence[Window]], meter: Meter, kept: dict[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.state, self.journal, self.settings, self.meter = model, state, journal, settings, meter
        self.given, self.seed, self.earlier = state, seed, earlier
        self.done: dict[str, Any] = dict(kept.get("done", {}))
        # A copy, as a part that goes on writes into it: what was given can be given again.
        self.held: dict[str, dict[str, Any]] = copy.deepcopy(dict(kept.get("held", {})))
        self.older = Teacher(model, slept if settings.older == "slept" else None)
        self.surprised = Teacher(model, slept if settings.surprised == "morning" else state)
        self.report = Report(preset=settings.name, seed=seed, entries=len(journal))

    def able(self) -> None:
        """What would end the night in its middle is said before it begins."""
        settings = self.settings
        if settings.replay is not None or settings.again is not None or settings.dreaming is not None:
            written(self.model, settings.into, self.state)
        if settings.dreaming is not None:
            check_dreaming(self.model)
        for sender, receiver in self.pairs():
            assert settings.seeding is not None
            check_pair(self.model, sender, receiver, settings.seeding)

    def do(self, name: str, part: Callable[[torch.Generator, dict[str, Any]], Any]) -> Any:
        """A part of the night, with random numbers of its own."""
        if name not in self.done:
            number = (self.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63
            held = self.held.setdefault(name, {})
            self.done[name] = part(torch.Generator().manual_seed(number), held)
            self.held.pop(name, None)
        return self.done[name]

    def run(
        self, given: Sequence[Probe], tasks: Sequence[Task], admitted: Sequence[int], judge: Judge | None,
        start: int | None, decode: Callable[[list[int]], str] | None,
    ) -> tuple[State, Report]:  # fmt: skip
        settings, model, report, meter = self.settings, self.model, self.report, self.meter
        self.filter(given, admitted)
        length = (settings.replay or Replay()).length
        day = Teacher(model, self.state)
        windows, earlier, report.superseded = self.do("windows", lambda g, held: self.windows(length, decode))
        how = settings.replay or Replay()
        every = self.do("probes", lambda g, held: probes(self.surprised, windows, min(how.answer, length // 2)))
        own = spread(every, how.probes)
        asked = [*given, *own]
        dreams = self.do("dreams", lambda g, held: self.dreams(g, start))
        train, unseen = dreams[len(dreams) // 4 :], dreams[: len(dreams) // 4]
        before = self.do("before", lambda g, held: self.measured(day, asked, unseen))
        if settings.inner:
            self.state = self.do("inner", lambda g, held: self.inner())
        others: list[list[Tensor]] = []
        if settings.replay is not None:
            others = self.do("variations", lambda g, held: self.variations(day, windows, every, g, start))
            self.part("replay", lambda g, held: self.replayed(windows, earlier, others, train, own, g, held))
        if settings.again is not None:
            self.part("again", lambda g, held: self.again(windows, train, judge, start, g, held))
        for pair in self.pairs():
            name = f"level {pair[0]} to {pair[1]}"
            self.part(name, lambda g, held, pair=pair: self.transfer(pair, windows, train, judge, start, g, held))  # type: ignore[misc]
        self.dreaming(windows, own, tasks, train, start, decode)
        if settings.anchor and self.state is not self.given:
            self.state = anchored(model, self.state)
        self.check()
        report.stopped_by_budget, report.cut = meter.ended, meter.cut
        report.kept = thinned([*earlier, windows], how.keep)
        after = self.measured(Teacher(model, self.state), asked, unseen)
        report.windows = len(windows) if settings.replay is None or not settings.replay.whole else len(self.spans())
        report.probes = [{"name": p.name, "before": a, "after": b} for p, a, b in zip(asked, before[0], after[0])]
        report.bound = tuple(share_bound(x[0], how.bound) if asked else float("nan") for x in (before, after))  # type: ignore[assignment]
        report.older = (before[1], after[1])
        told = [("the older self", row) for row in unseen[:3]]
        told += [(f"{w.name} in other words", texts[0]) for w, texts in zip(windows, others) if texts][:3]
        report.dreams = [{"about": about, "text": self.told(row, decode)} for about, row in told] + report.dreams
        report.sizes = pool.sizes(model, self.state)
        report.cost = {"seconds": meter.elapsed, "learned": meter.learned, "read": meter.read, "made": meter.made}
        return self.state, report

    def part(self, name: str, act: Callable[[torch.Generator, dict[str, Any]], tuple[State, dict[str, Any]]]) -> None:
        """One that gives a new self and tells of it. After the budget is used up it is left out."""
        if name not in self.done and self.meter.over:
            self.report.dropped.append(f"{name}: the budget was used up")
            return
        self.state, told = self.do(name, act)
        told = dict(told)
        for what in told.pop("pool", []):
            self.report.moved.append(what)
        if "dropped" in told:
            self.report.dropped.append(told.pop("dropped"))
        if "moved" in told:
            self.report.moved.append(told.pop("moved"))
        self.report.parts.append({"part": name, **told})

    def filter(self, given: Sequence[Probe], admitted: Sequence[int]) -> None:
        how = self.settings.filter
        if how is None:
            return
        passed, held = self.do(
            "filter",
            lambda g, kept: check(
                self.model, self.state, self.older, self.journal, given, how, g, self.meter, admitted
            ),
        )
        self.journal, self.report.quarantined = passed, [asdict(one) for one in held]

    def windows(self, length: int, decode: Decode | None) -> tuple[list[Window], list[list[Window]], list[Any]]:
        """Of the day, of each earlier night, and what is left out of them as out of date."""
        limit = self.settings.replay.windows if self.settings.replay else None
        found = surprising(self.surprised, self.journal, length, limit, meter=self.meter)
        earlier = [list(night) for night in self.earlier]
        if not self.settings.latest or (decode is None and not self.of_bytes):
            return found, earlier, []
        latest = Latest(self.journal, decode or _bytes)
        found, earlier = latest.windows(found), [latest.windows(night, earlier=True) for night in earlier]
        return found, earlier, list(latest.told.values())

    @property
    def of_bytes(self) -> bool:
        """Is every byte a token?"""
        return self.model.config.get_text_config().vocab_size == 256

    def often(self, windows: Sequence[Window], of: Sequence[Any]) -> list[Any]:
        """What belongs to each window, as often as it is drawn: that of a correction stands there several times."""
        return [x for w, x in zip(windows, of) for _ in range(self.settings.corrections if w.correction else 1)]

    def variations(
        self, day: Teacher, windows: Sequence[Window], every: Sequence[Probe], g: torch.Generator, start: int | None
    ) -> list[list[Tensor]]:
        how = self.settings.replay
        if how is None or not how.variations:
            return []
        points = {probe.name: probe.tokens[probe.cue :] for probe in every}
        return variations(day, windows, points, how.variations, self.settings.ask, g, self.meter, start)

    def spans(self) -> list[Tensor]:
        """The journal in pieces as long as a chunk."""
        size = self.model.settings.chunk
        return [row for entry in self.journal for row in entry.tokens.split(size) if row.numel() > 1]

    def dreams(self, generator: torch.Generator, start: int | None) -> Tensor:
        settings = self.settings
        self.meter.made += settings.dreams * settings.dream_length
        prompts = starts(self.model, settings.dreams, start)
        return sample(self.older, prompts, settings.dream_length, generator)

    def measured(self, who: Teacher, asked: Sequence[Probe], unseen: Tensor) -> tuple[list[float], float]:
        """Losses on probes, and how far from the older self."""
        ids = unseen[:, :-1]
        far = apart(self.older, who, ids)
        self.meter.read += 2 * ids.numel() + sum(p.tokens.numel() for p in asked)
        return scores(who, asked), far

    def inner(self) -> State:
        """Each chunk of the day again, several times in a row, by the waking rule; the stream stays where it was."""
        model, state = self.model, self.state
        stream = {n: x for n, x in state.items() if n.startswith(("stream/", "clock/"))}
        chunk = model.settings.chunk
        rows = [row for entry in self.journal for row in entry.tokens.split(chunk) if row.numel() == chunk]
        for at, row in enumerate(rows):
            self.meter.step("inner", at, len(rows))
            for _ in range(self.settings.inner):
                if self.meter.over:
                    break
                _, state = model.learn(row, {**state, **model_start(model)})
                self.meter.learned += chunk
        return {**state, **stream}

    def replayed(
        self, windows: Sequence[Window], nights: Sequence[Sequence[Window]], others: list[list[Tensor]], train: Tensor,
        own: list[Probe], g: torch.Generator, held: dict[str, Any],
    ) -> tuple[State, dict[str, Any]]:  # fmt: skip
        how = self.settings.replay
        assert how is not None
        student = Student(self.model, self.state, written(self.model, self.settings.into, self.state))
        rows = self.spans() if how.whole else self.often(windows, [window.tokens for window in windows])
        drawn = self.often(windows, others)
        dreams = train if how.dreams else None
        earlier = [window for night in nights for window in night] if how.earlier else []
        # What earlier nights have bound is to be bound in the morning, too.
        asked = [*own, *spread(probes(self.surprised, earlier, min(how.answer, how.length // 2)), how.probes)]
        old = self.often(earlier, [window.tokens for window in earlier])
        told = replay(student, rows, dreams, self.older, asked, how, g, self.meter, held, drawn, old)
        if not how.whole:
            told["windows"] = len(windows)
        if how.variations:
            told["variations"] = sum(map(len, others))
        moved = f"{told['windows']} windows of the journal into {self.settings.into}"
        if earlier:
            told["earlier"] = len(earlier)
            moved += f", beside {len(earlier)} of earlier nights"
        return student.state(), {**told, "moved": moved}

    def again(
        self, windows: Any, train: Tensor, judge: Judge | None, start: int | None, g: torch.Generator,
        held: dict[str, Any],
    ) -> tuple[State, dict[str, Any]]:  # fmt: skip
        how = self.settings.again
        assert how is not None
        teacher = Teacher(self.model, self.state)
        student = Student(self.model, self.state, written(self.model, self.settings.into, self.state))
        data = texts(teacher, windows, how, g, self.meter, start)
        told = seed(teacher, student, data, how, g, self.meter, held, self.older, train, judge)
        return student.state(), told

    def pairs(self) -> list[tuple[int, int]]:
        how = self.settings.seeding
        if how is None:
            return []
        if not isinstance(self.settings.pairs, str):
            return list(self.settings.pairs)
        each = [(i, i + 1) for i in range(len(self.model.own) - 1)]
        found = [pair for pair in each if not how.expand or pool.has_pool(self.model, pair[1])]
        if not found:
            raise ValueError(
                "seeding has no pair of levels: retrofit with two periods and capacity=['full', 'lowrank'], "
                "slots=[1, 6]; or use a preset without seeding"
            )
        return found

    def transfer(
        self, pair: tuple[int, int], windows: Any, train: Tensor, judge: Judge | None, start: int | None,
        g: torch.Generator, held: dict[str, Any],
    ) -> tuple[State, dict[str, Any]]:  # fmt: skip
        how = self.settings.seeding
        assert how is not None
        after = prospective(self.model, self.state, pair[0])
        try:
            return consolidate(
                self.model, self.state, after, *pair, how, windows, g, self.meter, held, full=self.settings.full,
                older=self.older, dreams=train, judge=judge, start=start,
            )  # fmt: skip
        except pool.PoolFull as error:
            return self.state, {"dropped": f"level {pair[0]} to {pair[1]}: {error}"}

    def dreaming(
        self, windows: Any, own: list[Probe], tasks: Sequence[Task], train: Tensor, start: int | None,
        decode: Callable[[list[int]], str] | None,
    ) -> None:  # fmt: skip
        how = self.settings.dreaming
        if how is None or ("dreaming" not in self.done and self.meter.over):
            return

        def act(g: torch.Generator, held: dict[str, Any]) -> Any:
            who, ask = Teacher(self.model, self.state), self.settings.ask

            def anew(window: Window, probe: Probe) -> list[Probe]:
                return questions(who, window, probe, how.questions, ask, g, self.meter, start)

            about = [*tasks, *tasks_of(windows, own, how, g, anew if how.questions else None)]
            about, left = fitting(self.model, about, how)
            found = dream(self.model, self.state, about, how, self.settings.into, g, self.meter, self.older, train)
            return *found, left

        self.state, made, left = self.do("dreaming", act)
        self.report.dropped += left
        self.report.parts.append({"part": "dreaming", "tried": len(made), "helped": sum(one.reward for one in made)})
        self.report.dreams += [
            {"about": one.task, "text": self.told(one.tokens, decode), "reward": one.reward} for one in made[:6]
        ]

    def told(self, row: Tensor, decode: Callable[[list[int]], str] | None) -> str:
        """A dream in words, where somebody knows them."""
        ids = row.tolist()
        if decode is not None:
            return decode(ids)
        return _bytes(ids) if self.of_bytes else " ".join(map(str, ids))

    def check(self) -> None:
        """What is not finite never leaves a night."""
        odd = [n for n, x in self.state.items() if x.is_floating_point() and not bool(torch.isfinite(x).all())]
        if odd:
            self.state, self.report.refused = self.given, f"{odd[0]} was not finite"


def _bytes(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def model_start(model: RetrofitModel) -> State:
    """The beginning of a stream: nothing before, and the clock at a border of all periods."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return {"stream/context": nothing, "stream/pending": nothing, "clock/tokens": torch.tensor(0)}
