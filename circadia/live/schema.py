"""The database of a store: its tables, and a connection that several threads may use."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from circadia.live.errors import Damaged, StoreError, explained

VERSION = 1
APPLICATION = 0x43495243  # "CIRC", so that another program's database is not taken for a store
WAIT = 30.0  # seconds for another process's transaction to end

# Learner 0 is the store itself: its log says which learners came and went.
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE learners (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, uid TEXT NOT NULL,
  base TEXT NOT NULL, config TEXT NOT NULL, journal INTEGER NOT NULL, time REAL NOT NULL,
  events INTEGER NOT NULL, head BLOB NOT NULL, signed BLOB, writer TEXT);
CREATE TABLE branches (learner INTEGER NOT NULL, name TEXT NOT NULL, version INTEGER,
  PRIMARY KEY (learner, name)) WITHOUT ROWID;
CREATE TABLE versions (id INTEGER PRIMARY KEY, learner INTEGER NOT NULL, number INTEGER NOT NULL, parent INTEGER,
  branch TEXT NOT NULL, state BLOB NOT NULL, reason TEXT NOT NULL, time REAL NOT NULL, tokens INTEGER NOT NULL,
  probes TEXT NOT NULL, notes TEXT NOT NULL, UNIQUE (learner, number));
CREATE INDEX versions_parent ON versions (learner, parent);
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE blobs (id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL);
CREATE TABLE tensors (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, blob INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE INDEX tensors_blob ON tensors (blob);
CREATE TABLE contents (version INTEGER NOT NULL, place INTEGER NOT NULL, name INTEGER NOT NULL, tensor INTEGER NOT NULL,
  PRIMARY KEY (version, place)) WITHOUT ROWID;
CREATE INDEX contents_tensor ON contents (tensor);
CREATE TABLE experiences (id INTEGER PRIMARY KEY, learner INTEGER NOT NULL, number INTEGER NOT NULL,
  source TEXT NOT NULL, trust REAL NOT NULL, time REAL NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
  kind TEXT NOT NULL, branch TEXT NOT NULL, version INTEGER, sealed BLOB, UNIQUE (learner, number));
CREATE INDEX experiences_source ON experiences (learner, source);
CREATE INDEX experiences_time ON experiences (learner, time);
CREATE INDEX experiences_version ON experiences (learner, version);
CREATE TABLE events (id INTEGER PRIMARY KEY, learner INTEGER NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL,
  time REAL NOT NULL, version INTEGER, experience INTEGER, payload TEXT, salt BLOB, digest BLOB NOT NULL,
  hash BLOB NOT NULL, UNIQUE (learner, number));
CREATE INDEX events_version ON events (learner, version);
CREATE INDEX events_experience ON events (learner, experience);
CREATE INDEX events_kind ON events (learner, kind);
CREATE TABLE exports (id INTEGER PRIMARY KEY, learner INTEGER NOT NULL, time REAL NOT NULL, file TEXT NOT NULL,
  hash TEXT NOT NULL, versions TEXT NOT NULL, experiences TEXT NOT NULL);
CREATE TABLE intents (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, detail TEXT NOT NULL);
"""


class Database:
    """One connection, one thread at a time; what a transaction did not finish never happened."""

    def __init__(self, path: Path) -> None:
        self.path, self.process = path, os.getpid()
        self.lock = threading.RLock()
        with explained(path.parent):
            self.connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self.connection.row_factory = sqlite3.Row
            try:
                self._prepare()
            except BaseException:
                self.connection.close()
                raise

    @contextmanager
    def _mine(self) -> Iterator[None]:
        if os.getpid() != self.process:
            raise StoreError("this store was opened before the process forked: open it again in the child")
        with self.lock, explained(self.path.parent):
            yield

    def _prepare(self) -> None:
        self._check()
        self.connection.execute("PRAGMA journal_mode=WAL")
        # FULL: a commit has reached the disk when it returns. In memory: temporary files would hold what is erased.
        for pragma in ("synchronous=FULL", "secure_delete=ON", "temp_store=MEMORY"):
            self.connection.execute(f"PRAGMA {pragma}")
        with self.transaction():
            if self._check():
                for statement in TABLES.split(";\n"):
                    self.connection.execute(statement)
                self.connection.execute(f"PRAGMA user_version={VERSION}")
                self.connection.execute(f"PRAGMA application_id={APPLICATION}")

    def _check(self) -> bool:
        """Whether there is nothing in it yet; an error where it is not ours."""
        version = self.value("PRAGMA user_version")
        if not version and not self.value("SELECT count(*) FROM sqlite_master"):
            return True
        if self.value("PRAGMA application_id") != APPLICATION:
            raise Damaged(f"{self.path} is a database of another program: give a folder of its own to the store")
        if version > VERSION:
            raise StoreError(
                f"{self.path} has schema {version}, this Circadia reads up to {VERSION}: update Circadia, "
                "or open the store with the one that made it"
            )
        return False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; one inside another is part of it."""
        with self._mine():
            if self.connection.in_transaction:
                yield
                return
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite itself may have rolled back
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads one moment, whatever others write meanwhile."""
        with self._mine():
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                self.connection.execute("ROLLBACK")

    def run(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """One statement."""
        with self._mine():
            return self.connection.execute(sql, values)

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """One statement for every row."""
        with self._mine():
            self.connection.executemany(sql, rows)

    def all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Every row."""
        with self._mine():
            return self.run(sql, *values).fetchall()

    def one(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """The first row."""
        with self._mine():
            return self.run(sql, *values).fetchone()

    def value(self, sql: str, *values: Any) -> Any:
        """The first column of the first row."""
        row = self.one(sql, *values)
        return None if row is None else row[0]

    def close(self) -> None:
        """Hand the connection back."""
        if os.getpid() == self.process:  # else it is the parent's
            self.connection.close()
