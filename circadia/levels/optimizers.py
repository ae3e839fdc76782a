"""Optimizers as memories: their context is the stream of gradients, and what they hold is a level of its own.

`KINDS` is the table of the optimizers whose objective is known; any other optimizer is described by the
tensors that it keeps. An optimizer with a method `levels_entry()` describes its memories itself, with periods
in optimizer steps. Equation numbers are those of the Nested Learning paper, arXiv 2512.24695.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from circadia.levels.level import Level

Group = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """What an optimizer remembers of the gradients of one parameter, given the settings of its group."""

    memory: str  # name of what it keeps
    objective: str
    rule: str  # filled with the settings of the group
    buffers: Callable[[Group], int]  # how many tensors of the parameter's shape
    scalars: int = 0  # how many single numbers beside them (step counters)
    decays: tuple[Callable[[Group], float], ...] = ()  # factors by which a step fades what is held


def _beta(index: int) -> Callable[[Group], float]:
    return lambda group: float(group["betas"][index])


_ADAM = OptimizerKind(
    memory="moments",
    objective="Σ ‖m ⊙ g - P‖² + λ‖m‖² element-wise: both moments on one level (eq. 101-105)",
    rule="m = β₁ m + (1 - β₁) g and v = β₂ v + (1 - β₂) g², betas {betas}",
    buffers=lambda group: 3 if group.get("amsgrad") else 2,
    scalars=1,
    decays=(_beta(0), _beta(1)),
)

KINDS: dict[str, OptimizerKind] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": OptimizerKind(
        memory="momentum",
        objective="-⟨m, ∇L⟩: a memory of gradients without values (eq. 10-13, 33)",
        rule="m = α m + ∇L, α = {momentum}",
        buffers=lambda group: 1 if group["momentum"] else 0,
        decays=(lambda group: float(group["momentum"]),),
    ),
    "Muon": OptimizerKind(
        memory="momentum",
        objective="-⟨m, ∇L⟩, read through Newton-Schulz, which fits an orthogonal matrix (eq. 42-44)",
        rule="m = α m + (1 - α) ∇L, α = {momentum}; {ns_steps} Newton-Schulz steps on what is read",
        buffers=lambda group: 1,
        decays=(lambda group: float(group["momentum"]),),
    ),
    "Adagrad": OptimizerKind(
        memory="accumulator",
        objective="the H of Adam's element-wise regression, without decay (eq. 106-111)",
        rule="H = H + g², nothing fades",
        buffers=lambda group: 1,
        scalars=1,
    ),
    "RMSprop": OptimizerKind(
        memory="average",
        objective="the H of Adam's element-wise regression, with decay (eq. 101-105, by analogy)",
        rule="v = α v + (1 - α) g², α = {alpha}",
        buffers=lambda group: 1 + bool(group["momentum"]) + bool(group["centered"]),
        scalars=1,
        decays=(lambda group: float(group["alpha"]),),
    ),
    "Adadelta": OptimizerKind(
        memory="averages",
        objective="running averages of squared gradients and of squared steps",
        rule="v = ρ v + (1 - ρ) g², and the same for the steps, ρ = {rho}",
        buffers=lambda group: 2,
        scalars=1,
        decays=(lambda group: float(group["rho"]),),
    ),
    "NAdam": OptimizerKind(
        memory="moments",
        objective=_ADAM.objective,
        rule=_ADAM.rule,
        buffers=lambda group: 2,
        scalars=2,
        decays=_ADAM.decays,
    ),
    "RAdam": OptimizerKind(
        memory="moments",
        objective=_ADAM.objective,
        rule=_ADAM.rule,
        buffers=lambda group: 2,
        scalars=1,
        decays=_ADAM.decays,
    ),
}


def unwrap(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside a wrapper such as accelerate's, which is an Optimizer that holds an Optimizer."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


def kind_of(optimizer: Optimizer) -> OptimizerKind | None:
    """The row of the table for this optimizer.

    Only torch's classes and what derives from them: another library's `Adam` may keep its moments in 8 bits,
    so it is measured and never predicted.
    """
    for base in type(optimizer).__mro__:
        if base.__module__.startswith("torch.optim") and base.__name__ in KINDS:
            return KINDS[base.__name__]
    return None


def learning_rate(group: Group) -> float | None:
    """The learning rate of a group as a number; it may be stored as a tensor, or be missing."""
    return float(group["lr"]) if "lr" in group else None


def weights_rule(optimizer: Optimizer, group: Group) -> str:
    """How the weights of this group are written."""
    settings = [f"lr {learning_rate(group):g}"] if "lr" in group else []
    if group.get("weight_decay"):
        settings.append(f"weight decay {float(group['weight_decay']):g}")
    return f"{type(optimizer).__name__} ({', '.join(settings)})" if settings else type(optimizer).__name__


def memories(optimizer: Optimizer) -> Iterable[tuple[Level, list[Tensor]]]:
    """The levels of what the optimizer holds, each with the parameters whose gradients it has seen."""
    kind = kind_of(optimizer)
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.requires_grad]
        held = {id(parameter): _held(optimizer, parameter) for parameter in parameters}
        missing = [parameter for parameter in parameters if held[id(parameter)] is None]
        size = sum(bytes_ or 0 for bytes_ in held.values())
        if kind is None:
            if not parameters or (size == 0 and not missing):
                continue
            yield _unknown(optimizer, size, len(missing)), parameters
            continue
        if not parameters or kind.buffers(group) == 0:
            continue
        size += sum(_predicted(kind, group, parameter) for parameter in missing)
        notes = [_horizon(kind, group), "size predicted: no step was made yet" if missing else ""]
        level = Level(
            name=f"{type(optimizer).__name__} {kind.memory}",
            period=1,
            unit="step",
            learns_from="gradients",
            objective=kind.objective,
            rule=kind.rule.format(**group),
            enters="gradients, one step at a time",
            leaves="written into the weights at every step",
            state_bytes=size,
            shared=True,
            note="; ".join(filter(None, notes)),
        )
        yield level, parameters


def _held(optimizer: Optimizer, parameter: Tensor) -> int | None:
    """Bytes that the optimizer really keeps for a parameter; None before its first step."""
    state = optimizer.state.get(parameter)  # `.get`, because state is a defaultdict and must not grow by looking
    if not state:
        return None
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _predicted(kind: OptimizerKind, group: Group, parameter: Tensor) -> int:
    # torch keeps step counters in float32 unless the default type is float64.
    scalar = 8 if torch.get_default_dtype() == torch.float64 else 4
    return kind.buffers(group) * parameter.numel() * parameter.element_size() + kind.scalars * scalar


def _horizon(kind: OptimizerKind, group: Group) -> str:
    """An average with decay β holds 1 - βⁿ of its weight in the last n gradients."""
    decays = [decay(group) for decay in kind.decays]
    steps = [f"{math.ceil(math.log(0.5) / math.log(decay)):,}" for decay in decays if 0 < decay < 1]
    return f"half of what it holds is from the last {' and '.join(steps)} gradients" if steps else ""


def _unknown(optimizer: Optimizer, size: int, missing: int) -> Level:
    return Level(
        name=f"{type(optimizer).__name__} state",
        period=1,
        unit="step",
        learns_from="gradients",
        objective="not known for this optimizer; its size is that of the tensors it keeps",
        rule=type(optimizer).__name__,
        enters="gradients, one step at a time",
        leaves="written into the weights at every step",
        state_bytes=size,
        shared=True,
        note="size not known for parameters without a step" if missing else "",
    )
