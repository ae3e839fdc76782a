"""How far a chunk is learned: a factor in [0, 1] from its surprise, its novelty, its source's trust and room.

    f = trust * noise * low * high * new, and no more than the source has room for

    noise   1 to 0 as the surprise nears log V: text drawn evenly from V tokens costs any model at least log V a token,
            so that what costs so much cannot be told from noise
    low     1 to 0 where the surprise lies far under the learner's own running mean: nothing is left to learn
    high    1 to 0 far above it, in spreads (running mean of the absolute deviation). After `patience` such chunks in a
            row the stream is taken to have changed, and the mean starts anew
    new     share of the chunk's n-grams that stand neither earlier in it nor in a table of those seen lately
    room    a source of trust below 1 may take `budget` of the full steps of a window. A full step of a level is at most
            rate * clip long, so that the source moves it by at most budget * window * rate * clip

A model with memories of its own also has learned rates, which depend on the token and are in what it writes already.
They are not multiplied in once more: `observe` reports their means beside these factors, as "eta" (memory rules) and
"cms". Its full step is what it has written, of which f is kept (circadia/models/native/stream.py).

What it remembers is part of the learner's state, and every number in it follows from the stream alone.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

Memory = dict[str, Tensor]
FADE = 1 / 64  # weight of a new chunk in the running mean
FIRST = 0.25  # spread before anything is known, as a share of the mean


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Bounds; each pair is where the weight begins to fall and where it is zero."""

    low: tuple[float, float] = (-4.0, -8.0)  # in spreads from the running mean
    high: tuple[float, float] = (4.0, 8.0)
    noise: tuple[float, float] = (0.9, 0.98)  # in log V
    new: float = 0.5  # share of new n-grams from which a chunk counts in full; 0 turns this off
    ngram: int | None = None  # tokens; default 16 for bytes, else 8
    remember: int = 32768  # n-grams
    budget: float = 0.25
    window: int = 64  # chunks
    warmup: int = 4  # chunks before there is a running mean
    patience: int = 4

    def __post_init__(self) -> None:
        for name in ("low", "high", "noise"):
            pair = tuple(getattr(self, name))
            if len(pair) != 2 or not all(_number(x) for x in pair) or pair[0] == pair[1]:
                raise ValueError(f"{name}={pair!r}: give where the weight begins to fall and where it is zero")
            object.__setattr__(self, name, pair)
        for name in ("new", "budget"):
            if not _number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is outside [0, 1]")
        if self.ngram is not None and (not isinstance(self.ngram, int) or self.ngram < 0):
            raise ValueError(f"ngram={self.ngram!r} must be a whole number of tokens, or None")
        for name in ("remember", "window", "warmup", "patience"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def start(self) -> Memory:
        """Nothing seen."""
        return {
            "gate/stats": torch.zeros(4, dtype=torch.float64),  # mean, spread, chunks, too high in a row
            "gate/seen": torch.zeros(self.remember, dtype=torch.int32),
            "gate/owners": torch.zeros(0, dtype=torch.int64),
            "gate/used": torch.zeros(0, dtype=torch.float64),  # full steps in this window
            "gate/window": torch.tensor(0),
        }

    def weigh(
        self, memory: Memory, ids: Tensor, start: int, surprise: float, owners: Tensor, trusts: Tensor, vocab: int
    ) -> tuple[float, dict[str, float], Memory]:
        """The factor of a chunk, the factors it is made of, and the memory after it."""
        new, seen = self._novelty(memory["gate/seen"], ids, vocab)
        trust = float(trusts.mean())
        parts, stats = self._surprise(memory["gate/stats"], surprise, vocab, new >= self.new / 2 and trust >= 0.5)
        parts = {"trust": trust, "new": min(1.0, new / self.new) if self.new else 1.0, **parts}
        factor = math.prod(parts.values())
        room, memory = self._room(memory, start // ids.numel(), factor, owners, trusts)
        parts["room"] = room
        return factor * room, parts, {**memory, "gate/seen": seen, "gate/stats": stats}

    def _novelty(self, seen: Tensor, ids: Tensor, vocab: int) -> tuple[float, Tensor]:
        """Share of n-grams that are new, and the table with them in it."""
        n = self.ngram or (16 if vocab <= 256 else 8)
        if ids.numel() < n:
            return 1.0, seen
        # A polynomial in the token ids modulo 2^64, then mixed: the low bits choose the slot, the high ones tell apart.
        powers = torch.tensor([_wrap(0x9E3779B97F4A7C15 ** (k + 1)) for k in range(n)])
        grams = (ids.unfold(0, n, 1) + 1) @ powers
        grams = (grams ^ (grams >> 29)) * _wrap(0xBF58476D1CE4E5B9)
        grams = grams ^ (grams >> 32)
        slots, marks = grams % seen.numel(), (grams >> 31).to(torch.int32) | 1
        known = seen[slots] == marks
        first = torch.zeros_like(known)
        first[torch.from_numpy(np.unique(grams.numpy(), return_index=True)[1])] = True
        seen = seen.clone()
        seen.numpy()[slots.numpy()] = marks.numpy()  # in order: the last of a slot stays
        return float((first & ~known).double().mean()), seen

    def _surprise(self, stats: Tensor, surprise: float, vocab: int, counts: bool) -> tuple[dict[str, float], Tensor]:
        """The factors of a surprise, and the running mean after it."""
        mean, spread, chunks, run = stats.tolist()
        parts = {"noise": _fall(surprise / math.log(vocab), *self.noise), "low": 1.0, "high": 1.0}
        if chunks >= self.warmup:
            z = (surprise - mean) / max(spread, 0.01 * mean, 1e-9)
            parts |= {"low": _fall(z, *self.low), "high": _fall(z, *self.high)}
        if not counts or parts["noise"] == 0:
            return parts, stats
        run = run + 1 if parts["high"] < 0.5 else 0
        if chunks == 0 or run >= self.patience:
            mean, spread, chunks, run = surprise, FIRST * surprise, 1, 0
        else:
            # No single chunk moves the mean far: its deviation counts up to three spreads.
            off = max(-3 * spread, min(3 * spread, surprise - mean))
            rate = max(FADE, 1 / (chunks + 1))
            mean, spread, chunks = mean + rate * off, spread + rate * (abs(off) - spread), chunks + 1
        return parts, torch.tensor([mean, spread, chunks, run], dtype=torch.float64)

    def _room(self, memory: Memory, number: int, factor: float, owners: Tensor, trusts: Tensor) -> tuple[float, Memory]:
        """How much of the factor the sources have room for, and what they have used then."""
        fresh = number // self.window != int(memory["gate/window"])
        used = {} if fresh else dict(zip(memory["gate/owners"].tolist(), memory["gate/used"].tolist()))
        limited = owners[trusts < 1]
        shares = {int(o): float((limited == o).sum()) / owners.numel() for o in limited.unique()}
        room = 1.0
        for owner, share in shares.items():
            left = max(0.0, self.budget * self.window - used.get(owner, 0.0))
            if factor * share > left:
                room = min(room, left / (factor * share))
        for owner, share in shares.items():
            used[owner] = used.get(owner, 0.0) + factor * room * share
        return room, {
            **memory,
            "gate/owners": torch.tensor(list(used), dtype=torch.int64),
            "gate/used": torch.tensor(list(used.values()), dtype=torch.float64),
            "gate/window": torch.tensor(number // self.window),
        }


def owner_of(source: str) -> int:
    """A source in the state, where names do not belong."""
    return int.from_bytes(sha256(source.encode()).digest()[:8], "big") >> 1


def of(given: "Gate | Mapping[str, Any] | bool | None") -> Gate | None:
    """True: the defaults; False or None: everything is learned in full."""
    if isinstance(given, Gate) or given is None:
        return given
    if isinstance(given, bool):
        return Gate() if given else None
    if isinstance(given, str):
        raise ValueError(
            f"gate={given!r}: a learner's gate is True, False or settings of circadia.live.Gate; for experts that "
            "have gates of their own give circadia.retrofit(base, capacity='lowrank', gate='router') as its base"
        )
    try:
        return Gate(**given)
    except TypeError as error:
        raise ValueError(f"gate={dict(given)!r}: {error}; see circadia.live.Gate") from None


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and math.isfinite(x)


def _fall(x: float, begin: float, end: float) -> float:
    """1 before `begin`, 0 after `end`, whichever way they lie."""
    return min(1.0, max(0.0, (end - x) / (end - begin)))


def _wrap(x: int) -> int:
    """As a signed number of 64 bits."""
    x %= 2**64
    return x - 2**64 if x >= 2**63 else x
