"""A learner asleep: a night over what it observed, and one new version if the guard lets it.

A night is an entry of the journal, {"op": "sleep", settings, seed, ...}, as an observation is: what it does follows
from the state and the experiences on the way to it. So rolling back, forgetting, catching up and exporting need to know
nothing of nights. The entry is written when the work is done: a night that is stopped or killed has changed nothing.

    slept/...           the memory as the last night left it: `circadia.sleep.sleep(slept=...)`
    slept/nights        how many there were; the seed of the next one, if none is given
    awake/...           windows to rehearse, see circadia/live/awake.py
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from circadia.live import commits, guard
from circadia.live.day import Day, asked, day
from circadia.live.errors import StoreError
from circadia.live.observing import _stoppable
from circadia.live.reader import position
from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.state import State
from circadia.sleep import Interrupted, Report, Settings, fitted, preset
from circadia.sleep import sleep as night_of
from circadia.sleep.pool import PARTS

if TYPE_CHECKING:
    from circadia.live.learner import Learner
    from circadia.live.store import Store

OWN = ("slept/", "awake/")
MEMORY = (*PARTS, "mask")
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Night:
    """What a sleep came to. `action`: accept; hold or rollback, by the guard; none, where nothing was observed since
    the last one; stopped, where `sleep(resume=True)` takes it up again.
    """

    action: str
    version: int | None = None
    parent: int | None = None  # the version that went to sleep
    number: int | None = None  # in the journal
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    time: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """A page to read."""
        text = Report.from_dict(self.report).markdown() if self.report else "# No night\n"
        end = {
            "accept": f"Version {self.parent or 'base'} went to sleep, version {self.version} woke up.",
            "hold": f"Version {self.version} is held: {'; '.join(self.reasons)}.",
            "rollback": f"Nothing was changed: {'; '.join(self.reasons)}.",
        }.get(self.action, "Nothing was changed.")
        head, _, rest = text.partition("\n")
        return f"{head}\n\n{end}\n{rest}"

    def html(self) -> str:
        """The same page for a browser, without anything from elsewhere."""
        from circadia.sleep.report import page

        return page(self.markdown())


def sleep(
    me: "Learner", settings: Settings | str | None = None, minutes: float | None = None,
    compute: float | str | None = None, seed: int | None = None, days: int | None = 1,
    progress: bool | Tell = False, stop: Callable[[], bool] | None = None, resume: bool = False,
    fit: float | None = None, changes: Mapping[str, Any] | None = None,
) -> Night:  # fmt: skip
    """`Learner.sleep`."""
    begin = time.perf_counter()
    told = asked_for(settings, minutes, compute, seed, days, fit, changes or {})
    if not me.journal:
        raise StoreError(f"{me.name}: the journal is off: there is nothing to sleep on")
    if not isinstance(me.model, RetrofitModel):
        raise ValueError(f"base: a night is for retrofits, this is a {type(me.model).__name__}")
    with me.writing() as writer, _stoppable() as hit, _shown(progress) as tell:
        commits.commit(me, "before sleeping")
        parent, kept = me.at, None
        if resume:
            number, told, kept = _unfinished(me)
        else:
            told["probes"] = [asdict(probe) for probe in me.guard.probes]
            plan = {n: x for n, x in told.items() if n != "probes"}
            number = writer.record("night", {**plan, "after": me.store.head(me.name)[0]})
        seconds = None if told["minutes"] is None else 60.0 * told["minutes"]
        asks = [hit, *([stop] if stop else [])]
        try:
            lived = through(me, told, seconds, lambda: any(ask() for ask in asks), tell, kept)
        except Interrupted as error:
            # A budget counts what was done twice, so that only a night without one goes on where it was.
            free = seconds is None and told["compute"] is None
            me.stopped_night = (number, me.at, error.progress) if free else None
            return Night("stopped", parent=parent, seconds=time.perf_counter() - begin, time=time.time())
        except ValueError:
            writer.record("woke", {"night": number})
            raise
        me.stopped_night = None
        if lived is None:
            writer.record("woke", {"night": number})
            return Night("none", parent=parent, seconds=time.perf_counter() - begin, time=time.time())
        told["cut"] = lived.report.cut
        at = position(me.state)
        me.unsaved.torn = True
        payload = commits.pack({"op": "sleep", **told})
        noted = writer.remember(payload, "sleep", 1.0, at, at, "sleep").number
        _wake(me, lived, noted)
        me.unsaved.experiences.append(noted)
        outcome = commits.commit(me, f"sleep: {lived.report.preset or 'own settings'}")
        report = lived.report.to_dict()
        numbers = ("bound", "older", "cost", "sizes", "windows", "entries", "preset", "seed")
        heard = {"night": number, "entry": noted, "action": outcome.action, "parent": parent}
        heard["reasons"] = [text[: commits.KEPT] for text in outcome.reasons]
        heard |= {n: report[n] for n in numbers} | {"quarantined": len(report["quarantined"])}
        version = outcome.version.number if outcome.version else None
        writer.record("slept", heard, version=version)
    return Night(
        outcome.action, version, parent, noted, outcome.reasons, time.perf_counter() - begin, time.time(), report
    )


@dataclass(frozen=True)
class Lived:
    """A night before it is a version."""

    state: State
    report: Report
    day: Day


def through(
    me: "Learner", told: Mapping[str, Any], seconds: float | None = None, stop: Callable[[], bool] | None = None,
    tell: Tell | None = None, kept: Mapping[str, Any] | None = None,
) -> Lived | None:  # fmt: skip
    """The night that `told` asks for, from the state as it is; None where there is nothing to sleep on."""
    today = day(me, told["days"])
    if not today.entries:
        return None
    nights = int(me.state.get("slept/nights", torch.tensor(0)))
    bare = {name: x for name, x in me.state.items() if not name.startswith(OWN)}
    slept = {n.removeprefix("slept/"): x for n, x in me.state.items() if n.startswith("slept/level")}
    settings = Settings.from_dict(told["settings"])
    if told.get("fit") is not None:  # nights of older stores have none
        settings = fitted(settings, today.tokens, told["fit"])
    state, report = night_of(
        me.model, bare, today.entries, settings,
        seed=nights if told["seed"] is None else told["seed"], slept=slept or None, earlier=today.earlier,
        probes=asked(me, guard.read(told["probes"])), tasks=today.tasks, admitted=today.admitted, seconds=seconds,
        work=_work(told, today), stop=stop, progress=tell, resume=kept,
        decode=me.reader.words.decode if me.reader.words.name is not None else None,
    )  # fmt: skip
    state = {**me.state, **state, "slept/nights": torch.tensor(nights + 1)}
    state |= {f"slept/{name}": x for name, x in state.items() if _memory(name)}
    if me.reader.awake is not None:
        state = me.reader.awake.renewed(state, report.kept)
    return Lived(state, report, today)


def replay(me: "Learner", told: Mapping[str, Any], number: int) -> None:
    """The effect of a night that was slept before, on what is left of its day."""
    lived = through(me, told)
    if lived is not None:
        me.unsaved.torn = True
        _wake(me, lived, number)


def _wake(me: "Learner", lived: Lived, night: int) -> None:
    """The night's self, and its report and windows in the journal: they have words of the day in them."""
    assert me._writer is not None
    at, report = position(me.state), lived.report.to_dict()
    held = [{**one, "members": lived.day.members[one["number"]]} for one in report["quarantined"]]
    kept = [[window.to_dict() for window in one] for one in lived.report.kept]
    payload = commits.pack({"op": "report", "night": night, "report": report, "quarantined": held, "kept": kept})
    noted = me._writer.remember(payload, "sleep", 1.0, at, at, "report").number
    me.unsaved.experiences.append(noted)
    me.unsaved.noted.append(noted)
    me._state = lived.state
    me.unsaved.dirty, me.unsaved.torn = True, False


