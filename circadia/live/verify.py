"""Every hash computed again: blobs, tensors, versions, the log, and whether rows and log tell the same."""

import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circadia.live import chain, journal, versions
from circadia.live.errors import Damaged
from circadia.live.sweep import numbers

if TYPE_CHECKING:
    from circadia.live.store import Store


@dataclass(frozen=True)
class Verified:
    """What a check found; empty `faults` mean that everything is as it was written."""

    faults: tuple[str, ...]
    learners: int
    versions: int
    blobs: int
    events: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.faults


def verify(store: "Store", name: str | None) -> Verified:
    """The whole store, or one learner and the blobs that it needs."""
    start, db = time.perf_counter(), store.db
    with store.shared(), db.snapshot():
        found = [f"database: {row[0]}" for row in db.all("PRAGMA integrity_check") if row[0] != "ok"]
        owners = [store.row(name)] if name is not None else db.all("SELECT * FROM learners WHERE id > 0 ORDER BY id")
        if name is None:
            found += [f"log of the store: {fault}" for fault in readable(store_log(store))]
        for owner in owners:
            found += [f"{owner['name']}: {fault}" for fault in readable(learner(store, owner))]
        checked = blobs(store, [owner["id"] for owner in owners] if name is not None else None)
        count = 0
        for fault in checked:
            count += 1
            if fault:
                found.append(fault)
        ids = json.dumps([owner["id"] for owner in owners])
        totals = [
            db.value(f"SELECT count(*) FROM {table} WHERE learner IN (SELECT value FROM json_each(?))", ids)
            for table in ("versions", "events")
        ]
    return Verified(tuple(found), len(owners), totals[0], count, totals[1], time.perf_counter() - start)


def readable(faults: Iterator[str]) -> Iterator[str]:
    """Faults, of which one may be that a row is not even of the right type."""
    try:
        yield from faults
    except (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        yield f"a row was changed so that it cannot be read ({error!r}); what comes after it was not checked"


def blobs(store: "Store", learners: list[int] | None) -> Iterator[str | None]:
    """For each blob what is wrong with it, if anything."""
    db, only = store.db, ""
    if learners is not None:
        only = (
            "WHERE id IN (SELECT t.blob FROM versions v JOIN contents c ON c.version = v.id JOIN tensors t "
            f"ON t.id = c.tensor WHERE v.learner IN ({', '.join(map(str, learners))}))"
        )
    for row in db.all(f"SELECT * FROM blobs {only} ORDER BY id"):
        fault = store.blobs.fault(row["hash"])
        if fault is None:
            try:
                keys = [r[0] for r in db.all("SELECT hash FROM tensors WHERE blob = ?", row["id"])]
                store.blobs.read(row["hash"], keys)
            except Damaged as error:
                fault = str(error)
        if fault is not None:
            needed = db.all(
                "SELECT DISTINCT l.name, v.number FROM tensors t JOIN contents c ON c.tensor = t.id JOIN versions v "
                "ON v.id = c.version JOIN learners l ON l.id = v.learner WHERE t.blob = ? ORDER BY 1, 2 LIMIT 20",
                row["id"],
            )
            fault += f"; needed by {', '.join(f'{r[0]} {r[1]}' for r in needed) or 'no version'}"
        yield fault


def learner(store: "Store", owner: Any) -> Iterator[str]:
    """One learner's log, and its rows against it."""
    db, key = store.db, owner["id"]
    yield from chain.faults(db, store.seal, key)
    pointers: dict[str, int | None] = {}
    commits: dict[int, dict[str, Any] | None] = {}
    told: dict[int, Any] = {}
    gone, lost, name = set(), set(), None
    for event in chain.events(db, key, "ORDER BY number"):
        said = event.payload
        if event.kind == "commit":
            assert event.version is not None
            commits[event.version] = said
        if said is None:
            continue
        if event.kind in ("create", "import"):
            name = said["name"]
            if event.kind == "create" and any(said[field] != owner[field] for field in ("base", "config", "journal")):
                yield "base, config or journal is not what the log says"
        if event.kind in ("gc", "erase"):
            gone |= numbers(said["versions"])
            lost |= numbers(said.get("experiences", []))
        if event.kind in ("observe", "feedback") and event.experience is not None:
            told[event.experience] = said
        if "to" in said and "branch" in said:
            pointers[said["branch"]] = said["to"]
        if event.kind == "drop":
            pointers.pop(said["branch"], None)
    if name != owner["name"]:
        yield f"its name was {name!r} in the log"
    points = {row[0]: row[1] for row in db.all("SELECT name, version FROM branches WHERE learner = ?", key)}
    for branch in sorted(points.keys() | pointers.keys()):
        if branch not in points or branch not in pointers or points[branch] != pointers[branch]:
            yield f"branch {branch!r} points to {points.get(branch)}, in the log to {pointers.get(branch)}"
    yield from _versions(store, key, commits, gone)
    yield from journal.faults(db, store.seal, owner, told, lost)
    for row in db.all("SELECT number, version FROM experiences WHERE learner = ? AND version > 0", key):
        listed = commits.get(row["version"])
        if listed is not None and row["number"] not in listed["experiences"]:
            yield f"experience {row['number']} is not one of version {row['version']} in the log"


def _versions(store: "Store", key: int, commits: dict[int, dict[str, Any] | None], gone: set[int]) -> Iterator[str]:
    db, present = store.db, set()
    for row in db.all("SELECT * FROM versions WHERE learner = ? ORDER BY number", key):
        version = versions.from_row(row)
        present.add(version.number)
        said = commits.get(version.number)
        if said is None:
            yield f"version {version.number} is not in the log"
        elif any(value != vars(version)[field] for field, value in said["version"].items()):
            yield f"version {version.number} is not what the log says"
        if version.number in gone:
            yield f"version {version.number} was removed, but is there"
        entries = [(r["name"], r["hash"]) for r in versions.contents(db, key, version.number)]
        if versions.state_hash(entries).hex() != version.state:
            yield f"version {version.number} has another list of tensors than was written"
    for number in sorted(set(commits) - present - gone):
        yield f"version {number} is missing"


def store_log(store: "Store") -> Iterator[str]:
    """Which learners came and went."""
    yield from chain.faults(store.db, store.seal, 0)
    known: dict[int, str] = {}
    for event in chain.events(store.db, 0, "ORDER BY number"):
        if event.payload is None:
            continue
        if event.kind == "delete":
            known.pop(event.payload["learner"], None)
        else:
            known[event.payload["learner"]] = event.payload["uid"]
    there = {row["id"]: row["uid"] for row in store.db.all("SELECT id, uid FROM learners WHERE id > 0")}
    for key in sorted(known.keys() | there.keys()):
        if known.get(key) != there.get(key):
            state = "missing" if key in known else "not in it"
            yield f"learner {key} (uid {known.get(key) or there.get(key)}) is {state}"
