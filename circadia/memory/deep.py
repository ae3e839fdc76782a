"""Deep memories: a residual MLP ``M(x) = x + W_L gelu(... gelu(W_1 x))`` of depth 1 to 4 as the state (eq. 89, 91).

Gradients and targets are taken at the start of the chunk (eq. 90), by hand, for all its tokens at once; what is read is
the running state, layer by layer, without forming it (``closed.Written``); tokens are columns, as there. GD, TTT, DLA,
Titans and DGD differ in the objective, the momentum and in which matrices the DGD factor takes out what is there (A4 of
the ambiguities: option a is ``erase="key"``, b ``"layer"``, c ``"none"``).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.memory import check, reference
from circadia.memory.closed import Solver, Tile, Written, log_retention, write
from circadia.memory.derivatives import gelu_and_slope, shorten
from circadia.memory.layout import Flags
from circadia.memory.rule import INF, Gates, How, Rule, Shapes
from circadia.memory.state import MOMENTUM, START, State

EPS = 1e-5  # of the layer norm


class Inner(NamedTuple):
    """The inner gradient of every token of a tile: for matrix l the outer product of ``error[l]`` and ``inputs[l]``."""

    error: list[Tensor]
    inputs: list[Tensor]
    out_error: Tensor  # at the output, which is also the error of a linear skip
    loss: Tensor | None


def inner_gradient(
    ws: list[Tensor],
    k: Tensor,
    first: Tensor,
    skip: Tensor,
    target: Tensor,
    objective: str,
    surprise: bool,
    norm: tuple[Tensor, Tensor] | None = None,
) -> Inner:
    """Backpropagation through the memory, written out. k, target [..., d, C]; ``first`` is W_1 k, ``skip`` is added to
    the output.

    The loss is formed if ``surprise`` asks for it; without it the dot product does not need the output at all.
    """
    blind = objective == "dot" and norm is None and not surprise
    inputs, slopes, a = [k], [], first
    for i, w in enumerate(ws[1:], 2):
        h, slope = gelu_and_slope(a)
        inputs.append(h)
        slopes.append(slope)
        a = target if blind and i == len(ws) else w @ h
    if norm is not None:
        var, mean = torch.var_mean(a, -2, correction=0, keepdim=True)
        inverse = torch.rsqrt(var + EPS)
        hat = (a - mean) * inverse
        a = hat * norm[0][..., None] + norm[1][..., None]
    out_error, loss = -target, None
    if objective == "l2":
        out_error = skip + a - target
        loss = 0.5 * out_error.square().sum(-2) if surprise else None
    elif surprise:
        loss = -((skip + a) * target).sum(-2)
    error = out_error
    if norm is not None:
        ghat = error * norm[0][..., None]
        error = inverse * (ghat - ghat.mean(-2, keepdim=True) - hat * (ghat * hat).mean(-2, keepdim=True))
    errors = [error]
    for w, slope in zip(reversed(ws[1:]), reversed(slopes)):
        errors.append(slope * (w.mT @ errors[-1]))
    return Inner(errors[::-1], inputs, out_error, loss)


def read(ws: list[Written], x: Tensor, skip: Tensor, tile: Tile, norm: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The memory's answer at every token from its own W_t; with ``tile.before`` from W_{t-1}."""
    for i, w in enumerate(ws):
        x = w.read(x if i == 0 else F.gelu(x), tile)
    return skip + normed(x, norm)


