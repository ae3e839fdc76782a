"""Muon and AdaMuon for matrices of any number of leading axes, all of one shape in one Newton-Schulz.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; in Nested Learning eq. 42.
AdaMuon: Si, Zhang and Shen 2025, arXiv 2507.11005.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from circadia.optim import check, sharded
from circadia.optim.base import Base, Group, descend, zeros
from circadia.optim.orthogonalize import QUINTIC, SCALES, Coefficients, orthogonalize, shape_scale
from circadia.optim.rules import State

CPU_PIECE = 2**18  # numbers, 1 MiB of float32
READ = "-<m, grad L>, read through Newton-Schulz, which fits an orthogonal matrix (eq. 42-44)"


class Orthogonal(Base):
    """What Muon, AdaMuon and M3 share: matrices only, and the settings of Newton-Schulz."""

    matrices_only = True

    def check(self, group: Group) -> None:
        super().check(group)
        check.count("ns_steps", group["ns_steps"])
        check.coefficients("ns_coefficients", group["ns_coefficients"])
        check.rate("eps", group["eps"])

    def pieces(self, params: list[Tensor]) -> list[slice]:
        """On a CPU a few at a time: what is made for one piece fits its cache, and the next one has the same memory.

        All together they would be new pages at every step, which cost a tenth of it.
        """
        if any(p.device.type != "cpu" or sharded.spread(p) for p in params):
            return [slice(None)]
        ends, size = [0], 0
        for i, p in enumerate(params):
            if size and size + p.numel() > CPU_PIECE:
                ends.append(i)
                size = 0
            size += p.numel()
        return [slice(*pair) for pair in pairwise([*ends, len(params)])]

    def orthogonal(self, group: Group, matrices: list[Tensor], params: list[Tensor]) -> list[Tensor]:
        """Newton-Schulz with the settings of a group, of matrices that are laid out as the parameters."""

        def newton_schulz(whole: list[Tensor]) -> list[Tensor]:
            return orthogonalize(whole, group["ns_steps"], group["ns_coefficients"], dtype=group["ns_dtype"])

        return sharded.on_matrices(newton_schulz, matrices, params)


class Muon(Orthogonal):
    """``m = mu m + (1 - mu) g, W -= lr NS(mu m + (1 - mu) g)``: `torch.optim.Muon` (eq. 42), in batches.

    3-D parameters are welcome: each is a batch of matrices of its last two axes. A convolution is no such batch: give
    it to AdamW, as `build` does.

    The products of Newton-Schulz are float32; `ns_dtype=torch.bfloat16` has torch's own precision, and is faster on a
    GPU.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        scale: str = "original",
        ns_steps: int = 5,
        ns_coefficients: Coefficients = QUINTIC,
        ns_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "scale": scale,
                "ns_steps": ns_steps,
                "ns_coefficients": ns_coefficients,
                "ns_dtype": ns_dtype,
                "eps": 1e-7,
            },
        )

    def check(self, group: Group) -> None:
        super().check(group)
        check.fraction("momentum", group["momentum"])
        check.one_of("scale", group["scale"], SCALES)

    def start(self, group: Group, p: Tensor) -> State:
        return {"momentum": zeros(p)}

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], step: int) -> None:
        beta = group["momentum"]
        momentum = [state["momentum"] for state in states]
        torch._foreach_lerp_(momentum, grads, 1 - beta)
        read = torch._foreach_lerp(grads, momentum, beta) if group["nesterov"] else momentum
        steps = self.orthogonal(group, list(read), params)
        scales = [shape_scale(group["scale"], p.shape) for p in params]
        descend(params, list(torch._foreach_mul(steps, scales)), group["lr"], group["weight_decay"])

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        beta = group["momentum"]
        rule = f"m = {beta:g} m + {1 - beta:g} grad L"
        yield {"name": "momentum", "objective": READ, "rule": rule}, ["momentum"]


class AdaMuon(Orthogonal):
    """``O = NS(sign m), W -= lr O / sqrt(v)``: Muon on the signs, over the running root mean square of its own steps.

    The step of a matrix has a root mean square of 0.2, so learning rates and weight decay of AdamW fit.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        sign: bool = True,
        eps: float = 1e-8,
        ns_steps: int = 5,
        ns_coefficients: Coefficients = QUINTIC,
        ns_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "sign": sign,
                "eps": eps,
                "ns_steps": ns_steps,
                "ns_coefficients": ns_coefficients,
                "ns_dtype": ns_dtype,
            },
        )

    def check(self, group: Group) -> None:
        super().check(group)
        check.fraction("momentum", group["momentum"])

    def start(self, group: Group, p: Tensor) -> State:
        return {"momentum": zeros(p), "square": zeros(p)}

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], step: int) -> None:
        beta = group["momentum"]
        momentum, square = ([state[name] for state in states] for name in ("momentum", "square"))
        torch._foreach_mul_(momentum, beta)
        torch._foreach_add_(momentum, grads)
        o = self.orthogonal(group, list(torch._foreach_sign(momentum)) if group["sign"] else momentum, params)
        torch._foreach_mul_(square, beta)
        torch._foreach_addcmul_(square, o, o, value=1 - beta)
        size = torch._foreach_sqrt(square)
        torch._foreach_add_(size, group["eps"])
        steps = list(torch._foreach_div(o, size))
        sharded.rescale(steps, params)
        descend(params, steps, group["lr"], group["weight_decay"])

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        beta = group["momentum"]
        yield {"name": "momentum", "objective": READ, "rule": f"m = {beta:g} m + grad L"}, ["momentum"]
        goal, rule = "running mean of the squared orthogonal steps", f"v = {beta:g} v + {1 - beta:g} O^2"
        yield {"name": "second moment", "objective": goal, "rule": rule}, ["square"]
