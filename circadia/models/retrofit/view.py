"""A retrofit as levels, for `circadia.levels`."""

import math
from typing import TYPE_CHECKING, Any

import torch

from circadia.models.retrofit.state import parts_of, shape_of
from circadia.models.retrofit.step import rule_of

if TYPE_CHECKING:
    from circadia.models.retrofit.model import RetrofitModel
    from circadia.models.retrofit.settings import LevelSettings


def entries(model: "RetrofitModel") -> list[dict[str, Any]]:
    """One entry a level: the base's own weights stay where they are, frozen."""
    found = []
    for i, (level, sites) in enumerate(zip(model.settings.levels, model.own)):
        gathers = level.feed == "gradient" and level.period > model.settings.chunk
        rule = rule_of(level)
        each = len(rule.init(torch.zeros(1, 1))) if level.feed == "gradient" else 0
        size = 0
        for site in sites:
            copies = 1 + gathers + each + (site.name in model.anchored[i])
            count = copies * sum(math.prod(shape_of(level, site, part)) for part in parts_of(level))
            count += site.shape[-1] ** 2 if level.optimizer == "dgd" and level.feed == "gradient" else 0  # x x^T
            size += count * site.dtype.itemsize
        notes = [f"listens to the last {level.listen:,} tokens of its period" if level.listen else ""]
        notes += [f"no matrix moves further than {level.bound:g} of the base's norm" if level.bound else ""]
        found.append(
            {
                "name": f"memory {i} ({_capacity(level)})",
                "period": level.period,
                "learns_from": "tokens" if level.feed == "gradient" else f"level {i - 1}",
                "objective": "next-token loss of the base with all levels",
                "rule": _rule(level),
                "enters": _enters(level),
                "leaves": _leaves(model, i, level),
                "state_bytes": size,
                "shared": True,
                "note": "; ".join(filter(None, notes)),
                "beside": [_parameter(model, site.name) for site in sites],
            }
        )
    return found


def _parameter(model: "RetrofitModel", name: str) -> str:
    return f"base.{name}" if model.settings.target == "all" else f"base.{name}.weight"


def _capacity(level: "LevelSettings") -> str:
    if level.capacity == "full":
        return "full delta"
    gated = ", gated" if level.gate == "router" else ""
    return f"low-rank {level.rank}" + (f" x {level.slots}" if level.slots > 1 else "") + gated


def _rule(level: "LevelSettings") -> str:
    if level.feed == "faster":
        return f"takes over {level.transfer:g} of the next faster level"
    names = {"gd": "gradient descent", "ngd": "normalised gradient descent", "dgd": "delta gradient descent"}
    clip = "" if level.clip is None or level.optimizer == "ngd" else f", clip {level.clip:g}"
    name = names.get(level.optimizer, level.optimizer)
    return f"{name}, rate {level.rate:g}{clip}, {level.reduction} over the period (eq. 71)"


def _enters(level: "LevelSettings") -> str:
    if level.feed == "faster":
        return f"from the next faster level, every {level.period:,} tokens of the stream"
    return f"every {level.period:,} tokens of the stream, by their mean gradient"


def _leaves(model: "RetrofitModel", i: int, level: "LevelSettings") -> str:
    if not level.fades:
        return "added to the base at every pass; stays"
    to = "a slow copy" if model.anchored[i] else "the slower levels" if i + 1 < len(model.own) else "the base"
    to = "the base" if level.anchor == "base" else to
    return f"added to the base at every pass; decays to {to} by {level.decay:g} an update"
