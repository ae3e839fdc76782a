"""Experiences that a night's filter held back, and what a person said about them.

The night's report in the journal says what was held; `admit` and `drop` are entries of the journal, too, each in a
version of its own. So all of it goes back with a rollback, travels with an export, and goes with the experience when
that is forgotten.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circadia.live import commits
from circadia.live.reader import position

if TYPE_CHECKING:
    from circadia.live.journal import Experience
    from circadia.live.learner import Learner

DECISIONS = {"admit": "admitted", "drop": "dropped"}


@dataclass
class Quarantined:
    """One of them. `status`: held; admitted, the next night may learn from it; dropped, no night will."""

    number: int  # in the journal
    source: str
    reason: str
    detail: str
    night: int  # that held it, its number in the journal
    members: tuple[int, ...]  # pieces that were one entry of the night
    status: str = "held"
    decided: int = 0  # number of the decision


def folded(me: "Learner", line: Sequence["Experience"] | None = None) -> dict[int, Quarantined]:
    """What the nights and decisions on the way to the current state come to, by number."""
    from circadia.live.day import lived

    found: dict[int, Quarantined] = {}
    line = lived(me) if line is None else line
    there = {one.number for one in line}
    told = [
        (one.number, commits.header(me.store.payload(me.name, one.number)))
        for one in line
        if one.kind in ("report", *DECISIONS)
    ]
    # A night that was lived again wrote its report anew, under a later number: its place is that of the night.
    for number, said in sorted(told, key=lambda pair: pair[1].get("night", pair[0])):
        if said["op"] == "report":
            for held in said["quarantined"]:
                members = tuple(n for n in held["members"] if n in there)
                if members:
                    fields = {name: held[name] for name in ("number", "source", "reason", "detail")}
                    found[held["number"]] = Quarantined(**fields, night=said["night"], members=members)
        else:
            for one in found.values():
                if not set(said["numbers"]).isdisjoint(one.members):
                    one.status, one.decided = DECISIONS[said["op"]], number
    return found


def listed(me: "Learner") -> list[Quarantined]:
    """`Learner.quarantine`."""
    return sorted(folded(me).values(), key=lambda one: one.number)


def decide(me: "Learner", what: str, numbers: Iterable[int]) -> list[Quarantined]:
    """`Learner.admit` and `Learner.drop`."""
    wanted = sorted(set(numbers))
    with me.writing() as writer:
        known = folded(me)
        odd = [n for n in wanted if n not in known]
        if odd or not wanted:
            there = ", ".join(map(str, sorted(known))) or "nothing"
            raise ValueError(f"number={odd[0] if odd else None!r} is not in quarantine: give some of {there}")
        commits.commit(me, "before a decision")  # what is open has a version of its own
        at = position(me.state)
        payload = commits.pack({"op": what, "numbers": sorted(m for n in wanted for m in known[n].members)})
        noted = writer.remember(payload, "quarantine", 1.0, at, at, what)
        me.unsaved.experiences.append(noted.number)
        me.unsaved.dirty = True
        commits.commit(me, f"{DECISIONS[what]} {', '.join(map(str, wanted))}")
        known = folded(me)
    return [known[n] for n in wanted]
