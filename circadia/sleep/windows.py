"""What a night goes over again: short pieces of the journal that surprised most, and probes made of them.

Nobody labels anything; who is asked should not have learned the journal yet. Each entry is read in spans as long as a
chunk, each by itself, and of each span the `length` tokens of the highest mean loss are kept. A probe is the most
surprising part of a window after its beginning; it is bound once the model says it from what stands before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.find import positions
from circadia.sleep.fit import Meter
from circadia.sleep.losses import nats
from circadia.sleep.student import Student, Teacher

IGNORED = -100
BEFORE = 64  # tokens: what a window begins in the middle of can begin so far before it
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What a learner observed, as far as a night asks: tokens, where they come from, and how far that is trusted."""

    tokens: Tensor  # one row, int64
    source: str = ""
    trust: float = 1.0
    number: int = 0
    time: float = 0.0
    correction: bool = False  # what a user said that would have been right


@dataclass(frozen=True)
class Window:
    """One token more than is to be said, so that each has one before it."""

    tokens: Tensor
    source: str
    trust: float
    number: int  # of the entry
    start: int  # place in it
    surprise: float  # mean nats a token when it was chosen
    correction: bool = False
    before: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # what stands there in the entry

    @property
    def name(self) -> str:
        """Its probe has the same."""
        return f"{self.number}:{self.start}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: x.tolist() if isinstance(x, Tensor) else x for name, x in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Window":
        """Back from JSON."""
        rows = {name: torch.tensor(data[name], dtype=torch.int64) for name in ("tokens", "before")}
        return cls(**{**data, **rows})


@dataclass(frozen=True)
class Probe:
    """Tokens, of which those from `cue` on are to be said."""

    name: str
    tokens: Tensor
    cue: int

    def __post_init__(self) -> None:
        if not 0 < self.cue < self.tokens.numel():
            raise ValueError(
                f"probe {self.name!r}: cue={self.cue!r} of {self.tokens.numel()} tokens: some must stand before it, "
                "and some are to be said"
            )


def batch(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs and labels [n, t] of rows of any length; labels of the padding are ignored."""
    longest = max(row.numel() for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full((len(rows), longest), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : row.numel()] = row
        labels[i, : row.numel()] = row
    return ids[:, :-1], labels[:, 1:]


def losses(who: Teacher | Student, rows: Sequence[Tensor], size: int = 16) -> list[Tensor]:
    """Loss of every token but the first of each row."""
    found = []
    with torch.no_grad():
        for at in range(0, len(rows), size):
            some = rows[at : at + size]
            ids, labels = (x.to(who.model.device) for x in batch(some))
            each = nats(who.logits(ids), labels).cpu()
            found += [each[i, : row.numel() - 1] for i, row in enumerate(some)]
    return found


def surprising(
    who: Teacher, journal: Sequence[Entry], length: int, limit: int | None = None, span: int | None = None,
    meter: Meter | None = None,
) -> list[Window]:  # fmt: skip
    """The most surprising window of each span; of all of them the `limit` most surprising, in their order."""
    if length < 2:
        raise ValueError(f"length={length!r}: a window needs at least 2 tokens")
    span = span or who.model.settings.chunk
    room = positions(who.model.base)
    span = max(length + 1, span) if room is None else min(room, max(length + 1, span))
    pieces = []
    for entry in journal:
        for at in range(0, entry.tokens.numel(), span):
            piece = entry.tokens[at : at + span]
            if piece.numel() > min(length, 8):  # a few last tokens are no experience
                pieces.append((entry, at, piece))
    found = []
    for (entry, at, piece), each in zip(pieces, losses(who, [piece for _, _, piece in pieces])):
        width = min(length, each.numel())
        means = each.unfold(0, width, 1).mean(-1)
        best = int(means.argmax())
        tokens = piece[best : best + width + 1].clone()
        start, surprise = at + best, float(means[best])
        before = entry.tokens[max(0, start - BEFORE) : start].clone()
        found.append(Window(tokens, entry.source, entry.trust, entry.number, start, surprise, entry.correction, before))
    if meter is not None:
        meter.read += sum(piece.numel() for _, _, piece in pieces)
    if limit is not None and len(found) > limit:
        kept = sorted(range(len(found)), key=lambda i: -found[i].surprise)[:limit]
        found = [found[i] for i in sorted(kept)]
    return found


def probes(who: Teacher, chosen: Sequence[Window], answer: int) -> list[Probe]:
    """Of each window its `answer` most surprising tokens behind the first quarter, which is the cue at least."""
    found = []
    for window, each in zip(chosen, losses(who, [window.tokens for window in chosen])):
        first = max(1, each.numel() // 4)
        if each.numel() - first < answer:
            continue
        at = first + int(each[first:].unfold(0, answer, 1).mean(-1).argmax())
        found.append(Probe(window.name, window.tokens[: at + answer + 1], at + 1))
    return found


def spread(found: Sequence[T], limit: int) -> list[T]:
    """At most so many, from all over the day."""
    return list(found) if len(found) <= limit else [found[i * len(found) // limit] for i in range(limit)]


def thinned(nights: Sequence[Sequence[T]], limit: int) -> list[list[T]]:
    """At most so many of all nights together: of each as many as of another, and what is over of the latest. Where not
    each can have one, the latest have.
    """
    some = [list(night) for night in nights if night][-limit:] if limit else []
    most = max(map(len, some), default=0)
    while sum(min(len(night), most) for night in some) > limit:
        most -= 1
    over, found = limit - sum(min(len(night), most) for night in some), []
    for night in reversed(some):
        one_more = int(over > 0 and len(night) > most)
        over -= one_more
        found.append(spread(night, most + one_more))
    return found[::-1]


def scores(who: Teacher | Student, asked: Sequence[Probe]) -> list[float]:
    """Mean nats a token of each answer."""
    found = losses(who, [probe.tokens for probe in asked])
    return [float(each[probe.cue - 1 :].mean()) for probe, each in zip(asked, found)]


def share_bound(values: Sequence[float], bound: float) -> float:
    """How many of the probes are bound: at most `bound` nats a token."""
    return sum(value <= bound for value in values) / len(values) if values else 1.0


def said(model: RetrofitModel, tokens: Tensor) -> Tensor:
    """One row of token ids the model knows."""
    known = model.config.get_text_config().vocab_size
    if tokens.ndim != 1 or tokens.is_floating_point():
        raise ValueError(
            f"an entry of the journal has tokens of shape {tuple(tokens.shape)} and {tokens.dtype}: give one row of ids"
        )
    for token in (int(tokens.min()), int(tokens.max())) if tokens.numel() else ():
        if not 0 <= token < known:
            raise ValueError(f"an entry of the journal has token {token}: the model knows 0 to {known - 1}")
    return tokens.to(torch.int64)
