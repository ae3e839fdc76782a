"""Forgetting: what was learned is a function of the experiences on the way, so leave some out and go that way again.

1. Experiences that are to go, and with them the answers that were given after the first of them (whose words the memory
   may have shaped), observed conversations with such an answer, and thumbs for such an answer. Corrections stay: what
   they teach is the question and the user's own words. So do nights: they are slept again, on what remains of their
   days, and write their reports anew.
2. Versions that contain any of them, on any branch, and all that came out of these are erased.
3. From the last version before, every branch is led again through what remains, version by version, the guard at work.
   What the guard or a rollback had dropped stays dropped.

The plan stands in the log before anything is erased; a kill on the way is made good at the next opening.
"""

import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from circadia.live import commits
from circadia.live.erase import Erased, Exported
from circadia.live.errors import StoreError
from circadia.live.journal import OWN

if TYPE_CHECKING:
    from circadia.live.learner import Learner
    from circadia.live.store import Store


@dataclass(frozen=True)
class Forgotten:
    """What went."""

    experiences: tuple[int, ...]  # that were named
    tied: tuple[int, ...]  # that went with them: answers given later, thumbs for these, conversations with these
    erased: Erased | None  # rows, versions, entries of the log, files
    rebuilt: dict[int, int]  # old version -> the one that stands for it now
    replayed: int  # experiences that were learned again
    lost: tuple[int, ...]  # journal off: what else the memory no longer holds
    exports: tuple[Exported, ...]  # files written before that hold some of it
    held: tuple[str, ...] = ()  # what the guard said against rebuilt versions
    notes: tuple[str, ...] = ()


@dataclass
class Line:
    """Which versions there were, what came out of what, and what each brought in; also of those that gc removed."""

    parents: dict[int, int | None] = field(default_factory=dict)
    brought: dict[int, list[int]] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, store: "Store", name: str) -> "Line":
        """Out of the log."""
        line = cls(kept={v.number for v in store.versions(name)})
        for event in store.events(name, "commit"):
            if event.payload:
                version = event.payload["version"]
                line.parents[version["number"]] = version["parent"]
                line.brought[version["number"]] = event.payload["experiences"]
        return line

    def way(self, number: int | None) -> list[int]:
        """From the first version to this one."""
        found = []
        while number is not None:
            found.append(number)
            number = self.parents.get(number)
        return found[::-1]

    def touched(self, experiences: Iterable[int]) -> set[int]:
        """Versions with any of them, and what came out of these."""
        lost, found = set(experiences), set[int]()
        for number in sorted(self.parents):  # a version has a higher number than its parent
            if self.parents[number] in found or not lost.isdisjoint(self.brought[number]):
                found.add(number)
        return found


def forget(me: "Learner", source: str | None, since: Any, until: Any, all: bool) -> Forgotten:
    """`Learner.forget`."""
    span = (_moment("since", since), _moment("until", until))
    if all == (source is not None or span != (None, None)):
        raise ValueError("forget: give source=..., since=... and until=..., or all=True")
    with me.writing() as writer:
        wanted = {} if all else {"source": source, "since": span[0], "until": span[1]}
        found = list(me.store.experiences(me.name, **wanted))  # type: ignore[arg-type]
        if source is None and not all:  # a time is what was observed in it
            found = [one for one in found if one.kind not in OWN]
        named = [one.number for one in found]
        if not named and not all:
            raise StoreError(f"forget: nothing was observed from source={source!r} in this time; see `status`")
        commits.commit(me, "before forgetting")  # what is open has its place in the line then
        tied = [] if all else _tied(me, named)
        lost = sorted({*named, *tied})
        line = Line.of(me.store, me.name)
        touched = set(line.parents) if all else line.touched(lost)
        points = me.store.learner(me.name).branches
        plan, move, left = {}, {}, []
        reports = {one.number for one in me.store.experiences(me.name) if one.kind == "report"}
        anew = set(touched)  # versions whose nights are slept again, or never were
        for branch, head in points.items():
            if head not in touched:
                continue
            way = line.way(head)
            first = next(i for i, v in enumerate(way) if v in touched)
            while first and way[first - 1] not in line.kept:  # gc took it: what it brought is learned again, too
                first -= 1
            base, rest = (way[first - 1] if first else None), way[first:]
            move[branch] = base
            anew.update(rest)
            if not me.journal:
                left += [e for v in rest for e in line.brought[v] if e not in lost]
                continue
            plan[branch] = _groups(line, rest, reports.union(lost))
        told = {e for numbers in line.brought.values() for e in numbers}
        tied += sorted(reports & {e for v in anew for e in line.brought[v]})
        tied += sorted(n for n in reports - told if n > min(named, default=0))  # of nights that ended in no version
        lost = sorted({*named, *tied})
        gone = sorted(touched & line.kept)
        events = [e.number for e in me.events("probes") if e.payload] if all else []
        if plan:
            writer.record("plan", {"branches": plan, "bases": move, "erased": gone})
        rows = {e.number for e in me.store.experiences(me.name)}
        again = {e for groups in plan.values() for _, some in groups for e in some}
        orphans = [e for v in gone for e in line.brought[v] if e not in again and e not in lost and e in rows]
        reason = "all" if all else "named experiences"
        me.unsaved.torn = True
        erased = writer.erase([n for n in lost if n in rows], gone, events, dict(move), reason, orphans)
        me._load()
        for number in lost:
            me.answers.pop(number, None)
        if all:
            from circadia.live.guard import Guard

            me.answers.clear()
            me.guard = Guard(me.reader)
        made, count, held = _rebuild(me, plan, move)
        if plan:
            writer.record("rebuilt", {"versions": {str(old): new for old, new in made.items()}})
        me._load()
    notes: tuple[str, ...] = ()
    if not me.journal and touched:
        notes = (f"the journal is off: the memory went back to {move}; {len(left)} other experiences went with it",)
    return Forgotten(tuple(named), tuple(n for n in tied if n not in named), erased, made, count, tuple(sorted(left)),
                     erased.exports, tuple(held), notes)  # fmt: skip


