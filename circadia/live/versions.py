"""Versions: what one is, and the rows that say which tensors it holds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from torch import Tensor

from circadia.live.blobs import Blobs, copy
from circadia.live.errors import Damaged, StoreError
from circadia.live.schema import Database


@dataclass(frozen=True)
class Version:
    """An immutable state of a learner. Numbers count from 1 within the learner and are never used again."""

    number: int
    parent: int | None  # None: the base without anything learned
    branch: str  # on which it was committed
    state: str  # SHA-256 over the names and hashes of its tensors
    reason: str
    time: float
    tokens: int  # seen in the whole life up to here
    probes: dict[str, Any]
    notes: str


@dataclass(frozen=True)
class Moved:
    """How one group of tensors differs between two versions."""

    norm: float  # of the first version
    moved: float  # norm of the difference of the tensors that both have in one shape
    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diff:
    """Two versions compared."""

    groups: dict[str, Moved]
    probes: dict[str, tuple[Any, Any]]  # those that differ


def state_hash(entries: Sequence[tuple[str, bytes]]) -> bytes:
    """Of names in their order, each with its tensor's hash."""
    found = sha256()
    for name, key in entries:
        found.update(f"{len(name.encode())} {name}".encode() + key)
    return found.digest()


def from_row(row: Any) -> Version:
    """Out of the database."""
    names = ("number", "parent", "branch", "reason", "time", "tokens", "notes")
    fields = {name: row[name] for name in names}
    return Version(**fields, state=row["state"].hex(), probes=json.loads(row["probes"]))


def get(db: Database, learner: int, number: int) -> Any:
    """The row of a version."""
    row = db.one("SELECT * FROM versions WHERE learner = ? AND number = ?", learner, number)
    if row is None:
        last = db.value("SELECT max(number) FROM versions WHERE learner = ?", learner)
        raise StoreError(f"version={number!r}: there is none, or it was removed; the newest is {last}, see `versions`")
    return row


def current(db: Database, learner: int, branch: str) -> int | None:
    """What a branch points to."""
    row = db.one("SELECT version FROM branches WHERE learner = ? AND name = ?", learner, branch)
    if row is None:
        known = [r[0] for r in db.all("SELECT name FROM branches WHERE learner = ? ORDER BY name", learner)]
        raise StoreError(f"branch={branch!r}: there is none; those of this learner are {', '.join(known)}")
    return row[0]


def insert(db: Database, learner: int, version: Version, entries: Sequence[tuple[str, bytes]]) -> None:
    """The rows of a version whose tensors have theirs."""
    fields = {**vars(version), "state": bytes.fromhex(version.state), "probes": json.dumps(version.probes)}
    marks = ", ".join("?" * (len(fields) + 1))
    key = db.run(
        f"INSERT INTO versions (learner, {', '.join(fields)}) VALUES ({marks})", learner, *fields.values()
    ).lastrowid
    db.many("INSERT OR IGNORE INTO names (name) VALUES (?)", [(name,) for name, _ in entries])
    db.many(
        "INSERT INTO contents (version, place, name, tensor) VALUES (?, ?, "
        "(SELECT id FROM names WHERE name = ?), (SELECT id FROM tensors WHERE hash = ?))",
        [(key, place, *entry) for place, entry in enumerate(entries)],
    )


def place(db: Database, blob: tuple[str, int] | None, tensors: dict[bytes, Tensor]) -> None:
    """Rows of a new blob and the tensors in it."""
    if blob is not None:
        db.run("INSERT OR IGNORE INTO blobs (hash, bytes) VALUES (?, ?)", *blob)
        home = db.value("SELECT id FROM blobs WHERE hash = ?", blob[0])
        db.many(
            "INSERT INTO tensors (hash, blob, bytes) VALUES (?, ?, ?)",
            [(key, home, x.numel() * x.element_size()) for key, x in tensors.items()],
        )


def known(db: Database, keys: Sequence[bytes]) -> set[bytes]:
    """Those of the hashes that are stored already."""
    return {key for key in keys if db.one("SELECT 1 FROM tensors WHERE hash = ?", key) is not None}


