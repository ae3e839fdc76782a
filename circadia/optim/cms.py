"""The continuum memory system as an optimizer (Nested Learning, eq. 71): every group learns at its own period."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from circadia.levels import optimizers
from circadia.optim import check, sharded
from circadia.optim.base import Base, precision, restore

REDUCTIONS = ("mean", "sum")
UNITS = ("step", "token")


class CMS(Optimizer):
    """Any optimizer, stepping each parameter group when its period is over, on the gradients of the whole period.

    ``W_t = W_{t-C} - eta sum_{i=t-C+1}^{t} grad L_i(W_{t-C})`` when a period of C is over (eq. 71).

    groups = periods(model, {"layers.0.*": 1, "layers.1.*": 512, "*": 2048})
    optimizer = CMS(torch.optim.AdamW(groups), unit="token")
    ...
    optimizer.step(tokens=batch.numel())

    A group's key ``period`` says how many steps or tokens lie between two of its updates (1 if it is missing); in
    between its weights stand still and its gradients are added up. Call `zero_grad()` every step, as always.

    reduction "mean"  the mean over the period, of tokens where the unit is tokens: the same learning rate at any period
              "sum"   as printed in eq. 71: the sum over the steps; over the tokens, if gradients are means over tokens
    A period in tokens ends with the step in which it is full; what is over counts for the next one.
    """

    def __init__(self, optimizer: Optimizer, *, unit: str = "step", reduction: str = "mean") -> None:
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        check.one_of("unit", unit, UNITS)
        check.one_of("reduction", reduction, REDUCTIONS)
        self.unit, self.reduction = unit, reduction
        # Not named `optimizer`: that name means "only a wrapper" to circadia.levels, which would look through it.
        self.inner: Optimizer | None = None
        for group in optimizer.param_groups:
            group.setdefault("period", 1)
            group["unit"] = unit
            group.setdefault("waited", 0)  # steps or tokens since the group's last update
            check.count("period", group["period"])
        super().__init__(optimizer.param_groups, {})
        self.inner = optimizer
        self.param_groups = optimizer.param_groups
        self._open(self.param_groups)

    def _open(self, groups: Iterable[dict[str, Any]]) -> None:
        """A state before the first step: without one, torch's checkpoint helpers would take a step to get it."""
        for group in groups:
            for p in group["params"]:
                self.state[p] = {"cms_weight": torch.zeros(())}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with a period of their own."""
        if self.inner is None:  # while being made
            super().add_param_group(param_group)
            return
        check.count("period", param_group.get("period", 1))
        self.inner.add_param_group({"period": 1, "unit": self.unit, "waited": 0, **param_group})
        self.param_groups = self.inner.param_groups
        self._open(self.param_groups[-1:])

    @torch.no_grad()
    def step(self, closure: Any = None, *, tokens: int | None = None) -> Any:
        """One step of the stream, of so many tokens; groups whose period ends are updated."""
        assert self.inner is not None
        if self.unit == "token":
            check.count("tokens", tokens)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        size = tokens if self.unit == "token" else 1
        given = [(p, p.grad) for group in self.param_groups for p in group["params"]]
        for p, grad in given:  # before anything is changed
            if grad is not None and grad.layout != torch.strided:
                raise ValueError(
                    f"the gradient of a parameter of shape {tuple(p.shape)} is sparse: CMS adds gradients up and needs "
                    "dense ones; make the embedding with sparse=False"
                )
        for group in self.param_groups:
            group["waited"] += size
            due = group["waited"] >= group["period"]
            for p in group["params"]:
                p.grad = self._take_in(p, size, due)
            if due:
                group["waited"] %= group["period"]
        try:
            self.inner.step()
        finally:
            for p, grad in given:
                p.grad = grad
        return loss

    def _take_in(self, p: Tensor, size: int | None, due: bool) -> Tensor | None:
        """What the optimizer sees of a parameter in this step."""
        grad, held = p.grad, self.state[p]
        weight = float(size or 1)
        if due and "cms_sum" not in held:  # nothing to add: the gradient itself, bit for bit
            return grad if grad is None or self.reduction == "mean" or weight == 1 else grad * weight
        if grad is not None:
            if "cms_sum" not in held:
                held["cms_sum"] = torch.zeros_like(grad, dtype=precision(p))
            held["cms_sum"].add_(grad, alpha=weight)
            held["cms_weight"] += weight
        if not due or "cms_sum" not in held:
            return None
        total = held.pop("cms_sum")
        if self.reduction == "mean":
            total = total / held["cms_weight"].item()
        held["cms_weight"].zero_()
        return total.to(p.dtype)

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict, with the open periods beside what it remembers of each parameter.

        It has the same entries at any time, as `torch.distributed.checkpoint` needs it, which fills in what is there:
        zeros for a period that has just begun, and what stands for a state that the wrapped optimizer has not got yet
        (``cms_known`` is 0 then).
        """
        assert self.inner is not None
        saved = self.inner.state_dict()
        blank = {p: state for part in getattr(self.inner, "parts", [self.inner]) for p, state in _blank(part).items()}
        params = [p for group in self.param_groups for p in group["params"]]
        periods = [group["period"] for group in self.param_groups for _ in group["params"]]
        states = {}
        for i, (p, period) in enumerate(zip(params, periods)):
            own = dict(self.state[p])
            if period > 1 and "cms_sum" not in own:
                own["cms_sum"] = torch.zeros_like(p, dtype=precision(p))
            known = torch.tensor(float(p not in blank))
            states[i] = {**saved["state"].get(i, blank.get(p, {})), **own, "cms_known": known}
        return {"state": states, "param_groups": saved["param_groups"]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state in the middle of any period."""
        assert self.inner is not None
        held, groups = state_dict["state"], state_dict["param_groups"]
        if not all("cms_known" in state for state in held.values()) or not held:
            raise ValueError(
                "state_dict has no 'cms_known': it was not saved by CMS; load it into the optimizer inside"
            )
        inner, own = {}, {}
        for i, state in held.items():
            own[i] = {name: x for name, x in state.items() if name in ("cms_sum", "cms_weight")}
            if not own[i]["cms_weight"]:
                own[i].pop("cms_sum", None)
            if state["cms_known"]:
                inner[i] = {name: x for name, x in state.items() if not name.startswith("cms_")}
        self.inner.load_state_dict({"state": inner, "param_groups": groups})
        restore(self.inner, {"state": inner, "param_groups": groups})  # torch shares what it loads
        super().load_state_dict({"state": own, "param_groups": groups})
        restore(self, {"state": own, "param_groups": groups})
        self.param_groups = self.inner.param_groups

    def __getstate__(self) -> dict[str, Any]:
        own = {"inner": self.inner, "unit": self.unit, "reduction": self.reduction}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.inner is not None:
            self.param_groups = self.inner.param_groups

    def levels_entry(self) -> Iterable[Mapping[str, Any]]:
        """What the wrapped optimizer remembers, and the gradients of the open periods."""
        assert self.inner is not None
        groups = {id(p): group for group in self.param_groups for p in group["params"]}
        for part in getattr(self.inner, "parts", [self.inner]):
            if callable(getattr(part, "levels_entry", None)):
                yield from part.levels_entry()
                continue
            for level, parameters in optimizers.memories(part):
                group = groups[id(parameters[0])]
                fields = {name: value for name, value in vars(level).items() if name not in ("members", "parameters")}
                yield {**fields, "period": level.period * group["period"], "unit": group["unit"]}
        sums = [sharded.local(state["cms_sum"]) for state in self.state.values() if "cms_sum" in state]
        held = sum(x.numel() * x.element_size() for x in sums)
        if any(group["period"] > 1 for group in self.param_groups):
            yield {
                "name": "CMS open periods",
                "period": 1,
                "learns_from": "gradients",
                "objective": "none: gradients are added up until the period of their group is over (eq. 71)",
                "rule": f"{self.reduction} of the gradients of a period",
                "leaves": "handed to the optimizer at the end of the period, then empty",
                "state_bytes": held,
            }


def _blank(part: Optimizer) -> dict[Tensor, dict[str, Any]]:
    """What an optimizer will remember of the parameters of which it has no state yet; nothing is changed."""
    missing = [(group, p) for group in part.param_groups for p in group["params"] if not part.state.get(p)]
    if isinstance(part, Base):
        return {p: {"step": torch.zeros(()), **part.start(group, p)} for group, p in missing}
    # As torch's own helpers find it out: by a step with gradients and rates of zero.
    grads = [(p, p.grad) for group in part.param_groups for p in group["params"]]
    rates = [(group, group["lr"]) for group in part.param_groups if "lr" in group]
    try:
        for p, _ in grads:
            p.grad = None
        for _, p in missing:
            p.grad = torch.zeros_like(p)
        for group, lr in rates:
            group["lr"] = torch.zeros_like(lr) if isinstance(lr, Tensor) else 0.0
        if missing:
            part.step()
        return {p: part.state.pop(p, {}) for _, p in missing}
    finally:
        for p, grad in grads:
            p.grad = grad
        for group, lr in rates:
            group["lr"] = lr


def periods(model: nn.Module, table: Mapping[str, int], **settings: Any) -> list[dict[str, Any]]:
    """Parameter groups of a model by the period of their level: patterns of parameter names -> period.

    The first pattern that fits a parameter counts; every trainable parameter needs one (``"*"`` fits all).
    """
    for pattern, period in table.items():
        check.count(f"periods[{pattern!r}]", period)
    found: dict[str, list[Tensor]] = {pattern: [] for pattern in table}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        fits = [pattern for pattern in table if fnmatchcase(name, pattern)]
        if not fits:
            raise ValueError(f"no pattern of {list(table)} fits the parameter {name!r}: add one, or '*' for the rest")
        found[fits[0]].append(p)
    if empty := [pattern for pattern, params in found.items() if not params]:
        raise ValueError(f"patterns {empty} fit no trainable parameter that is still left: see named_parameters()")
    return [{"params": found[pattern], "period": period, **settings} for pattern, period in table.items()]
