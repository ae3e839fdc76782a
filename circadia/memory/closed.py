"""Closed forms over a tile: C tokens of one chunk, all at once.

Letters: B batch, H heads, C tokens of a tile, n inputs and m outputs of a matrix. Tokens are columns: what a matrix is
given is [..., n, C], what it gives out [..., m, C], a gate [..., 1, C]. So matrices that share their input are one
matrix with more rows.

One matrix W whose write at token t is ``W_t = a_t W_{t-1} - e_t (W_{t-1} x_t) x_t^T + S_t`` with the momentum
``S_t = b_t S_{t-1} - f_t x_t^T`` (no momentum: b = 0) unrolls to

    W_t = g_t W_0 + s_t S_0 - sum_{s<=t} (D_st r_s + P_st f_s) x_s^T          r_t = e_t W_{t-1} x_t

    g_t = prod_{i<=t} a_i          D_st = g_t / g_s for s <= t
    P   = Db D,  s_t = (g^b D)_t   Db and g^b: the same products of b

so that r solves one unit-upper-triangular system, r (I + (D1 o X^T X) e) = (g_{t-1} W_0 X + ...) e, where D1 is D one
column on (g_{t-1}/g_s, s < t). Every exponent is <= 0 and masked before ``exp``; nothing is divided by a product of
retentions; the system is solved by substitution (Neumann doubling loses all digits on correlated keys).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.memory.derivatives import inverse

SMALLEST = 1e-12  # a retention of exactly 0 would need log 0; at this value nothing of the past is left in float64


def shift(x: Tensor, first: float) -> Tensor:
    """One row down along the token axis (-2): the value before token t."""
    return F.pad(x[..., :-1, :], (0, 0, 1, 0), value=first)


def ratios(log_a: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Log retentions [..., C] -> g [..., C, 1] and D [..., C, C]; None keeps all, for keys ``like`` [..., C, n]."""
    if log_a is None:
        c = like.shape[-2]
        return like.new_ones(c, 1), like.new_ones(c, c).tril()
    total = log_a.cumsum(-1)
    lower = torch.ones(log_a.shape[-1], log_a.shape[-1], dtype=torch.bool, device=log_a.device).tril()
    d = (total[..., :, None] - total[..., None, :]).masked_fill(~lower, float("-inf")).exp()
    return total[..., None].exp(), d


