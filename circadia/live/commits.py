"""From what is open to a version: the guard's verdict, the commit, and what the log tells about it."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from circadia.live.reader import Tally, position
from circadia.live.store import Store
from circadia.live.versions import Version

if TYPE_CHECKING:
    from circadia.live.journal import Experience
    from circadia.live.learner import Learner

KEPT = 4096  # characters of a reason in the log
IDLE = ("answer", "report")  # what the journal holds without an effect on the state


@dataclass
class Open:
    """What was done since the last commit."""

    tally: Tally = field(default_factory=Tally)
    dirty: bool = False
    torn: bool = False  # the journal holds something that the state does not hold whole
    experiences: list[int] = field(default_factory=list)  # what changed the state, in order
    noted: list[int] = field(default_factory=list)  # of these, what was written on the way: reports of nights


@dataclass(frozen=True)
class Outcome:
    """Of a commit."""

    action: str  # accept, hold, rollback, or none where nothing was open
    version: Version | None
    reasons: tuple[str, ...] = ()


def commit(me: "Learner", reason: str, notes: str = "", experiences: list[int] | None = None) -> Outcome:
    """Judge and commit; the writer is held. `experiences`: what it contains, where that is not what is pending."""
    writer = me._writer
    assert writer is not None
    if not me.unsaved.dirty:
        return Outcome("none", me.version)
    state, told = me.state, me.unsaved.tally.told()
    if experiences is not None:
        experiences = [*experiences, *me.unsaved.noted]
    verdict = me.guard.judge(state)
    reasons = [text[:KEPT] for text in verdict.reasons]
    if verdict.action == "rollback":
        writer.discard("guard: " + "; ".join(reasons), experiences)
        writer.record("guard", {"verdict": "rollback", "reasons": reasons, "scores": verdict.scores})
        me._load()
        return Outcome("rollback", None, verdict.reasons)
    version = writer.commit(
        state, reason=reason, tokens=position(state), probes=verdict.scores, notes=notes,
        current=verdict.action == "accept", experiences=experiences,
    )  # fmt: skip
    writer.record("learned", told, version=version.number)
    if me.guard.probes:
        entry = {"verdict": verdict.action, "reasons": reasons, "scores": verdict.scores}
        writer.record("guard", entry, version=version.number)
    if verdict.action == "hold":
        writer.discard(f"guard: version {version.number} is held", experiences)
        me._load()
        return Outcome("hold", version, verdict.reasons)
    me._at, me.unsaved = version.number, Open()
    return Outcome("accept", version)


def latest_probes(store: Store, name: str) -> list[dict[str, Any]]:
    """The probes that count."""
    found = store.events(name, "probes")
    return found[-1].payload["probes"] if found and found[-1].payload else []


def header(payload: bytes) -> dict[str, Any]:
    """What an experience says of itself."""
    return json.loads(payload)


def pack(told: dict[str, Any]) -> bytes:
    """For the journal. Text stays as it is, so that a search for it in raw files finds it, or shows that it is gone."""
    try:
        return json.dumps(told, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return json.dumps(told).encode()


def waiting(me: "Learner") -> list["Experience"]:
    """Experiences on this branch that no version contains and that change something. A night without one never was."""
    row = me.store.row(me.name)
    from circadia.live import journal

    found = journal.query(me.store.db, me.store.seal, row, pending=me.branch_name, payload=True)
    return [one for one in found if one.payload is None or header(one.payload)["op"] not in (*IDLE, "sleep")]


def catch_up(me: "Learner") -> None:
    """Learn what a kill left in the journal; where there is none, say that it is missing. The writer is held."""
    assert me._writer is not None
    unborn = [one.number for one in me._writer.pending() if one.kind in ("sleep", "report")]
    if unborn:  # a night that was killed between its work and its version
        me._writer.discard("a night that ended in no version", unborn)
    left = waiting(me)
    if not left:
        return
    if any(one.payload is None for one in left):
        me._writer.discard("the journal is off: it was not learned")
        return
    for one in left:
        replay(me, one)
    outcome = commit(me, "caught up")
    me.found.append(f"{me.name}: learned {len(left)} experiences that were in no version ({outcome.action})")


def replay(me: "Learner", experience: "Experience") -> None:
    """The effect of one experience on the state."""
    from circadia.live import answers, sleeping

    assert experience.payload is not None
    told = header(experience.payload)
    if told["op"] == "sleep":
        sleeping.replay(me, told, experience.number)
    elif told["op"] == "observe":
        learn(me, told["form"], told["data"], experience.source, experience.trust)
    elif told["op"] == "feedback":
        answers.replay(me, told)
    elif told["op"] in ("admit", "drop"):
        me.unsaved.dirty = True  # a version of its own, though the state is the same
    if told["op"] not in IDLE:
        me.unsaved.experiences.append(experience.number)


def learn(me: "Learner", form: str, data: Any, source: str, trust: float) -> None:
    """Read one piece."""
    reader = me.reader
    plan = reader.plan(me.state, form, data, source, trust)
    me.unsaved.torn = True
    me._state = reader.learn(me.state, plan, me.unsaved.tally)
    me.unsaved.dirty, me.unsaved.torn = True, False
