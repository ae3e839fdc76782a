"""What all optimizers here share: checks, states in float32, resumption; and any pure rule as an optimizer."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from circadia.optim import check, sharded
from circadia.optim.rules import Rule, State

Group = dict[str, Any]
Ready = tuple[list[Tensor], list[Tensor], list[State], int]  # parameters, gradients, states, number of their step
SECOND_MOMENT = "the H of Adam's element-wise regression (eq. 101-105)"


class Base(Optimizer):
    """Subclasses fill in `start` (the state of a parameter) and `update` (one step of a list of parameters).

    `update` gets parameters as they are, and of gradients and states what this process holds; see
    `circadia.optim.sharded` for what needs more.

    States are float32 (float64 for float64 parameters), whatever the parameter's own type. Gradients are read and
    never changed. A parameter counts its own steps, so one without a gradient stands still in every respect.
    """

    matrices_only = False

    def start(self, group: Group, p: Tensor) -> State:
        """The state of a parameter before its first gradient."""
        raise NotImplementedError

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], step: int) -> None:
        """One step, in place, of parameters that all make their `step`-th."""
        raise NotImplementedError

    def check(self, group: Group) -> None:
        """Refuse wrong settings of a group."""
        check.rate("lr", group["lr"])
        check.rate("weight_decay", group["weight_decay"])

    def memories(self, group: Group) -> Iterable[tuple[dict[str, Any], Iterable[str]]]:
        """What a group remembers: fields of `circadia.levels.Level`, and the names of the states behind them."""
        raise NotImplementedError

    def levels_entry(self) -> Iterable[Mapping[str, Any]]:
        """The memories of this optimizer, for `circadia.levels`; equal ones of several groups are one there."""
        for group in self.param_groups:
            for fields, names in self.memories(group):
                fields = {
                    "period": 1,
                    "learns_from": "gradients",
                    "enters": "gradients, one step at a time",
                    "leaves": "written into the weights at every step",
                    "state_bytes": held_bytes(self, group, names),
                    "note": "" if self.state else "size known after the first step",
                    **fields,
                }
                # Under CMS a group has a period of its own, and its optimizer sees one gradient a period.
                fields["period"] *= group.get("period", 1)
                yield {**fields, "name": f"{type(self).__name__} {fields['name']}", "unit": group.get("unit", "step")}

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with settings of their own."""
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            self.check(group)
            for p in group["params"]:
                if not p.is_floating_point():
                    raise ValueError(f"params holds a {p.dtype} parameter: {type(self).__name__} needs real numbers")
                if self.matrices_only and p.ndim < 2:
                    raise ValueError(
                        f"params holds a parameter of shape {tuple(p.shape)}: {type(self).__name__} writes matrices; "
                        "give vectors to AdamW, or use circadia.optim.build, which splits a model"
                    )
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; a closure is called first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            ready, spread = self._ready(group)
            for params, grads, states, step in ready:
                (self._apply_eagerly if spread else self._apply)(group, params, grads, states, step)
        return loss

    def _apply(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], step: int) -> None:
        # Around the forward pass autocast saves time; a step in such a region would lose digits silently.
        with torch.autocast(params[0].device.type, enabled=False):
            for part in self.pieces(params):
                self.update(group, params[part], grads[part], states[part], step)

    # Guards on sharded tensors fail from step to step, and what processes exchange is not compiled anyway.
    _apply_eagerly = torch.compiler.disable(_apply)

    def pieces(self, params: list[Tensor]) -> list[slice]:
        """Which parameters are updated together."""
        return [slice(None)]

    @torch.compiler.disable
    def _ready(self, group: Group) -> tuple[list[Ready], bool]:
        """The parameters that have a gradient, those with one number of steps together; is one of them shared out?

        A list: the compiler takes the number of a step in it as a number, but as a key of a dict for a constant.
        """
        having: list[tuple[Tensor, Tensor, State]] = []
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise ValueError(
                    f"the gradient of a parameter of shape {tuple(p.shape)} is sparse: {type(self).__name__} needs "
                    "dense ones; make the embedding with sparse=False or give it to torch.optim.SparseAdam"
                )
            state = self.state[p]
            if not state:
                # A tensor, so that sharded checkpoints carry it; on the CPU, where reading it waits for nothing.
                state["step"] = torch.zeros((), dtype=torch.float32)
                state.update(self.start(group, p))
            having.append((p, sharded.gradient(p).to(precision(p)), state))
        if having:
            torch._foreach_add_([state["step"] for _, _, state in having], torch.ones(()))
        ready: dict[int, Ready] = {}
        for p, grad, state in having:
            step = int(state["step"])
            params, grads, states, _ = ready.setdefault(step, ([], [], [], step))
            params.append(p)
            grads.append(grad)
            states.append({name: sharded.local(x) for name, x in state.items()} if sharded.spread(p) else state)
        return list(ready.values()), any(sharded.spread(p) for p, _, _ in having)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state, with its own types."""
        super().load_state_dict(state_dict)
        restore(self, state_dict)


def restore(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """States as they were saved: torch's loader casts them to the type of the parameter, and shares memory."""
    saved = [index for group in state_dict["param_groups"] for index in group["params"]]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    for index, p in zip(saved, own):
        for name, value in state_dict["state"].get(index, {}).items():
            if isinstance(value, Tensor):
                # Where a step counter belongs, torch knows: a fused optimizer has it on the device.
                mine = optimizer.state[p][name] if name == "step" else value.to(p.device)
                optimizer.state[p][name] = mine.detach().clone()


