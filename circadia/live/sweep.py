"""What removes files: rows and an intent go in one transaction, then the files, then the intent.

A kill before the transaction's end leaves everything as it was, but for new files that belong to nothing; a kill after
it leaves an intent, which the next opening carries out.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circadia.live import versions
from circadia.live.chain import append
from circadia.live.errors import Busy
from circadia.live.journal import DROPPED, settle

if TYPE_CHECKING:
    from circadia.live.store import Store

PATIENCE = 30.0  # seconds for readers of other processes to end before the log of the database is cut


@dataclass(frozen=True)
class Tidied:
    """What went from the folder of blobs."""

    versions: tuple[int, ...] = ()
    blobs: tuple[str, ...] = ()
    rewritten: int = 0  # of these, how many were written anew with what is still needed of them
    bytes: int = 0  # freed


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers as [first, last] pairs."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def numbers(pairs: Iterable[Sequence[int]]) -> set[int]:
    """What `ranges` was made of."""
    return {n for first, last in pairs for n in range(first, last + 1)}


def tidy(store: "Store", wipe: bool) -> Tidied:
    """Inside the transaction that deleted rows: give up tensors that no version holds, and note which files go.

    With `wipe` every such tensor's bytes go; without it a file stays while at least half of it is needed.
    """
    db = store.db
    rows = db.all(
        "SELECT b.id, b.hash, b.bytes, count(t.id) AS tensors, total(t.live) AS held, "
        "total(t.live * t.bytes) AS needed FROM blobs b LEFT JOIN (SELECT id, blob, bytes, EXISTS (SELECT 1 FROM "
        "contents c WHERE c.tensor = tensors.id) AS live FROM tensors) t ON t.blob = b.id "
        "GROUP BY b.id HAVING held < tensors OR tensors = 0"
    )
    gone, freed, rewritten = [], 0, 0
    for row in rows:
        if row["held"] and not wipe and row["needed"] >= row["bytes"] / 2:
            continue
        gone.append(row["hash"])
        freed += row["bytes"]
        db.run(
            "DELETE FROM tensors WHERE blob = ? AND NOT EXISTS (SELECT 1 FROM contents WHERE tensor = tensors.id)",
            row["id"],
        )
        if row["held"]:
            keys = [r[0] for r in db.all("SELECT hash FROM tensors WHERE blob = ?", row["id"])]
            new = store.blobs.write(store.blobs.read(row["hash"], keys))
            assert new[0] != row["hash"]  # a part of it has another hash, and the old one is about to go
            db.run("INSERT OR IGNORE INTO blobs (hash, bytes) VALUES (?, ?)", *new)
            db.run("UPDATE tensors SET blob = (SELECT id FROM blobs WHERE hash = ?) WHERE blob = ?", new[0], row["id"])
            freed -= new[1]
            rewritten += 1
        db.run("DELETE FROM blobs WHERE id = ?", row["id"])
    if gone:
        intend(store, "wipe" if wipe else "unlink", gone)
    return Tidied((), tuple(gone), rewritten, freed)


def intend(store: "Store", kind: str, detail: object) -> int:
    """Note what is to be done whatever happens."""
    return store.db.run("INSERT INTO intents (kind, detail) VALUES (?, ?)", kind, json.dumps(detail)).lastrowid or 0


def drop(store: "Store", learner: int, gone: Sequence[int]) -> None:
    """Delete the rows of versions."""
    rows = [(learner, number) for number in gone]
    store.db.many(
        "DELETE FROM contents WHERE version = (SELECT id FROM versions WHERE learner = ? AND number = ?)", rows
    )
    store.db.many("DELETE FROM versions WHERE learner = ? AND number = ?", rows)


def finish(store: "Store") -> list[str]:
    """Carry out what was noted; returns what, in words. The lock of the store is held."""
    told = []
    for row in store.db.all("SELECT * FROM intents ORDER BY id"):
        detail = json.loads(row["detail"])
        if row["kind"] in ("wipe", "unlink"):
            still = {name for name in detail if store.db.one("SELECT 1 FROM blobs WHERE hash = ?", name)}
            store.blobs.remove([name for name in detail if name not in still], row["kind"] == "wipe")
            told.append(f"removed {len(detail) - len(still)} blobs that no version needs")
        elif row["kind"] == "scrub":
            scrub(store)
            told.append("cleaned the database of what was erased")
        else:
            told.append(f"{detail} was interrupted")
        store.db.run("DELETE FROM intents WHERE id = ?", row["id"])
    return told


def scrub(store: "Store") -> None:
    """No byte of a deleted row stays in the database file, its free pages or its write-ahead log.

    Twice over: `secure_delete` writes zeros over what is deleted, and VACUUM writes every page anew, so that nothing
    rests on what SQLite leaves in a page when it moves rows between pages.
    """
    cut(store)
    store.db.run("VACUUM")
    cut(store)


def cut(store: "Store") -> None:
    """Bring the write-ahead log into the database file and empty it; readers of old pages must end first."""
    end = time.monotonic() + PATIENCE
    while store.db.value("PRAGMA wal_checkpoint(TRUNCATE)"):
        if time.monotonic() > end:
            raise Busy(
                f"{store.folder}: rows are deleted, but another process reads the database, so that old pages cannot "
                "be cleaned: close it and open the store again, which finishes the work"
            )
        time.sleep(0.05)


def gc(store: "Store", learner: int | None, keep: int | None) -> Tidied:
    """Remove old versions of a learner (`keep`: how many of the newest stay, and all that a branch points to), and
    files that nobody needs.
    """
    gone: list[int] = []
    with store.working("gc"):
        with store.db.transaction():
            if learner is not None and keep is not None:
                gone = [
                    row[0]
                    for row in store.db.all(
                        "SELECT number FROM versions WHERE learner = ?1 AND number NOT IN (SELECT version FROM "
                        "branches WHERE learner = ?1 AND version IS NOT NULL) AND number NOT IN (SELECT "
                        "number FROM versions WHERE learner = ?1 ORDER BY number DESC LIMIT ?2)",
                        *(learner, keep),
                    )
                ]
                drop(store, learner, gone)
                if gone:
                    append(store.db, store.seal, learner, "gc", {"versions": ranges(gone), "keep": keep})
            done = tidy(store, wipe=False)
        finish(store)
        lost = store.orphans()
        store.blobs.remove(lost, wipe=True)
    return Tidied(tuple(gone), (*done.blobs, *lost), done.rewritten, done.bytes)


def recover(store: "Store") -> list[str]:
    """What an opening finds after a kill, and puts in order; the lock of the store is held, so nobody is at work."""
    db = store.db
    told = [f"removed {path.name}, which was never finished" for path in store.blobs.unfinished()]
    for path in store.blobs.unfinished():
        path.unlink()
    stopped = db.value("SELECT count(*) FROM intents") or any(
        store.idle(row["id"]) for row in db.all("SELECT id FROM learners WHERE writer IS NOT NULL")
    )
    orphans = store.orphans()
    if stopped and orphans:
        store.blobs.remove(orphans, wipe=True)
        told.append(f"removed {len(orphans)} blobs of a commit or another step that never ended")
    elif orphans:  # not ours to delete: perhaps the database was put back to an older copy
        told.append(
            f"{len(orphans)} blobs belong to no version (was store.db replaced by an older copy?): `gc` removes them"
        )
    try:
        told += finish(store)
    except (OSError, Busy) as error:  # to read, this is not needed; the intents stay
        told.append(f"what was interrupted could not be finished ({error}): make room and open the store again")
    missing = {row[0] for row in db.all("SELECT hash FROM blobs")} - store.blobs.names()
    if missing:
        told.append(
            f"{len(missing)} blobs are missing ({', '.join(sorted(missing)[:3])}): restore them from a backup; "
            "`verify` says which versions need them"
        )
    return told


def reset(store: "Store", learner: int, branch: str, target: int | None, reason: str, drops: bool = True) -> None:
    """Move a branch and, if so wanted, drop what is pending on it, inside a transaction."""
    before = versions.current(store.db, learner, branch)
    if target is not None:
        versions.get(store.db, learner, target)
    dropped = settle(store.db, learner, branch, DROPPED) if drops else []
    store.db.run("UPDATE branches SET version = ? WHERE learner = ? AND name = ?", target, learner, branch)
    told = {"branch": branch, "from": before, "to": target, "reason": reason, "dropped": dropped}
    append(store.db, store.seal, learner, "rollback", told, version=target)
