"""What reading does to a learner's state: a pure function of the state and what is read, so that it can be replayed.

The state is that of the model (circadia/models/retrofit/state.py or circadia/models/native/state.py) and

    text/tail                     text that waits for the end of its segment, uint8 of its UTF-8
    text/owner, text/trust        whose it is: the tail is closed where source or trust changes
    text/owners, text/trusts      of each token of the open chunk, int64 and float64
    gate/...                      what the gate remembers, where there is one
    slept/..., awake/...          what a night leaves: circadia/live/sleeping.py, circadia/live/awake.py
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from circadia.live.awake import Awake
from circadia.live.gate import Gate, owner_of
from circadia.live.text import Words
from circadia.models.native import NativeModel
from circadia.models.retrofit import ChunkReport, LevelReport, RetrofitModel
from circadia.models.retrofit.learn import tokens_of
from circadia.models.retrofit.state import State

POINTS = 256  # of a curve that is kept
Run = tuple[Tensor, int, float]  # tokens, owner, trust
Tell = Callable[[ChunkReport], None]


@dataclass
class Tally:
    """What was read and learned, added up at constant memory."""

    tokens: int = 0  # read; of these `scored` were predicted
    scored: int = 0
    nats: float = 0.0
    chunks: int = 0
    refused: int = 0
    weight: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    levels: list[LevelReport] = field(default_factory=list)
    seconds: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # position, surprise, weight
    every: int = 1  # chunks of a point of the curve

    @property
    def surprise(self) -> float | None:
        """Mean before learning, nats a token."""
        return self.nats / self.scored if self.scored else None

    def add(self, chunk: ChunkReport, levels: list[LevelReport], parts: dict[str, float]) -> None:
        """One chunk and what the levels did after it."""
        known = math.isfinite(chunk.surprise)  # of a refused chunk it may not be, and the log has numbers only
        if known:
            self.scored, self.nats = self.scored + chunk.tokens, self.nats + chunk.tokens * chunk.surprise
        self.refused += bool(chunk.refused)
        self.weight += 0.0 if chunk.refused else chunk.weight
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value
        if self.chunks % self.every == 0 and known:
            self.curve.append((chunk.start, chunk.surprise, chunk.weight))
        if len(self.curve) > POINTS:
            self.curve, self.every = self.curve[::2], self.every * 2
        self.chunks += 1
        self.take(levels)

    def take(self, levels: list[LevelReport]) -> None:
        """What levels did."""
        if not self.levels:
            self.levels = [LevelReport(level.name, level.period) for level in levels]
        for mine, new in zip(self.levels, levels):
            mine.updates, mine.refused = mine.updates + new.updates, mine.refused + new.refused
            mine.moved += new.moved
            if new.updates:
                mine.norm, mine.slope = new.norm, new.slope

    def told(self) -> dict[str, Any]:
        """For the log."""
        count = max(1, self.chunks)
        return {
            "tokens": self.tokens,
            "chunks": self.chunks,
            "surprise": self.surprise,
            "weight": self.weight / count if self.chunks else None,
            "gate": {name: value / count for name, value in self.parts.items()},
            "refused": self.refused,
            "seconds": self.seconds,
            "levels": [vars(level) for level in self.levels],
            "curve": [list(point) for point in self.curve],
        }


@dataclass(frozen=True)
class Plan:
    """What one piece of a stream becomes."""

    runs: list[Run]
    tail: dict[str, Tensor]
    start: int  # position of the first new token
    tokens: int


class Reader:
    """A base with a tokenizer and a gate. It holds nothing that changes."""

    def __init__(
        self, model: RetrofitModel | NativeModel, words: Words, gate: Gate | None, awake: Awake | None = None
    ) -> None:
        self.model, self.words, self.gate, self.awake = model, words, gate, awake
        self.vocab = model.config.get_text_config().vocab_size

    def start(self) -> State:
        """Nothing read."""
        none = torch.zeros(0, dtype=torch.int64)
        own = {**_tail("", 0, 0.0), "text/owners": none, "text/trusts": none.double()}
        return {**self.model.start(), **own, **(self.gate.start() if self.gate else {})}

    def plan(self, state: State, form: str, data: Any, source: str, trust: float) -> Plan:
        """Tokens of a piece, checked before anything is written."""
        owner, runs = owner_of(source), []
        tail = tail_of(state)
        before = int(state["text/owner"]), float(state["text/trust"])
        if form == "chat":
            data = self.words.chat(data)
            form = "text" if isinstance(data, str) else "tokens"
        if tail and (form != "text" or before != (owner, trust)):
            runs.append((self._ids(self.words.encode(tail)), *before))
            tail = ""
        tokens, tail = self.words.feed(tail, data) if form == "text" else (data, "")
        runs.append((self._ids(tokens), owner, trust))
        count = sum(ids.numel() for ids, _, _ in runs)
        return Plan(runs, _tail(tail, owner, trust) if tail else _tail("", 0, 0.0), position(state), count)

    def _ids(self, tokens: Any) -> Tensor:
        return tokens_of(self.model, tokens)

    def learn(self, state: State, plan: Plan, tally: Tally, tell: Tell | None = None) -> State:
        """Predict and learn chunk by chunk; the state given stays as it was."""
        begin = time.perf_counter()
        state = {**state, **plan.tail}
        size = self.model.settings.chunk
        for ids, owner, trust in plan.runs:
            while ids.numel():
                some, ids = ids[: size - state["stream/pending"].numel()], ids[size - state["stream/pending"].numel() :]
                state = self._take(state, some, owner, trust, tally, tell)
        tally.tokens += plan.tokens
        tally.seconds += time.perf_counter() - begin
        return state

    def _take(self, state: State, ids: Tensor, owner: int, trust: float, tally: Tally, tell: Tell | None) -> State:
        """Tokens up to the end of a chunk."""
        owners = torch.cat((state["text/owners"], torch.full_like(ids, owner)))
        trusts = torch.cat((state["text/trusts"], torch.full_like(ids, trust, dtype=torch.float64)))
        whole = torch.cat((state["stream/pending"], ids))
        memory = {n: x for n, x in state.items() if n.startswith("gate/")}
        parts: dict[str, float] = {}

        def weigh(chunk: ChunkReport) -> float:
            nonlocal memory, parts
            assert self.gate is not None
            factor, parts, memory = self.gate.weigh(
                memory, whole, chunk.start, chunk.surprise, owners, trusts, self.vocab
            )
            return factor

        report, state = self.model.learn(ids, state, weigh if self.gate else None)
        if report.chunks:
            # What the model itself decided stands beside the gate's factors, which do not hold it: it is in what was
            # written already.
            tally.add(report.chunks[0], report.levels, {**parts, **report.chunks[0].rates})
            if tell is not None:
                tell(report.chunks[0])
            owners, trusts = owners[:0], trusts[:0]
            if self.awake is not None:
                assert isinstance(self.model, RetrofitModel), "Awake.check lets no other pass"
                state = self.awake.after(self.model, state, report.chunks[0].tokens)
        return {**state, **memory, "text/owners": owners.clone(), "text/trusts": trusts.clone()}


def position(state: State) -> int:
    """Tokens read so far."""
    return int(state["clock/tokens"]) + state["stream/pending"].numel()


def tail_of(state: State) -> str:
    """The text that waits."""
    return bytes(state["text/tail"].tolist()).decode("utf-8", "surrogateescape")


def _tail(text: str, owner: int, trust: float) -> dict[str, Tensor]:
    raw = torch.tensor(list(text.encode("utf-8", "surrogateescape")), dtype=torch.uint8)
    return {
        "text/tail": raw,
        "text/owner": torch.tensor(owner),
        "text/trust": torch.tensor(trust, dtype=torch.float64),
    }
