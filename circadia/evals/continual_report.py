"""Tables and plots of runs in which tasks are learned one after another."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from circadia.evals import plots
from circadia.evals.continual import Measure, flipped, measures, shown
from circadia.evals.metrics import mean, spread
from circadia.evals.suite import Options, Record, Run, Table
from circadia.evals.tuning import group, tested, tuned

NAMES = ("ACC", "AIA", "BWT", "forgetting", "FWT", "speed")
DEFINITIONS = (
    "R[i, j]: score on task j after task i of T; b[j]: before all. ACC: mean of R[T-1, j]. AIA: mean over i of the "
    "mean over j <= i of R[i, j]. BWT: mean over j < T-1 of R[T-1, j] - R[j, j]. Forgetting: mean over j < T-1 of the "
    "best R[l, j] with j <= l <= T-2, minus R[T-1, j]. FWT: mean over j >= 1 of R[j-1, j] - b[j]. Speed: mean score on "
    "a task while it is learned. A dash: not defined here."
)


def planned(
    options: Options, cells: Sequence[Run], rates: Callable[[str], tuple[float, ...]], seeds: int, done: list[Record],
    goal: Callable[[dict[str, Any]], float],
) -> list[Run]:  # fmt: skip
    """The grid of each cell's arm on the tuning seed, then the best rate on the others. Quick: the middle of the
    grid.
    """
    plan: list[Run] = []
    for cell in cells:
        grid = rates(cell["arm"])
        plan += tuned([cell], seeds, grid[len(grid) // 2 :][:1] if options.depth == "quick" else grid, done, goal)
    return plan


def of(record: Record, metric: str, less: bool = False) -> dict[str, Measure]:
    """The measures of a run; `less`: of a score of which less is better."""
    found = record.scores["metrics"][metric]
    parts = [found["matrix"], found["start"], found["curves"]]
    return measures(*(flipped(part) for part in parts) if less else parts)


def table(records: list[Record], by: tuple[str, ...], metric: str, title: str, scale: float, less: bool = False,
          digits: int = 1, notes: tuple[str, ...] = ()) -> Table:  # fmt: skip
    """A row for each cell: its measures over the seeds, and what it cost."""
    rows = []
    for cell, own in group(tested(records), *by).items():
        found = [of(one, metric, less) for one in own]
        cells = [_pm([x for m in found if (x := m[name].value) is not None], scale, digits) for name in NAMES]
        cost = [mean([float(one.scores["cost"][what]) for one in own]) for what in ("seconds", "flops", "bytes")]
        rates = ", ".join(dict.fromkeys(f"{one.run['rate']:g}" for one in own))
        rows.append((*map(str, cell), rates, str(len(own)), *cells, f"{cost[0]:,.0f}", f"{cost[1] / 1e12:,.3f}",
                     f"{cost[2] / 2**20:,.2f}"))  # fmt: skip
    turned = " Less is better, so that the sign is changed: above, more is better." if less else ""
    return Table(title, (*by, "rate", "seeds", *NAMES, "seconds", "TFLOP", "MiB kept"), rows,
                 (DEFINITIONS + turned, *notes))  # fmt: skip


def matrices(records: list[Record], by: tuple[str, ...], metric: str, title: str, scale: float,
             digits: int = 1) -> Table:  # fmt: skip
    """R itself, of the first seed of each cell."""
    rows: list[tuple[str, ...]] = []
    wide = max([len(one.scores["metrics"][metric]["start"]) for one in tested(records)], default=0)
    for cell, own in group(tested(records), *by).items():
        found = own[0].scores["metrics"][metric]
        whole = [found["start"], *found["matrix"]]
        at_once = len(found["matrix"]) < len(found["start"])
        names = ["before", *(["all at once"] if at_once else [f"after {name}" for name in own[0].scores["tasks"]])]
        for name, row in zip(names, shown(whole, digits, scale)):
            rows.append((*map(str, cell), name, *row, *["-"] * (wide - len(row))))
    return Table(f"{title}: the matrix R of the first seed", (*by, "", *(f"task {j + 1}" for j in range(wide))), rows)


def _pm(values: list[float], scale: float, digits: int) -> str:
    if not values:
        return "-"
    around = spread(values)
    return f"{scale * mean(values):.{digits}f}" + ("" if around is None else f" ±{scale * around:.{digits}f}")


def plot(records: list[Record], panel: str, metric: str, ylabel: str, scale: float, path: Path) -> None:
    """The mean score over the tasks so far, after each of them, an arm a curve."""
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for one in tested(records):
        found = one.scores["metrics"][metric]
        curve = panels.setdefault(str(one.run[panel]), {}).setdefault(one.run["arm"], {})
        rows = found["matrix"]
        if len(rows) < len(found["start"]):
            rows = [None] * (len(found["start"]) - 1) + rows
        for i, row in enumerate(rows):
            known = [] if row is None else [x for x in row[: i + 1] if x is not None]
            if known:
                curve.setdefault(i + 1, []).append(scale * mean(known))
    if panels:
        plots.lines(panels, "tasks learned", ylabel, path, log=False)
