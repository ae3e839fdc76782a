"""Sentences of new languages with their English: verses of old Bibles, and Kalamang out of its zip."""

import gzip
import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

Pairs = list[tuple[str, str]]  # of the language, English

BOOK = "MAT"  # which the Bibles of the small set have in common
VALID, TEST = range(17, 21), range(21, 29)  # chapters of it; the English is the same in all languages
PASSWORD = b"kalamang"


@dataclass(frozen=True)
class Language:
    """`valid` chooses rates: it is learned with the rest when the test is asked."""

    name: str
    train: Pairs
    valid: Pairs
    test: Pairs


def load(data: Path, name: str) -> Language:
    """Kalamang, or the language of a file in bible_pairs."""
    found = _kalamang(data) if name == "Kalamang" else _bible(data, name)
    for part in ("train", "valid", "test"):
        if not getattr(found, part):
            raise ValueError(f"--data {data}: {name} has no pairs to {part}; see circadia/evals/pairs.py for the split")
    return found


def folder(name: str) -> str:
    """Of the data."""
    return "kalamang" if name == "Kalamang" else "bible_pairs"


@lru_cache(maxsize=4)
def _bible(data: Path, name: str) -> Language:
    """Lines of verse, English, the language. Test verses are of other chapters than all that is learned, whose English
    would be known from the other language.
    """
    paths = sorted((data / "bible_pairs").glob(f"{name}*.eng.tsv*"))
    if not paths:
        known = sorted(path.name.partition("-")[0] for path in (data / "bible_pairs").glob("*.eng.tsv*"))
        raise ValueError(f"{data}/bible_pairs has no {name}-*.eng.tsv(.gz); it has {', '.join(known) or 'nothing'}")
    opened = gzip.open if paths[0].suffix == ".gz" else open
    parts: dict[str, Pairs] = {"train": [], "valid": [], "test": []}
    with opened(paths[0], "rt", encoding="utf-8") as file:
        for line in file:
            verse, english, text = line.rstrip("\n").split("\t")
            book, chapter, _ = verse.split(".")
            part = "train"
            if book == BOOK and int(chapter) in TEST:
                part = "test"
            elif book == BOOK and int(chapter) in VALID:
                part = "valid"
            parts[part].append((_plain(text), _plain(english)))
    return Language(name, **parts)


@lru_cache(maxsize=1)
def _kalamang(data: Path) -> Language:
    """A split of our own, not that of MTOB. The text stays in its zip: it is read in memory and never written out."""
    path = data / "kalamang" / "kalamang.zip"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; Kalamang is read from the zip that its folder came with")
    with zipfile.ZipFile(path) as packed:
        lines = packed.read("parallel.jsonl", pwd=PASSWORD).decode("utf-8").splitlines()
    parts: dict[str, Pairs] = {"train": [], "valid": [], "test": []}
    known: set[str] = set()
    rows = [json.loads(line) for line in lines]
    tested = {_plain(row["eng"]) for row in rows if row["split"] == "test"}
    for row in rows:
        text, english = _plain(row["kgv"]), _plain(row["eng"])
        if row["split"] != "test" and (english in tested or text in known):
            continue  # said twice in the sources
        known.add(text)
        tenth = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
        parts["test" if row["split"] == "test" else "train" if tenth else "valid"].append((text, english))
    return Language("Kalamang", **parts)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
