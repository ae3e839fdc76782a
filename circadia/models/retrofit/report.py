"""What reading and learning report."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ChunkReport:
    """One chunk, predicted with the state from before it."""

    start: int  # position of its first token in the stream
    tokens: int  # that were scored: all, but the very first token of a stream
    surprise: float  # mean loss in nats a token, before anything was learned from it
    refused: str = ""  # why nothing was learned from it
    weight: float = 1.0  # how far it was learned
    rates: dict[str, float] = field(default_factory=dict)  # that the model chose itself for its tokens, means


@dataclass
class LevelReport:
    """What changed in one level."""

    name: str
    period: int
    updates: int = 0  # in this call
    refused: int = 0  # updates whose result was not finite: the level stays as it was
    moved: float = 0.0  # length of the way: the norms of the changes, added up
    norm: float = 0.0  # of the memory after its last update in this call
    slope: float = 0.0  # norm of the last mean gradient, before the clip


@dataclass
class Report:
    """One call of `learn` or `score`."""

    chunks: list[ChunkReport] = field(default_factory=list)
    levels: list[LevelReport] = field(default_factory=list)
    pending: int = 0  # tokens that wait for the rest of their chunk
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Scored."""
        return sum(chunk.tokens for chunk in self.chunks)

    @property
    def surprise(self) -> float:
        """Mean over the scored tokens, nats; NaN if there are none."""
        return sum(c.surprise * c.tokens for c in self.chunks) / self.tokens if self.tokens else math.nan
