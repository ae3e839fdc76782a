"""The journal: what a learner observed, in order, with what a replay or a forgetting asks about.

An experience is pending until the commit that contains its effect, then it belongs to that version; a rollback or
`discard` before the commit drops its effect, and it belongs to none.
"""

import hmac
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from circadia.live.chain import append
from circadia.live.errors import Damaged, StoreError
from circadia.live.privacy import SALT, Seal
from circadia.live.schema import Database

KINDS = ("text", "tokens", "chat", "feedback", "sleep", "report", "admit", "drop")
OWN = ("sleep", "report", "admit", "drop")  # what a learner did itself
DROPPED = 0  # in the column `version`: no version contains it; NULL: pending


@dataclass(frozen=True)
class Experience:
    """One entry; `payload` is read on request, and None where the journal is off."""

    number: int
    source: str
    trust: float
    time: float
    start: int  # the range of positions in the learner's stream of tokens
    stop: int
    kind: str
    branch: str
    version: int | None  # the one that first contained it
    pending: bool
    kept: bool  # whether the payload is there
    payload: bytes | None = None


def add(
    db: Database, seal: Seal, learner: Any, branch: str, fields: dict[str, Any], payload: bytes, time: float
) -> Experience:
    """One experience and the event that tells of it, inside a transaction."""
    number = 1 + _last(db, learner["id"])
    kept = bool(learner["journal"])
    salt = secrets.token_bytes(SALT)
    sealed = seal.close(salt, payload, about(learner, number)) if kept else None
    row = {"number": number, **fields, "time": time, "branch": branch}
    db.run(
        f"INSERT INTO experiences (learner, sealed, {', '.join(row)}) VALUES (?, ?, {', '.join('?' * len(row))})",
        *(learner["id"], sealed, *row.values()),
    )
    told = {**row, "digest": hmac.digest(salt, payload, "sha256").hex() if kept else None}
    kind = "feedback" if fields["kind"] == "feedback" else "observe"
    append(db, seal, learner["id"], kind, told, experience=number, time=time)
    return Experience(**row, version=None, pending=True, kept=kept)


def _last(db: Database, learner: int) -> int:
    """The highest number ever used: a number of something erased is not used again."""
    return db.value("SELECT max(experience) FROM events WHERE learner = ?", learner) or 0


def checked(source: Any, trust: Any, start: Any, stop: Any, kind: Any, payload: Any) -> dict[str, Any]:
    """The fields of an experience, or what is wrong with them."""
    if not isinstance(source, str) or not source:
        raise StoreError(f"source={source!r}: give the name of where it comes from, such as 'notes'")
    if not isinstance(trust, (int, float)) or not 0 <= trust <= 1:
        raise StoreError(f"trust={trust!r}: give a number from 0 to 1")
    if not isinstance(start, int) or not isinstance(stop, int) or not 0 <= start <= stop:
        raise StoreError(f"start={start!r}, stop={stop!r}: give the range of positions, 0 <= start <= stop")
    if kind not in KINDS:
        raise StoreError(f"kind={kind!r}: give one of {', '.join(KINDS)}")
    if not isinstance(payload, bytes):
        raise StoreError(f"payload is a {type(payload).__name__}: give bytes, such as text.encode()")
    return {"source": source, "trust": float(trust), "start": start, "stop": stop, "kind": kind}


def about(learner: Any, number: int) -> str:
    """What a sealed payload is bound to."""
    return f"{learner['uid']}/{number}"


def reveal(seal: Seal, learner: Any, row: Any) -> bytes:
    """The payload of a row."""
    if row["sealed"] is None:
        raise StoreError(f"experience {row['number']} has no payload: the journal of this learner is off")
    return seal.open(row["sealed"], about(learner, row["number"]))[1]


def query(
    db: Database,
    seal: Seal,
    learner: Any,
    source: str | None = None,
    since: float | None = None,
    until: float | None = None,
    versions: Sequence[int] | None = None,
    pending: str | None = None,
    payload: bool = False,
) -> Iterator[Experience]:
    """In order; of a source, a time range [since, until), some versions, or pending on a branch."""
    parts, values = ["learner = ?"], [learner["id"]]
    for condition, value in (("source = ?", source), ("time >= ?", since), ("time < ?", until)):
        if value is not None:
            parts.append(condition)
            values.append(value)
    if versions is not None:
        parts.append(f"version IN ({', '.join(str(int(v)) for v in versions)})")
    if pending is not None:
        parts.append("version IS NULL AND branch = ?")
        values.append(pending)
    condition = " AND ".join(parts)
    # Numbers first: payloads may be large, and come one at a time.
    for (key,) in db.all(f"SELECT id FROM experiences WHERE {condition} ORDER BY number", *values):
        row = db.one("SELECT * FROM experiences WHERE id = ?", key)
        if row is None:
            continue  # erased meanwhile
        kept = row["sealed"] is not None
        names = ("number", "source", "trust", "time", "start", "stop", "kind", "branch")
        yield Experience(
            **{name: row[name] for name in names},
            version=row["version"] or None,
            pending=row["version"] is None,
            kept=kept,
            payload=reveal(seal, learner, row) if payload and kept else None,
        )


def settle(db: Database, learner: int, branch: str, version: int, only: Sequence[int] | None = None) -> list[int]:
    """Give what is pending on a branch to a version, or drop it; returns the numbers. `only`: these and no others,
    whatever their branch and whether they are pending or in another version already.
    """
    if only is None:
        rows = db.all(
            "SELECT number FROM experiences WHERE learner = ? AND branch = ? AND version IS NULL", learner, branch
        )
        only = [row[0] for row in rows]
    db.many(
        "UPDATE experiences SET version = ? WHERE learner = ? AND number = ?", [(version, learner, n) for n in only]
    )
    return list(only)


def faults(db: Database, seal: Seal, learner: Any, told: dict[int, Any], gone: set[int]) -> Iterator[str]:
    """Where rows and log disagree; `told` are the payloads of the events by experience, where they still have one."""
    numbers = set()
    for row in db.run("SELECT * FROM experiences WHERE learner = ? ORDER BY number", learner["id"]):
        number = row["number"]
        numbers.add(number)
        said = told.get(number)
        if said is None:
            yield f"experience {number} is not in the log"
            continue
        if any(said[name] != row[name] for name in said if name != "digest"):
            yield f"experience {number} is not what the log says"
        if (row["sealed"] is None) != (said["digest"] is None):
            yield f"experience {number} has lost its payload"
        elif row["sealed"] is not None:
            try:
                salt, payload = seal.open(row["sealed"], about(learner, number))
            except Damaged as error:
                yield str(error)
                continue
            if hmac.digest(salt, payload, "sha256").hex() != said["digest"]:
                yield f"experience {number} has another payload than was written"
    for number in sorted(set(told) - numbers - gone):
        yield f"experience {number} is missing"
