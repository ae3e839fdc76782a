"""When a learner sleeps by itself: `Learner.create(..., sleep="period,tokens=65536")`. Off where nothing is said.

    period      just before a level would overwrite what it sends to a slower one: the slowest such level
    period=0    the same of that level
    tokens=N    so many were read since the last night
    surprise=X  so many nats were paid since the last night
    idle=S      so many seconds ago was the last experience
    hour=H      once a night, from this hour of the local day on
    preset=ARM  what the night does

`observe` asks before each piece of a stream (1,024 characters or tokens), so that a night comes at most a piece before
its time. Every night it sleeps is an entry of the journal like any other.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from circadia.live.day import behind, lived, reports
from circadia.live.reader import position
from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.settings import LevelSettings
from circadia.sleep import DEFAULT, Schedule, preset
from circadia.sleep.schedule import until

if TYPE_CHECKING:
    from circadia.live.journal import Experience
    from circadia.live.learner import Learner
    from circadia.live.store import Store

NUMBERS = {"period": int, "tokens": int, "surprise": float, "idle": float, "hour": int}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What makes a night due; None turns a reason off. `period`: of a level, or -1 for the slowest that sends."""

    preset: str = DEFAULT
    period: int | None = None
    tokens: int | None = None
    surprise: float | None = None
    idle: float | None = None
    hour: int | None = None

    def __post_init__(self) -> None:
        preset(self.preset)
        if self.period is not None and (isinstance(self.period, bool) or not isinstance(self.period, int)):
            raise ValueError(f"sleep: period={self.period!r}: give the number of a level")
        if all(getattr(self, name) is None for name in NUMBERS):
            raise ValueError(f"sleep: nothing says when: give some of {', '.join(NUMBERS)}")
        self.schedule()  # checks the others

    def schedule(self) -> Schedule:
        """The reasons apart from the clock of the levels."""
        return Schedule(tokens=self.tokens, idle=self.idle, surprise=self.surprise, hour=self.hour)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def check(self, model: Any, journal: bool) -> None:
        """Whether a learner can keep it."""
        if not journal:
            raise ValueError("sleep: without a journal there is nothing to sleep on: leave it out, or keep the journal")
        levels = len(levels_of(model))
        if self.period is not None and not -1 <= self.period < levels:
            raise ValueError(f"sleep: period={self.period}, but the levels are 0 to {levels - 1}")

    def sender(self, model: Any) -> int | None:
        """The level whose period counts."""
        if self.period is None or self.period >= 0:
            return self.period
        return max(0, len(levels_of(model)) - 2)


def levels_of(model: Any) -> tuple[LevelSettings, ...]:
    """Of a retrofit; nothing else sleeps."""
    return model.settings.levels if isinstance(model, RetrofitModel) else ()


@dataclass(frozen=True)
class Due:
    """Why to sleep now, in words; `bool()` of it says whether."""

    reasons: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]  # senders whose period ends with the next chunk, and their receivers
    tokens: int  # read since the last night
    surprise: float  # nats paid since then

    def __bool__(self) -> bool:
        return bool(self.reasons)


@dataclass
class Since:
    """Since the last night, up to what is open."""

    start: int  # position in the stream
    slept: float  # time
    active: float
    nats: float

    @classmethod
    def of(cls, me: "Learner") -> "Since":
        """Out of the log."""
        line = lived(me)
        first, start, slept, active = _night(me.store, me.name, line)
        versions = {one.version for one in line if one.number > first and one.version}
        chunk, nats = me.model.settings.chunk if levels_of(me.model) else 1, 0.0
        for event in me.store.events(me.name, "learned"):
            if event.version in versions and event.payload and event.payload["surprise"] is not None:
                nats += event.payload["surprise"] * event.payload["chunks"] * chunk
        return cls(start, slept, active, nats)


def _night(store: "Store", name: str, line: Sequence["Experience"]) -> tuple[int, int, float, float]:
    """The last night's number, its place in the stream and its time; and when something else happened last."""
    told, begun = reports(store, name, line), store.learner(name).time
    last = next((one for one in reversed(line) if told and one.number == told[-1]["night"]), None)
    active = max((one.time for one in line if one.kind not in ("sleep", "report")), default=begun)
    return (last.number, last.start, last.time, active) if last else (0, 0, begun, active)


