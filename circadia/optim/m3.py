"""M3, multi-scale momentum Muon (Nested Learning, Alg. 1 and eq. 75): momenta that are written at their own periods."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from circadia.optim import check, sharded
from circadia.optim.base import SECOND_MOMENT, Group, descend, number, zeros
from circadia.optim.muon import READ, Orthogonal
from circadia.optim.orthogonalize import QUINTIC, SCALES, Coefficients, shape_scale
from circadia.optim.rules import State


class M3(Orthogonal):
    """``W -= lr (sum_i w_i O_i) / sqrt(V + eps)``, with the orthogonalised momentum O_i of level i.

    A level takes in the gradients of its period at the end of it and is orthogonalised then; in between its O_i is
    stale, and a step costs no more than Muon's. See `circadia.optim.orthogonal.M3` for the equations.

    mode      "ema": running means, and V corrected for its start at 0. "literal": the accumulators of Algorithm 1,
              which never fade, so that the steps become shorter as V grows
    periods, betas, weights   one entry a level. Algorithm 1 has periods (1, f), betas (beta_1, beta_3), weights
              (1, alpha). Newton-Schulz makes a full step of any slow momentum, however little is in it, so its weight
              is small: on the digits of docs/experiments.md 0.5 costs much, at any period, and 0.1 hardly anything
    beta_v    beta_2 of the element-wise V; None for no V
    scale     None: "rms" for "ema", "none" for "literal". "rms" rescales the step to a root mean square of 0.2, after
              which learning rates of AdamW fit; the others as in `Muon`
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        mode: str = "ema",
        periods: Sequence[int] = (1, 100),
        betas: Sequence[float] = (0.95, 0.9),
        weights: Sequence[float] = (1.0, 0.1),
        beta_v: float | None = 0.999,
        eps: float = 1e-8,
        scale: str | None = None,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        ns_coefficients: Coefficients = QUINTIC,
        ns_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "mode": mode,
                "periods": periods,
                "betas": betas,
                "weights": weights,
                "beta_v": beta_v,
                "eps": eps,
                "scale": scale,
                "weight_decay": weight_decay,
                "ns_steps": ns_steps,
                "ns_coefficients": ns_coefficients,
                "ns_dtype": ns_dtype,
            },
        )

    def check(self, group: Group) -> None:
        super().check(group)
        check.one_of("mode", group["mode"], ("ema", "literal"))
        if not isinstance(group["periods"], Sequence) or not group["periods"]:
            raise ValueError(f"periods={group['periods']!r} must name one or more levels: for example (1, 100)")
        for name, one in (("periods", check.count), ("betas", check.fraction), ("weights", check.rate)):
            check.as_many(name, group[name], "periods", len(group["periods"]))
            for i, value in enumerate(group[name]):
                one(f"{name}[{i}]", value)
        if group["beta_v"] is not None:
            check.fraction("beta_v", group["beta_v"])
        if group["scale"] is None:
            group["scale"] = "rms" if group["mode"] == "ema" else "none"
        check.one_of("scale", group["scale"], (*SCALES, "rms"))

    def start(self, group: Group, p: Tensor) -> State:
        names = ["square"] if group["beta_v"] is not None else []
        for i, period in enumerate(group["periods"]):
            names += [f"momentum_{i}"] if period == 1 else [f"momentum_{i}", f"sum_{i}", f"orthogonal_{i}"]
        return {name: zeros(p) for name in names}

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], step: int) -> None:
        total: list[Tensor] = []
        for i, (period, weight) in enumerate(zip(group["periods"], group["weights"])):
            if period == 1:
                read = self.orthogonal(group, self._write(group, i, states, grads), params)
            else:
                read = [state[f"orthogonal_{i}"] for state in states]
            if total:
                torch._foreach_add_(total, read, alpha=weight)
            elif period == 1 and weight == 1:  # made in this step, so it may be changed
                total = read
            else:
                total = list(torch._foreach_mul(read, weight))
            if period > 1:
                self._collect(group, i, params, states, grads, step)
        if group["beta_v"] is not None:
            torch._foreach_div_(total, self._size(group, states, grads, step))
        if group["scale"] == "rms":
            sharded.rescale(total, params)
        elif group["scale"] != "none":
            torch._foreach_mul_(total, [shape_scale(group["scale"], p.shape) for p in params])
        descend(params, total, group["lr"], group["weight_decay"])

    def _collect(
        self, group: Group, i: int, params: list[Tensor], states: list[State], grads: list[Tensor], step: int
    ) -> None:
        """A slow level: it adds up, and is written and orthogonalised at the end of its period."""
        sums = [state[f"sum_{i}"] for state in states]
        torch._foreach_add_(sums, grads)
        if step % group["periods"][i] == 0:
            read = self.orthogonal(group, self._write(group, i, states, sums), params)
            torch._foreach_copy_([state[f"orthogonal_{i}"] for state in states], read)
            torch._foreach_zero_(sums)

    def _write(self, group: Group, i: int, states: list[State], total: list[Tensor]) -> list[Tensor]:
        """Momentum i takes in the sum of the gradients of its period."""
        momentum = [state[f"momentum_{i}"] for state in states]
        beta = group["betas"][i]
        if group["mode"] == "literal":
            torch._foreach_add_(momentum, total, alpha=beta)
        else:
            torch._foreach_lerp_(momentum, total, 1 - beta)
        return momentum

    def _size(self, group: Group, states: list[State], grads: list[Tensor], step: int) -> list[Tensor]:
        """sqrt(V + eps), V corrected for its start at 0: sqrt(V + c eps) / sqrt(c), one pass over the weights less."""
        square, beta = [state["square"] for state in states], group["beta_v"]
        if group["mode"] == "literal":
            torch._foreach_addcmul_(square, grads, grads, value=beta)
            size = torch._foreach_add(square, group["eps"])
            torch._foreach_sqrt_(size)
            return list(size)
        torch._foreach_mul_(square, number(beta, square[0]))
        torch._foreach_addcmul_(square, grads, grads, value=1 - beta)
        correction = 1 - beta**step
        size = torch._foreach_add(square, correction * group["eps"])
        torch._foreach_sqrt_(size)
        if group["scale"] != "rms":  # which takes out any factor
            torch._foreach_mul_(size, correction**-0.5)
        return list(size)

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        literal = group["mode"] == "literal"
        if group["beta_v"] is not None:
            beta = group["beta_v"]
            rule = f"V = V + {beta:g} g^2" if literal else f"V = {beta:g} V + {1 - beta:g} g^2"
            yield {"name": "second moment", "objective": SECOND_MOMENT, "rule": rule}, ["square"]
        for i, (period, beta) in enumerate(zip(group["periods"], group["betas"])):
            written = f"M + {beta:g} sum g" if literal else f"{beta:g} M + {1 - beta:g} sum g"
            level = {
                "name": f"momentum {i + 1}",
                "period": period,
                "objective": READ,
                "rule": f"M = {written}, weight {group['weights'][i]:g}",
            }
            if period > 1:
                level["enters"] = f"the gradients of {period} steps at once"
                level["leaves"] = "written into the weights at every step, stale for a period"
            yield level, [f"momentum_{i}", f"sum_{i}", f"orthogonal_{i}"]
