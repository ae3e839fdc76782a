"""Sets of short texts in classes, in tasks of several classes: CLINC150, DBpedia, Banking77."""

import csv
import gzip
import hashlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

Rows = list[tuple[str, str]]  # text and the name of its class


@dataclass(frozen=True)
class ClassSet:
    """`valid` chooses rates, `test` is tested on. `groups` are classes that belong together, if the set says so."""

    train: Rows
    valid: Rows
    test: Rows
    groups: list[list[str]] | None
    classes: int  # of a task, where there are no groups

    def tasks(self, seed: int) -> list[list[str]]:
        """The classes in the order of a seed: groups stay together, others are mixed."""
        chance = random.Random(seed)
        if self.groups is not None:
            return chance.sample(self.groups, len(self.groups))
        names = sorted({name for _, name in self.train})
        chance.shuffle(names)
        return [names[i : i + self.classes] for i in range(0, len(names), self.classes)]


def load(data: Path, name: str) -> ClassSet:
    """A set in a folder of the same name."""
    if name not in SETS:
        raise ValueError(f"set={name!r} is unknown: choose among {', '.join(SETS)}")
    return _load(data, name)


@lru_cache(maxsize=2)
def _load(data: Path, name: str) -> ClassSet:
    return SETS[name](data / name)


def few(rows: Rows, names: list[str], count: int | None, chance: random.Random) -> Rows:
    """Up to so many of each class, in the order of the classes."""
    by_name: dict[str, Rows] = {name: [] for name in names}
    for row in rows:
        if row[1] in by_name:
            by_name[row[1]].append(row)
    return [
        row for own in by_name.values() for row in (own if count is None else chance.sample(own, min(count, len(own))))
    ]


def _clinc(folder: Path) -> ClassSet:
    found = json.loads(_read(folder, "data_full.json"))
    groups = [[_plain(name) for name in own] for own in json.loads(_read(folder, "domains.json")).values()]
    parts = [[(text, _plain(name)) for text, name in found[part]] for part in ("train", "val", "test")]
    known = {name for _, name in parts[0]}
    groups = [own for group in groups if (own := [name for name in group if name in known])]
    return ClassSet(parts[0], parts[1], parts[2], groups, 15)


def _dbpedia(folder: Path) -> ClassSet:
    """The 70 classes of the second level. What the source calls validation and test is put together and cut again by
    hash: a tenth to choose rates, a tenth to test, the rest to learn.
    """
    names = json.loads(_read(folder, "dbpedia70_labels.json"))["level2"]
    rows = []
    for part in ("val", "test"):
        for _, number, text in csv.reader(io.StringIO(_read(folder, f"dbpedia70_{part}.csv"))):
            rows.append((text, _words(names[number])))
    return _cut(list(dict.fromkeys(rows)), 10)


def _banking(folder: Path) -> ClassSet:
    """The source's columns text,category; a tenth of what is to be learned chooses rates."""
    parts = []
    for part in ("train", "test"):
        read: Any = csv.DictReader(io.StringIO(_read(folder, f"{part}.csv")))
        if not {"text", "category"} <= set(read.fieldnames or ()):
            raise ValueError(f"{folder}/{part}.csv has the columns {read.fieldnames}: text and category are needed")
        parts.append([(row["text"].strip(), _plain(row["category"])) for row in read])
    train = [row for row in parts[0] if _tenth(row[0])]
    valid = [row for row in parts[0] if not _tenth(row[0])]
    return ClassSet(train, valid, parts[1], None, 11)


def _cut(rows: Rows, classes: int) -> ClassSet:
    parts: list[Rows] = [[], [], []]
    for row in rows:
        parts[{0: 1, 1: 2}.get(_tenth(row[0]), 0)].append(row)
    known = {name for _, name in parts[0]}
    valid, test = ([row for row in part if row[1] in known] for part in parts[1:])
    return ClassSet(parts[0], valid, test, None, classes)


def _tenth(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10


def _read(folder: Path, name: str) -> str:
    """A file, packed or not."""
    if (folder / name).is_file():
        return (folder / name).read_text(encoding="utf-8")
    if (folder / f"{name}.gz").is_file():
        with gzip.open(folder / f"{name}.gz", "rt", encoding="utf-8") as file:
            return file.read()
    raise ValueError(f"{folder} has neither {name} nor {name}.gz: give --data the folder that {folder.name} lies in")


def _plain(name: str) -> str:
    return name.replace("_", " ").strip()


def _words(name: str) -> str:
    """RouteOfTransportation: route of transportation."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


SETS: dict[str, Callable[[Path], ClassSet]] = {"clinc150": _clinc, "dbpedia": _dbpedia, "banking77": _banking}
