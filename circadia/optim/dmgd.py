"""Deep momentum (DMGD, Nested Learning, eq. 50): the momentum is an MLP that gradients are written into."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad as slope
from torch.optim.optimizer import ParamsT

from circadia.optim import check
from circadia.optim.base import Group, RuleOptimizer
from circadia.optim.rules import Rule, State

OBJECTIVES = ("l2", "dot", "ones")


@dataclass(frozen=True, eq=False, kw_only=True)
class DeepMomentum(Rule):
    """theta = alpha theta - eta grad L(m_theta; u), W += lr |u| m_theta(u / |u|) with m written before it is read.

    The paper leaves size, grain and normalisation open. Here m takes the rows of the gradient one by one (a vector is
    one row) through ``depth`` matrices with exact GELU between them, ``hidden`` wide, no biases; the last one starts
    at zero, the others as cosines. Keys are divided by |u|, the root mean square length of the rows, and what is read
    is multiplied by it.

    objective "l2"    1/2 |m(u) + u|^2: the value stored under u is -u (the target -delta of eq. 35)
              "dot"   <m(u), u>: the same value, dot product
              "ones"  <m(u), 1> as printed: pushes every output down whatever the sign of u, so it is no descent
    """

    momentum: float = 0.999
    inner_lr: float = 0.1
    hidden: int = 32
    depth: int = 2
    objective: str = "l2"

    def init(self, w: Tensor) -> State:
        n = w.shape[-1] if w.ndim else 1
        sizes = [n, *[self.hidden] * (self.depth - 1), n]
        state = {}
        for i, (into, out) in enumerate(pairwise(sizes)):
            # Cosines, then the same with the other sign: features that are at right angles, without chance.
            angles = (torch.arange(out)[:, None] + 0.5) * (torch.arange(into) + 0.5) * (torch.pi / into)
            matrix = angles.cos() * (2 / into) ** 0.5 * (i < self.depth - 1)
            state[f"layer_{i}"] = matrix.to(w)
        return state

    def answer(self, state: State, rows: Tensor) -> Tensor:
        """m(u) for each row."""
        for i in range(self.depth):
            rows = (F.gelu(rows) if i else rows) @ state[f"layer_{i}"].mT
        return rows

    def loss(self, state: State, rows: Tensor) -> Tensor:
        """The inner objective, mean over rows."""
        read = self.answer(state, rows)
        if self.objective == "l2":
            return 0.5 * (read + rows).square().sum(-1).mean()
        return (read * rows if self.objective == "dot" else read).sum(-1).mean()

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        rows = grad.reshape(-1, grad.shape[-1] if grad.ndim else 1)
        size = rows.square().sum(-1).mean().sqrt()
        keys = rows / size.clamp_min(torch.finfo(rows.dtype).tiny)
        slopes = slope(self.loss)(state, keys)
        state = {name: self.momentum * x - self.inner_lr * slopes[name] for name, x in state.items()}
        return -(size * self.answer(state, keys)).reshape(grad.shape), state


class DMGD(RuleOptimizer):
    """``W += lr |u| m(u / |u|)``, where u is the gradient and m an MLP that gradients are written into (eq. 50).

    See `circadia.optim.dmgd.DeepMomentum` for what is written and for the choices.

    Its memory does not grow with the rows of a matrix: `hidden` x 2 x columns at depth 2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        *,
        momentum: float = 0.999,
        inner_lr: float = 0.1,
        hidden: int = 32,
        depth: int = 2,
        objective: str = "l2",
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "inner_lr": inner_lr,
                "hidden": hidden,
                "depth": depth,
                "objective": objective,
                "weight_decay": weight_decay,
            },
        )

    def check(self, group: Group) -> None:
        super().check(group)
        check.rate("inner_lr", group["inner_lr"])
        check.count("hidden", group["hidden"])
        check.count("depth", group["depth"])
        check.one_of("objective", group["objective"], OBJECTIVES)
        if not isinstance(group["momentum"], (int, float)) or not 0 <= group["momentum"] <= 1:
            raise ValueError(f"momentum={group['momentum']!r} is outside [0, 1]: give, for example, momentum=0.999")

    def rule(self, group: Group) -> Rule:
        return DeepMomentum(**{field.name: group[field.name] for field in fields(DeepMomentum)})

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        goal = {"l2": "1/2 |m(u) + u|^2", "dot": "<m(u), u>", "ones": "<m(u), 1>"}[group["objective"]]
        level = {
            "name": "deep momentum",
            "objective": f"{goal} on the rows u of the gradient (eq. 50)",
            "rule": f"theta = {group['momentum']:g} theta - {group['inner_lr']:g} grad, depth {group['depth']}",
        }
        yield level, [f"layer_{i}" for i in range(group["depth"])]
