"""Scores: means with their spread, and what a model that knows nothing would get."""

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


def percent(values: Sequence[float], digits: int = 1) -> str:
    """Shares as 98.3 ±1.2; a dash if there are none."""
    if not values:
        return "-"
    around = spread(values)
    return f"{100 * mean(values):.{digits}f}" + ("" if around is None else f" ±{100 * around:.{digits}f}")


def majority(answers: Iterable[Hashable]) -> float:
    """The share of the answer that is most often right."""
    counts = Counter(answers)
    return max(counts.values()) / counts.total()


def macro(right: dict[Hashable, int], asked: dict[Hashable, int]) -> float:
    """Mean over the classes that were asked for of the share of right answers in each."""
    return mean([right.get(one, 0) / n for one, n in asked.items()])


def bits(nats: float, over: float) -> float:
    return nats / math.log(2) / over
