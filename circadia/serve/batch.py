"""Answers of several learners in one forward pass for each token, with rows that come and go.

One thread reads for all. New prompts are read first, those of like length together; then every row gets its next token.
A row leaves when its answer ends, its time is over or nobody waits for it. It keeps the memory that it began with.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from circadia.models.retrofit.several import several
from circadia.models.retrofit.wear import worn
from circadia.serve.bank import Memory
from circadia.serve.decode import Call, Chooser, Ended, Said, Tell, Wish
from circadia.serve.rows import Rows

log = logging.getLogger("circadia.serve")
PROMPTS = 8192  # tokens of prompts that are read together, padding included


class Row:
    """One answer in the making."""

    def __init__(self, memory: Memory, chooser: Chooser) -> None:
        self.memory, self.chooser, self.wish = memory, chooser, chooser.wish
        self.token = 0  # the last that was chosen
        self.error: BaseException | None = None
        self.over = threading.Event()

    def choose(self, logits: Tensor) -> None:
        """The next token of it; what goes wrong here is its own affair."""
        try:
            self.token = self.chooser.next(logits)
        except Exception as error:
            self.end(error)
        else:
            if self.chooser.over:
                self.end()

    def end(self, error: BaseException | None = None) -> None:
        """Whoever waits for it goes on; what comes after its end is not its affair."""
        if not self.over.is_set():
            self.error = error
            self.over.set()


class Batch:
    """Rows at work."""

    def __init__(self, base: Any) -> None:
        self.base, self.rows, self._read = base, list[Row](), Rows(base)
        self._readings: dict[Any, Any] | None = None

    def join(self, new: Sequence[Row]) -> None:
        """Read their prompts, choose their first tokens; those with more to come stay."""
        for row in new:
            try:
                row.chooser.call.check()
            except Ended as error:  # while it waited
                row.end(error)
        for rows in alike([row for row in new if not row.over.is_set()]):
            read = Rows(self.base)
            try:
                with worn(several([row.memory.readings for row in rows])):
                    _chosen(rows, read.read([row.wish.ids for row in rows]))
                left = [i for i, row in enumerate(rows) if not row.over.is_set()]
                if left:
                    read.keep(left)
            except Exception as error:
                for row in rows:
                    row.end(error)
                continue
            if left:
                self.rows, self._readings = self.rows + [rows[i] for i in left], None
                try:
                    self._read.join(read)
                except Exception as error:
                    self._fail(error)

    def step(self) -> None:
        """One more token for each."""
        try:
            if self._readings is None:
                self._readings = several([row.memory.readings for row in self.rows])
            with worn(self._readings):
                logits = self._read.read([[row.token] for row in self.rows])
            _chosen(self.rows, logits)
            left = [i for i, row in enumerate(self.rows) if not row.over.is_set()]
            if len(left) < len(self.rows):
                self._read.keep(left)
                self.rows, self._readings = [self.rows[i] for i in left], None
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """What was read of the rows at work may be half of it: all end, so that the thread goes on with others."""
        for row in self.rows:
            row.end(error)
        self.rows, self._read, self._readings = [], Rows(self.base), None


def _chosen(rows: Sequence[Row], logits: Tensor) -> None:
    for row, own in zip(rows, logits.float().cpu(), strict=True):
        row.choose(own)


def alike(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Prompts that are read together: at most half of what is read is padding."""
    group, total = list[Row](), 0
    for row in sorted(rows, key=lambda row: len(row.wish.ids)):
        size = len(row.wish.ids) * (len(group) + 1)
        if group and (size > 2 * (total + len(row.wish.ids)) or size > PROMPTS):
            yield group
            group, total = [], 0
        group.append(row)
        total += len(row.wish.ids)
    if group:
        yield group


class Engine:
    """The thread, and the way to it from others."""

    def __init__(self, base: Any, ends: Sequence[int]) -> None:
        self.ends, self._batch = ends, Batch(base)
        self._new, self._wake, self._closed = list[Row](), threading.Condition(), False
        self.passes = self.made = 0  # forward passes over rows at work, and the tokens that they gave
        self._thread = threading.Thread(target=self._run, name="circadia-batch", daemon=True)
        self._thread.start()

    def say(self, memory: Memory, wish: Wish, call: Call, tell: Tell | None = None) -> Said:
        """An answer; this thread waits for it."""
        row = Row(memory, Chooser(wish, memory.words, self.ends, call, tell))
        with self._wake:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._new.append(row)
            self._wake.notify()
        row.over.wait()
        if row.error is not None:
            raise row.error
        return row.chooser.finish()

    def close(self) -> None:
        """Rows at work end first."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        batch = self._batch
        with torch.no_grad():
            while True:
                with self._wake:
                    while not (self._new or batch.rows or self._closed):
                        self._wake.wait()
                    new, self._new = self._new, []
                if new:
                    batch.join(new)
                elif not batch.rows:
                    return  # closed, and nobody is left
                if batch.rows:
                    self.passes, self.made = self.passes + 1, self.made + len(batch.rows)
                    batch.step()
