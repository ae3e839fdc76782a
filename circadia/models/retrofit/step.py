"""One update of one level: mean gradient, clip, rule, retention, bound. Pure functions of tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from circadia.models.retrofit.settings import LevelSettings
from circadia.optim.general import dgd
from circadia.optim.orthogonal import M3
from circadia.optim.rules import GD, Adam, Momentum, Rule

Tensors = dict[str, Tensor]
RULES: dict[str, tuple[type[Rule], dict[str, Any]]] = {
    "gd": (GD, {}),
    "ngd": (GD, {}),  # the gradient is brought to norm 1 before
    "dgd": (GD, {}),  # needs the inputs, see `stepped`
    "momentum": (Momentum, {"decay": 0.9}),
    "adamw": (Adam, {"betas": (0.9, 0.95)}),
    "m3": (M3, {"periods": (1, 10)}),
}


def rule_of(level: LevelSettings) -> Rule:
    """The pure rule of `circadia.optim.rules`. Weight decay is retention here, so that it is no option."""
    kind, defaults = RULES[level.optimizer]
    known = {f.name for f in fields(kind)} - {"lr", "weight_decay"}
    known |= {"rate", "erase"} if level.optimizer == "dgd" else set()
    for name in level.options:
        if name not in known:
            raise ValueError(
                f"options={dict(level.options)!r}: {name!r} is no option of optimizer={level.optimizer!r}; "
                f"use {', '.join(sorted(known)) or 'none'}"
            )
    own = {} if level.optimizer == "dgd" else level.options
    return kind(lr=0.0, **{**defaults, **own})


@dataclass(frozen=True)
class Step:
    """What an update needs beside the settings. Entries are named PART/NAME."""

    memory: Tensors
    sums: Tensors  # of the gradient over the tokens of the period
    count: int
    number: int  # 1 is the level's first
    opt: Mapping[str, Tensors]  # PART/NAME -> what the optimizer remembers
    anchors: Tensors
    grams: Tensors  # PART/NAME -> sum of x x^T
    sizes: Mapping[str, float]  # norm of the base's matrix, by NAME, where a bound asks for it
    rates: Mapping[str, Any]  # by NAME
    decays: Mapping[str, Any]


@dataclass(frozen=True)
class Stepped:
    """A level after an update."""

    memory: Tensors
    opt: dict[str, Tensors]
    moved: float  # norm of the change
    norm: float  # norm of the memory now
    slope: float  # norm of the mean gradient, before the clip


def norm_of(tensors: Any) -> float:
    """Over all of them."""
    found = list(tensors)
    return float(torch.stack(torch._foreach_norm(found)).norm()) if found else 0.0


def stepped(level: LevelSettings, step: Step) -> Stepped | None:
    """The level after its period; None where something is not finite and the write is refused.

    g      = 1/n sum_t grad L_t                  mean over the n tokens of the period (eq. 71 has the sum)
    g      = g min(1, clip / |g|)                over all matrices of the level; "ngd": g / |g|
    g      = n g                                 reduction="sum" only
    delta  = delta - rate direction(g)           the rule of the level
    delta  = delta + decay (anchor - delta)      retention
    delta  = delta min(1, bound |W| / |delta|)   per matrix
    """
    slope = norm_of(step.sums.values()) / step.count
    if not math.isfinite(slope):
        return None
    factor = 1.0 if level.clip is None or slope <= level.clip else level.clip / slope
    if level.optimizer == "ngd":
        factor = 1 / slope if slope > 0 else 0.0
    factor = factor if level.reduction == "sum" else factor / step.count
    rule = rule_of(level)
    memory: Tensors = {}
    opt: dict[str, Tensors] = {}
    for name, old in step.memory.items():
        where = name.partition("/")[2]
        rate = step.rates[where]
        grad = step.sums[name] * factor
        if level.optimizer == "dgd":
            kept: Any = {"rate": "exact", "erase": 1.0, **level.options}
            new, opt[name] = dgd(old, grad, step.grams[name] / step.count, rate, **kept), {}
        else:
            direction, opt[name] = rule.direction(grad, step.opt[name], step.number)
            new = old - rate * direction
        memory[name] = faded(level, name, new, step.anchors.get(name), step.decays[where])
    if level.bound is not None:
        memory = bounded(memory, {name: level.bound * size for name, size in step.sizes.items()})
    moved = norm_of([memory[name] - old for name, old in step.memory.items()])
    norm = norm_of(memory.values())
    if not math.isfinite(moved) or not math.isfinite(norm):
        return None
    return Stepped(memory, opt, moved, norm, slope)


def faded(level: LevelSettings, name: str, memory: Tensor, anchor: Tensor | None, decay: Any) -> Tensor:
    """Toward the slow copy if there is one, else toward the base: of a pair only B fades, so that B A does."""
    if not level.fades or (anchor is None and name.startswith("a/")):
        return memory
    return memory + decay * ((0.0 if anchor is None else anchor) - memory)


def bounded(memory: Tensors, limits: Mapping[str, float]) -> Tensors:
    """No delta longer than its limit; a pair is shortened in B."""
    new = dict(memory)
    for name, x in memory.items():
        part, _, where = name.partition("/")
        if part == "a":
            continue
        size = float(x.norm() if part == "delta" else torch.einsum("sor,sri->oi", x, memory[f"a/{where}"]).norm())
        if size > limits[where]:
            new[name] = x * (limits[where] / size)
    return new