def contents(db: Database, learner: int, number: int) -> list[Any]:
    """Name, hash and blob of every tensor of a version, in their order."""
    return db.all(
        "SELECT n.name, t.hash, b.hash AS blob FROM contents c JOIN names n ON n.id = c.name "
        "JOIN tensors t ON t.id = c.tensor JOIN blobs b ON b.id = t.blob WHERE c.version = ? ORDER BY c.place",
        get(db, learner, number)["id"],
    )


def read(blobs: Blobs, rows: Sequence[Any]) -> dict[str, Tensor]:
    """The tensors that rows of `contents` name."""
    wanted: dict[str, set[bytes]] = {}
    for row in rows:
        wanted.setdefault(row["blob"], set()).add(row["hash"])
    found = {key: x for blob, keys in wanted.items() for key, x in blobs.read(blob, keys).items()}
    seen: set[bytes] = set()
    state = {}
    for row in rows:  # equal tensors are stored once, and given back apart
        state[row["name"]] = copy(found[row["hash"]]) if row["hash"] in seen else found[row["hash"]]
        seen.add(row["hash"])
    return state


def load(db: Database, blobs: Blobs, learner: int, number: int) -> dict[str, Tensor]:
    """The state as it was committed."""
    rows = contents(db, learner, number)
    written = get(db, learner, number)["state"]
    if state_hash([(row["name"], row["hash"]) for row in rows]) != written:
        raise Damaged(f"version {number}: its list of tensors has changed: restore the store, or roll back")
    return read(blobs, rows)


def lineage(db: Database, learner: int, number: int | None, limit: int | None = None) -> list[Version]:
    """A version and its ancestors, newest first, as far as they are kept."""
    rows = db.all(
        "WITH RECURSIVE up (number, depth) AS (SELECT ?, 0 UNION ALL SELECT v.parent, depth + 1 FROM up "
        "JOIN versions v ON v.learner = ? AND v.number = up.number WHERE v.parent IS NOT NULL LIMIT ?) "
        "SELECT v.* FROM up JOIN versions v ON v.learner = ? AND v.number = up.number ORDER BY up.depth",
        *(number, learner, -1 if limit is None else limit, learner),
    )
    return [from_row(row) for row in rows]


def descendants(db: Database, learner: int, numbers: Sequence[int]) -> list[int]:
    """The versions themselves and all that came out of them."""
    rows = db.all(
        "WITH RECURSIVE down (number) AS (SELECT value FROM json_each(?) UNION "
        "SELECT v.number FROM down JOIN versions v ON v.learner = ? AND v.parent = down.number) "
        "SELECT number FROM down ORDER BY number",
        *(json.dumps(list(numbers)), learner),
    )
    return [row[0] for row in rows]


def prefix(name: str) -> str:
    """The group of a tensor: its name up to the first slash, else up to the first dot."""
    return name.partition("/" if "/" in name else ".")[0]


def diff(db: Database, blobs: Blobs, learner: int, a: int, b: int, group: Callable[[str], str]) -> Diff:
    """What moved from a to b."""
    old, new = ({row["name"]: row for row in contents(db, learner, n)} for n in (a, b))
    states = [
        read(blobs, list(old.values())),
        read(blobs, [r for n, r in new.items() if n in old and differs(old[n], r)]),
    ]
    found: dict[str, dict[str, Any]] = {}
    for name in {**old, **new}:
        entry = found.setdefault(group(name), {"norm": 0.0, "moved": 0.0, "changed": [], "added": [], "removed": []})
        if name not in old:
            entry["added"].append(name)
            continue
        x = states[0][name].double()
        entry["norm"] += float(x.square().sum())
        if name not in new:
            entry["removed"].append(name)
        elif differs(old[name], new[name]):
            entry["changed"].append(name)
            y = states[1][name].double()
            if x.shape == y.shape:
                entry["moved"] += float((y - x).square().sum())
    lists = ("changed", "added", "removed")
    groups = {
        key: Moved(entry["norm"] ** 0.5, entry["moved"] ** 0.5, *(tuple(entry[name]) for name in lists))
        for key, entry in found.items()
    }
    before, after = (json.loads(get(db, learner, n)["probes"]) for n in (a, b))
    probes = {
        key: (before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)
    }
    return Diff(groups, probes)


def differs(a: Any, b: Any) -> bool:
    """Whether two rows of `contents` name different tensors."""
    return a["hash"] != b["hash"]
