"""One update of one level: mean gradient, clip, rule, retention, bound. Pure functions of tensors."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from circadia.models.retrofit.settings import LevelSettings
from circadia.optim.general import dgd
from circadia.optim.orthogonal import M3
from circadia.optim.rules import GD, Adam, Momentum, Rule

Tensors = dict[str, Tensor]
STAYS = ("a/", "gate/")  # while B fades
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
    mine: Collection[str] = ()  # of the memory: what may be written in place
    lengths: Tensors = field(default_factory=dict)  # norms of the sums, if they are known
    norm: float | None = None  # of the memory, if it is known


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
    return joint(torch.linalg.vector_norm(x) for x in tensors)


def joint(norms: Iterable[Tensor]) -> float:
    """The norm of several tensors together, from their norms."""
    found = list(norms)
    return float(torch.stack(found).norm()) if found else 0.0


def stepped(level: LevelSettings, step: Step) -> Stepped | None:
    """The level after its period; None where something is not finite and the write is refused.

    g      = 1/n sum_t grad L_t                  mean over the n tokens of the period (eq. 71 has the sum)
    g      = g min(1, clip / |g|)                over all matrices of the level; "ngd": g / |g|
    g      = n g                                 reduction="sum" only
    delta  = delta - rate direction(g)           the rule of the level
    delta  = delta + decay (anchor - delta)      retention
    delta  = delta min(1, bound |W| / |delta|)   per matrix
    """
    lengths = step.lengths or {name: torch.linalg.vector_norm(x) for name, x in step.sums.items()}
    slope = joint(lengths.values()) / step.count
    if not math.isfinite(slope):
        return None
    factor = 1.0 if level.clip is None or slope <= level.clip else level.clip / slope
    if level.optimizer == "ngd":
        factor = 1 / slope if slope > 0 else 0.0
    factor = factor if level.reduction == "sum" else factor / step.count
    if level.optimizer in ("gd", "ngd") and level.bound is None and not step.anchors:
        return _descended(level, step, factor, slope, lengths)
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
    moved = norm_of(memory[name] - old for name, old in step.memory.items())
    norm = norm_of(memory.values())
    if not math.isfinite(moved) or not math.isfinite(norm):
        return None
    return Stepped(memory, opt, moved, norm, slope)


def _descended(level: LevelSettings, step: Step, factor: float, slope: float, lengths: Tensors) -> Stepped | None:
    """The same for plain gradient descent toward the base, in place where it may, with each matrix met once.

    delta = (1 - decay) (delta - rate g): the lengths of the change and of the new delta follow from three products.
    """
    before = norm_of(step.memory.values()) if step.norm is None else step.norm
    rates = {name: float(step.rates[name.partition("/")[2]]) * factor for name in step.memory}
    limit = torch.finfo(next(iter(step.memory.values())).dtype).max ** 0.5
    if not before + max(rates.values()) * slope * step.count < limit:
        return None
    memory: Tensors = {}
    products, shares = [], []
    for name, old in step.memory.items():
        both = old.reshape(-1).dot(step.sums[name].reshape(-1))
        products.append(torch.stack((torch.linalg.vector_norm(old), both, lengths[name])))
        fades = level.fades and not name.startswith(STAYS)
        keep = 1 - float(step.decays[name.partition("/")[2]]) if fades else 1.0
        rate = keep * rates[name]
        shares.append((keep - 1, keep, rate))
        new = old if name in step.mine else old.clone()
        new = new.mul_(keep) if fades else new
        memory[name] = new.add_(step.sums[name], alpha=-rate)
    moved = norm = 0.0
    for (x, both, g), (fade, keep, rate) in zip(torch.stack(products).tolist(), shares):
        moved += (fade * x) ** 2 - 2 * fade * rate * both + (rate * g) ** 2
        norm += (keep * x) ** 2 - 2 * keep * rate * both + (rate * g) ** 2
    return Stepped(memory, {name: {} for name in memory}, max(moved, 0.0) ** 0.5, max(norm, 0.0) ** 0.5, slope)


def faded(level: LevelSettings, name: str, memory: Tensor, anchor: Tensor | None, decay: Any) -> Tensor:
    """Toward the slow copy if there is one, else toward the base: of a pair only B fades, so that B A does."""
    if not level.fades or (anchor is None and name.startswith(STAYS)):
        return memory
    return memory + decay * ((0.0 if anchor is None else anchor) - memory)


def bounded(memory: Tensors, limits: Mapping[str, float]) -> Tensors:
    """No delta longer than its limit; a pair is shortened in B, as if its gate were open."""
    new = dict(memory)
    for name, x in memory.items():
        part, _, where = name.partition("/")
        if name.startswith(STAYS):
            continue
        size = float(x.norm() if part == "delta" else torch.einsum("sor,sri->oi", x, memory[f"a/{where}"]).norm())
        if size > limits[where]:
            new[name] = x * (limits[where] / size)
    return new
