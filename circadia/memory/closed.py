"""Closed forms over a tile: C tokens of one chunk, all at once.

Letters: B batch, H heads, C tokens of a tile, n inputs and m outputs of a matrix. Rows are tokens.

One matrix W whose write at token t is ``W_t = a_t W_{t-1} - e_t (W_{t-1} x_t) x_t^T + S_t`` with the momentum
``S_t = b_t S_{t-1} - f_t x_t^T`` (no momentum: b = 0) unrolls to

    W_t = g_t W_0 + s_t S_0 - sum_{s<=t} (D_ts r_s + P_ts f_s) x_s^T          r_t = e_t W_{t-1} x_t

    g_t = prod_{i<=t} a_i          D_ts = g_t / g_s for s <= t
    P   = D Db,  s_t = (D g^b)_t   Db and g^b: the same products of b

so that r solves one unit-lower-triangular system, (I + e (D1 o X X^T)) r = e (g_{t-1} X W_0^T + ...), where D1 is D
one row down (g_{t-1}/g_s, s < t). Every exponent is <= 0 and masked before ``exp``; nothing is divided by a product of
retentions; the system is solved by substitution (Neumann doubling loses all digits on correlated keys).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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


@dataclass(frozen=True)
class Tile:
    """The decay factors of one tile, shared by every matrix that is written with the same gates."""

    g: Tensor  # [B, H, ..., C, 1] retention of the state before the tile; [C, 1] where all is kept
    d: Tensor  # [B, H, ..., C, C] of the write at s as seen at t >= s
    s: Tensor | None = None  # the same for the momentum before the tile
    p: Tensor | None = None  # and for what was put into the momentum at s
    gb: Tensor | None = None  # what the momentum itself keeps
    db: Tensor | None = None

    @staticmethod
    def make(log_a: Tensor | None, log_b: Tensor | None, live: Tensor | None, like: Tensor) -> "Tile":
        """From log retentions [B, H, ..., C]; ``log_b`` of the momentum; ``live`` [B, 1, ..., C] real tokens."""
        g, d = ratios(log_a, like)
        if log_b is None:
            return Tile(g, d)
        gb, db = ratios(log_b, like)
        # Padding neither moves the momentum nor adds it to the weights once more.
        into = d if live is None else d * live[..., None, :]
        return Tile(g, d, into @ gb, into @ db, gb, db)

    def unbind(self, n: int) -> "list[Tile]":
        """The tiles along axis 2, one by one."""
        return [Tile(*parts) for parts in zip(*(_unbind(getattr(self, f.name), n) for f in fields(self)))]

    @property
    def before(self) -> "Tile":
        """The same factors as seen by a token before its own write."""
        s = None if self.s is None else shift(self.s, 0.0)
        p = None if self.p is None else shift(self.p, 0.0)
        return Tile(shift(self.g, 1.0), shift(self.d, 0.0), s, p, self.gb, self.db)


@dataclass(frozen=True)
class Solver:
    """(I + e (D1 o X X^T))^-1, formed once for all matrices that share keys, rates and decay."""

    x: Tensor  # [B, H, C, n] keys
    rate: Tensor  # [B, H, C, 1] e
    before: Tile
    gram: Tensor
    inverse: Tensor

    @staticmethod
    def make(x: Tensor, rates: list[Tensor], before: Tile) -> "list[Solver]":
        """One solver for each rate, from one triangular solve."""
        gram = x @ x.mT
        system = torch.stack([rate * (before.d * gram) for rate in rates])
        eye = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device).expand_as(system)
        inverses = torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)
        return [Solver(x, rate, before, gram, inverse) for rate, inverse in zip(rates, inverses)]

    def unbind(self, n: int) -> "list[Solver]":
        """The solvers of the tiles along axis 2, one by one."""
        parts = (_unbind(x, n) for x in (self.x, self.rate, self.gram, self.inverse))
        return [Solver(x, rate, t, gram, inv) for t, x, rate, gram, inv in zip(self.before.unbind(n), *parts)]

    def __call__(self, w: Tensor, momentum: Tensor | None, f: Tensor, wx: Tensor | None = None) -> Tensor:
        """What is taken out at each token, r [B, H, C, m]; without momentum r + f, the whole write.

        ``wx``: X W_0^T, where the caller has it already.
        """
        out = self.before.g * (self.x @ w.mT if wx is None else wx)
        if momentum is None:
            return self.inverse @ (self.rate * out + f)
        assert self.before.s is not None and self.before.p is not None
        out = out + self.before.s * (self.x @ momentum.mT) - (self.before.p * self.gram) @ f
        return self.inverse @ (self.rate * out)


@dataclass(frozen=True)
class Written:
    """One matrix over one tile: every W_t, without forming any of them."""

    w: Tensor  # [B, H, m, n] before the tile
    x: Tensor  # [B, H, C, n] what its writes are bound to
    f: Tensor  # [B, H, C, m] the write (with what it takes out, unless there is momentum)
    tile: Tile
    r: Tensor | None = None  # what is taken out; kept apart under momentum only
    momentum: Tensor | None = None

    def read(self, h: Tensor, tile: Tile) -> Tensor:
        """h_t W_t^T for every token; ``tile.before`` instead of ``tile`` reads W_{t-1}."""
        return self._mix(h, self.w, self.momentum, h @ self.x.mT, tile)

    def _mix(self, h: Tensor, w: Tensor, momentum: Tensor | None, hx: Tensor, tile: Tile) -> Tensor:
        y = tile.g * (h @ w.mT)
        if momentum is None:
            return y - (tile.d * hx) @ self.f
        assert tile.s is not None and tile.p is not None
        y = y + tile.s * (h @ momentum.mT) - (tile.p * hx) @ self.f
        return y if self.r is None else y - (tile.d * hx) @ self.r

    def end(self) -> tuple[Tensor, Tensor | None]:
        """The weights and the momentum after the tile."""
        t = self.tile
        w = t.g[..., -1:, :] * self.w
        if self.momentum is None:
            return w - (t.d[..., -1, :, None] * self.f).mT @ self.x, None
        assert t.s is not None and t.p is not None and t.gb is not None and t.db is not None
        w = w + t.s[..., -1:, :] * self.momentum - (t.p[..., -1, :, None] * self.f).mT @ self.x
        if self.r is not None:
            w = w - (t.d[..., -1, :, None] * self.r).mT @ self.x
        momentum = t.gb[..., -1:, :] * self.momentum - (t.db[..., -1, :, None] * self.f).mT @ self.x
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
    """Write errors ``f`` [B, H, C, m] at inputs ``x``; with a solver, the DGD factor takes out what is there."""
    if solver is None:
        return Written(w, x, f, tile, None, momentum)
    if momentum is None:
        return Written(w, x, solver(w, None, f, wx), tile)
    return Written(w, x, f, tile, solver(w, momentum, f, wx), momentum)


def _unbind(x: Tensor | None, n: int) -> Sequence[Any]:
    """Along axis 2; what has no such axis is the same for all."""
    return [x] * n if x is None or x.ndim < 5 else x.unbind(2)


def gelu_and_slope(a: Tensor) -> tuple[Tensor, Tensor]:
    """Exact GELU and its derivative, in ordinary operations so that it can be differentiated again."""
    cdf = 0.5 * (1.0 + torch.erf(a * 0.7071067811865476))
    return a * cdf, cdf + a * torch.exp(-0.5 * a * a) * 0.3989422804014327


def shorten(x: Tensor, top: float | None) -> Tensor:
    """At most ``top`` long along the last axis."""
    if top is None:
        return x
    norm = x.square().sum(-1, keepdim=True).clamp_min(1e-30).sqrt()
    return x / (norm / top).clamp_min(1.0)


def unit(x: Tensor) -> Tensor:
    """L2-normalised along the last axis; a zero stays zero, with a finite gradient."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


def log_retention(alpha: Tensor) -> Tensor:
    """Log of a retention in [0, 1]."""
    return alpha.clamp_min(SMALLEST).log()


def log_sigmoid(logit: Tensor) -> Tensor:
    """Log of a retention given by its logit: near 1 it keeps the digits that ``log(sigmoid(x))`` loses."""
    return F.logsigmoid(logit).clamp_min(math.log(SMALLEST))
