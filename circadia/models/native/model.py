"""A model of Circadia's own that learns a stream with its own memories; `native` makes it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from circadia.models.cache import HopeCache
from circadia.models.model import HopeForCausalLM
from circadia.models.native import state as states
from circadia.models.native.layout import Block
from circadia.models.native.settings import Settings
from circadia.models.native.state import State
from circadia.models.native.stream import Stream, Weigh, nats_of
from circadia.models.native.worn import Worn
from circadia.models.retrofit import files
from circadia.models.retrofit.learn import tokens_of
from circadia.models.retrofit.report import ChunkReport, LevelReport, Report


class NativeModel(nn.Module):
    """The base is frozen; what it learns is a value, as with `circadia.retrofit`:

    `state = model.start()`, `report, state = model.learn(tokens, state)`, `model(input_ids, state=state)`.
    """

    def __init__(
        self, base: HopeForCausalLM, blocks: list[Block], settings: Settings, source: str | None = None
    ) -> None:
        super().__init__()
        self.base = base.eval().requires_grad_(False)
        self.blocks, self.settings, self.source = blocks, settings, source
        self.learned = None  # a retrofit's learned rates; here they are weights of the base
        self._fingerprint: tuple[Any, str] | None = None
        self._start: tuple[Any, State] | None = None  # asked for with every chunk

    @property
    def config(self) -> Any:
        """The base's."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        return next(iter(self.base.parameters())).device

    def start(self) -> State:
        """A memory that has read nothing. Its entries are listed in `circadia.models.native.state`."""
        now = self._weights()
        if self._start is None or self._start[0] != now:
            self._start = (now, states.start(self.blocks, self.settings.levels, self.device))
        return dict(self._start[1])

    def learn(self, tokens: Any, state: State, weigh: Weigh | None = None) -> tuple[Report, State]:
        """Read a piece of a stream: every chunk is predicted while it is read; the state given stays as it was.

        Chunks lie at fixed positions of the stream, so that learn(a) then learn(b) leaves the bits of learn(a + b). The
        tokens of an open chunk wait in the state. `weigh` is asked after each chunk how far it is to be kept, from 0 to
        1 (circadia/models/native/stream.py).
        """
        begin = time.perf_counter()
        self.check(state)
        ids = torch.cat((state["stream/pending"], tokens_of(self, tokens)))
        size, stream = self.settings.chunk, Stream(self, state, weigh)
        report = Report(levels=[LevelReport(level.name, level.period) for level in self.settings.levels])
        done = ids.numel() - ids.numel() % size
        for at in range(0, done, size):
            report.chunks.append(stream.take(ids[at : at + size].to(self.device), report.levels))
        after = stream.end(ids[done:])
        for level, norm in zip(report.levels, self.norms(after)):
            level.norm = norm
        report.pending, report.seconds = ids.numel() - done, time.perf_counter() - begin
        return report, after

    def teach(self, *given: Any, **more: Any) -> Any:
        """Not here: these memories are written by reading, and no loss is defined on them from outside."""
        raise ValueError("teach: a model of Circadia's own learns by reading alone: use learn(), or retrofit it")

    def read(self, context: Any, text: Any, state: State, weight: float) -> State:
        """What a text writes behind its context, weighed, on top of the memories; the stream stays where it is.

        The context is read in a copy, and what it writes is left out: M <- M + w (M(context, text) - M(context)). A CMS
        level takes part where one of its periods lies within the text.
        """
        self.check(state)
        blocks = states.nested(len(self.blocks), self.fresh(state))
        before = blocks
        for words in (context, text):
            ids = tokens_of(self, words)
            before = blocks
            if ids.numel():
                cache = Worn(self.base, blocks).cache(1, {})
                with torch.no_grad():
                    self.base(ids[None].to(self.device), past_key_values=cache, use_cache=True)
                blocks = self._opened(cache, blocks)
        new = dict(state)
        flat = [states.flat(self.blocks, self.settings.levels, own) for own in (before, blocks)]
        for name in [n for n in state if "/memory/" in n]:
            new[name] = state[name] + weight * (flat[1][name] - flat[0][name])
        return new

    def _opened(self, cache: HopeCache, given: list[State]) -> list[State]:
        """What the blocks hold, at the border of every CMS period."""
        made = []
        for block, own, old in zip(self.blocks, cache.states, given):
            fresh = block.fresh({**old, **own})
            kept = {n: x for n, x in own.items() if not n.startswith(("levels.", "border.", "online."))}
            made.append({**kept, **{n: x for n, x in fresh.items() if n.startswith("levels.")}})
        return made

    @torch.no_grad()
    def score(self, tokens: Any, state: State | None = None) -> Report:
        """The surprises of reading on from here. The memories write while they read, into a copy that is dropped."""
        begin, report = time.perf_counter(), Report()
        state = self.start() if state is None else state
        for chunk, _ in self._going(tokens, state):
            report.chunks.append(chunk)
        report.seconds = time.perf_counter() - begin
        return report

    def reads(self, tokens: Any, state: State | None) -> Iterator[Tensor]:
        """Logits of a text of its own, chunk by chunk; None: as the base, with nothing learned."""
        for _, logits in self._going(tokens, self.start() if state is None else self.fresh(state)):
            yield logits

    def _going(self, tokens: Any, state: State) -> Iterator[tuple[ChunkReport, Tensor]]:
        """On through a text, whose last chunk may be shorter."""
        self.check(state)
        ids = torch.cat((state["stream/pending"], tokens_of(self, tokens)))
        size, stream = self.settings.chunk, Stream(self, state)
        for at in range(0, ids.numel(), size):
            some = ids[at : at + size].to(self.device)
            logits = stream.predict(some)[0]
            count = logits.shape[0]
            yield ChunkReport(stream.clock, count, nats_of(logits, some) / max(1, count)), logits
            if some.numel() == size:
                stream.take(some, [LevelReport(level.name, level.period) for level in self.settings.levels])

    def fresh(self, state: State) -> State:
        """The same memories at the beginning of another text: no near past, no open chunk, period or segment."""
        return states.fresh(self.blocks, self.settings.levels, state)

    @contextmanager
    def wearing(self, state: State | None) -> Iterator[Any]:
        """The base as it reads a text of its own with this memory; None: as it is. The state stays as it is."""
        yield self.base if state is None else self.worn(state)

    def worn(self, state: State) -> Worn:
        """The same, to be kept: for many threads at once, if wanted."""
        self.check(state)
        return Worn(self.base, states.nested(len(self.blocks), self.fresh(state)))

    def forward(self, input_ids: Tensor, *, state: State | None = None, **given: Any) -> Any:
        """What the base returns on a text of its own, read with a memory."""
        with self.wearing(state) as base:
            return base(input_ids, **given)

    def generate(self, input_ids: Any, *, state: State | None = None, **given: Any) -> Any:
        """The base's own `generate`, with the memory worn from the first token to the last."""
        with self.wearing(state) as base:
            return base.generate(input_ids, **given)

    def placed(self, stored: State) -> State:
        """A state out of a file, where this model wants it."""
        return states.on(stored, self.device)

    def norms(self, state: State) -> list[float]:
        """How far each level is from its learned start."""
        start, squares = self.start(), [0.0] * len(self.settings.levels)
        for name, x in start.items():
            if "/memory/" in name:
                squares[int(name[5 : name.index("/")])] += float((state[name] - x).double().square().sum())
        return [square**0.5 for square in squares]

    def share(self, state: State) -> float:
        """The furthest way from a start of any matrix, as a share of that start, or of an identity where it is less.

        Of a CMS level, whose deltas start at zero, it is the weights that they are added to.
        """
        worst = 0.0
        for at, (block, first) in enumerate(zip(self.blocks, states.nested(len(self.blocks), self.start()))):
            now = states.nested(len(self.blocks), state)[at]
            for name, x in first.items():
                if block.kind(name) != "memory":
                    continue
                _, index, part = name.split(".") if name.startswith("levels.") else ("", "", "")
                whole = block.cms[int(index)].start[part] if part else x
                rows, columns = whole.shape[-2:] if whole.ndim > 1 else (1, whole.shape[-1])
                many = whole.numel() / (rows * columns)
                size = max(float(whole.double().norm()), 0.0 if part else (many * min(rows, columns)) ** 0.5)
                worst = max(worst, float((now[name] - x).double().norm()) / max(size, 1e-12))
        return worst

    def fingerprint(self) -> str:
        """SHA-256 of the base's config and weights."""
        now = self._weights()
        if self._fingerprint is None or self._fingerprint[0] != now:
            self._fingerprint = (now, files.fingerprint(self.base))
        return self._fingerprint[1]

    def _weights(self) -> tuple[Any, ...]:
        """Another value after anything was written into the base."""
        return tuple((p.data_ptr(), p._version) for p in self.base.parameters())

    def check(self, state: State) -> None:
        """Does this state belong to this model?"""
        if not isinstance(state, Mapping):
            raise ValueError(f"state is a {type(state).__name__}: pass what model.start() or model.learn() returned")
        for name, x in self.start().items():
            if not name.startswith("stream/") and (name not in state or state[name].shape != x.shape):
                have = tuple(state[name].shape) if name in state else "no such entry"
                raise ValueError(
                    f"state does not fit this model: {name} must have shape {tuple(x.shape)}, found {have}; use the "
                    "model that it was made with, or model.start()"
                )