def _tied(me: "Learner", named: list[int]) -> list[int]:
    """What carries words that these may have shaped."""
    if not me.journal:
        return []
    first, answers, found = min(named), set(named), []
    for one in me.store.experiences(me.name, payload=True):
        if one.number < first or one.payload is None:
            continue
        told = commits.header(one.payload)
        shaped = told["op"] == "answer" and one.number > first
        spoken = told["op"] == "observe" and told.get("answer") in answers
        judged = told["op"] == "feedback" and told["answer"] in answers
        if shaped or spoken or (judged and (told["kind"] != "correction" or told["quotes"])):
            found.append(one.number)
            answers.add(one.number)
    return found


def _groups(line: Line, rest: list[int], lost: set[int]) -> list[tuple[int, list[int]]]:
    """What each version that is kept brought in, without what is lost."""
    found: list[tuple[int, list[int]]] = []
    some: list[int] = []
    for number in rest:
        some += [e for e in line.brought[number] if e not in lost]
        if number in line.kept:
            found.append((number, sorted(some)))
            some = []
    return found


def _rebuild(me: "Learner", plan: Any, bases: Any) -> tuple[dict[int, int], int, list[str]]:
    """Lead every branch through its groups: old -> new versions, experiences learned, what the guard said."""
    writer = me._writer
    assert writer is not None
    home, made, count, held = me.branch_name, dict[int, int](), 0, []
    taken = {e.version for e in me.events("commit") if e.payload and "to" in e.payload}
    done = {}  # what a kill left: old -> new version; its parent where the guard holds it
    for version in me.store.versions(me.name):
        if version.reason == "rebuilt" and (named := re.fullmatch(r"rebuilt from (\d+)", version.notes)):
            done[int(named[1])] = version.number if version.number in taken else version.parent
    try:
        for branch, groups in plan.items():
            writer.branch_name = me.branch_name = branch
            me._load()
            if me._at != bases[branch]:  # a kill came later: what has a version by now is not learned again
                writer.rollback(bases[branch], "forget: from its begin", drops=False)
                me._load()
            for old, some in groups:
                if old in done or old in made:  # another branch came this way, or a kill interrupted it
                    target = made.get(old, done.get(old))
                    if target != me._at:
                        writer.rollback(target, "forget: the same way as another branch", drops=False)
                        me._load()
                    if target is not None:
                        made[old] = target
                    continue
                for number in some:
                    count += _again(me, number)
                if not me.unsaved.dirty:
                    if some:
                        writer.discard("forget: these change nothing", some)
                    if me._at is not None:
                        made[old] = me._at
                    continue
                outcome = commits.commit(me, "rebuilt", f"rebuilt from {old}", some)
                held += list(outcome.reasons)
                if outcome.action == "accept" and outcome.version:
                    made[old] = outcome.version.number
                elif me._at is not None:
                    made[old] = me._at
    finally:
        writer.branch_name = me.branch_name = home
    return made, count, held


def _again(me: "Learner", number: int) -> int:
    """Learn an experience once more, if it is still there and changes anything."""
    from circadia.live import journal

    row = me.store.row(me.name)
    found = me.store.db.one("SELECT * FROM experiences WHERE learner = ? AND number = ?", row["id"], number)
    if found is None or found["sealed"] is None:
        return 0
    payload = journal.reveal(me.store.seal, row, found)
    one = journal.Experience(
        number, found["source"], found["trust"], found["time"], found["start"], found["stop"], found["kind"],
        found["branch"], None, True, True, payload,
    )  # fmt: skip
    commits.replay(me, one)
    return int(commits.header(payload)["op"] not in commits.IDLE)


def resume(me: "Learner") -> None:
    """A forgetting that was killed between the erasure and the end of the rebuilding is finished now."""
    plans = me.store.events(me.name, "plan")
    if not plans or me._writer is None:
        return
    last = plans[-1]
    if last.payload is None or me.store.events(me.name, "rebuilt", after=last.number, limit=1):
        return
    there = {v.number for v in me.store.versions(me.name)}
    if there & set(last.payload["erased"]):  # nothing was erased yet
        me._writer.record("rebuilt", {"versions": {}})
        me.found.append(f"{me.name}: forgetting was stopped before it began: nothing was forgotten, ask again")
        return
    made, _, _ = _rebuild(me, last.payload["branches"], last.payload["bases"])
    me._writer.record("rebuilt", {"versions": {str(old): new for old, new in made.items()}})
    me.found.append(f"{me.name}: finished forgetting, which was stopped on the way")
    me._load()


def _moment(name: str, value: Any) -> float | None:
    """Seconds since 1970, out of a number, a datetime or ISO text."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    try:
        moment = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r}: give ISO time such as 2026-11-21T14:00, or seconds since 1970") from None
    return moment.timestamp()
