"""Documents, one by one and in a fixed order: text, JSONL, Parquet, compressed or not, folders, datasets."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import IO, Any

HUB = "hf:"


def _zstd(path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise ValueError(f"{path}: reading .zst needs a package: pip install zstandard") from error
    return io.BufferedReader(zstandard.open(path, "rb"))  # its own reader knows no lines


def _damage() -> tuple[type[Exception], ...]:
    """What damaged files raise; a .zst where one was opened."""
    zstd = [sys.modules["zstandard"].ZstdError] if "zstandard" in sys.modules else []
    return EOFError, OSError, lzma.LZMAError, zlib.error, *zstd


OPENERS: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
RECORDS = (".jsonl", ".ndjson", ".parquet")
IN_FOLDERS = (".txt", *RECORDS)  # a folder also holds notes and licences


@dataclass(frozen=True)
class Document:
    """A text, with a name and the other fields of its record, by which it may be held out."""

    name: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where documents come from. Small and picklable: every worker process has its own and reads for itself."""

    paths: tuple[str, ...]
    text: str = "text"
    split: str = "train"

    def __post_init__(self) -> None:
        for path in self.paths:
            if not path.startswith(HUB) and not _files(path):
                raise ValueError(f"data.path: the folder {path} holds no file that ends in {', '.join(IN_FOLDERS)}")

    def documents(self, start: int = 0) -> Iterator[Document]:
        """From document number ``start`` on."""
        if len(self.paths) == 1 and self.paths[0].startswith(HUB):
            return _dataset(self.paths[0], self.split, self.text, start)  # can skip without reading everything
        return islice((document for path in self.paths for document in self._of(path)), start, None)

    def _of(self, path: str) -> Iterator[Document]:
        if path.startswith(HUB):
            yield from _dataset(path, self.split, self.text, 0)
            return
        for name, file in _files(path):
            yield from _read(name, file, self.text)

    def fingerprint(self) -> list[Any]:
        """What changes when the files do; Hub datasets count by name."""
        found: list[Any] = [self.text, self.split]
        for path in self.paths:
            if path.startswith(HUB):
                found.append(path)
                continue
            for name, file in _files(path):
                stat = file.stat()
                found.append([name, str(file.resolve()), stat.st_size, stat.st_mtime_ns])
        return found


@dataclass(frozen=True)
class HeldOut:
    """Which documents are never trained on: a fraction of them, or those that fit a pattern."""

    rule: float | Sequence[str]

    def __call__(self, number: int, document: Document) -> bool:
        if isinstance(self.rule, (int, float)):
            # By a hash of the number, so that the choice depends neither on the seed nor on what else is there.
            digest = hashlib.sha256(f"held out {number}".encode()).digest()
            return int.from_bytes(digest[:8], "big") < self.rule * 2**64
        return any(_fits(document, pattern) for pattern in self.rule)


def _fits(document: Document, pattern: str) -> bool:
    key, separator, value = pattern.partition("=")
    if not separator:
        return fnmatchcase(document.name, pattern)
    if key not in document.fields:
        known = ", ".join(document.fields) or "none"
        raise ValueError(f"data.heldout: {document.name} has no field {key!r}; its fields are: {known}")
    return fnmatchcase(str(document.fields[key]), value)


def _files(path: str) -> list[tuple[str, Path]]:
    """Name and place of every file, sorted; a file that is named itself may end in anything."""
    root = Path(path).expanduser()
    if root.is_file():
        return [(root.name, root)]
    if not root.is_dir():
        raise ValueError(f"data.path: {path} does not exist; for a dataset of the Hugging Face Hub write {HUB}{path}")
    found = [file for file in root.rglob("*") if file.is_file() and _kind(file)[0] in IN_FOLDERS]
    return sorted((file.relative_to(root).as_posix(), file) for file in found)


def _kind(file: Path) -> tuple[str, str]:
    """The ending without compression, and the compression's."""
    packed = file.suffix if file.suffix in OPENERS else ""
    return (Path(file.stem).suffix if packed else file.suffix), packed


def _read(name: str, file: Path, text: str) -> Iterator[Document]:
    kind, packed = _kind(file)
    try:
        with OPENERS[packed](file) as stream:
            if kind == ".parquet":
                yield from _parquet(name, stream, text)
            elif kind in RECORDS:
                for i, line in enumerate(stream):
                    if line.strip():
                        yield _record(f"{name}#{i}", json.loads(line), text)
            else:
                yield Document(name, stream.read().decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"data.path: {file} is no UTF-8 text ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"data.path: {file} holds a line that is no JSON ({error})") from error
    except _damage() as error:
        raise ValueError(f"data.path: {file} cannot be read ({error})") from error


def _parquet(name: str, stream: IO[bytes], text: str) -> Iterator[Document]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"data.path: {name}: Parquet needs a package: pip install 'circadia[train]'") from error
    if not stream.seekable():
        stream = io.BytesIO(stream.read())
    try:
        rows = (row for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(64) for row in batch.to_pylist())
        for i, row in enumerate(rows):
            yield _record(f"{name}#{i}", row, text)
    except pyarrow.ArrowException as error:
        raise ValueError(f"data.path: {name} is no Parquet file ({error})") from error


def _record(name: str, record: Any, text: str) -> Document:
    if not isinstance(record, dict) or not isinstance(record.get(text), str):
        known = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"data.text={text!r}: {name} has no such text; its fields are: {known}")
    try:
        record[text].encode()
    except UnicodeEncodeError as error:  # "\ud800" is JSON, but no text
        raise ValueError(
            f"data.text={text!r}: {name} holds half a character at {error.start} ({error.reason}): mend this record"
        ) from error
    return Document(name, record[text], {key: value for key, value in record.items() if key != text})


def _dataset(path: str, split: str, text: str, start: int) -> Iterator[Document]:
    """A dataset by name or folder, read as it comes and never held whole."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"data.path: {path} needs a package: pip install 'circadia[train]'") from error
    name, _, config = path.removeprefix(HUB).partition(":")
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)  # what Dataset.save_to_disk left
            rows = (saved[split] if isinstance(saved, datasets.DatasetDict) else saved).to_iterable_dataset()
        else:
            rows = datasets.load_dataset(name, config or None, split=split, streaming=True)
    except Exception as error:  # unknown, gated, offline, wrong split or config: each has its own class
        said = " ".join(str(error).split())
        raise ValueError(f"data.path: the dataset {path}, split {split!r}, cannot be read ({said})") from error
    for i, row in enumerate(rows.skip(start) if start else rows):
        yield _record(f"{name}#{start + i}", row, text)
