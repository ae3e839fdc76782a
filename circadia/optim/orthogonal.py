"""Muon, AdaMuon and M3 as pure rules: the truth that the classes are tested against."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circadia.optim.orthogonalize import QUINTIC, Coefficients, newton_schulz, shape_scale
from circadia.optim.rules import Rule, State


@dataclass(frozen=True, eq=False, kw_only=True)
class NS:
    """How a momentum is made orthogonal."""

    steps: int = 5
    coefficients: Coefficients = QUINTIC
    eps: float = 1e-7
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Newton-Schulz of matrices [..., m, n]."""
        return newton_schulz(x, self.steps, self.coefficients, eps=self.eps, dtype=self.dtype)


def to_rms(x: Tensor, rms: float = 0.2) -> Tensor:
    """Matrices rescaled to a root mean square of 0.2, about that of AdamW's steps; zero stays zero."""
    size = x.square().mean((-2, -1), keepdim=True).sqrt()
    return x * (rms / size.clamp_min(torch.finfo(x.dtype).tiny))


@dataclass(frozen=True, eq=False, kw_only=True)
class Muon(Rule):
    """W -= eta scale NS(m) (eq. 42), with the running mean and Nesterov's look ahead of ``torch.optim.Muon``."""

    momentum: float = 0.95
    nesterov: bool = True
    scale: str = "original"
    ns: NS = field(default_factory=NS)

    def init(self, w: Tensor) -> State:
        return {"momentum": torch.zeros_like(w)}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        m = state["momentum"] + (1 - self.momentum) * (grad - state["momentum"])
        read = grad + self.momentum * (m - grad) if self.nesterov else m
        return shape_scale(self.scale, grad.shape) * self.ns(read), {"momentum": m}


@dataclass(frozen=True, eq=False, kw_only=True)
class AdaMuon(Rule):
    """AdaMuon (arXiv 2507.11005, Alg. 1): Muon on the signs of the momentum, then Adam's division on what comes out.

    m = beta m + g,  O = NS(sign m),  v = beta v + (1 - beta) O^2,  U = O / (sqrt v + eps),
    W -= eta 0.2 sqrt(m n) U / |U|_F
    """

    momentum: float = 0.95
    eps: float = 1e-8
    sign: bool = True
    ns: NS = field(default_factory=NS)

    def init(self, w: Tensor) -> State:
        return {"momentum": torch.zeros_like(w), "square": torch.zeros_like(w)}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        m = self.momentum * state["momentum"] + grad
        o = self.ns(m.sign() if self.sign else m)
        square = self.momentum * state["square"] + (1 - self.momentum) * o * o
        return to_rms(o / (square.sqrt() + self.eps)), {"momentum": m, "square": square}


@dataclass(frozen=True, eq=False, kw_only=True)
class M3(Rule):
    """Multi-scale momentum Muon (Alg. 1, eq. 75), any number of momentum levels.

    Level i has a period P_i, a factor b_i and a weight a_i. Its momentum takes in the gradients of the last P_i steps
    at the end of every P_i-th step, and is orthogonalised then; in between its O_i is stale. A level of period 1 takes
    in and uses every gradient at once. W -= eta (sum_i a_i O_i) / sqrt(V + eps).

    mode "literal"  M_i += b_i sum g and V += b_v g^2, as printed: nothing ever fades
    mode "ema"      M_i = b_i M_i + (1 - b_i) sum g and V = b_v V + (1 - b_v) g^2, corrected for its start at 0;
                    sum or mean is one to Newton-Schulz, which divides by the norm
    ``beta_v`` None: no V, so no division.
    ``scale``: a shape scale of Muon, or "rms": the step is rescaled to a root mean square of 0.2. Dividing an
    orthogonal matrix by sqrt(V) normalises twice, so that its length is about 1 / |g|; "rms" takes that out.
    """

    mode: str = "ema"
    periods: Sequence[int] = (1, 100)
    betas: Sequence[float] = (0.95, 0.9)
    weights: Sequence[float] = (1.0, 0.1)
    beta_v: float | None = 0.999
    eps: float = 1e-8
    scale: str = "rms"
    ns: NS = field(default_factory=NS)

    def init(self, w: Tensor) -> State:
        names = ["square"] if self.beta_v is not None else []
        for i, period in enumerate(self.periods):
            names += [f"momentum_{i}"] if period == 1 else [f"momentum_{i}", f"sum_{i}", f"orthogonal_{i}"]
        return {name: torch.zeros_like(w) for name in names}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        new = dict(state)
        total = torch.zeros_like(grad)
        for i, (period, weight) in enumerate(zip(self.periods, self.weights)):
            if period == 1:
                new[f"momentum_{i}"] = self.written(state, i, grad)
                total = total + weight * self.ns(new[f"momentum_{i}"])
            else:
                total = total + weight * state[f"orthogonal_{i}"]
                new |= self.slow(state, i, grad, step)
        if self.beta_v is not None:
            literal = self.mode == "literal"
            square = (state["square"] if literal else self.beta_v * state["square"]) + grad * grad * (
                self.beta_v if literal else 1 - self.beta_v
            )
            new["square"] = square
            correction = 1.0 if literal else 1 - self.beta_v**step
            total = total / (square / correction + self.eps).sqrt()
        return (to_rms(total) if self.scale == "rms" else shape_scale(self.scale, grad.shape) * total), new

    def slow(self, state: State, i: int, grad: Tensor, step: int) -> State:
        """A level of a longer period: it collects, and writes when its time has come."""
        total = state[f"sum_{i}"] + grad
        if step % self.periods[i]:
            return {f"sum_{i}": total}
        m = self.written(state, i, total)
        return {f"sum_{i}": torch.zeros_like(total), f"momentum_{i}": m, f"orthogonal_{i}": self.ns(m)}

    def written(self, state: State, i: int, total: Tensor) -> Tensor:
        """Momentum i after the gradients of its period, given their sum."""
        m, beta = state[f"momentum_{i}"], self.betas[i]
        if self.mode == "literal":
            return m + beta * total
        return m + (1 - beta) * (total - m)
