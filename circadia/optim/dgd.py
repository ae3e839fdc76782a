"""Delta gradient descent as an optimizer (Nested Learning, eq. 56-57): each linear layer with its own inputs."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from circadia.optim import check, sharded
from circadia.optim.base import Base, Group, precision
from circadia.optim.general import RATES, dgd, dgd_from_outputs
from circadia.optim.rules import State

# Sums over the samples of a layer since the last step: "gram" of x x^T, "held" of (W x) x^T, "size" of |x|^2, "count".
Seen = dict[str, Tensor]


class DGD(Base):
    """``W <- W (I - eta' C) - eta' G`` for the weights of `nn.Linear`; plain gradient descent for all other parameters.

    C is the mean of x x^T over the samples (tokens) since the last step, taken by hooks on the layers as the gradient
    flows back, G the gradient of the parameter. For G to be the mean of delta x^T the loss has to be a mean over
    samples. A sample whose delta is 0 (padding, an ignored label) is not counted. `rate` and `erase` are those of
    `circadia.optim.general.dgd`.

    Where several processes share a step (FSDP2, a model wrapped in `DistributedDataParallel`), C is the mean over the
    samples of all of them. A plain parameter does not tell who shares it: if the wrapped model is not at hand, name
    them in `process_group`.

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
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}: DGD hooks its layers")
        self.model = model
        self.outputs = True  # may W x stand in for x x^T?
        self.process_group = getattr(model, "process_group", None) if process_group is None else process_group
        # Not weight -> ...: a sharded model has another one while it runs.
        self.seen: dict[nn.Linear, Seen] = {}
        super().__init__(
            [p for p in model.parameters() if p.requires_grad] if params is None else params,
            {"lr": lr, "rate": rate, "erase": erase, "weight_decay": weight_decay},
        )
        self.hooks = [
            layer.register_forward_hook(self._watch) for layer in model.modules() if isinstance(layer, nn.Linear)
        ]

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("model", "seen", "hooks", "outputs", "process_group")}
        return {**super().__getstate__(), **own}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and the samples that they came from."""
        super().zero_grad(set_to_none)
        self.seen.clear()

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def check(self, group: Group) -> None:
        super().check(group)
        check.one_of("rate", group["rate"], RATES)
        self.outputs &= group["rate"] != "proximal"
        check.rate("erase", group["erase"])

    @torch.compiler.disable  # a compiled model is cut here, into graphs whose outputs are at hand
    def _watch(self, layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Wait for the gradient of this output: a forward pass without a backward one leaves no trace."""
        if output.requires_grad and layer.weight.requires_grad:
            x, y = args[0].detach(), output.detach()
            version = y._version

            def record(delta: Tensor) -> None:
                with torch.no_grad(), torch.autocast(delta.device.type, enabled=False):
                    self._record(layer, x, y if y._version == version else None, delta)

            output.register_hook(record)

    def _record(self, layer: nn.Linear, x: Tensor, y: Tensor | None, delta: Tensor) -> None:
        """Take in the samples of one pass; ``y`` is the output, None if it was overwritten."""
        rows = x.reshape(-1, x.shape[-1]).to(precision(layer.weight))
        # On a CPU many times as fast as (delta != 0).any(-1): the products beside it are all that this may cost.
        each = delta.reshape(-1, delta.shape[-1])
        counted = (each.amax(-1) != 0) | (each.amin(-1) != 0)
        everything = rows.device.type == "cpu" and bool(counted.all())
        kept = rows if everything else rows * counted[:, None]
        sums = self.seen.setdefault(layer, {})
        if y is not None and self._by_outputs(layer, y.dtype):
            out = y.reshape(-1, y.shape[-1])
            out = out if layer.bias is None else out - layer.bias
            new = {"held": out.mT @ kept}
        else:
            new = {"gram": kept.mT @ rows}
        new |= {"size": torch.dot(kept.reshape(-1), rows.reshape(-1)), "count": counted.sum().to(rows.dtype)}
        for name, value in new.items():
            sums[name] = sums[name] + value if name in sums else value

    def _by_outputs(self, layer: nn.Linear, dtype: torch.dtype) -> bool:
        """Is (W x) x^T less work than x x^T, and no less exact? By shapes alone, so that all processes agree."""
        exact = dtype == layer.weight.dtype == precision(layer.weight)
        there = layer.bias is None or not sharded.spread(layer.bias)
        return self.outputs and exact and there and layer.out_features <= layer.in_features

    def _group(self, p: Any) -> Any:
        """The processes that share a step; None if this one is alone."""
        if self.process_group is not None or not dist.is_available() or not dist.is_initialized():
            return self.process_group
        if sharded.spread(p) and p.device_mesh.ndim == 1:
            return p.device_mesh.get_group()
        if dist.get_world_size() > 1:
            raise ValueError(
                "process_group is not set, and neither the model nor a weight says which processes share a step: give "
                "DGD the DistributedDataParallel model, or process_group=torch.distributed.group.WORLD"
            )
        return None

    def _inputs(self, p: Any, layers: list[nn.Linear]) -> Seen:
        """Means over the samples of all layers that share a weight and all processes that share a step; then gone."""
        total = self.seen.pop(layers[0])
        for layer in layers[1:]:
            for name, x in self.seen.pop(layer).items():
                total[name] = total[name] + x if name in total else x
        group = self._group(p)
        if group is not None:
            for x in total.values():
                dist.all_reduce(x, group=group)
        count = total.pop("count").clamp_min(1)
        return {name: x / count for name, x in total.items()}

    def start(self, group: Group, p: Tensor) -> State:
        return {}

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], step: int) -> None:
        lr = group["lr"].to(params[0].device) if isinstance(group["lr"], Tensor) else group["lr"]
        layers: dict[Tensor, list[nn.Linear]] = {}
        for layer in self.seen:
            layers.setdefault(layer.weight, []).append(layer)
        p: Any
        for p, g in zip(params, grads):
            w, seen = sharded.local(p).to(g.dtype), self._inputs(p, layers[p]) if p in layers else None
            rows = not sharded.spread(p) or all(x.is_replicate() or x.is_shard(0) for x in p.placements)
            if seen is not None and not rows:  # W C needs whole rows
                w, g = sharded.whole(p).to(g.dtype), sharded.whole(sharded.part_of(g, p))
            kept = 1 - lr * group["weight_decay"]
            w = w * kept if group["weight_decay"] else w
            if seen is None:
                w = w - lr * g
            elif "held" not in seen:
                w = dgd(w, g, seen["gram"], lr, rate=group["rate"], erase=group["erase"])
            else:
                held = seen["held"] * kept
                held = sharded.local(sharded.like(held, p)) if rows else held
                held = held + w @ seen["gram"] if "gram" in seen else held
                size = seen["size"] if group["rate"] == "exact" else 1.0
                w = dgd_from_outputs(w, g, held, size, lr, erase=group["erase"])
            w = w if rows or seen is None else sharded.local(sharded.like(w, p))
            sharded.local(p).copy_(w)

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        return ()  # nothing is remembered between two steps: the weights are the memory
