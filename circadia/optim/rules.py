"""Update rules as pure functions: ``rule(w, grad, state, step) -> (w, state)``.

``w`` and ``grad`` are one parameter and its gradient, ``state`` a flat dict from ``rule.init(w)``, ``step`` counts from
1. Nothing is changed in place, so a rule serves as an outer optimizer (``circadia.optim.base.RuleOptimizer``), as the
inner optimizer of a memory, and under ``torch.vmap`` and ``torch.func.grad``. Equation numbers are those of Nested
Learning (arXiv 2512.24695).

The paper has the rate inside the momentum, W += m with m = alpha m - eta g; here it is outside, W -= eta m with
m = alpha m + g. At a constant rate these are the same numbers; under a schedule a rate of 0 really stands still.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

State = dict[str, Tensor]
Rate = Any  # a number, or a 0-d tensor that may change without a new compilation


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """An update rule. Weight decay is decoupled: W <- (1 - lr weight_decay) W before the step."""

    lr: Rate
    weight_decay: float = 0.0
    elementwise: ClassVar[bool] = False  # does every entry go its own way, whatever the others?

    def init(self, w: Tensor) -> State:
        """What the rule remembers before the first gradient."""
        return {}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        """Where to go, to be multiplied by -lr, and what is remembered from now on."""
        raise NotImplementedError

    def __call__(self, w: Tensor, grad: Tensor, state: State, step: int = 1) -> tuple[Tensor, State]:
        """One step."""
        direction, state = self.direction(grad, state, step)
        if self.weight_decay:
            w = w * (1 - self.lr * self.weight_decay)
        return w - self.lr * direction, state


@dataclass(frozen=True, eq=False, kw_only=True)
class GD(Rule):
    """W - eta g: the proximal step on the local surprise <W x, u> (eq. 8-9)."""

    elementwise = True

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        return grad, state


@dataclass(frozen=True, eq=False, kw_only=True)
class Momentum(Rule):
    """m = m (alpha - erase ghat^T ghat) + P(phi(g)), W -= eta sigma(m).

    eq. 33      nothing else set: momentum, a value-less memory of gradients
    eq. 46-47   ``precondition``: P, any function of the gradient
    eq. 48-49   ``erase``: delta momentum, a memory that takes out what it holds along the new gradient. ghat is the
                gradient divided by its Frobenius norm, so that the factor never leaves [alpha - erase, alpha]. The
                printed equation has erase = 1; gradient descent on |m g^T - P|^2 at rate eta, which it is derived
                from, has erase = eta and alpha = 1
    eq. 51      ``feature``: phi
    eq. 52      ``output``: sigma; with Newton-Schulz it is Muon (eq. 42)

    ``side``: "row" multiplies from the right as printed in the long version, m ghat^T ghat; "column" from the left,
    ghat ghat^T m, as in the camera-ready. A vector is one row.
    """

    decay: float = 0.9
    erase: float = 0.0
    side: str = "row"
    feature: Callable[[Tensor], Tensor] | None = None
    precondition: Callable[[Tensor], Tensor] | None = None
    output: Callable[[Tensor], Tensor] | None = None

    def init(self, w: Tensor) -> State:
        return {"momentum": torch.zeros_like(w)}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        m = self.decay * state["momentum"]
        if self.erase:
            m = m - self.erase * along(state["momentum"], grad, self.side)
        value = grad if self.feature is None else self.feature(grad)
        m = m + (value if self.precondition is None else self.precondition(value))
        return (m if self.output is None else self.output(m)), {**state, "momentum": m}


def along(m: Tensor, grad: Tensor, side: str = "row") -> Tensor:
    """What m holds along a gradient: m ghat^T ghat ("row") or ghat ghat^T m ("column"); 0 where it is 0."""
    g = grad.unsqueeze(0) if grad.ndim < 2 else grad
    g = g / g.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
    held = m.reshape(g.shape)
    out = held @ g.mT @ g if side == "row" else g @ (g.mT @ held)
    return out.reshape(m.shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class Adam(Rule):
    """Adam, and AdamW with weight decay, as in torch. As a memory: ``circadia.optim.memories`` (eq. 101-105)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    elementwise = True

    def init(self, w: Tensor) -> State:
        return {"mean": torch.zeros_like(w), "square": torch.zeros_like(w)}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        b1, b2 = self.betas
        mean = b1 * state["mean"] + (1 - b1) * grad
        square = b2 * state["square"] + (1 - b2) * grad * grad
        corrected = mean / (1 - b1**step)
        return corrected / ((square / (1 - b2**step)).sqrt() + self.eps), {"mean": mean, "square": square}


@dataclass(frozen=True, eq=False, kw_only=True)
class AdaGrad(Rule):
    """AdaGrad as in torch. As a memory: ``circadia.optim.memories`` (eq. 106-111)."""

    eps: float = 1e-10

    elementwise = True

    def init(self, w: Tensor) -> State:
        return {"square": torch.zeros_like(w)}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        square = state["square"] + grad * grad
        return grad / (square.sqrt() + self.eps), {"square": square}


@dataclass(frozen=True, eq=False, kw_only=True)
class RMSProp(Rule):
    """RMSProp as in torch."""

    alpha: float = 0.99
    eps: float = 1e-8

    elementwise = True

    def init(self, w: Tensor) -> State:
        return {"square": torch.zeros_like(w)}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        square = self.alpha * state["square"] + (1 - self.alpha) * grad * grad
        return grad / (square.sqrt() + self.eps), {"square": square}


@dataclass(frozen=True, eq=False, kw_only=True)
class Preconditioned(Rule):
    """m = alpha m + P g (eq. 46-47) with P = 1 / (sqrt(v) + eps), v Adam's running mean of g^2.

    The gradient is divided before it is remembered; Adam divides what it remembers.
    """

    momentum: float = 0.9
    beta: float = 0.999
    eps: float = 1e-8

    elementwise = True

    def init(self, w: Tensor) -> State:
        return {"momentum": torch.zeros_like(w), "square": torch.zeros_like(w)}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        square = self.beta * state["square"] + (1 - self.beta) * grad * grad
        size = (square / (1 - self.beta**step)).sqrt() + self.eps
        m = self.momentum * state["momentum"] + grad / size
        return m, {"momentum": m, "square": square}
