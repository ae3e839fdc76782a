"""When to sleep. By the clock of the levels, when a period completes; or by need: asked, idle, surprised, at night."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from circadia.models.retrofit import Report, RetrofitModel
from circadia.models.retrofit.learn import tokens_of
from circadia.models.retrofit.state import State

Pair = tuple[int, int]
Border = Callable[[list[Pair], State, State], State]


def due(model: RetrofitModel, tokens: int) -> list[Pair]:
    """Senders whose period ends at this place of the stream, with their receivers, fastest to slowest."""
    levels = model.settings.levels
    return [(i, i + 1) for i in range(len(levels) - 1) if tokens > 0 and tokens % levels[i].period == 0]


def until(model: RetrofitModel, tokens: int, level: int = 0) -> int:
    """Tokens to the end of a level's open period."""
    period = model.settings.levels[level].period
    return period - tokens % period


def read(
    model: RetrofitModel, tokens: Any, state: State, border: Border, every: int = 0
) -> tuple[Report, State]:  # fmt: skip
    """Learn a stream, and stop where the period of a level from `every` on completes.

    `border` gets the pairs that are due, and the self before and after the chunk that ends their period: compute ->
    consolidate -> update, as the teacher still has what the update overwrites. It returns the self that goes on.
    """
    ids, report = tokens_of(model, tokens), Report()
    chunk, fastest = model.settings.chunk, model.settings.levels[every].period
    at = 0
    while at < ids.numel():
        place = int(state["clock/tokens"]) + state["stream/pending"].numel()
        left = fastest - place % fastest
        if left > chunk:  # up to the last chunk of the period
            size = min(left - chunk, ids.numel() - at)
            part, state = model.learn(ids[at : at + size], state)
        else:
            size = min(left, ids.numel() - at)
            part, after = model.learn(ids[at : at + size], state)
            pairs = [pair for pair in due(model, int(after["clock/tokens"])) if pair[0] >= every]
            state = border(pairs, state, after) if pairs and size == left else after
        report.chunks += part.chunks
        report.pending, report.seconds = part.pending, report.seconds + part.seconds
        at += size
    return report, state


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What makes a sleep due; None or False turns a reason off.

    tokens     read since the last sleep
    idle       seconds without anything to do
    surprise   nats that were paid since the last sleep: the sum of losses over the day
    hour       of the local day, once a night
    """

    tokens: int | None = None
    idle: float | None = None
    surprise: float | None = None
    hour: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "idle", "surprise"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} must be above 0, or None")
        if self.hour is not None and not 0 <= self.hour <= 23:
            raise ValueError(f"hour={self.hour!r} is no hour of a day: 0 to 23, or None")

    def why(
        self, *, now: float, slept: float, active: float, tokens: int, surprise: float, asked: bool = False
    ) -> list[str]:  # fmt: skip
        """Reasons to sleep now; none: stay awake. Times are seconds since 1970, `tokens` and `surprise` since then.

        Where nothing was read since the last sleep, only a request is a reason.
        """
        found = ["on demand"] if asked else []
        if tokens <= 0:
            return found
        if self.tokens is not None and tokens >= self.tokens:
            found.append(f"{tokens} tokens read, {self.tokens} make a day")
        if self.idle is not None and now - active >= self.idle:
            found.append(f"idle for {now - active:.0f} s")
        if self.surprise is not None and surprise >= self.surprise:
            found.append(f"{surprise:.0f} nats of surprise, the budget is {self.surprise:g}")
        if self.hour is not None and last(now, self.hour) > slept:
            found.append(f"it is past {self.hour}:00")
        return found


def last(now: float, hour: int) -> float:
    """The last time it was this hour."""
    today = datetime.fromtimestamp(now).replace(hour=hour, minute=0, second=0, microsecond=0)
    # Of the local clock, as some days have 23 or 25 hours.
    return today.timestamp() if today.timestamp() <= now else (today - timedelta(days=1)).timestamp()
