"""A preconditioner that is itself learned by gradient descent (Nested Learning, eq. 38-41)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from circadia.optim import check
from circadia.optim.base import Group, RuleOptimizer
from circadia.optim.general import learn_preconditioner
from circadia.optim.orthogonal import NS
from circadia.optim.orthogonalize import SCALES, shape_scale
from circadia.optim.rules import Rule, State


@dataclass(frozen=True, eq=False, kw_only=True)
class Learned(Rule):
    """``P <- P - zeta grad_P 1/2 |P ghat - g|^2`` (eq. 39-41), ``m <- alpha m + P^-1 g`` (eq. 38, 47), ``W -= eta m``.

    The paper leaves ghat open: what P^-1 g shall become. Here it is the orthogonal matrix next to g, by Newton-Schulz,
    so that P learns (g g^T)^1/2, and without a past the step is Muon's. P is [k, k] for the smaller side k, starts
    at 0, and is corrected for it as Adam's means are. ``ridge`` times its mean diagonal is added before it is inverted.
    """

    zeta: float = 0.05
    momentum: float = 0.9
    ridge: float = 1e-3
    scale: str = "match_rms_adamw"
    ns: NS = field(default_factory=NS)

    def init(self, w: Tensor) -> State:
        k = min(w.shape[-2:])
        return {"preconditioner": w.new_zeros(*w.shape[:-2], k, k), "momentum": torch.zeros_like(w)}

    def direction(self, grad: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        tall = grad.shape[-2] > grad.shape[-1]
        g = grad.mT if tall else grad
        p = learn_preconditioner(state["preconditioner"], self.ns(g), g, self.zeta)
        held = p / (1 - (1 - self.zeta) ** step)
        size = held.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        # Where no gradient ever was, P is 0, and so is what is divided by it.
        solved = torch.linalg.solve(held + (self.ridge * size).clamp_min(1e-30) * eye, g)
        m = self.momentum * state["momentum"] + (1 - self.momentum) * (solved.mT if tall else solved)
        return shape_scale(self.scale, grad.shape) * m, {"preconditioner": p, "momentum": m}


class LearnedPreconditioner(RuleOptimizer):
    """``P <- P - zeta grad 1/2 |P ghat - g|^2, m <- alpha m + P^-1 g, W -= lr m`` (eq. 38-41).

    See `circadia.optim.preconditioner.Learned` for the choices.
    """

    matrices_only = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        zeta: float = 0.05,
        momentum: float = 0.9,
        ridge: float = 1e-3,
        scale: str = "match_rms_adamw",
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"zeta": zeta, "momentum": momentum, "ridge": ridge, "scale": scale}
        super().__init__(params, {"lr": lr, **settings, "weight_decay": weight_decay})

    def check(self, group: Group) -> None:
        super().check(group)
        if not isinstance(group["zeta"], (int, float)) or not 0 < group["zeta"] <= 1:
            raise ValueError(
                f"zeta={group['zeta']!r} is outside (0, 1], where P is stable: give, for example, zeta=0.05"
            )
        check.fraction("momentum", group["momentum"])
        check.rate("ridge", group["ridge"])
        check.one_of("scale", group["scale"], SCALES)

    def rule(self, group: Group) -> Rule:
        return Learned(**{row.name: group[row.name] for row in fields(Learned) if row.name != "ns"})

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        rule = f"P = P - {group['zeta']:g} (P ghat - g) ghat^T"
        goal = "1/2 |P ghat - g|^2, ghat the orthogonal matrix next to g (eq. 39-41)"
        yield {"name": "preconditioner", "objective": goal, "rule": rule}, ["preconditioner"]
        rule = f"m = {group['momentum']:g} m + {1 - group['momentum']:g} P^-1 g (eq. 47)"
        yield {"name": "momentum", "objective": "-<m, P^-1 grad L> (eq. 46)", "rule": rule}, ["momentum"]
