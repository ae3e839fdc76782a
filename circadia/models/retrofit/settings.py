"""What a retrofit is made of: levels with their periods, rules and retention. Checked here, stored as JSON."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from circadia.optim import check

OPTIMIZERS = ("gd", "ngd", "momentum", "dgd", "adamw", "m3")
# Where no rate is given, for whole deltas and for low rank: of those tried the one that gains on code without losing on
# legal text; docs/experiments.md.
RATES = {"gd": (0.3, 0.3), "ngd": (0.3, 0.3), "dgd": (0.3, 0.3), "momentum": (0.03, 0.1), "adamw": (3e-4, 3e-3),
         "m3": (1e-3, 3e-3)}  # fmt: skip
CAPACITIES = ("full", "lowrank")
ANCHORS = ("slower", "base", None)
GATES = ("always", "router")


@dataclass(frozen=True, kw_only=True)
class LevelSettings:
    """One level. See `circadia.models.retrofit.build.retrofit` for what each means."""

    period: int
    capacity: str = "full"
    rank: int = 16
    slots: int = 1
    gate: str = "always"
    optimizer: str = "gd"
    rate: float = 0.3
    clip: float | None = 1.0
    bound: float | None = None
    anchor: str | None = "slower"
    decay: float = 0.01
    follow: float = 0.05
    reduction: str = "mean"
    listen: int | None = None
    feed: str = "gradient"
    transfer: float = 0.5
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check.count("period", self.period)
        check.one_of("capacity", self.capacity, CAPACITIES)
        check.count("rank", self.rank)
        check.count("slots", self.slots)
        check.one_of("gate", self.gate, GATES)
        check.one_of("optimizer", self.optimizer, OPTIMIZERS)
        check.rate("rate", self.rate)
        for name in ("clip", "bound"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not 0 < value < math.inf):
                raise ValueError(f"{name}={value!r} must be a number above 0, or None for no limit")
        check.one_of("anchor", self.anchor, ANCHORS)
        for name in ("decay", "follow", "transfer"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r} is outside [0, 1]: give, for example, {name}=0.01")
        check.one_of("reduction", self.reduction, ("mean", "sum"))
        check.one_of("feed", self.feed, ("gradient", "faster"))
        if self.listen is not None:
            check.count("listen", self.listen)
            if self.listen > self.period:
                raise ValueError(f"listen={self.listen} is longer than period={self.period}: give at most the period")
        if self.gate == "router" and self.capacity != "lowrank":
            raise ValueError(f"gate='router' is for experts, and capacity={self.capacity!r} has none: use 'lowrank'")
        if self.optimizer == "dgd" and self.capacity == "lowrank":
            raise ValueError("optimizer='dgd' needs whole matrices and their inputs: use capacity='full'")
        if self.feed == "faster" and self.capacity == "lowrank":
            raise ValueError("feed='faster' adds matrices up, which raises their rank: use capacity='full'")

    @property
    def fades(self) -> bool:
        """Does anything decay?"""
        return self.anchor is not None and self.decay > 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything but the base."""

    levels: tuple[LevelSettings, ...]
    assign: Any  # as given: a name, groups of layers, or a map
    layers: Any = None
    target: str = "mlp"
    chunk: int
    context: int
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Settings":
        """Back from JSON."""
        levels = tuple(LevelSettings(**level) for level in data["levels"])
        assign = data["assign"]
        if isinstance(assign, Mapping):  # JSON knows only text as keys
            assign = {int(layer): level for layer, level in assign.items()}
        return cls(**{**data, "levels": levels, "assign": assign})


def periods_of(periods: Any) -> tuple[int, ...]:
    """Checked: whole numbers, each a multiple of the one before and longer."""
    if isinstance(periods, int) and not isinstance(periods, bool):
        periods = [periods]
    if not isinstance(periods, Sequence) or isinstance(periods, str) or not periods:
        raise ValueError(f"periods={periods!r} must be tokens between two updates, such as [512, 2048, 8192]")
    for i, period in enumerate(periods):
        check.count(f"periods[{i}]", period)
    for fast, slow in itertools.pairwise(periods):
        if slow <= fast:
            raise ValueError(f"periods={list(periods)} must increase, fastest first: {slow} comes after {fast}")
        if slow % fast:
            raise ValueError(
                f"periods={list(periods)}: {slow} is no multiple of {fast}; every period must divide the next"
            )
    return tuple(periods)


def levels_of(periods: Sequence[int], given: Mapping[str, Any]) -> tuple[LevelSettings, ...]:
    """One setting for all levels, or a list with one entry a level."""
    known = {f.name for f in fields(LevelSettings)} - {"period"}
    made = []
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name}={value!r} is no setting of a level: use one of {', '.join(sorted(known))}")
        if isinstance(value, (list, tuple)) and len(value) != len(periods):
            raise ValueError(f"{name}={value!r} has {len(value)} entries for {len(periods)} periods: give one for each")
    for i, period in enumerate(periods):
        own = {name: value[i] if isinstance(value, (list, tuple)) else value for name, value in given.items()}
        if own.get("optimizer") in RATES:
            own.setdefault("rate", RATES[own["optimizer"]][own.get("capacity") == "lowrank"])
        made.append(LevelSettings(period=period, **own))
    if made[0].feed == "faster":
        raise ValueError(
            "feed='faster': the fastest level has none to take from; give feed=['gradient', 'faster', ...]"
        )
    return tuple(made)


def chunk_of(chunk: int | None, levels: Sequence[LevelSettings], limit: int | None) -> int:
    """Tokens that are predicted with one state; divides every period and every listening time."""
    fastest = levels[0].period
    if chunk is None:
        chunk = fastest
    check.count("chunk", chunk)
    if fastest % chunk:
        raise ValueError(f"chunk={chunk} does not divide the fastest period {fastest}: give a divisor of it")
    for level in levels:
        if level.listen is not None and level.listen % chunk:
            raise ValueError(f"listen={level.listen} is no multiple of chunk={chunk}: levels listen to whole chunks")
    if limit is not None and chunk > limit:
        raise ValueError(
            f"chunk={chunk} is longer than the {limit} positions that the model knows: give a chunk that divides "
            f"{fastest}, such as {math.gcd(fastest, limit)}"
        )
    return chunk


def context_of(context: int | None, chunk: int, limit: int | None) -> int:
    """Tokens before a chunk that it sees; as many as the chunk has if nothing is said and the model knows so many."""
    room = None if limit is None else limit - chunk + 1
    if context is None:
        return chunk if room is None else min(chunk, room)
    if isinstance(context, bool) or not isinstance(context, int) or context < 0:
        raise ValueError(f"context={context!r} must be a whole number of tokens: 0 for chunks that see nothing before")
    if room is not None and context > room:
        raise ValueError(f"context={context} and chunk={chunk} are longer than the model's {limit} positions")
    return context
