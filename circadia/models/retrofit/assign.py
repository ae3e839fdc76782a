"""Which level writes which layer."""

from collections.abc import Mapping, Sequence
from typing import Any

PATTERNS = ("fast-first", "fast-last", "interleaved", "stacked")


def chosen(layers: Any, able: Sequence[int], count: int) -> list[int]:
    """The layers that are adapted at all: None for every one, "first:2", "last:2", or their numbers."""
    if layers is None or layers == "all":
        return list(able)
    if isinstance(layers, str):
        where, _, number = layers.partition(":")
        if where not in ("first", "last") or not number.isdigit() or not 1 <= int(number) <= len(able):
            raise ValueError(f"layers={layers!r} is not understood: write first:2, last:2 (of {len(able)}) or numbers")
        return list(able[: int(number)] if where == "first" else able[-int(number) :])
    if not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"layers={layers!r} is not understood: write 'first:2', 'last:2', or numbers such as [0, 3]")
    return sorted({_there("layers", layer, able, count) for layer in layers})


def assign(how: Any, layers: Any, able: Sequence[int], count: int, levels: int) -> dict[int, tuple[int, ...]]:
    """Layer -> its levels, fastest first. More than one only where levels are stacked.

    "fast-first", "fast-last"  consecutive groups, as equal as they come; what is left over goes to the first groups
    "interleaved"              one layer after the other: 0, 1, 2, 0, 1, 2
    "stacked"                  every layer has every level
    [[4, 5], [2, 3], [0, 1]]   the layers of each level, fastest first
    {0: 2, 1: 1, 5: 0}         the level of each layer; layers without one are frozen
    """
    if isinstance(how, str):
        if how not in PATTERNS:
            raise ValueError(f"assign={how!r} is unknown: use one of {', '.join(PATTERNS)}, lists of layers, or a map")
        own = chosen(layers, able, count)
        if how == "stacked":
            return {layer: tuple(range(levels)) for layer in own}
        if len(own) < levels:
            raise ValueError(
                f"assign={how!r} puts each of {levels} levels into layers of its own, but {len(own)} layers can be "
                "adapted: give fewer periods, or assign='stacked'"
            )
        if how == "interleaved":
            return {layer: (i % levels,) for i, layer in enumerate(own)}
        sizes = [len(own) // levels + (i < len(own) % levels) for i in range(levels)]
        order = [level for level, size in enumerate(sizes) for _ in range(size)]
        if how == "fast-last":
            order = [levels - 1 - level for level in order]
        return {layer: (level,) for layer, level in zip(own, order)}
    if layers is not None:
        raise ValueError(f"layers={layers!r} goes with a named assignment: assign={how!r} names its layers itself")
    found: dict[int, tuple[int, ...]] = {}
    if isinstance(how, Mapping):
        pairs = [(layer, level) for layer, level in how.items()]
    elif isinstance(how, Sequence) and all(isinstance(group, Sequence) for group in how):
        if len(how) != levels:
            raise ValueError(f"assign={how!r} has {len(how)} groups for {levels} periods: give one group a level")
        pairs = [(layer, level) for level, group in enumerate(how) for layer in group]
    else:
        raise ValueError(f"assign={how!r} is not understood: use {', '.join(PATTERNS)}, lists of layers, or a map")
    for layer, given in pairs:
        for level in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < levels:
                raise ValueError(
                    f"assign: level {level!r} of layer {layer} does not exist: there are 0 to {levels - 1}"
                )
            held = found.get(_there("assign", layer, able, count), ())
            found[layer] = tuple(sorted({*held, level}))
    idle = sorted(set(range(levels)) - {level for own in found.values() for level in own})
    if idle:
        raise ValueError(f"assign={how!r} gives level {idle[0]} no layer: give it one, or leave out its period")
    return dict(sorted(found.items()))


def _there(name: str, layer: Any, able: Sequence[int], count: int) -> int:
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < count:
        raise ValueError(f"{name}: layer {layer!r} does not exist: the model has layers 0 to {count - 1}")
    if layer not in able:
        raise ValueError(f"{name}: layer {layer} has no MLP that can be adapted; those that have are {list(able)}")
    return layer
