"""Forgetting that is real: rows, blobs and the pages that held them.

What this cannot reach: exported files (the report names them), backups, blocks that the file system or the drive keeps
(copy-on-write and journaling file systems, snapshots, wear levelling of an SSD), swap, and other processes' memory.
Where that matters, give the store a key and an encrypted disk.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circadia.live import versions as rows_of
from circadia.live.chain import append, bury
from circadia.live.errors import StoreError
from circadia.live.journal import DROPPED
from circadia.live.sweep import Tidied, drop, finish, intend, numbers, ranges, reset, tidy

if TYPE_CHECKING:
    from circadia.live.store import Store

_LASTING = ("create", "import", "gc", "erase")  # what the other entries are judged by
REMAINS = (
    "files exported before hold what they held",
    "a copy-on-write or journaling file system, snapshots and the wear levelling of an SSD may keep old blocks",
)


@dataclass(frozen=True)
class Exported:
    """A file that was written by `export`."""

    time: float
    file: str
    hash: str


@dataclass(frozen=True)
class Erased:
    """What went."""

    experiences: tuple[dict[str, Any], ...]  # number, source, kind, time, bytes
    versions: tuple[int, ...]
    events: tuple[int, ...]  # entries of the log that are tombstones now
    pending: tuple[int, ...]  # experiences that stay, but whose version went: to be learned again
    files: Tidied
    shared: int  # tensors of these versions that stay, because versions that stay hold the same
    exports: tuple[Exported, ...]  # files written before, with some of it
    remains: tuple[str, ...] = REMAINS


def erase(
    store: "Store",
    learner: Any,
    experiences: Iterable[int],
    versions: Iterable[int],
    events: Iterable[int],
    move: Mapping[str, int | None],
    reason: str,
    dropped: Iterable[int] = (),
) -> Erased:
    """Delete them so that no byte stays in the store's files."""
    owner, db = learner["id"], store.db
    lost, gone = sorted(set(experiences)), sorted(set(versions))
    with store.working("an erasure"):
        with db.transaction():
            _check(store, owner, lost, gone, move)
            for branch, target in move.items():
                # What is pending stays so: it is to be learned again with the rest.
                reset(store, owner, branch, target, reason, drops=False)
            told = []
            for number in lost:
                row = db.one(
                    "SELECT number, source, kind, time, coalesce(length(sealed), 0) AS bytes FROM experiences "
                    "WHERE learner = ? AND number = ?",
                    *(owner, number),
                )
                assert row is not None
                told.append(dict(row))
            buried = _events(store, owner, lost, gone, events)
            db.many("DELETE FROM experiences WHERE learner = ? AND number = ?", [(owner, n) for n in lost])
            again = [
                n
                for v in gone
                for (n,) in db.all("SELECT number FROM experiences WHERE learner = ? AND version = ?", owner, v)
            ]
            db.many(
                "UPDATE experiences SET version = NULL WHERE learner = ? AND version = ?", [(owner, v) for v in gone]
            )
            db.many(
                f"UPDATE experiences SET version = {DROPPED} WHERE learner = ? AND number = ?",
                [(owner, n) for n in dropped],
            )
            written = exports(store, owner, lost, gone)
            tensors = _tensors(store, owner, gone)
            drop(store, owner, gone)
            bury(db, owner, buried)
            payload = {"experiences": ranges(lost), "versions": ranges(gone), "events": buried, "reason": reason}
            append(db, store.seal, owner, "erase", payload)
            files = tidy(store, wipe=True)
            shared = _stay(store, tensors)
            intend(store, "scrub", {})
        finish(store)
    return Erased(tuple(told), tuple(gone), tuple(buried), tuple(again), files, shared, written)


