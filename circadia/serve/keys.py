"""API keys and the log of changes, in `serve.db` beside the store's database.

A key is shown once; only its SHA-256 is kept, which is enough for 256 random bits. Once a store has had a key, no
request goes without one.
"""

import hashlib
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circadia.live.errors import explained
from circadia.live.writer import named

SCOPES = ("read", "teach", "admin")  # each with those before
TABLES = """
CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, scope TEXT NOT NULL,
  learners TEXT NOT NULL, time REAL NOT NULL, revoked REAL);
CREATE TABLE IF NOT EXISTS changes (id INTEGER PRIMARY KEY, time REAL NOT NULL, key TEXT, learner TEXT NOT NULL,
  action TEXT NOT NULL, outcome TEXT NOT NULL, version INTEGER);
"""


@dataclass(frozen=True)
class Key:
    """Who asks, and what they may."""

    id: str | None  # None: a server without keys
    scope: str
    learners: tuple[str, ...]  # "*" for all

    def sees(self, name: str) -> bool:
        """Is this learner theirs?"""
        return "*" in self.learners or name in self.learners

    def may(self, scope: str) -> bool:
        """Does it reach so far?"""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


ANYONE = Key(None, "admin", ("*",))


class Keys:
    """The file."""

    def __init__(self, store: str | Path) -> None:
        self.folder, self._lock = Path(store), threading.Lock()
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self.folder / "serve.db"
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(TABLES)

    def close(self) -> None:
        """Hand the file back."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Keys":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _all(self, sql: str, *values: Any) -> list[Any]:
        with self._lock, explained(self.folder):
            return self._db.execute(sql, values).fetchall()

    def new(self, scope: str, learners: Sequence[str]) -> tuple[str, str]:
        """A key for some learners: its id, and the key itself, which nobody can look up again."""
        if scope not in SCOPES:
            raise ValueError(f"scope={scope!r} is unknown: use {', '.join(SCOPES)}")
        if not learners:
            raise ValueError("learners: name at least one, or '*' for all")
        for name in learners:
            if name != "*":
                named("learners", name)
        number, key = secrets.token_hex(4), f"sk-circadia-{secrets.token_urlsafe(32)}"
        values = (number, _hash(key), scope, json.dumps(sorted(set(learners))), time.time())
        self._all("INSERT INTO keys (id, hash, scope, learners, time) VALUES (?, ?, ?, ?, ?)", *values)
        return number, key

    def revoke(self, number: str) -> None:
        """It is refused from the next request on."""
        if not self._all("SELECT 1 FROM keys WHERE id = ? AND revoked IS NULL", number):
            raise ValueError(f"id={number!r}: there is no such key, or it is revoked; see `circadia key list`")
        self._all("UPDATE keys SET revoked = ? WHERE id = ?", time.time(), number)

    def listed(self) -> list[dict[str, Any]]:
        """All there were, without what would open anything."""
        rows = self._all("SELECT id, scope, learners, time, revoked FROM keys ORDER BY time")
        names = ("id", "scope", "learners", "time", "revoked")
        return [dict(zip(names, row)) | {"learners": json.loads(row[2])} for row in rows]

    @property
    def needed(self) -> bool:
        """Also when all are revoked."""
        return bool(self._all("SELECT 1 FROM keys LIMIT 1"))

    def find(self, key: str) -> Key | None:
        """Whose key this is."""
        rows = self._all("SELECT id, scope, learners FROM keys WHERE hash = ? AND revoked IS NULL", _hash(key))
        return Key(rows[0][0], rows[0][1], tuple(json.loads(rows[0][2]))) if rows else None

    def note(self, key: Key, learner: str, action: str, outcome: str, version: int | None) -> None:
        """A change that was asked for, without a user's words."""
        values = (time.time(), key.id, learner, action, outcome, version)
        self._all("INSERT INTO changes (time, key, learner, action, outcome, version) VALUES (?, ?, ?, ?, ?, ?)",
                  *values)  # fmt: skip

    def changes(self, learner: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """The newest first."""
        where, values = ("WHERE learner = ?", [learner]) if learner is not None else ("", [])
        names = ("time", "key", "learner", "action", "outcome", "version")
        rows = self._all(f"SELECT {', '.join(names)} FROM changes {where} ORDER BY id DESC LIMIT ?", *values, limit)
        return [dict(zip(names, row)) for row in rows]


class Rates:
    """So many requests a minute of each key: a bucket that fills up evenly."""

    def __init__(self, rate: int) -> None:
        self.rate, self._left = rate, dict[str | None, tuple[float, float]]()

    def take(self, key: Key) -> float:
        """Seconds to wait; 0 where it may go on."""
        if not self.rate:
            return 0.0
        now = time.monotonic()
        left, then = self._left.get(key.id, (float(self.rate), now))
        left = min(float(self.rate), left + (now - then) * self.rate / 60)
        if left < 1:
            self._left[key.id] = (left, now)
            return (1 - left) * 60 / self.rate
        self._left[key.id] = (left - 1, now)
        return 0.0


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
