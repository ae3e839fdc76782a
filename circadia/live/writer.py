"""Everything that changes one learner. `Store.writer` gives it to one thread of one process at a time."""

import json
import re
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from circadia.live import chain, erase, journal, sweep, versions
from circadia.live.blobs import digest, plain
from circadia.live.errors import StoreError, explained
from circadia.live.journal import Experience
from circadia.live.versions import Version

if TYPE_CHECKING:
    from circadia.live.store import Store

OWN = {
    *("create", "import", "export", "observe", "feedback", "commit", "accept", "rollback", "discard"),
    *("branch", "drop", "gc", "erase", "delete", "interrupted"),
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def named(what: str, name: Any) -> str:
    """A name that is one."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise StoreError(
            f"{what}={name!r}: give 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first"
        )
    return name


class Writer:
    """The one who may change a learner, on one branch."""

    def __init__(self, store: "Store", learner: Any, branch: str, interrupted: str | None) -> None:
        self.store, self.learner, self.branch_name = store, learner["name"], branch
        self.interrupted = interrupted  # what the writer before left undone, if it was killed
        self._row, self._open = learner, True

    @property
    def current(self) -> Version | None:
        """What the branch points to; None is the base."""
        number = versions.current(self.store.db, self._row["id"], self.branch_name)
        return None if number is None else self.store.version(self.learner, number)

    def remember(
        self,
        payload: bytes,
        source: str,
        trust: float = 1.0,
        start: int = 0,
        stop: int = 0,
        kind: str = "text",
        time: float | None = None,
    ) -> Experience:
        """Put an experience into the journal; it is pending until the next commit."""
        self._check()
        fields = journal.checked(source, trust, start, stop, kind, payload)
        with self.store.db.transaction():
            when = clock.time() if time is None else float(time)
            return journal.add(self.store.db, self.store.seal, self._row, self.branch_name, fields, payload, when)

    def pending(self, payload: bool = False) -> list[Experience]:
        """What was observed on this branch and is in no version: after a kill, learn it again or `discard` it."""
        db, seal = self.store.db, self.store.seal
        return list(journal.query(db, seal, self._row, pending=self.branch_name, payload=payload))

    def discard(self, reason: str, only: Sequence[int] | None = None) -> list[int]:
        """Let no version contain what is pending (`only`: these); it stays in the journal."""
        self._check()
        with self.store.db.transaction():
            dropped = journal.settle(self.store.db, self._row["id"], self.branch_name, journal.DROPPED, only)
            if dropped:
                self._log("discard", {"reason": reason, "dropped": dropped})
        return dropped

    def record(
        self, kind: str, payload: Mapping[str, Any], version: int | None = None, experience: int | None = None
    ) -> int:
        """An event of the caller's (sleep, hold, guard, ...), in JSON; its number in the log.

        With a version or an experience it goes when that is erased; texts belong into `remember`.
        """
        self._check()
        if not re.fullmatch("[a-z][a-z_]{0,31}", kind) or kind in OWN:
            raise StoreError(f"kind={kind!r}: give a word of small letters that is none of {', '.join(sorted(OWN))}")
        for name, value in (("version", version), ("experience", experience)):
            if value is not None and not self.store.db.one(
                f"SELECT 1 FROM {name}s WHERE learner = ? AND number = ?", self._row["id"], value
            ):
                raise StoreError(f"{name}={value!r}: this learner has none of this number")
        with self.store.db.transaction():
            return self._log(kind, dict(payload), version, experience)

    def commit(
        self,
        state: Mapping[str, Tensor],
        reason: str,
        tokens: int,
        probes: Mapping[str, Any] | None = None,
        notes: str = "",
        current: bool = True,
        experiences: Sequence[int] | None = None,
    ) -> Version:
        """A new version out of a state; it contains what is pending. Tensors that are stored already are not written.

        With ``current=False`` the version is held: the branch stays where it is until `accept`. With `experiences` it
        contains these and not what is pending: for what is built again after an erasure.
        """
        self._check()
        store, db, owner = self.store, self.store.db, self._row["id"]
        if not state:
            raise StoreError("state is empty: give at least one tensor")
        if not isinstance(tokens, int) or tokens < 0:
            raise StoreError(f"tokens={tokens!r}: give how many tokens the learner has seen in all")
        try:
            chain.canonical(dict(probes or {}))
        except (TypeError, ValueError) as error:
            raise StoreError(f"probes={probes!r:.100}: give what JSON can hold ({error})") from None
        tensors = {name: plain(name, x) for name, x in state.items()}
        entries = [(name, digest(x)) for name, x in tensors.items()]
        values = {key: tensors[name] for name, key in entries}
        with explained(store.folder), store.exclusive():
            stored = versions.known(db, list(values))
            fresh = {key: x for key, x in values.items() if key not in stored}
            blob = store.blobs.write(fresh) if fresh else None
            try:
                with db.transaction():
                    number = 1 + (db.value("SELECT max(version) FROM events WHERE learner = ?", owner) or 0)
                    parent = versions.current(db, owner, self.branch_name)
                    hashed = versions.state_hash(entries).hex()
                    scores = dict(probes or {})
                    version = Version(
                        *(number, parent, self.branch_name, hashed, reason, clock.time(), tokens, scores, notes)
                    )
                    versions.place(db, blob, fresh)
                    versions.insert(db, owner, version, entries)
                    told: dict[str, Any] = {"version": vars(version), "branch": self.branch_name}
                    if current:
                        self._point(number)
                        told |= {
                            "to": number,
                            "experiences": journal.settle(db, owner, self.branch_name, number, experiences),
                        }
                    else:
                        told["experiences"] = (
                            [e.number for e in self.pending()] if experiences is None else list(experiences)
                        )
                    self._log("commit", told, number, time=version.time)
            except BaseException:
                if blob is not None and not db.one("SELECT 1 FROM blobs WHERE hash = ?", blob[0]):
                    store.blobs.remove([blob[0]], wipe=False)
                raise
        return version

    def accept(self, number: int, reason: str) -> Version:
        """Make a held version the current one."""
        self._check()
        db, owner = self.store.db, self._row["id"]
        with db.transaction():
            version = versions.from_row(versions.get(db, owner, number))
            now = versions.current(db, owner, self.branch_name)
            if (version.parent, version.branch) != (now, self.branch_name):
                raise StoreError(
                    f"version={number}: it came out of {version.parent} on {version.branch!r}, but "
                    f"{self.branch_name!r} points to {now}: use rollback, which moves to any version"
                )
            row = db.one(
                "SELECT payload FROM events WHERE learner = ? AND version = ? AND kind = 'commit'", owner, number
            )
            listed = json.loads(row["payload"])["experiences"] if row and row["payload"] else []
            db.many(
                # Pending, or dropped when it was held.
                "UPDATE experiences SET version = ? WHERE learner = ? AND number = ? AND coalesce(version, ?) = ?",
                [(number, owner, n, journal.DROPPED, journal.DROPPED) for n in listed],
            )
            self._point(number)
            self._log("accept", {"branch": self.branch_name, "to": number, "reason": reason}, number)
        return version

    def rollback(self, number: int | None, reason: str, drops: bool = True) -> Version | None:
        """Point the branch to any version, None for the base; what is pending is dropped, if `drops`."""
        self._check()
        with self.store.db.transaction():
            sweep.reset(self.store, self._row["id"], self.branch_name, number, reason, drops)
        return self.current

    def branch(self, name: str, number: int | None = None) -> None:
        """A new name for a version, the current one by default: somewhere else to go on, and kept by `gc`."""
        self._check()
        named("branch", name)
        db, owner = self.store.db, self._row["id"]
        with db.transaction():
            if db.one("SELECT 1 FROM branches WHERE learner = ? AND name = ?", owner, name):
                raise StoreError(f"branch={name!r}: there is one already: drop it first or take another name")
            target = versions.current(db, owner, self.branch_name) if number is None else number
            if target is not None:
                versions.get(db, owner, target)
            db.run("INSERT INTO branches (learner, name, version) VALUES (?, ?, ?)", owner, name, target)
            self._log("branch", {"branch": name, "to": target}, target)

    def drop(self, name: str) -> None:
        """Remove a branch; its versions stay until `gc`."""
        self._check()
        db, owner = self.store.db, self._row["id"]
        if name == self.branch_name:
            raise StoreError(f"branch={name!r}: this writer is on it: open a writer on another one")
        with db.transaction():
            versions.current(db, owner, name)
            journal.settle(db, owner, name, journal.DROPPED)
            db.run("DELETE FROM branches WHERE learner = ? AND name = ?", owner, name)
            self._log("drop", {"branch": name})

    def erase(
        self,
        experiences: Iterable[int] = (),
        versions: Iterable[int] = (),
        events: Iterable[int] = (),
        move: Mapping[str, int | None] | None = None,
        reason: str = "erase",
        dropped: Iterable[int] = (),
    ) -> erase.Erased:
        """Delete for good. The reason stays in the log.

        Experiences go without the versions that learned from them (`Store.influenced` says which) unless these are
        named, with all that came out of them and in `move` where their branches are to point. What remains of the
        experiences of such versions is pending again, but for `dropped`, which no version shall contain.
        """
        self._check()
        return erase.erase(self.store, self._row, experiences, versions, events, move or {}, reason, dropped)

    def gc(self, keep: int | None = None) -> sweep.Tidied:
        """Remove versions but the newest `keep` and those that branches point to, then files that nobody needs."""
        self._check()
        if keep is not None and keep < 1:
            raise StoreError(f"keep={keep}: keep at least 1 version, or give None to remove none")
        return sweep.gc(self.store, self._row["id"], keep)

    def _point(self, number: int | None) -> None:
        self.store.db.run(
            "UPDATE branches SET version = ? WHERE learner = ? AND name = ?", number, self._row["id"], self.branch_name
        )

    def _log(
        self,
        kind: str,
        payload: dict[str, Any],
        version: int | None = None,
        experience: int | None = None,
        time: float | None = None,
    ) -> int:
        return chain.append(self.store.db, self.store.seal, self._row["id"], kind, payload, version, experience, time)

    def _check(self) -> None:
        if not self._open:
            raise StoreError("this writer is closed: use it inside `with store.writer(...)`")

    def close(self) -> None:
        """Nothing more is written by it."""
        self._open = False
