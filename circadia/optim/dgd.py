"""Delta gradient descent as an optimizer (Nested Learning, eq. 56-57): each linear layer with its own inputs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from circadia.optim import check
from circadia.optim.base import Base, Group, precision
from circadia.optim.general import RATES, dgd
from circadia.optim.rules import State


class DGD(Base):
    """W <- W (I - eta' C) - eta' G for the weights of `nn.Linear`; plain gradient descent for all other parameters.

    C is the mean of x x^T over the samples (tokens) since the last step, taken by hooks on the layers as the gradient
    flows back, G the gradient of the parameter. For G to be the mean of delta x^T the loss has to be a mean over
    samples. A sample whose delta is 0 (padding, an ignored label) is not counted. `rate` and `erase` are those of
    `circadia.optim.general.dgd`.

    The paper's rule takes out W x together with the gradient, so a regression settles at half its target (A10);
    `erase=0` leaves gradient descent at the normalised rate.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor = 1e-2,
        *,
        params: ParamsT | None = None,
        rate: str = "exact",
        erase: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}: DGD hooks its layers")
        self.model = model
        self.seen: dict[Tensor, tuple[Tensor, Tensor]] = {}  # weight -> sum of x x^T and number of samples
        super().__init__(
            [p for p in model.parameters() if p.requires_grad] if params is None else params,
            {"lr": lr, "rate": rate, "erase": erase, "weight_decay": weight_decay},
        )
        self.hooks = [
            layer.register_forward_hook(self._watch) for layer in model.modules() if isinstance(layer, nn.Linear)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "model": self.model, "seen": self.seen, "hooks": self.hooks}

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def check(self, group: Group) -> None:
        super().check(group)
        check.one_of("rate", group["rate"], RATES)
        check.rate("erase", group["erase"])

    def _watch(self, layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Wait for the gradient of this output: a forward pass without a backward one leaves no trace."""
        if output.requires_grad and layer.weight.requires_grad:
            x, weight = args[0].detach(), layer.weight
            output.register_hook(lambda delta: self._record(weight, x, delta))

    @torch.no_grad()
    def _record(self, weight: Tensor, x: Tensor, delta: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).to(precision(weight))
        counted = (delta.reshape(-1, delta.shape[-1]) != 0).any(-1).to(rows.dtype)
        gram, count = self.seen.get(weight, (0.0, 0.0))
        self.seen[weight] = (gram + (rows * counted[:, None]).mT @ rows, count + counted.sum())

    def start(self, group: Group, p: Tensor) -> State:
        return {}

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], step: int) -> None:
        lr = group["lr"].to(params[0].device) if isinstance(group["lr"], Tensor) else group["lr"]
        for p, g in zip(params, grads):
            w = p.to(g.dtype)
            if group["weight_decay"]:
                w = w * (1 - lr * group["weight_decay"])
            if p in self.seen:
                gram, count = self.seen.pop(p)
                new = dgd(w, g, gram / count.clamp_min(1), lr, rate=group["rate"], erase=group["erase"])
            else:
                new = w - lr * g
            p.copy_(new)

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        return ()  # nothing is remembered between two steps: the weights are the memory