def precision(p: Tensor) -> torch.dtype:
    """The type of everything that is remembered about a parameter."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def zeros(p: Tensor) -> Tensor:
    """A state of the parameter's shape."""
    return torch.zeros_like(p, dtype=precision(p), memory_format=torch.preserve_format)


def number(value: float, like: Tensor) -> Any:
    """For `torch._foreach_*`, which on a CPU would make a tensor of a plain number again for every entry."""
    return torch.tensor(value, dtype=like.dtype) if like.device.type == "cpu" else value


def descend(params: list[Tensor], directions: list[Tensor], lr: Any, weight_decay: Any) -> None:
    """W <- (1 - lr weight_decay) W - lr direction. A tensor rate may change without a new compilation."""
    params = [sharded.local(p) for p in params]
    if isinstance(lr, Tensor):
        for p, direction in zip(params, directions):
            rate = lr.to(p.device)
            if weight_decay:
                p.mul_(1 - rate * weight_decay)
            p.sub_(rate * direction)
        return
    if weight_decay:
        torch._foreach_mul_(params, number(1 - lr * weight_decay, params[0]))
    torch._foreach_add_(params, directions, alpha=-lr)


def held_bytes(optimizer: Optimizer, group: Group, names: Iterable[str]) -> int:
    """Bytes that this process keeps under these names; 0 before the first step."""
    states = [optimizer.state.get(p, {}) for p in group["params"]]
    tensors = [sharded.local(state[name]) for name in names for state in states if name in state]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class RuleOptimizer(Base):
    """Any pure rule as a torch optimizer: the rule under vmap over all parameters of one shape.

    A rule that is not element-wise sees whole parameters: of sharded ones every process gathers all, does the same and
    keeps its part.
    """

    def rule(self, group: Group) -> Rule:
        """The rule with the settings of a group."""
        raise NotImplementedError

    def start(self, group: Group, p: Tensor) -> State:
        made = self.rule(group).init(sharded.whole(p.detach()).to(precision(p)))
        return {name: sharded.like(x, p) for name, x in made.items()}

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], step: int) -> None:
        rule = self.rule(group)
        own = [sharded.local(p) for p in params]
        shapes: dict[tuple[Any, ...], list[int]] = {}
        for i, p in enumerate(own if rule.elementwise else params):
            shapes.setdefault((p.shape, p.dtype, p.device), []).append(i)
        for members in shapes.values():
            names = [name for name in states[members[0]] if name != "step"]
            if rule.elementwise:
                given, slopes = [own[i] for i in members], [grads[i] for i in members]
                held = {name: [states[i][name] for i in members] for name in names}
            else:
                given = [sharded.whole(params[i]) for i in members]
                slopes = [sharded.whole(sharded.part_of(grads[i], params[i])) for i in members]
                held = {name: [sharded.whole(self.state[params[i]][name]) for i in members] for name in names}

            def one(w: Tensor, grad: Tensor, state: State) -> tuple[Tensor, State]:
                return rule(w, grad, state, step)

            w = torch.stack(given).to(slopes[0].dtype)
            w, new = torch.vmap(one)(w, torch.stack(slopes), {name: torch.stack(xs) for name, xs in held.items()})
            for targets, made in [
                ([own[i] for i in members], w),
                *(([states[i][name] for i in members], new[name]) for name in names),
            ]:
                parts = list(made.unbind())
                if not rule.elementwise:
                    parts = [sharded.local(sharded.like(part, params[i])) for part, i in zip(parts, members)]
                torch._foreach_copy_(targets, parts)