def decay(log_a: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Log retentions [..., C] -> g [..., 1, C] and D [..., C, C]; None keeps all, for keys ``like`` [..., n, C]."""
    if log_a is None:
        c = like.shape[-1]
        return like.new_ones(1, c), like.new_ones(c, c).triu()
    total = log_a.cumsum(-1)[..., None, :]
    past = torch.ones(log_a.shape[-1], log_a.shape[-1], dtype=torch.bool, device=log_a.device).triu()
    return total.exp(), (total - total.mT).masked_fill(~past, float("-inf")).exp()


def later(x: Tensor | None, first: float) -> Tensor | None:
    """One column on: the value before token t."""
    return None if x is None else F.pad(x[..., :-1], (1, 0), value=first)


@dataclass(frozen=True)
class Tile:
    """The decay factors of one tile, shared by every matrix that is written with the same gates."""

    g: Tensor  # [B, H, ..., 1, C] retention of the state before the tile; [1, C] where all is kept
    d: Tensor  # [B, H, ..., C, C] of the write at s (row) as seen at t >= s (column)
    s: Tensor | None = None  # the same for the momentum before the tile
    p: Tensor | None = None  # and for what was put into the momentum at s
    gb: Tensor | None = None  # what the momentum itself keeps
    db: Tensor | None = None

    @staticmethod
    def make(log_a: Tensor | None, log_b: Tensor | None, live: Tensor | None, like: Tensor) -> "Tile":
        """From log retentions [B, H, ..., C]; ``log_b`` of the momentum; ``live`` [B, 1, ..., C] real tokens."""
        g, d = decay(log_a, like)
        if log_b is None:
            return Tile(g, d)
        gb, db = decay(log_b, like)
        # Padding neither moves the momentum nor adds it to the weights once more.
        into = d if live is None else d * live[..., :, None]
        return Tile(g, d, gb @ into, db @ into, gb, db)

    def each(self, change: Callable[[Tensor], Any]) -> "Tile":
        """Every factor changed."""
        factors: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: None if x is None else change(x) for name, x in factors.items()}
        return Tile(**changed)

    def unbind(self, n: int) -> "list[Tile]":
        """The tiles along axis 2, one by one."""
        return [Tile(*parts) for parts in zip(*(_unbind(getattr(self, f.name), n) for f in fields(self)))]

    @property
    def before(self) -> "Tile":
        """The same factors as seen by a token before its own write."""
        g, d = later(self.g, 1.0), later(self.d, 0.0)
        assert g is not None and d is not None
        return Tile(g, d, later(self.s, 0.0), later(self.p, 0.0), self.gb, self.db)


@dataclass(frozen=True)
class Solver:
    """(I + (D1 o X^T X) e)^-1, formed once for all matrices that share keys, rates and decay."""

    x: Tensor  # [B, H, n, C] keys
    rate: Tensor  # [B, H, 1, C] e
    before: Tile
    gram: Tensor
    inverse: Tensor

    @staticmethod
    def make(x: Tensor, rates: list[Tensor], before: Tile) -> "list[Solver]":
        """One solver for each rate, from one triangular solve."""
        gram = x.mT @ x
        seen = before.d * gram
        inverses = inverse(torch.stack([seen * rate for rate in rates]))
        return [Solver(x, rate, before, gram, inverse) for rate, inverse in zip(rates, inverses.unbind(0))]

    def unbind(self, n: int) -> "list[Solver]":
        """The solvers of the tiles along axis 2, one by one."""
        parts = (_unbind(x, n) for x in (self.x, self.rate, self.gram, self.inverse))
        return [Solver(x, rate, t, gram, inv) for t, x, rate, gram, inv in zip(self.before.unbind(n), *parts)]

    def __call__(self, w: Tensor, momentum: Tensor | None, f: Tensor, wx: Tensor | None = None) -> Tensor:
        """What is taken out at each token, r [B, H, m, C]; without momentum r + f, the whole write.

        ``wx``: W_0 X, where the caller has it already.
        """
        out = self.before.g * (w @ self.x if wx is None else wx)
        if momentum is None:
            return (self.rate * out + f) @ self.inverse
        assert self.before.s is not None and self.before.p is not None
        out = out + self.before.s * (momentum @ self.x) - f @ (self.before.p * self.gram)
        return (self.rate * out) @ self.inverse


@dataclass(frozen=True)
class Written:
    """One matrix over one tile: every W_t, without forming any of them."""

    w: Tensor  # [B, H, m, n] before the tile
    x: Tensor  # [B, H, n, C] what its writes are bound to
    f: Tensor  # [B, H, m, C] the write (with what it takes out, unless there is momentum)
    tile: Tile
    r: Tensor | None = None  # what is taken out; kept apart under momentum only
    momentum: Tensor | None = None

    def read(self, h: Tensor, tile: Tile) -> Tensor:
        """W_t h_t for every token; ``tile.before`` instead of ``tile`` reads W_{t-1}."""
        xh = self.x.mT @ h
        y = tile.g * (self.w @ h)
        if self.momentum is None:
            return y - self.f @ (tile.d * xh)
        assert tile.s is not None and tile.p is not None
        y = y + tile.s * (self.momentum @ h) - self.f @ (tile.p * xh)
        return y if self.r is None else y - self.r @ (tile.d * xh)

    def end(self) -> tuple[Tensor, Tensor | None]:
        """The weights and the momentum after the tile."""
        t = self.tile
        w = t.g[..., -1:] * self.w
        if self.momentum is None:
            return w - (_last(t.d) * self.f) @ self.x.mT, None
        assert t.s is not None and t.p is not None and t.gb is not None and t.db is not None
        put = _last(t.p) * self.f
        if self.r is not None:
            put = put + _last(t.d) * self.r
        w = w + t.s[..., -1:] * self.momentum - put @ self.x.mT
        momentum = t.gb[..., -1:] * self.momentum - (_last(t.db) * self.f) @ self.x.mT
        return w, momentum


def write(
    w: Tensor,
    momentum: Tensor | None,
    x: Tensor,
    f: Tensor,
    tile: Tile,
    solver: Solver | None,
    wx: Tensor | None = None,
) -> Written:
    """Write errors ``f`` [B, H, m, C] at inputs ``x``; with a solver, the DGD factor takes out what is there."""
    if solver is None:
        return Written(w, x, f, tile, None, momentum)
    if momentum is None:
        return Written(w, x, solver(w, None, f, wx), tile)
    return Written(w, x, f, tile, solver(w, momentum, f, wx), momentum)


def _last(d: Tensor) -> Tensor:
    """The factor of every write as seen from the end of the tile, [..., 1, C]."""
    return d[..., -1].unsqueeze(-2)


def _unbind(x: Tensor | None, n: int) -> Sequence[Any]:
    """Along axis 2; what has no such axis is the same for all."""
    return [x] * n if x is None or x.ndim < 5 else x.unbind(2)


def unit(x: Tensor, axis: int = -1) -> Tensor:
    """L2-normalised along the axis; a zero stays zero, with a finite gradient."""
    return x * torch.rsqrt(x.square().sum(axis, keepdim=True) + 1e-12)


def log_retention(alpha: Tensor) -> Tensor:
    """Log of a retention in [0, 1]."""
    return alpha.clamp_min(SMALLEST).log()


def log_sigmoid(logit: Tensor) -> Tensor:
    """Log of a retention given by its logit: near 1 it keeps the digits that ``log(sigmoid(x))`` loses."""
    return F.logsigmoid(logit).clamp_min(math.log(SMALLEST))
