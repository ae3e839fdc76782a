"""A learner in one file: a ZIP with `learner.json` (its rows) and `tensors/` (its own tensors, and nobody else's).

Experiences stay as they are at rest: an encrypted store writes an encrypted journal. States are not encrypted.
"""

import base64
import hashlib
import json
import os
import secrets
import sqlite3
import time as clock
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from circadia.files import sync
from circadia.live import chain, journal, privacy, versions
from circadia.live.blobs import BLOCK, Blobs, digest
from circadia.live.erase import Exported
from circadia.live.errors import Damaged, StoreError, explained
from circadia.live.packed import pack
from circadia.live.sweep import ranges
from circadia.live.verify import learner as faults
from circadia.live.writer import named

if TYPE_CHECKING:
    from circadia.live.store import Store

FORMAT = "circadia learner"
VERSION = 1
PACK = 64 << 20  # bytes of tensors in one member, held in memory at a time
_ROWS = {  # columns that a learner's rows have beside its id
    "branches": ("name", "version"),
    "versions": ("number", "parent", "branch", "state", "reason", "time", "tokens", "probes", "notes"),
    "experiences": ("number", "source", "trust", "time", "start", "stop", "kind", "branch", "version", "sealed"),
    "events": ("number", "kind", "time", "version", "experience", "payload", "salt", "digest", "hash"),
}
_OWNER = ("name", "uid", "base", "config", "journal", "events", "head")


def write(store: "Store", owner: Any, path: Path) -> Exported:
    """The file, whole or not at all, and its entry in the log."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    if path.is_dir():
        raise StoreError(f"path={path}: this is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise StoreError(f"path={path}: there is no folder {path.parent}: make it, or give another")
    with explained(path.parent), store.shared():
        try:
            with store.db.transaction():  # one moment of the learner's life
                rows = _rows(store, owner["id"])
                tensors = _places(store, owner["id"], rows)
            with zipfile.ZipFile(beside, "x", allowZip64=True) as file:
                packs = []
                for name, content in _packs(store.blobs, tensors):
                    file.writestr(f"tensors/{name}", content)
                    packs.append(name)
                rows["packs"] = packs
                text = json.dumps(rows)
                file.writestr(zipfile.ZipInfo("learner.json"), text, zipfile.ZIP_DEFLATED)
            with open(beside, "rb") as done:
                found = hashlib.sha256()
                while block := done.read(BLOCK):
                    found.update(block)
                os.fsync(done.fileno())
            entry = Exported(clock.time(), path.name, found.hexdigest())
            with store.db.transaction():  # before the file has its name: what was exported is known in any case
                store.db.run(
                    "INSERT INTO exports (learner, time, file, hash, versions, experiences) VALUES (?, ?, ?, ?, ?, ?)",
                    *(owner["id"], *vars(entry).values()),
                    json.dumps(ranges(row[0] for row in rows["versions"])),
                    json.dumps(ranges(row[0] for row in rows["experiences"])),
                )
                chain.append(store.db, store.seal, owner["id"], "export", vars(entry))
            os.replace(beside, path)
            sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)
    return entry


def _rows(store: "Store", key: int) -> dict[str, Any]:
    owner = store.db.one("SELECT * FROM learners WHERE id = ?", key)
    assert owner is not None
    found: dict[str, Any] = {"format": FORMAT, "version": VERSION, "owner": {n: _out(owner[n]) for n in _OWNER}}
    found["seal"] = json.loads(store.db.value("SELECT value FROM meta WHERE key = 'seal'"))
    for table, columns in _ROWS.items():
        rows = store.db.all(f"SELECT {', '.join(columns)} FROM {table} WHERE learner = ? ORDER BY 1", key)
        found[table] = [[_out(value) for value in row] for row in rows]
    return found


def _out(value: Any) -> Any:
    return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _in(value: Any) -> Any:
    return base64.b64decode(value["bytes"]) if isinstance(value, dict) else value


def _places(store: "Store", key: int, rows: dict[str, Any]) -> dict[bytes, str]:
    """Fills in what each version holds; returns the blob of every tensor."""
    names: dict[str, int] = {}
    tensors: dict[bytes, int] = {}
    homes: dict[bytes, str] = {}
    held = []
    for row in rows["versions"]:
        pairs = []
        for entry in versions.contents(store.db, key, row[0]):
            homes.setdefault(entry["hash"], entry["blob"])
            pairs.append([names.setdefault(entry["name"], len(names)), tensors.setdefault(entry["hash"], len(tensors))])
        held.append(pairs)
    rows |= {"names": list(names), "tensors": [key.hex() for key in tensors], "contents": held}
    return homes


def _packs(blobs: Blobs, homes: dict[bytes, str]) -> Iterator[tuple[str, bytes]]:
    """Members of about `PACK` bytes: a blob may hold tensors of another learner, which stay here."""
    wanted: dict[str, list[bytes]] = {}
    for key, blob in homes.items():
        wanted.setdefault(blob, []).append(key)
    held: dict[str, torch.Tensor] = {}
    size = 0
    for i, (blob, keys) in enumerate(wanted.items()):
        found = blobs.read(blob, keys)
        held |= {key.hex(): x for key, x in found.items()}
        size += sum(x.numel() * x.element_size() for x in found.values())
        if size >= PACK or i + 1 == len(wanted):
            content = pack(held)
            yield hashlib.sha256(content).hexdigest(), content
            held, size = {}, 0


def read(store: "Store", path: Path, name: str | None, key: str | bytes | None) -> str:
    """Put the learner of a file into the store; returns its name."""
    if not path.is_file():
        raise StoreError(f"path={path}: this is no file: give one that `export` wrote")
    try:
        with zipfile.ZipFile(path) as file:
            rows = json.loads(file.read("learner.json"))
            if rows.get("format") != FORMAT or rows["version"] > VERSION:
                raise StoreError(
                    f"{path} has format {rows.get('format')!r} {rows.get('version')!r}, this Circadia reads {FORMAT!r} "
                    f"up to {VERSION}: give a file that `export` wrote, or update Circadia"
                )
            return _take(store, path, file, rows, name, key)
    except (StoreError, OSError):
        raise
    # What is in it may be anything: broken packing, other types, values that no row can hold.
    except (zipfile.BadZipFile, zlib.error, sqlite3.Error, EOFError, RuntimeError,
            ValueError, LookupError, TypeError, AttributeError) as error:  # fmt: skip
        raise Damaged(f"{path} is damaged or no export ({error!r}): give a file that `export` wrote") from error


def _take(
    store: "Store", path: Path, file: zipfile.ZipFile, rows: dict[str, Any], name: str | None, key: str | bytes | None
) -> str:
    owner = {field: _in(value) for field, value in rows["owner"].items()}
    name = named("name", name or owner["name"])
    if name in store.learners():
        raise StoreError(f"name={name!r}: this store has a learner of this name: give another with name=...")
    seal = _seal(store, path, rows["seal"], key)
    db = store.db
    with store.working("an import"):
        before = set(store.orphans())
        try:
            with db.transaction():
                learner = store._add(name, owner["uid"], owner["base"], owner["config"], bool(owner["journal"]))
                db.run("UPDATE learners SET events = ?, head = ? WHERE id = ?", owner["events"], owner["head"], learner)
                for pack in rows["packs"]:
                    _unpack(store, path, file, pack)
                _insert(store, learner, owner, rows, seal)
                text = {"name": name, "file": path.name, "from": owner["name"]}
                chain.append(db, store.seal, learner, "import", text)
                chain.append(db, store.seal, 0, "import", {"learner": learner, "uid": owner["uid"]})
                found = list(faults(store, store.row(name)))
                if found:
                    raise Damaged(f"{path} is damaged ({'; '.join(found[:3])}): nothing of it was taken")
        except BaseException:
            store.blobs.remove(set(store.orphans()) - before, wipe=True)
            raise
    return name


def _seal(store: "Store", path: Path, noted: dict[str, str], key: str | bytes | None) -> privacy.Seal:
    """What opens the file's experiences."""
    if not noted:
        return privacy.Seal()
    own = json.loads(store.db.value("SELECT value FROM meta WHERE key = 'seal'"))
    if key is not None:
        return privacy.unlock(key, noted, str(path))
    if own == noted:
        return store.seal
    raise StoreError(f"{path} is encrypted with the key of another store: give it as key=...")


