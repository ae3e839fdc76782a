"""The log of a learner: each entry's hash covers the entry before and a salted hash of its own payload.

    digest = HMAC-SHA256(salt, payload)
    hash   = SHA-256(uid, number, kind, time, version, experience, digest, hash before)

Deleting payload and salt leaves a tombstone: the chain still holds, and the digest can no longer be compared with
guesses. Number and hash of the newest entry stand in the learner's row, so that a cut tail is found. Not found, without
a key: somebody who rewrites all rows and the head; with a key, the head is signed. Never found: a whole store put back
to an older copy of itself. Against both, keep `Store.head` somewhere else and compare.
"""

import hmac
import json
import secrets
import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from circadia.live.privacy import SALT, Seal
from circadia.live.schema import Database


@dataclass(frozen=True)
class Event:
    """One entry; `payload` is None after its deletion."""

    number: int
    kind: str
    time: float
    version: int | None
    experience: int | None
    payload: dict[str, Any] | None
    hash: str


def canonical(value: Any) -> str:
    """JSON with one spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def link(uid: str, row: Any, previous: bytes) -> bytes:
    """The hash of an entry."""
    parts = [uid, row["number"], row["kind"], row["time"], row["version"], row["experience"]]
    return sha256(canonical([*parts, row["digest"].hex(), previous.hex()]).encode()).digest()


def append(
    db: Database,
    seal: Seal,
    learner: int,
    kind: str,
    payload: dict[str, Any],
    version: int | None = None,
    experience: int | None = None,
    time: float | None = None,
) -> int:
    """One entry more, inside a transaction; returns its number."""
    owner = db.one("SELECT uid, events, head FROM learners WHERE id = ?", learner)
    assert owner is not None
    text, salt = canonical(payload), secrets.token_bytes(SALT)
    row = {
        "number": owner["events"],
        "kind": kind,
        "time": clock.time() if time is None else time,
        "version": version,
        "experience": experience,
        "digest": hmac.digest(salt, text.encode(), "sha256"),
    }
    head = link(owner["uid"], row, owner["head"])
    db.run(
        "INSERT INTO events (learner, number, kind, time, version, experience, digest, payload, salt, hash) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(learner, *row.values(), text, salt, head),
    )
    signed = seal.sign(head, owner["uid"])
    db.run("UPDATE learners SET events = events + 1, head = ?, signed = ? WHERE id = ?", head, signed, learner)
    return row["number"]


def events(db: Database, learner: int, where: str = "", values: Sequence[Any] = ()) -> Iterator[Event]:
    """Entries in order; `where` continues the condition."""
    for row in db.all(f"SELECT * FROM events WHERE learner = ? {where}", learner, *values):
        payload = None if row["payload"] is None else json.loads(row["payload"])
        fields = {name: row[name] for name in ("number", "kind", "time", "version", "experience")}
        yield Event(**fields, payload=payload, hash=row["hash"].hex())


def bury(db: Database, learner: int, numbers: Sequence[int]) -> None:
    """Leave tombstones of entries; the entry that says so must name them."""
    db.many(
        "UPDATE events SET payload = NULL, salt = NULL WHERE learner = ? AND number = ?",
        [(learner, n) for n in numbers],
    )


def faults(db: Database, seal: Seal, learner: int) -> Iterator[str]:
    """Everything about the log alone that is not as it was written."""
    owner = db.one("SELECT * FROM learners WHERE id = ?", learner)
    assert owner is not None
    previous, count, empty, buried = b"", 0, set(), set()
    for row in db.run("SELECT * FROM events WHERE learner = ? ORDER BY number", learner):
        number = row["number"]
        if number != count:
            yield f"event {count} is missing"
            count = number
        if link(owner["uid"], row, previous) != row["hash"]:
            yield f"event {number} ({row['kind']}) does not fit the one before it: it was changed, moved or put in"
        previous, count = row["hash"], number + 1
        if row["payload"] is None and row["salt"] is None:
            empty.add(number)
        elif row["payload"] is None or row["salt"] is None:
            yield f"event {number} ({row['kind']}) has lost its payload or its salt"
        elif hmac.digest(row["salt"], row["payload"].encode(), "sha256") != row["digest"]:
            yield f"event {number} ({row['kind']}) has another payload than was written"
        elif row["kind"] == "erase":
            buried |= set(json.loads(row["payload"])["events"])
    for number in sorted(empty - buried):
        yield f"event {number} has no payload, and no erasure names it"
    for number in sorted(buried - empty):
        yield f"event {number} was erased, but has a payload"
    if count != owner["events"] or previous != owner["head"]:
        yield f"the log ends with event {count - 1}, but the learner's row says {owner['events'] - 1}: its tail was cut"
    if seal.key is not None and owner["signed"] != seal.sign(owner["head"], owner["uid"]):
        yield "the signature of the log's head does not fit: somebody without the key wrote the log"
