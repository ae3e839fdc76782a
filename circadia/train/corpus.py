"""Tokenized text on disk: every document once through the tokenizer, then rows anywhere for the price of a slice."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from circadia import machine
from circadia.train.sources import HeldOut, Source
from circadia.train.tokens import Tokenizer

VERSION = 1  # of the cache's layout


@dataclass(frozen=True)
class Corpus:
    """Documents end to end. ``widths``: bytes of text that each token stands for, where they are needed."""

    tokens: np.ndarray
    starts: np.ndarray  # of documents, rising
    widths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Encoded:
    """One document after the tokenizer."""

    held_out: bool
    tokens: np.ndarray
    widths: np.ndarray


class _Reader(IterableDataset):
    """Worker w of n tokenizes documents w, w + n, ...; the loader takes one from each in turn, so the order stays."""

    def __init__(self, source: Source, tokenizer: Tokenizer, held_out: HeldOut, start: int) -> None:
        self.source, self.tokenizer, self.held_out, self.start = source, tokenizer, held_out, start

    def __iter__(self) -> Iterator[Encoded | str]:
        worker = get_worker_info()
        own, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
        try:
            for i, document in enumerate(self.source.documents(self.start)):
                if i % count == own:
                    tokens, widths = self.tokenizer.encode(document.text)
                    yield Encoded(self.held_out(self.start + i, document), tokens, widths)
        except ValueError as error:
            yield str(error)  # an exception would arrive with the worker's traceback as its message


def _as_it_is(x: Any) -> Any:
    return x


def encoded(
    source: Source, tokenizer: Tokenizer, held_out: HeldOut, workers: int = 0, start: int = 0
) -> Iterator[Encoded]:
    """Tokenized documents in order, from number ``start`` on."""
    reader = _Reader(source, tokenizer, held_out, start)
    # A loader draws a seed for its workers: from a generator of its own, as torch's numbers are the model's.
    for item in DataLoader(
        reader, batch_size=None, num_workers=workers, collate_fn=_as_it_is, generator=torch.Generator()
    ):
        if isinstance(item, str):
            raise ValueError(item)
        yield item


def home() -> Path:
    """Where tokenized texts are kept between runs."""
    return machine.home() / "tokens"


def prepare(source: Source, tokenizer: Tokenizer, rule: float | list[str], workers: int = 0) -> tuple[Corpus, Corpus]:
    """Training and held-out text, tokenized now or taken from the cache."""
    key = json.dumps([VERSION, source.fingerprint(), tokenizer.fingerprint(), rule])
    folder = home() / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not folder.is_dir():
        # Beside its place, then renamed: a reader sees all of it or nothing, whoever is killed, whoever comes first.
        temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise ValueError(
                f"prepared texts cannot be kept in {folder.parent} ({error}): set CIRCADIA_HOME"
            ) from error
        try:
            _write(temporary, encoded(source, tokenizer, HeldOut(rule), workers), tokenizer.size)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return split(_open(folder, "train"), _open(folder, "held_out"), rule)


def split(train: Corpus, held: Corpus, rule: float | list[str]) -> tuple[Corpus, Corpus]:
    """As the documents were split; where a fraction picked none of few documents, or all, the end of the text."""
    if isinstance(rule, list):
        if not len(held):
            raise ValueError(f"data.heldout={rule} fits no document: see the names of files and fields")
        if not len(train):
            raise ValueError(f"data.heldout={rule} fits every document: nothing is left to train on")
        return train, held
    if rule and not (len(train) and len(held)):
        whole = train if len(train) else held
        cut = len(whole) - round(rule * len(whole))
        later = whole.starts[whole.starts >= cut] - cut
        assert whole.widths is not None
        held = Corpus(whole.tokens[cut:], later, whole.widths[cut:])
        train = Corpus(whole.tokens[:cut], whole.starts[whole.starts < cut])
    return train, held


def first_held_out(documents: Iterator[Encoded], tokens: int) -> Corpus:
    """The first held-out documents of a stream, up to so many tokens."""
    found: list[Encoded] = []
    left = tokens
    for one in documents:
        if one.held_out and len(one.tokens):
            found.append(Encoded(True, one.tokens[:left], one.widths[:left]))
            left -= len(found[-1].tokens)
        if left <= 0:
            break
    lengths = [len(one.tokens) for one in found]
    empty = np.zeros(0, np.uint32)
    return Corpus(
        np.concatenate([empty, *(one.tokens for one in found)]),
        np.cumsum([0, *lengths])[:-1],
        np.concatenate([empty, *(one.widths for one in found)]),
    )


def _write(folder: Path, documents: Iterator[Encoded], size: int) -> None:
    kind = np.uint8 if size <= 1 << 8 else np.uint16 if size <= 1 << 16 else np.uint32
    starts: dict[str, list[int]] = {"train": [], "held_out": []}
    count = dict.fromkeys(starts, 0)
    with contextlib.ExitStack() as stack:
        names = [f"{name}.{what}" for name in starts for what in ("tokens", "widths")]
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in names}
        for one in documents:
            name = "held_out" if one.held_out else "train"
            if not len(one.tokens):
                continue
            starts[name].append(count[name])
            count[name] += len(one.tokens)
            files[f"{name}.tokens"].write(one.tokens.astype(kind).tobytes())
            # Widths of bytes are all 1; a token of another vocabulary may stand for any number of bytes.
            files[f"{name}.widths"].write(one.widths.astype(np.uint8 if size <= 256 else np.uint32).tobytes())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    for name, places in starts.items():
        np.save(folder / f"{name}.starts.npy", np.array(places, np.int64))
    (folder / "kind.json").write_text(json.dumps(np.dtype(kind).name), encoding="utf-8")


def _open(folder: Path, name: str) -> Corpus:
    kind = json.loads((folder / "kind.json").read_text(encoding="utf-8"))
    wide = "uint8" if kind == "uint8" else "uint32"
    return Corpus(
        _map(folder / f"{name}.tokens", kind),
        np.load(folder / f"{name}.starts.npy"),
        _map(folder / f"{name}.widths", wide),
    )


def _map(path: Path, kind: str) -> np.ndarray:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything that has a text form."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def permutation(size: int, *parts: object) -> np.ndarray:
    """Of 0 ... size - 1, by a seed from the parts."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed_of(*parts))).numpy()
