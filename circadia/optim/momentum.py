"""Momentum that takes out before it puts in (Nested Learning, eq. 48-49), and momentum of divided gradients (46-47)."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from circadia.optim import check
from circadia.optim.base import SECOND_MOMENT, Group, RuleOptimizer
from circadia.optim.rules import Momentum, Preconditioned, Rule


class DeltaMomentum(RuleOptimizer):
    """``m = m (alpha - ghat^T ghat) + g, W -= lr m``: a memory of gradients that replaces what it holds along g.

    ``ghat = g / |g|_F``; `erase` weighs the ghat^T ghat term (1 as printed; see `rules.Momentum`), `side` is "row" as
    printed in the long version or "column" as in the camera-ready. P is the identity.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        *,
        momentum: float = 0.9,
        erase: float = 1.0,
        side: str = "row",
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "erase": erase, "side": side, "weight_decay": weight_decay}
        )

    def check(self, group: Group) -> None:
        super().check(group)
        if not isinstance(group["momentum"], (int, float)) or not 0 <= group["momentum"] <= 1:
            raise ValueError(f"momentum={group['momentum']!r} is outside [0, 1]: give, for example, momentum=0.9")
        erase = group["erase"]
        if not isinstance(erase, (int, float)) or not 0 <= erase <= 1 + group["momentum"]:
            raise ValueError(
                f"erase={erase!r} is outside [0, 1 + momentum], where the memory is stable: give, for example, erase=1"
            )
        check.one_of("side", group["side"], ("row", "column"))

    def rule(self, group: Group) -> Rule:
        return Momentum(
            lr=group["lr"],
            decay=group["momentum"],
            erase=group["erase"],
            side=group["side"],
            weight_decay=group["weight_decay"],
        )

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        rule = f"m = m ({group['momentum']:g} - {group['erase']:g} g^T g) + g (eq. 49)"
        goal = "|m g^T - P|^2: the memory corrects what it answers to the gradient (eq. 48)"
        yield {"name": "momentum", "objective": goal, "rule": rule}, ["momentum"]


class PreconditionedMomentum(RuleOptimizer):
    """``m = alpha m + g / (sqrt(v) + eps), W -= lr m``: eq. 46-47 with Adam's v as preconditioner."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.9,
        beta: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "beta": beta, "eps": eps, "weight_decay": weight_decay}
        )

    def check(self, group: Group) -> None:
        super().check(group)
        check.fraction("momentum", group["momentum"])
        check.fraction("beta", group["beta"])
        check.rate("eps", group["eps"])

    def rule(self, group: Group) -> Rule:
        return Preconditioned(**{name: group[name] for name in ("lr", "momentum", "beta", "eps", "weight_decay")})

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        rule = f"v = {group['beta']:g} v + {1 - group['beta']:g} g^2"
        yield {"name": "second moment", "objective": SECOND_MOMENT, "rule": rule}, ["square"]
        rule = f"m = {group['momentum']:g} m + g / sqrt(v) (eq. 47)"
        yield {"name": "momentum", "objective": "-<m, P grad L> (eq. 46)", "rule": rule}, ["momentum"]
