"""Rows of tokens in an order that depends on the seed alone, and a place in it that can be saved and taken up again."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from circadia.train import corpus as corpora
from circadia.train.config import DataPart
from circadia.train.corpus import Corpus
from circadia.train.sources import HeldOut, Source
from circadia.train.tokens import Tokenizer

IGNORED = -100  # the label of what is not to be predicted, as cross_entropy has it


@dataclass
class Batch:
    """B rows of T tokens."""

    tokens: Tensor  # [B, T]
    labels: Tensor  # [B, T] the next token; IGNORED where it opens a document, which nothing before can tell
    reset: Tensor | None  # [B, T] first tokens of documents; None: there are none inside the rows
    widths: Tensor  # [B, T] bytes of text behind each label, 0 where it is ignored
    fresh: bool = True  # memories do not go on from the batch before

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> "Batch":
        """Some of the rows."""
        reset = None if self.reset is None else self.reset[start:stop]
        # Where none of these rows has a mark the model may take its plain path; its result is the same.
        reset = reset if reset is not None and bool(reset.any()) else None
        tensors = (self.tokens[start:stop], self.labels[start:stop], reset, self.widths[start:stop])
        return Batch(*tensors, self.fresh)

    def to(self, device: torch.device) -> "Batch":
        """On another device."""
        reset = None if self.reset is None else self.reset.to(device, non_blocking=True)
        return Batch(self.tokens.to(device, non_blocking=True), self.labels.to(device, non_blocking=True), reset,
                     self.widths, self.fresh)  # fmt: skip


Row = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def cut(
    tokens: np.ndarray,
    marks: np.ndarray,
    widths: np.ndarray | None,
    length: int,
    reset: bool,
    fresh: bool = True,
) -> Row:
    """A row from up to length + 1 tokens and the marks of those that open documents; ``fresh``: nothing goes on."""
    inputs, labels = np.zeros(length, np.int64), np.full(length, IGNORED, np.int64)
    inside, wide = np.zeros(length, bool), np.zeros(length, np.int64)
    known = len(tokens) - 1
    inputs[: min(length, len(tokens))] = tokens[:length]
    labels[:known] = tokens[1:]
    wide[:known] = 1 if widths is None else widths[1:]
    if reset:
        inside[: len(marks)] = marks[:length]
        inside[0] &= not fresh  # a fresh row needs no mark; a memory that is carried may have to end here
        labels[:known][marks[1:]] = IGNORED
        wide[:known][marks[1:]] = 0
    return inputs, labels, inside, wide


def stack(rows: list[Row], fresh: bool = True) -> Batch:
    """Rows as a batch."""
    tokens, labels, reset, widths = (torch.from_numpy(np.stack(column)) for column in zip(*rows))
    return Batch(tokens, labels, reset if bool(reset.any()) else None, widths, fresh)


@dataclass(frozen=True)
class Order:
    """Which row stands at which position of an endless sequence of rows: a pure function, so nothing has to be kept."""

    rows: int
    batch: int
    seed: int
    carry: bool

    def batch_at(self, position: int) -> tuple[list[int], bool]:
        """The rows of the batch at a position, and whether memories start anew with it."""
        if self.carry:
            # Row b of every batch reads on in its own part of the text.
            each = self.rows // self.batch
            step = position // self.batch % each
            return [b * each + step for b in range(self.batch)], step == 0
        places = range(position, position + self.batch)
        return [int(self._epoch(p // self.rows)[p % self.rows]) for p in places], True

    def _epoch(self, number: int) -> np.ndarray:
        held = self.__dict__.get("held")
        if held is None or held[0] != number:
            held = (number, corpora.permutation(self.rows, "rows", self.seed, number))
            self.__dict__["held"] = held  # of a frozen object: a cache, not a field
        return held[1]


class Rows(Dataset):
    """The batches of a corpus by their position; `share` says which part of each this process takes."""

    def __init__(self, corpus: Corpus, order: Order, length: int, reset: bool, share: tuple[int, int] = (0, 1)) -> None:
        self.corpus, self.order, self.length, self.reset, self.share = corpus, order, length, reset, share

    def __getitem__(self, position: int) -> Batch:
        rows, fresh = self.order.batch_at(position)
        rank, size = self.share
        each = len(rows) // size
        return stack([self.row(i, fresh) for i in rows[rank * each : (rank + 1) * each]], fresh)

    def row(self, number: int, fresh: bool = True) -> Row:
        """The last one may be shorter than the others; what it lacks is not predicted."""
        begin = number * self.length
        tokens = self.corpus.tokens[begin : begin + self.length + 1]
        widths = None if self.corpus.widths is None else self.corpus.widths[begin : begin + self.length + 1]
        first, last = np.searchsorted(self.corpus.starts, [begin, begin + len(tokens)])
        marks = np.zeros(len(tokens), bool)
        marks[self.corpus.starts[first:last] - begin] = True
        return cut(tokens, marks, widths, self.length, self.reset, fresh)


class Batches:
    """Batches of a tokenized corpus for ever, from a position on."""

    def __init__(
        self,
        corpus: Corpus,
        data: DataPart,
        batch: int,
        seed: int,
        share: tuple[int, int] = (0, 1),
        position: int = 0,
    ) -> None:
        rows = (len(corpus) - 1) // data.length
        least = batch if data.carry else 1
        if rows < least:
            raise ValueError(
                f"data.path holds {len(corpus):,} tokens for training, too few for {least} rows of "
                f"data.length={data.length}: give more text or shorter rows"
            )
        self.tokens, self.batch, self.position = len(corpus), batch, position
        order = Order(rows, batch, seed, data.carry)
        positions = _Count(position, batch)
        self.loader = iter(
            DataLoader(
                Rows(corpus, order, data.length, data.reset, share),
                batch_size=None,
                sampler=positions,
                num_workers=data.workers,
                collate_fn=corpora._as_it_is,
                generator=torch.Generator(),
            )
        )

    def __next__(self) -> Batch:
        batch = next(self.loader)
        self.position += self.batch
        return batch

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Where we are: as JSON, and as tensors."""
        return {"position": self.position, "tokens": self.tokens}, {}