def plain(ws: list[Tensor], x: Tensor, skip: Tensor, norm: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The memory's answer from one state."""
    for i, w in enumerate(ws):
        x = w @ (x if i == 0 else F.gelu(x))
    return skip + normed(x, norm)


def normed(x: Tensor, norm: tuple[Tensor, Tensor] | None) -> Tensor:
    if norm is None:
        return x
    return F.layer_norm(x.mT, x.shape[-2:-1], eps=EPS).mT * norm[0][..., None] + norm[1][..., None]


@dataclass(frozen=True, kw_only=True)
class MlpMemory(Rule):
    """What deep and self-modifying memories share: a residual MLP as state, its objective, its bounds."""

    objective: Literal["l2", "dot"] = "l2"
    inertia: bool = False  # Titans' momentum; needs the gate "beta"
    scale: float = 1.0  # of the inner loss
    output_scale: float | None = 1.0  # of the step of the last matrix; None is 1 / chunk
    max_target: float | None = None  # longest target
    clip: float | None = 1.0  # longest error of a token, per matrix
    bound: float | None = 4.0

    def __post_init__(self) -> None:
        check.one_of("objective", self.objective, ("l2", "dot"))

    @property
    def anchored(self) -> bool:
        return True

    @property
    def momentum(self) -> bool:
        return self.inertia

    @property
    def same_width(self) -> bool:
        return True

    @property
    def max_norm(self) -> float | None:
        return self.bound

    @property
    def goal(self) -> str:
        return "L2 regression, 1/2 |M(k) - v|^2" if self.objective == "l2" else "dot product, -<M(k), v>"

    def clipped(self, error: Tensor) -> Tensor:
        """Errors [..., m, C] as they are written."""
        return shorten(error if self.scale == 1.0 else self.scale * error, self.clip, -2)

    def last_scale(self, chunk: int) -> float:
        return 1.0 / chunk if self.output_scale is None else self.output_scale


@dataclass(frozen=True, kw_only=True)
class Deep(MlpMemory):
    """``W_l <- alpha_t W_l - eta_t grad`` for each matrix of an MLP, ``M(x) = x + W_2 gelu(W_1 x)`` at depth 2.

    The gradient is taken at the start of the chunk (eq. 90), of ``L = 1/2 |M(k) - v|^2`` or ``L = -<M(k), v>``. With
    inertia the step goes through ``S_t = beta_t S_{t-1} - eta_t grad`` (Titans). With ``erase="key"`` the first matrix
    has DGD's factor, ``W_1 <- W_1 (alpha_t I - eta_t k k^T) - eta_t grad`` (eq. 88), with ``"layer"`` each its own.

    State "w0" [B, H, hidden, d], ..., "w{depth-1}" [B, H, d, hidden]; keys and values share the width d.
    """

    depth: int = 2
    erase: Literal["none", "key", "layer"] = "none"
    decays: bool = False  # needs the gate "alpha"
    norm: bool = False  # TTT's layer norm before the residual; its affine part is in the state and not written

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("depth", self.depth, (1, 2, 3, 4))
        check.one_of("erase", self.erase, ("none", "key", "layer"))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("eta", *(("alpha",) if self.decays else ()), *(("beta",) if self.inertia else ()))

    def weights(self, d_k: int, d_v: int) -> Shapes:
        inside: list[tuple[int | None, ...]] = [(None, None) for _ in range(self.depth)]
        inside[0] = (d_v if self.depth == 1 else None, d_k)
        inside[-1] = (d_v, d_k if self.depth == 1 else None)
        return {f"w{i}": shape for i, shape in enumerate(inside)}

    def extra(self, d_v: int) -> Shapes:
        return {"ln.weight": (d_v,), "ln.bias": (d_v,)} if self.norm else {}

    def init(
        self,
        batch: int,
        heads: int,
        d_k: int,
        d_v: int | None = None,
        *,
        hidden: int | None = None,
        gain: float = 0.5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> State:
        """Random features in front, a last matrix of ``gain`` / sqrt(hidden): every row of the batch starts alike."""
        hidden = d_k if hidden is None else hidden
        widths = [d_k] + [hidden] * (self.depth - 1) + [d_k if d_v is None else d_v]
        state: State = {}
        for i, (n, m) in enumerate(pairwise(widths)):
            w = torch.randn(heads, m, n, generator=generator, dtype=dtype) / n**0.5
            last = gain if i == self.depth - 1 else 1.0
            state[f"w{i}"] = (w * last).to(device).expand(batch, -1, -1, -1)
        if self.norm:
            state["ln.weight"] = torch.ones(batch, heads, widths[-1], dtype=dtype, device=device)
            state["ln.bias"] = torch.zeros(batch, heads, widths[-1], dtype=dtype, device=device)
        return state

    def ranges(self, k: Tensor, v: Tensor, gates: Gates) -> dict[str, tuple[Tensor, float, float]]:
        found = {f"gates['{n}']": (gates[n], 0.0, 1.0) for n in ("alpha", "beta") if n in gates}
        found["gates['eta']"] = (gates["eta"], 0.0, INF)
        if self.erase != "none":
            found["gates['eta'] * |k|^2"] = (gates["eta"] * k.square().sum(-1), 0.0, 2.0 + 1e-3)
        return found

    def token(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, how: How
    ) -> tuple[Tensor, State, Tensor]:
        return reference.deep(self, q, k, v, gates, state, how)

    def tiles(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, flags: Flags, how: How
    ) -> tuple[Tensor, State, Tensor | None]:
        names, n = list(self.weights(1, 1)), k.shape[2]
        live = None if flags.live is None else flags.live[:, None].to(k.dtype)
        eta = gates["eta"] if live is None else gates["eta"] * live
        log_a = log_retention(gates["alpha"]) if self.decays else None
        log_b = log_retention(gates["beta"]) if self.inertia else None
        if live is not None:
            log_a = None if log_a is None else log_a * live
            log_b = None if log_b is None else log_b * live
        # What does not depend on the state is formed for all tiles at once.
        columns = [x.mT.contiguous() for x in (q, k, shorten(v, self.max_target))]
        eta = eta[..., None, :]
        tile = Tile.make(log_a, log_b, live, columns[1])
        before = tile.before if self.erase != "none" or how.read == "previous" else tile
        solvers: list[Solver | None] = [None] * n
        if self.erase != "none":
            solvers = [*Solver.make(columns[1], [eta], before)[0].unbind(n)]
        parts = zip(*(x.unbind(2) for x in (*columns, eta)))
        ys, losses = [], []
        for i, ((q_i, k_i, target, eta_i), at, earlier, solver) in enumerate(
            zip(parts, tile.unbind(n), before.unbind(n), solvers)
        ):
            state = self.opened(state, i, flags, how)
            norm = (state["ln.weight"], state["ln.bias"]) if self.norm else None
            y, written, loss = self._tile(q_i, k_i, target, eta_i, state, at, earlier, solver, norm, how)
            state = dict(state)
            for name, w in zip(names, written):
                state[name], momentum = w.end()
                if momentum is not None:
                    state[MOMENTUM + name] = momentum
            ys.append(y)
            losses.append(loss)
        surprise = torch.stack([x for x in losses if x is not None], 2) if how.surprise else None
        return torch.stack(ys, 2).mT, state, surprise

    def _tile(
        self,
        q: Tensor,
        k: Tensor,
        target: Tensor,
        eta: Tensor,
        state: State,
        tile: Tile,
        before: Tile,
        key_solver: Solver | None,
        norm: tuple[Tensor, Tensor] | None,
        how: How,
    ) -> tuple[Tensor, list[Written], Tensor | None]:
        names = list(self.weights(1, 1))
        start = [state[START + n] for n in names]
        point = [w.detach() for w in start] if how.order == "first" else start
        first = point[0] @ k
        inner = inner_gradient(point, k, first, k, target, self.objective, how.surprise, norm)
        written = []
        for l, (name, error, x) in enumerate(zip(names, inner.error, inner.inputs)):
            rate, solver = eta, key_solver if l == 0 else None
            if self.erase == "layer" and l > 0:
                rate = eta / (1.0 + eta * x.square().sum(-2, keepdim=True))
                (solver,) = Solver.make(x, [rate], before)
            step = rate * self.last_scale(how.chunk) if l == len(names) - 1 else rate
            f = step * self.clipped(error)
            free = first if l == 0 and state[name] is point[0] else None  # the state is its own chunk start
            written.append(write(state[name], state.get(MOMENTUM + name), x, f, tile, solver, free))
        if how.read == "chunk":
            y = plain(start, q, q, norm)
        else:
            y = read(written, q, q, tile if how.read == "running" else before, norm)
        return y, written, inner.loss
