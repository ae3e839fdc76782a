"""What is left of earlier tasks, and what they do for later ones: measures of a matrix of scores.

``matrix[i][j]`` is the score on task j after task i was learned, None where it was not taken; ``start[j]`` is that of
the model before all tasks, with T tasks. More is better: scores of which less is better are handed in with their sign
changed (`flipped`). Libraries differ in these definitions, so that tables print them, and results keep the matrix:

    ACC         mean over j of R[T-1, j]
    AIA         mean over i of the mean over j <= i of R[i, j]                   (average incremental accuracy)
    BWT         mean over j < T-1 of R[T-1, j] - R[j, j]                         (Lopez-Paz and Ranzato 2017)
    forgetting  mean over j < T-1 of max over j <= l <= T-2 of R[l, j] - R[T-1, j]   (Chaudhry et al. 2018)
    FWT         mean over j >= 1 of R[j-1, j] - start[j]
    speed       area under the score on a task while it is learned, over the share of it that has been read, mean over
                tasks: between the score before it and the one after it
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from circadia.evals.metrics import mean

Row = Sequence[float | None]
Matrix = Sequence[Row]


@dataclass(frozen=True)
class Measure:
    """A number, or why there is none."""

    value: float | None
    why: str = ""


def measures(matrix: Matrix, start: Row | None = None, curves: Sequence[Row] | None = None) -> dict[str, Measure]:
    """All of them by name. Each row of `curves` holds the scores on one task at equal steps while it is learned."""
    wide = {len(row) for row in matrix}
    if len(wide) != 1 or wide == {0}:
        raise ValueError(f"matrix has rows of {sorted(wide)} scores: give one score or None for every task in each row")
    if start is not None and len(start) != len(matrix[0]):
        raise ValueError(f"start has {len(start)} scores for {len(matrix[0])} tasks: give one for every task")
    whole = len(matrix) == len(matrix[0])
    last = matrix[-1]
    found = {"ACC": _over(last)}
    for name, measure in (("AIA", _aia), ("BWT", _bwt), ("forgetting", _forgetting)):
        found[name] = measure(matrix) if whole else Measure(None, "the tasks were not learned one after another")
    if not whole or start is None:
        found["FWT"] = Measure(None, "the tasks were not learned one after another" if not whole else "no start")
    else:
        found["FWT"] = _differences([(matrix[j - 1][j], start[j]) for j in range(1, len(last))])
    found["speed"] = _speed(curves)
    return found


def flipped(row: Any) -> Any:
    """Scores of which less is better, turned: a matrix, a row or a number."""
    if isinstance(row, (list, tuple)):
        return [flipped(x) for x in row]
    return None if row is None else -row


def _over(values: Row) -> Measure:
    known = [x for x in values if x is not None]
    return Measure(mean(known)) if len(known) == len(values) and known else Measure(None, "a score was not taken")


def _aia(matrix: Matrix) -> Measure:
    rows = [_over(row[: i + 1]) for i, row in enumerate(matrix)]
    return _over([row.value for row in rows])


def _bwt(matrix: Matrix) -> Measure:
    return _differences([(matrix[-1][j], matrix[j][j]) for j in range(len(matrix) - 1)])


def _forgetting(matrix: Matrix) -> Measure:
    pairs = []
    for j in range(len(matrix) - 1):
        past = [matrix[i][j] for i in range(j, len(matrix) - 1)]
        known = [x for x in past if x is not None]
        pairs.append((max(known) if len(known) == len(past) else None, matrix[-1][j]))
    return _differences(pairs)


def _differences(pairs: Sequence[tuple[float | None, float | None]]) -> Measure:
    if not pairs:
        return Measure(None, "there is one task alone")
    found = [a - b for a, b in pairs if a is not None and b is not None]
    return Measure(mean(found)) if len(found) == len(pairs) else Measure(None, "a score was not taken")


def _speed(curves: Sequence[Row] | None) -> Measure:
    if not curves or any(len(row) < 2 for row in curves):
        return Measure(None, "no scores were taken while a task was learned")
    areas = []
    for row in curves:
        if any(x is None for x in row):
            return Measure(None, "a score was not taken")
        known = [x for x in row if x is not None]
        areas.append(sum((a + b) / 2 for a, b in pairwise(known)) / (len(known) - 1))
    return Measure(mean(areas))


def in_turn(
    arm: Any, tasks: Sequence[Sequence[Any]], score: Callable[[int, int], dict[str, float] | None], parts: int = 1
) -> dict[str, Any]:
    """Let an arm learn one task after another, and score it on them.

    `score(i, j)` gives the scores on task j after task i, -1 being the start, or None where none is to be taken. A task
    is learned in `parts`, with a score on it after each. An arm that learns all at once has a matrix of one row.
    """
    count = len(tasks)
    start = [score(-1, j) for j in range(count)]
    rows: list[list[Any]] = []
    curves: list[list[Any]] = []
    if arm.at_once:
        arm.learn([one for task in tasks for one in task])
        rows.append([score(count - 1, j) for j in range(count)])
    else:
        for i, task in enumerate(tasks):
            before = rows[-1][i] if rows else start[i]
            curve = [score(i, i) if before is None else before]
            for part in range(parts):
                arm.learn(task[part * len(task) // parts : (part + 1) * len(task) // parts])
                if part + 1 < parts:
                    curve.append(score(i, i))
            arm.finish()
            rows.append([score(i, j) for j in range(count)])
            curves.append([*curve, rows[-1][i]])
    names = next(x for row in rows for x in row if x is not None)
    return {
        name: {
            "start": _pick(start, name),
            "matrix": [_pick(row, name) for row in rows],
            "curves": [_pick(curve, name) for curve in curves],
        }
        for name in names
    }


def _pick(row: Sequence[dict[str, float] | None], name: str) -> list[float | None]:
    return [None if x is None else x[name] for x in row]


def shown(matrix: Matrix, digits: int, scale: float) -> list[tuple[str, ...]]:
    """Rows of text."""
    return [tuple("-" if x is None else f"{scale * x:.{digits}f}" for x in row) for row in matrix]