class _Count(torch.utils.data.Sampler):
    """Start, start + step, ... without end."""

    def __init__(self, start: int, step: int) -> None:
        self.start, self.step = start, step

    def __iter__(self) -> Iterator[int]:
        position = self.start
        while True:
            yield position
            position += self.step


def held_out_batches(
    corpus: Corpus, data: DataPart, rows: int, tokens: int, share: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """The held-out text once, or so many tokens spread over it, in batches of so many rows.

    Every process gets as many batches as the others, if need be one without anything to predict.
    """
    count = max(1, -(-(len(corpus) - 1) // data.length))
    wanted = count if not tokens else min(count, -(-tokens // data.length))
    reader = Rows(corpus, Order(count, rows, 0, False), data.length, data.reset)
    rank, size = share
    if data.carry:
        streams = min(rows * size, count)
        own = [(s * count // streams, (s + 1) * count // streams) for s in range(streams)][rank::size]
        longest = min(-(-count // streams), -(-wanted // streams))
        for step in range(longest):
            places = [begin + step if begin + step < end else None for begin, end in own]
            places += [None] * (-(-streams // size) - len(own))
            yield stack([_row(reader, place, step == 0) for place in places], fresh=step == 0)
        return
    chosen: list[int | None] = [i * count // wanted for i in range(wanted)]
    chosen += [None] * (-wanted % (rows * size) if size > 1 else 0)
    for begin in range(rank * rows, len(chosen), rows * size):
        yield stack([_row(reader, place) for place in chosen[begin : begin + rows]])


def _row(reader: Rows, place: int | None, fresh: bool = True) -> Row:
    nothing = np.zeros(1, np.int64)
    return reader.row(place, fresh) if place is not None else cut(nothing, nothing > 0, None, reader.length, False)


class Stream:
    """Batches from documents that are tokenized as they come, through a buffer of rows that is drawn from at random.

    Every process reads everything and takes its share, so the batches are the same for any number of processes.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        data: DataPart,
        batch: int,
        seed: int,
        share: tuple[int, int] = (0, 1),
        state: tuple[dict[str, Any], dict[str, Tensor]] | None = None,
    ) -> None:
        self.source, self.tokenizer, self.data, self.batch, self.share = source, tokenizer, data, batch, share
        self.generator = torch.Generator().manual_seed(corpora.seed_of("stream", seed))
        self.documents = self.found = 0  # read, and trained on, in this pass over the source
        self.pending = (np.zeros(0, np.int64), np.zeros(0, bool))
        self.buffer: list[tuple[np.ndarray, np.ndarray]] = []
        if state is not None:
            numbers, tensors = state
            self.documents, self.found = numbers["documents"], numbers["found"]
            self.generator.set_state(tensors["generator"])
            self.pending = (tensors["pending"].numpy(), tensors["pending_marks"].numpy())
            self.buffer = list(zip(tensors["buffer"].numpy(), tensors["buffer_marks"].numpy()))
        self.reader = self._read(self.documents)

    def _read(self, start: int) -> Iterator[corpora.Encoded]:
        return corpora.encoded(self.source, self.tokenizer, HeldOut(self.data.heldout), self.data.workers, start)

    def __next__(self) -> Batch:
        while len(self.buffer) < self.data.buffer:
            self.buffer.append(self._next_row())
        drawn = []
        for _ in range(self.batch):
            at = int(torch.randint(len(self.buffer), (1,), generator=self.generator))
            drawn.append(self.buffer[at])
            self.buffer[at] = self._next_row()
        rank, size = self.share
        own = drawn[rank * self.batch // size : (rank + 1) * self.batch // size]
        return stack([cut(tokens, marks, None, self.data.length, self.data.reset) for tokens, marks in own])

    def _next_row(self) -> tuple[np.ndarray, np.ndarray]:
        length = self.data.length
        while len(self.pending[0]) <= length:
            one = next(self.reader, None)
            if one is None:
                if not self.found:
                    raise ValueError(f"data.path: {', '.join(self.source.paths)} holds no document to train on")
                self.documents = self.found = 0
                self.reader = self._read(0)
                continue
            self.documents += 1
            if one.held_out or not len(one.tokens):
                continue
            self.found += 1
            marks = np.zeros(len(one.tokens), bool)
            marks[0] = True
            self.pending = (np.append(self.pending[0], one.tokens.astype(np.int64)), np.append(self.pending[1], marks))
        tokens, marks = self.pending
        self.pending = (tokens[length:], marks[length:])  # the last token of a row is the first of the next
        return tokens[: length + 1], marks[: length + 1]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Where we are: as JSON, and as tensors."""
        tensors = {
            "generator": self.generator.get_state(),
            "pending": torch.from_numpy(self.pending[0].copy()),
            "pending_marks": torch.from_numpy(self.pending[1].copy()),
            "buffer": torch.from_numpy(np.stack([tokens for tokens, _ in self.buffer])),
            "buffer_marks": torch.from_numpy(np.stack([marks for _, marks in self.buffer])),
        }
        return {"documents": self.documents, "found": self.found}, tensors