def _memory(name: str) -> bool:
    level, _, rest = name.partition("/")
    return level.startswith("level") and rest.partition("/")[0] in MEMORY


def _work(told: Mapping[str, Any], today: Day) -> float | None:
    """In tokens; "0.5 days" is half of what reading the day cost, where a token is learned once."""
    given, cut = told["compute"], told.get("cut")
    work = float(given.split()[0]) * 3 * today.tokens if isinstance(given, str) else given
    found = [float(x) for x in (work, cut) if x is not None]
    return min(found) if found else None


def asked_for(
    settings: Settings | str | None, minutes: Any, compute: Any, seed: Any, days: Any, fit: Any,
    changes: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Checked; as the journal will hold it."""
    found = settings if isinstance(settings, Settings) else preset(*([settings] if settings is not None else []))
    try:
        found = found.but(**changes)
    except TypeError as error:
        raise ValueError(f"sleep: {error}; see circadia.sleep.Settings") from None
    if minutes is not None and not _above(minutes):
        raise ValueError(f"minutes={minutes!r} must be above 0")
    if isinstance(compute, str):
        share, _, unit = compute.partition(" ")
        try:
            fine = unit in ("day", "days") and _above(float(share))
        except ValueError:
            fine = False
    else:
        fine = compute is None or _above(compute)
    if not fine:
        raise ValueError(f"compute={compute!r}: give tokens, where one that is learned counts 3, or '0.5 days'")
    for name, value, least in (("seed", seed, 0), ("days", days, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}, or None")
    if fit is not None:
        if not _above(fit):
            raise ValueError(f"fit={fit!r} must be above 0: so many days of reading, such as 2")
        fitted(found, 1, fit)  # refuses what cannot be cut to a price
    return {
        "settings": found.to_dict(), "minutes": minutes, "compute": compute, "seed": seed, "days": days, "fit": fit
    }  # fmt: skip


def _above(value: Any) -> bool:
    """Is it a number, and above 0?"""
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 < value < math.inf


def unfinished(me: "Learner") -> dict[str, Any] | None:
    """What a night was asked for that ended in nothing: it was stopped, or the process was killed."""
    nights = me.store.events(me.name, "night")
    last = nights[-1] if nights else None
    if last is None or last.payload is None:
        return None
    if any(me.store.events(me.name, kind, after=last.number, limit=1) for kind in ("slept", "woke")):
        return None
    later = me.store.events(me.name, "commit", after=last.number)
    if any(e.payload and e.payload["version"]["reason"].startswith("sleep: ") for e in later):
        return None
    return {"number": last.number, **last.payload}


def stopped(me: "Learner") -> bool:
    """Is there a night to be taken up? Not while somebody writes this learner: he may be sleeping it."""
    return unfinished(me) is not None and me.store.idle(me.store.row(me.name)["id"])


def _unfinished(me: "Learner") -> tuple[int, dict[str, Any], Any]:
    told = unfinished(me)
    if told is None:
        raise ValueError(f"resume=True: no night of {me.name!r} was stopped: call sleep() without it")
    number = told.pop("number")
    told.pop("after")
    told["probes"] = [asdict(probe) for probe in me.guard.probes]
    kept = me.stopped_night
    return number, told, kept[2] if kept is not None and kept[:2] == (number, me.at) else None


def nights(store: "Store", name: str, branch: str) -> list[Night]:
    """`Learner.nights`."""
    from circadia.live.forgetting import Line

    found, line = [], Line.of(store, name)
    home = {e: v for v, brought in line.brought.items() for e in brought}
    now = store.current(name, branch)
    current = set(line.way(now.number if now else None))
    ended = {e.payload["entry"]: e.payload for e in store.events(name, "slept") if e.payload}
    for one in store.experiences(name, payload=True):
        if one.kind == "report" and one.payload is not None:
            told = commits.header(one.payload)
            version = home.get(one.number)
            if version is None and told["night"] not in ended:  # killed before it was judged
                continue
            heard = ended.get(told["night"], {})
            action = "accept" if version in current else heard.get("action", "accept")
            parent = line.parents.get(version) if version is not None else None
            why = () if action == "accept" else tuple(heard["reasons"])
            found.append(Night(action, version, parent, told["night"], why, 0.0, one.time, told["report"]))
    return sorted(found, key=lambda night: -(night.number or 0))


@contextmanager
def _shown(progress: bool | Tell) -> Iterator[Tell | None]:
    """What is told before each step: the part, the step, and the steps at most."""
    if not progress or callable(progress):
        yield progress or None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as bar:
        task = bar.add_task("asleep")
        yield lambda what, at, of: bar.update(task, description=f"{what}: {at:,} of {of:,} steps at most")
