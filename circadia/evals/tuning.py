"""The same grid of rates for every model, tried on a seed that is not tested."""

from collections.abc import Callable
from typing import Any

from circadia.evals.suite import Record, Run, key

TUNING_SEED = 1000  # test seeds are 0, 1, 2, ...


def tuned(
    cells: list[Run], seeds: int, rates: tuple[float, ...], done: list[Record], goal: Callable[[dict[str, Any]], float]
) -> list[Run]:
    """Runs for every cell (a model on a task): the grid on the tuning seed, then the best rate on the seeds.

    ``goal`` is what to tune for, from the scores; it must not look at test strings. Rates are tried in order; once one
    reaches 1 the rest cannot be better. One rate alone needs no tuning.
    """
    known = {key(one.run): one.scores for one in done}
    runs = []
    for cell in cells:
        best: tuple[float, float] | None = None
        complete = True
        for rate in rates if len(rates) > 1 else ():
            run = {**cell, "seed": TUNING_SEED, "rate": rate, "stage": "tune"}
            runs.append(run)
            scores = known.get(key(run))
            if scores is None:
                complete = False
                break  # this run first: it may end the search
            reached = goal(scores)
            if best is None or reached > best[0]:
                best = (reached, rate)
            if reached >= 1.0:
                break
        if complete:
            chosen = rates[0] if best is None else best[1]
            runs += [{**cell, "seed": seed, "rate": chosen, "stage": "test"} for seed in range(seeds)]
    return runs


def tested(records: list[Record]) -> list[Record]:
    """Without the runs on the tuning seed."""
    return [one for one in records if one.run.get("stage") != "tune"]


def group(records: list[Record], *names: str) -> dict[tuple, list[Record]]:
    """Records by some settings of their runs, in the order in which they come."""
    found: dict[tuple, list[Record]] = {}
    for one in records:
        found.setdefault(tuple(one.run[name] for name in names), []).append(one)
    return found