def _check(store: "Store", learner: int, lost: list[int], gone: list[int], move: Mapping[str, int | None]) -> None:
    """Whether what stays still holds together."""
    for number in lost:
        if not store.db.one("SELECT 1 FROM experiences WHERE learner = ? AND number = ?", learner, number):
            raise StoreError(f"experiences: there is no {number}: see `experiences` for those that are kept")
    for number in gone:
        rows_of.get(store.db, learner, number)
    rest = sorted(set(rows_of.descendants(store.db, learner, gone)) - set(gone))
    if rest:
        raise StoreError(f"versions: {rest} came out of those to erase and would keep their effect: name them, too")
    for branch, target in move.items():
        rows_of.current(store.db, learner, branch)
        if target in gone:
            raise StoreError(
                f"move={{{branch!r}: {target}}}: this version is to be erased: name one that stays, or None"
            )
    for row in store.db.all("SELECT name, version FROM branches WHERE learner = ?", learner):
        if row["version"] in gone and row["name"] not in move:
            raise StoreError(
                f"versions: branch {row['name']!r} points to {row['version']}: say with move={{{row['name']!r}: ...}} "
                "which version it is to point to, or None for the base"
            )


def _events(store: "Store", learner: int, lost: list[int], gone: list[int], named: Iterable[int]) -> list[int]:
    """The entries that tell of what goes, and those that were named."""
    found = set()
    for number in named:
        row = store.db.one("SELECT kind FROM events WHERE learner = ? AND number = ?", learner, number)
        if row is None or row["kind"] in _LASTING:
            raise StoreError(f"events: {number} {'cannot be erased' if row else 'does not exist'}: see `events`")
        found.add(number)
    for column, values in (("experience", lost), ("version", gone)):
        rows = store.db.all(
            f"SELECT number, kind FROM events WHERE learner = ? AND {column} IN (SELECT value FROM json_each(?))",
            *(learner, json.dumps(values)),
        )
        found |= {row["number"] for row in rows if row["kind"] not in _LASTING}
    empty = store.db.all("SELECT number FROM events WHERE learner = ? AND payload IS NULL", learner)
    return sorted(found - {row[0] for row in empty})


def exports(store: "Store", learner: int, lost: Iterable[int], gone: Iterable[int]) -> tuple[Exported, ...]:
    """The files written before that hold any of these experiences or versions."""
    found = []
    for row in store.db.all("SELECT * FROM exports WHERE learner = ? ORDER BY id", learner):
        if numbers(json.loads(row["versions"])) & set(gone) or numbers(json.loads(row["experiences"])) & set(lost):
            found.append(Exported(row["time"], row["file"], row["hash"]))
    return tuple(found)


def _tensors(store: "Store", learner: int, gone: list[int]) -> list[bytes]:
    rows = store.db.all(
        "SELECT DISTINCT t.hash FROM versions v JOIN contents c ON c.version = v.id JOIN tensors t ON t.id = c.tensor "
        "WHERE v.learner = ? AND v.number IN (SELECT value FROM json_each(?))",
        *(learner, json.dumps(gone)),
    )
    return [row[0] for row in rows]


def _stay(store: "Store", tensors: list[bytes]) -> int:
    return len(rows_of.known(store.db, tensors))


def delete(store: "Store", learner: Any) -> Erased:
    """A learner with everything; only the store's own log still says that it was there, by its random uid."""
    owner, db = learner["id"], store.db
    with store.working("a deletion"):
        with db.transaction():
            gone = [row[0] for row in db.all("SELECT number FROM versions WHERE learner = ?", owner)]
            rows = db.all(
                "SELECT number, source, kind, time, coalesce(length(sealed), 0) AS bytes FROM experiences "
                "WHERE learner = ? ORDER BY number",
                owner,
            )
            count = db.value("SELECT events FROM learners WHERE id = ?", owner)
            written = exports(store, owner, [row["number"] for row in rows], gone)
            tensors = _tensors(store, owner, gone)
            drop(store, owner, gone)
            for table in ("experiences", "events", "branches", "exports"):
                db.run(f"DELETE FROM {table} WHERE learner = ?", owner)
            db.run("DELETE FROM learners WHERE id = ?", owner)
            append(db, store.seal, 0, "delete", {"learner": owner, "uid": learner["uid"]})
            files = tidy(store, wipe=True)
            shared = _stay(store, tensors)
            intend(store, "scrub", {})
        finish(store)
    return Erased(tuple(dict(row) for row in rows), tuple(gone), tuple(range(count)), (), files, shared, written)