def _unpack(store: "Store", path: Path, file: zipfile.ZipFile, pack: str) -> None:
    content = file.read(f"tensors/{pack}")
    if hashlib.sha256(content).hexdigest() != pack:
        raise Damaged(f"{path} is damaged (tensors/{pack[:12]}... has changed): nothing of it was taken")
    try:
        found = {bytes.fromhex(key): x for key, x in safetensors.torch.load(content).items()}
    except (safetensors.SafetensorError, ValueError) as error:
        raise Damaged(f"{path} is damaged ({error}): nothing of it was taken") from error
    stored = versions.known(store.db, list(found))
    fresh = {key: x for key, x in found.items() if key not in stored}
    if any(digest(x) != key for key, x in fresh.items()):
        raise Damaged(f"{path} is damaged (a tensor has changed): nothing of it was taken")
    if fresh:
        versions.place(store.db, store.blobs.write(fresh), fresh)


def _insert(store: "Store", learner: int, owner: dict[str, Any], rows: dict[str, Any], seal: privacy.Seal) -> None:
    db = store.db
    for table, columns in _ROWS.items():
        if table == "versions":
            continue
        values = [[_in(value) for value in row] for row in rows[table]]
        if table == "experiences":
            for row in values:  # from the key of the file to the key of this store
                if row[-1] is not None:
                    about = journal.about(owner, row[0])
                    row[-1] = store.seal.close(*seal.open(row[-1], about), about)
        marks = ", ".join("?" * (1 + len(columns)))
        db.many(
            f"INSERT INTO {table} (learner, {', '.join(columns)}) VALUES ({marks})", [(learner, *row) for row in values]
        )
    names, tensors = rows["names"], [bytes.fromhex(key) for key in rows["tensors"]]
    for row, pairs in zip(rows["versions"], rows["contents"], strict=True):
        fields = dict(zip(_ROWS["versions"], row)) | {"state": _in(row[3]).hex(), "probes": json.loads(row[7])}
        entries = [(names[n], tensors[t]) for n, t in pairs]
        versions.insert(db, learner, versions.Version(**fields), entries)