@dataclass(frozen=True)
class Clock:
    """What `idle` and `hour` look at, of a branch. Rows say it: no memory is read, as `due` does."""

    tokens: int  # read since the last night
    slept: float
    active: float

    @classmethod
    def of(cls, store: "Store", name: str, branch: str) -> "Clock":
        """As it is committed."""
        version = store.current(name, branch)
        if version is None:
            return cls(0, 0.0, 0.0)
        _, start, slept, active = _night(store, name, behind(store, name, version.number))
        return cls(version.tokens - start, slept, active)

    def why(self, when: Policy) -> list[str]:
        """Its reasons to sleep now."""
        clock = Schedule(idle=when.idle, hour=when.hour)
        return clock.why(now=time.time(), slept=self.slept, active=self.active, tokens=self.tokens, surprise=0.0)


def due(me: "Learner", since: Since | None = None, coming: int | None = None, asked: bool = False) -> Due:
    """`Learner.due`. `coming`: tokens that are about to be read; by default up to the end of the open chunk."""
    state, now = me.state, time.time()
    place, when = position(state), me.policy
    since = since or Since.of(me)
    read, nats = place - since.start, since.nats + me.unsaved.tally.nats
    levels = levels_of(me.model)
    if coming is None:
        chunk = me.model.settings.chunk if levels else 1
        coming = chunk - place % chunk
    ending = [i for i in range(len(levels)) if 0 < until(me.model, place, i) <= coming]
    pairs = tuple((i, i + 1) for i in ending if i + 1 < len(levels))
    reasons = ["on demand"] if asked else []
    if when is not None:
        sender = when.sender(me.model)
        if read > 0 and sender in ending:
            reasons.append(f"level {sender} is about to overwrite what it learned in {levels[sender].period:,} tokens")
        reasons += when.schedule().why(now=now, slept=since.slept, active=since.active, tokens=read, surprise=nats)
    return Due(tuple(reasons), pairs, read, nats)


class Watch:
    """For `observe`: asks before each piece, and sleeps if it is time."""

    def __init__(self, me: "Learner", stop: Any) -> None:
        self.me, self.stop, self.since, self.nights = me, stop, Since.of(me), list[Any]()

    def before(self, form: str, data: Any, source: str, trust: float) -> bool:
        """Whether reading may go on: a night that was stopped ends it."""
        me = self.me
        assert me.policy is not None
        plan = me.reader.plan(me.state, form, data, source, trust)
        if due(me, self.since, plan.tokens):
            night = me.sleep(me.policy.preset, stop=self.stop)
            self.since = Since.of(me)
            if night.action == "stopped":
                return False
            self.nights.append(night)
        self.since.active = time.time()
        return True

    def settled(self) -> None:
        """After a commit: what was open is in the log."""
        self.since = Since.of(self.me)


def of(given: "Policy | Mapping[str, Any] | str | None") -> Policy | None:
    """Words with commas between them, or a mapping."""
    if given is None or isinstance(given, Policy):
        return given
    if isinstance(given, Mapping):
        try:
            return Policy(**given)
        except TypeError as error:
            raise ValueError(f"sleep={dict(given)!r}: {error}; see circadia.live.Policy") from None
    if not isinstance(given, str):
        raise ValueError(f"sleep={given!r}: give a text such as 'period' or 'tokens=65536', or a mapping")
    if given in ("", "off"):
        return None
    found: dict[str, Any] = {}
    for word in given.split(","):
        name, _, value = (part.strip() for part in word.partition("="))
        try:
            if name == "preset":
                found[name] = value
            elif name == "period" and not value:
                found[name] = -1
            else:
                found[name] = NUMBERS[name](value)
        except (KeyError, ValueError):
            raise ValueError(
                f"sleep={given!r}: {word.strip()!r} is not understood: use 'period', 'period=LEVEL', 'tokens=N', "
                "'surprise=NATS', 'idle=SECONDS', 'hour=H' and 'preset=ARM', with commas between them"
            ) from None
    return Policy(**found)
