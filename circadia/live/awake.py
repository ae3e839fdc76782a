"""Awake again: between chunks, steps on windows that earlier nights went over, so that reading does not wipe them out.

What is rehearsed is in the state, so that reading stays a function of the state and of what is read:

    awake/windows   tokens of windows, -1 behind their end, int64 [n, longest]; a night puts those there that it keeps
    awake/counts    since the first night: chunks, tokens read, tokens rehearsed, steps
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.state import State
from circadia.sleep.rehearse import step
from circadia.sleep.windows import Window, thinned

NONE = -1


@dataclass(frozen=True, kw_only=True)
class Awake:
    """A step of `level` on `count` windows after every so many chunks.

    budget    bounds what is rehearsed, as a share of the tokens that were read
    windows   of all nights together that are rehearsed at most: with more, every night keeps its share

    Every second chunk and six windows are what kept the facts of a night through 50 KB of other text, for about 65 %
    more gradient work (docs/experiments.md).
    """

    every: int = 2
    count: int = 6
    budget: float = 1.0
    windows: int = 256
    level: int = 0

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("count", 1), ("windows", 1), ("level", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"rehearse: {name}={value!r} must be a whole number of at least {least}")
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, float)) or not self.budget >= 0:
            raise ValueError(f"rehearse: budget={self.budget!r} must not be below 0")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def check(self, model: Any) -> None:
        """Whether this model's level can be rehearsed."""
        if not isinstance(model, RetrofitModel):
            raise ValueError(f"rehearse: only a retrofit rehearses, this is a {type(model).__name__}: leave it out")
        levels = model.settings.levels
        if self.level >= len(levels):
            raise ValueError(f"rehearse: level={self.level}, but the levels are 0 to {len(levels) - 1}")
        if levels[self.level].optimizer == "dgd":
            raise ValueError("rehearse: optimizer='dgd' learns from one stream alone: give another level or rule")

    def renewed(self, state: State, kept: Sequence[Sequence[Window]]) -> State:
        """With the windows that a night hands on."""
        every = [window.tokens for night in thinned(kept, self.windows) for window in night]
        whole = torch.full((len(every), max((row.numel() for row in every), default=0)), NONE)
        for i, row in enumerate(every):
            whole[i, : row.numel()] = row
        counts = state.get("awake/counts", torch.zeros(4, dtype=torch.int64))
        return {**state, "awake/windows": whole, "awake/counts": counts}

    def after(self, model: RetrofitModel, state: State, tokens: int) -> State:
        """After each chunk."""
        if "awake/windows" not in state or not len(state["awake/windows"]):
            return state
        chunks, read, spent, steps = state["awake/counts"].tolist()
        chunks, read = chunks + 1, read + tokens
        if chunks % self.every == 0:
            drawn = torch.randint(len(state["awake/windows"]), (self.count,), generator=_seeded(chunks))
            rows = [row[row != NONE] for row in state["awake/windows"][drawn]]
            cost = sum(row.numel() - 1 for row in rows)
            if spent + cost <= self.budget * read:
                spent, steps, state = spent + cost, steps + 1, step(model, state, rows, self.level)
        return {**state, "awake/counts": torch.tensor([chunks, read, spent, steps])}


def _seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def of(given: "Awake | Mapping[str, Any] | bool | None") -> Awake | None:
    """True: the defaults; False or None: plain reading."""
    if isinstance(given, Awake) or given is None:
        return given
    if isinstance(given, bool):
        return Awake() if given else None
    try:
        return Awake(**given)
    except TypeError as error:
        raise ValueError(f"rehearse={given!r}: {error}; see circadia.live.Awake") from None
