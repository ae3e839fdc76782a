"""A folder in which learners live: store.db (SQLite), blobs/ (safetensors) and locks/.

A version is there once its commit returns, and stays the same. A kill at any instruction loses at most what was not
committed; the next opening puts things in order and says in `found` what it found. Not for network file systems:
neither SQLite's write-ahead log nor the locks are reliable there.
"""

import json
import os
import secrets
import socket
import sqlite3
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from circadia.live import chain, erase, export, journal, locks, privacy, sweep, verify, versions
from circadia.live.blobs import Blobs
from circadia.live.chain import Event
from circadia.live.errors import Busy, Damaged, StoreError, explained
from circadia.live.journal import Experience
from circadia.live.schema import Database
from circadia.live.versions import Diff, Version, prefix
from circadia.live.writer import Writer, named

DATABASE = "store.db"
PATIENCE = 60.0  # seconds for another process to end its commit or its gc


@dataclass(frozen=True)
class Life:
    """What a store knows about a learner."""

    name: str
    uid: str  # random, the same in every copy
    base: str
    config: dict[str, Any]
    journal: bool
    time: float
    branches: dict[str, int | None]
    writer: str | None  # who is writing it, or was when it was killed


class Store:
    """Many learners in one folder. May be used by several threads; a forked child opens it again."""

    def __init__(self, folder: Path, key: str | bytes | None) -> None:
        self.folder, self.blobs = folder, Blobs(folder / "blobs")
        self.db = Database(folder / DATABASE)
        try:
            self.seal = self._unlock(key)
            self.found = self._recover()  # what the opening found, in words
        except BaseException:
            self.db.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike, key: str | bytes | None = None, create: bool = True) -> "Store":
        """The store in a folder. With a key, a passphrase or 32 bytes, a new store encrypts experiences at rest."""
        folder = Path(path)
        database, blobs = folder / DATABASE, folder / "blobs"
        if not database.exists():
            if blobs.is_dir() and any(blobs.iterdir()):
                raise Damaged(f"{database} is missing beside its blobs: restore it from a backup; nothing was changed")
            if not create:
                raise StoreError(f"{folder} is no store: give the folder of one")
        with explained(folder):
            for part in (blobs, folder / "locks"):
                try:
                    part.mkdir(parents=True, exist_ok=True, mode=0o700)
                except (FileExistsError, NotADirectoryError):
                    raise StoreError(f"{part} is in the way of a store: give another folder") from None
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "read-only", str(folder))
            database.touch(mode=0o600)
        return cls(folder, key)

    def close(self) -> None:
        """Hand the files back."""
        self.db.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Learners

    def create(self, name: str, base: str, config: Mapping[str, Any] | None = None, journal: bool = True) -> Life:
        """A new learner that has learned nothing; `base` says on which weights, `journal` keeps what it observes."""
        named("name", name)
        if not isinstance(base, str) or not base:
            raise StoreError(f"base={base!r}: give the fingerprint of the base weights")
        try:
            text = chain.canonical(dict(config or {}))
        except (TypeError, ValueError) as error:
            raise StoreError(f"config={config!r:.100}: give what JSON can hold ({error})") from None
        with self.db.transaction():
            if self.db.one("SELECT 1 FROM learners WHERE name = ?", name):
                raise StoreError(f"name={name!r}: this store has a learner of this name: open it, or take another name")
            uid = secrets.token_hex(16)
            key = self._add(name, uid, base, text, journal)
            self.db.run("INSERT INTO branches (learner, name, version) VALUES (?, 'main', NULL)", key)
            said = {"name": name, "base": base, "config": text, "journal": int(journal), "branch": "main", "to": None}
            chain.append(self.db, self.seal, key, "create", said)
            chain.append(self.db, self.seal, 0, "create", {"learner": key, "uid": uid})
        return self.learner(name)

    def learners(self) -> list[str]:
        """Their names."""
        return [row[0] for row in self.db.all("SELECT name FROM learners WHERE id > 0 ORDER BY name")]

    def learner(self, name: str) -> Life:
        """What is known about one."""
        row = self.row(name)
        branches = self.db.all("SELECT name, version FROM branches WHERE learner = ? ORDER BY name", row["id"])
        writer = None if row["writer"] is None else _holder(json.loads(row["writer"]))
        config, points = json.loads(row["config"]), {b["name"]: b["version"] for b in branches}
        return Life(name, row["uid"], row["base"], config, bool(row["journal"]), row["time"], points, writer)

    def row(self, name: str) -> sqlite3.Row:
        """Of a learner, by its name."""
        row = self.db.one("SELECT * FROM learners WHERE name = ? AND id > 0", name)
        if row is None:
            known = ", ".join(self.learners()[:10]) or "none yet"
            raise StoreError(f"name={name!r}: this store has no learner of this name; it has {known}")
        return row

    def delete(self, name: str) -> erase.Erased:
        """A learner with everything, for good."""
        with self.writer(name):
            done = erase.delete(self, row := self.row(name))
            (self.folder / "locks" / f"{row['id']}.lock").unlink()
        return done

    @contextmanager
    def writer(self, name: str, branch: str = "main") -> Iterator[Writer]:
        """The right to change a learner: for one, in all threads and processes; it ends with the process."""
        row = self.row(name)
        versions.current(self.db, row["id"], branch)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "thread": threading.current_thread().name}
        me["since"] = clock.strftime("%Y-%m-%d %H:%M:%S", clock.gmtime())
        with self._lock(row["id"], name) as file:
            row = self.row(name)  # it may have been deleted meanwhile
            interrupted = self._interrupted(row)
            file.truncate(0)
            file.write(_holder(me))
            file.flush()
            self.db.run("UPDATE learners SET writer = ? WHERE id = ?", json.dumps(me), row["id"])
            writer = Writer(self, row, branch, interrupted)
            try:
                yield writer
            finally:
                writer.close()
                self.db.run("UPDATE learners SET writer = NULL WHERE id = ?", row["id"])

    # Versions

    def load(self, name: str, version: int | None = None, branch: str = "main") -> dict[str, Tensor]:
        """A state, on the CPU, every tensor checked; by default what the branch points to ({} for the base)."""
        row = self.row(name)
        with self.shared():
            number = versions.current(self.db, row["id"], branch) if version is None else version
            return {} if number is None else versions.load(self.db, self.blobs, row["id"], number)

    def current(self, name: str, branch: str = "main") -> Version | None:
        """What a branch points to."""
        row = self.row(name)
        number = versions.current(self.db, row["id"], branch)
        return None if number is None else versions.from_row(versions.get(self.db, row["id"], number))

    def version(self, name: str, number: int) -> Version:
        """One version."""
        return versions.from_row(versions.get(self.db, self.row(name)["id"], number))

    def versions(self, name: str, limit: int | None = None, before: int | None = None) -> list[Version]:
        """All that are kept, of all branches, newest first; `before` a number goes on where a page ended."""
        rows = self.db.all(
            "SELECT * FROM versions WHERE learner = ? AND number < ? ORDER BY number DESC LIMIT ?",
            *(self.row(name)["id"], 2**62 if before is None else before, -1 if limit is None else limit),
        )
        return [versions.from_row(row) for row in rows]

    def history(
        self, name: str, version: int | None = None, branch: str = "main", limit: int | None = None
    ) -> list[Version]:
        """A version and its ancestors, newest first."""
        row = self.row(name)
        number = versions.current(self.db, row["id"], branch) if version is None else version
        return versions.lineage(self.db, row["id"], number, limit)

    def diff(self, name: str, a: int, b: int, group: Callable[[str], str] = prefix) -> Diff:
        """How far each group of tensors moved from version a to version b, and which probes changed."""
        with self.shared():
            return versions.diff(self.db, self.blobs, self.row(name)["id"], a, b, group)

    # Log and journal

    def events(self, name: str, kind: str | None = None, after: int = -1, limit: int | None = None) -> list[Event]:
        """Entries of the log in order, after a number."""
        where, values = ("AND kind = ? ", [kind]) if kind is not None else ("", [])
        where += "AND number > ? ORDER BY number LIMIT ?"
        row = self.row(name)
        return list(chain.events(self.db, row["id"], where, [*values, after, -1 if limit is None else limit]))

    def head(self, name: str) -> tuple[int, str]:
        """Number and hash of the log's newest entry: kept elsewhere, they show later whether the log was rewritten."""
        row = self.row(name)
        return row["events"] - 1, row["head"].hex()

    def experiences(
        self,
        name: str,
        source: str | None = None,
        since: float | None = None,
        until: float | None = None,
        after: int | None = None,
        branch: str = "main",
        payload: bool = False,
    ) -> Iterator[Experience]:
        """The journal in order: of a source, a time range, or what the branch learned after one of its versions.

        ``after=0`` is the branch's whole life; what is pending on it comes last.
        """
        row = self.row(name)
        found = {"source": source, "since": since, "until": until, "payload": payload}
        if after is None:
            yield from journal.query(self.db, self.seal, row, **found)  # type: ignore[arg-type]
            return
        line = [v.number for v in self.history(name, branch=branch)]
        if after and after not in line:
            raise StoreError(f"after={after}: branch {branch!r} did not come out of this version, or it was removed")
        later = line[: line.index(after)] if after else line
        yield from journal.query(self.db, self.seal, row, versions=later, **found)  # type: ignore[arg-type]
        yield from journal.query(self.db, self.seal, row, pending=branch, **found)  # type: ignore[arg-type]

    def payload(self, name: str, experience: int) -> bytes:
        """What one experience was."""
        owner = self.row(name)
        row = self.db.one("SELECT * FROM experiences WHERE learner = ? AND number = ?", owner["id"], experience)
        if row is None:
            raise StoreError(f"experience={experience!r}: there is none, or it was erased")
        return journal.reveal(self.seal, owner, row)

    def influenced(self, name: str, experiences: Sequence[int]) -> list[int]:
        """The versions that contain any of these experiences, and all that came out of them."""
        row, wanted = self.row(name), set(experiences)
        found = self.db.all(
            "SELECT DISTINCT version FROM experiences WHERE learner = ? AND version > 0 AND number IN "
            "(SELECT value FROM json_each(?))",
            *(row["id"], json.dumps(sorted(wanted))),
        )
        held = [  # an experience may be in a held version and a later one
            event.version
            for event in chain.events(self.db, row["id"], "AND kind = 'commit' AND payload IS NOT NULL")
            if event.payload and event.version and not wanted.isdisjoint(event.payload["experiences"])
        ]
        there = {v[0] for v in self.db.all("SELECT number FROM versions WHERE learner = ?", row["id"])}
        start = sorted({*(r[0] for r in found), *held} & there)
        return versions.descendants(self.db, row["id"], start)

    # The whole

    def export(self, name: str, path: str | os.PathLike) -> erase.Exported:
        """A learner's whole life in one file; the store remembers that it was written, for reports of erasures."""
        return export.write(self, self.row(name), Path(path))

    def import_(self, path: str | os.PathLike, name: str | None = None, key: str | bytes | None = None) -> Life:
        """A learner out of a file that `export` wrote, checked to the last hash; `key` is that of the file's store,
        if it is another one than this store's.
        """
        if name is not None:
            named("name", name)
        return self.learner(export.read(self, Path(path), name, key))

    def exports(self, name: str) -> list[erase.Exported]:
        """The files that were written."""
        rows = self.db.all("SELECT time, file, hash FROM exports WHERE learner = ? ORDER BY id", self.row(name)["id"])
        return [erase.Exported(*row) for row in rows]

    def gc(self, keep: int | None = None, name: str | None = None) -> dict[str, sweep.Tidied]:
        """Of one or every learner, remove versions but the newest `keep` and those that branches point to; then files
        that nobody needs. Learners that somebody is writing stay as they are and are not in the result.
        """
        done = {}
        for one in self.learners() if name is None else [name]:
            try:
                with self.writer(one) as writer:
                    done[one] = writer.gc(keep)
            except Busy:
                if name is not None:
                    raise
        if name is None:
            done[""] = sweep.gc(self, None, None)
        return done

    def verify(self, name: str | None = None) -> verify.Verified:
        """Compute every hash again and compare; of the whole store, or one learner."""
        return verify.verify(self, name)

    # For the modules beside

    def exclusive(self) -> Any:
        """The right to write or remove files: for one, while nobody reads them."""
        return locks.held(self.folder / "locks" / "store.lock", wait=PATIENCE)

    def shared(self) -> Any:
        """The right to read files."""
        return locks.held(self.folder / "locks" / "store.lock", shared=True, wait=PATIENCE)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """`exclusive`, and a note until it ends, by which the next opening knows of a kill."""
        with explained(self.folder), self.exclusive():
            note = sweep.intend(self, "work", what)
            yield
            self.db.run("DELETE FROM intents WHERE id = ?", note)

    def orphans(self) -> list[str]:
        """Blobs that the database does not know; the lock is held."""
        return sorted(self.blobs.names() - {row[0] for row in self.db.all("SELECT hash FROM blobs")})

    def idle(self, learner: int) -> bool:
        """Whether nobody alive writes a learner."""
        try:
            with locks.held(self.folder / "locks" / f"{learner}.lock"):
                return True
        except Busy:
            return False

    def _add(self, name: str, uid: str, base: str, config: str, keeps: bool) -> int:
        values = (name, uid, base, config, int(keeps), clock.time())
        found = self.db.run(
            "INSERT INTO learners (name, uid, base, config, journal, time, events, head) "
            "VALUES (?, ?, ?, ?, ?, ?, 0, x'')",
            *values,
        )
        return found.lastrowid or 0

    @contextmanager
    def _lock(self, learner: int, name: str) -> Iterator[Any]:
        """The lock of a learner, or who has it."""
        path, taken = self.folder / "locks" / f"{learner}.lock", False
        try:
            with locks.held(path, wait=0.25) as file:  # an opening may look whether it is free
                taken = True
                yield file
        except Busy as error:
            if taken:
                raise
            text = path.read_text() if path.exists() else ""
            raise Busy(
                f"name={name!r}: {text or 'another process'} is writing this learner: wait, or stop it"
            ) from error

    def _unlock(self, key: str | bytes | None) -> privacy.Seal:
        with self.db.transaction():
            noted = self.db.value("SELECT value FROM meta WHERE key = 'seal'")
            if noted is None:  # a new store
                seal, lock = (privacy.Seal(), {}) if key is None else privacy.lock(key)
                self.db.run("INSERT INTO meta (key, value) VALUES ('seal', ?)", json.dumps(lock))
                self.db.run(
                    "INSERT INTO learners (id, name, uid, base, config, journal, time, events, head) "
                    "VALUES (0, '', ?, '', '{}', 0, ?, 0, x'')",
                    *(secrets.token_hex(16), clock.time()),
                )
                return seal
        lock = json.loads(noted)
        if not lock:
            if key is not None:
                raise StoreError(
                    f"key: {self.folder} was made without one: open it so, or make a new store with a key and move its "
                    "learners there with export and import_"
                )
            return privacy.Seal()
        if key is None:
            raise StoreError(f"{self.folder} is encrypted: open it with its key")
        return privacy.unlock(key, lock, str(self.folder))

    def _recover(self) -> list[str]:
        try:
            with explained(self.folder), locks.held(self.folder / "locks" / "store.lock", wait=2.0):
                found = sweep.recover(self)
        except Busy:
            found = ["another process is at work: nobody looked for what a kill may have left"]
        for row in self.db.all("SELECT * FROM learners WHERE writer IS NOT NULL"):
            try:
                with locks.held(self.folder / "locks" / f"{row['id']}.lock"):
                    text = self._interrupted(self.row(row["name"]))
                    found += [text] if text else []
            except Busy:
                pass  # its writer is alive
        return found

    def _interrupted(self, row: Any) -> str | None:
        """Log that a writer died, if one did; the lock of its learner is held."""
        if row["writer"] is None:
            return None
        holder = json.loads(row["writer"])
        with self.db.transaction():
            counts = self.db.all(
                "SELECT branch, count(*) FROM experiences WHERE learner = ? AND version IS NULL GROUP BY branch",
                row["id"],
            )
            self.db.run("UPDATE learners SET writer = NULL WHERE id = ?", row["id"])
            said = {"holder": holder, "pending": {row[0]: row[1] for row in counts}}
            chain.append(self.db, self.seal, row["id"], "interrupted", said)
        left = ", ".join(f"{count} on {branch!r}" for branch, count in counts)
        return f"{row['name']}: {_holder(holder)} was stopped while it wrote; " + (
            f"experiences in no version: {left}: learn them again or discard them"
            if counts
            else "what it had not committed or noted in the journal is missing"
        )


def _holder(me: Mapping[str, Any]) -> str:
    return f"process {me['pid']} on {me['host']} (thread {me['thread']}, since {me['since']} UTC)"
