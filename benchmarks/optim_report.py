"""The tables and pictures of ``benchmarks.optim``."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any


def rows(runs: Any, task: str, args: Any) -> list[dict]:
    """For each optimizer its best setting, the runs of its seeds as far as they are made, and what is missing."""
    from benchmarks.optim import RATES, plan

    found = []
    for name in args.optimizers:
        planned = plan(runs, task, args.tasks[task].architecture, name, args)
        tuning = [run for row in planned.tuning if (run := runs.at(row))]
        reported = [run for row in planned.reported if (run := runs.at(row))]
        missing = []
        if not planned.tuned:
            missing.append(f"{len(planned.tuning) - len(tuning)} or more runs of its grid")
        if planned.chosen and len(reported) < args.seeds:
            missing.append(f"{args.seeds - len(reported)} of {args.seeds} seeds")
        found.append(
            {
                "optimizer": name,
                "lr": planned.chosen and planned.chosen["lr"],
                "weight_decay": planned.chosen and planned.chosen["weight_decay"],
                "edge": bool(planned.chosen) and planned.chosen["lr"] in (RATES[0], RATES[-1]),
                "missing": " and ".join(missing),
                "tuning": tuning,
                "runs": [run for run in reported if run["measured"]],
                "diverged": sum(not run["measured"] for run in reported),
                "seconds": mean(run["seconds"] for run in reported) if reported else None,
            }
        )
    return found


def values(row: dict, field: str) -> list[float]:
    """One number for each seed."""
    if field == "forgotten":  # of the first domain, from the end of its own phase to the end
        return [run["measured"]["first"] - run["marks"][0]["first"] for run in row["runs"]]
    if field == "curve end":
        return [run["curve"][-1] for run in row["runs"]]
    return [run["measured"][field] for run in row["runs"]]


FIELDS = {
    "digits": {"test": "test loss", "train": "train loss", "accuracy": "test accuracy"},
    "images": {"test": "test loss", "train": "train loss", "accuracy": "test accuracy"},
    "novels": {"test": "test loss", "curve end": "train loss"},
    "hope": {"test": "test loss", "curve end": "train loss"},
    "hope-small": {"test": "test loss", "curve end": "train loss"},
    "continual": {"first": "first domain at the end", "forgotten": "of it forgotten", "test": "mean of all domains"},
}


def table(task: str, found: list[dict]) -> str:
    """Markdown, the best first."""
    fields = FIELDS[task]
    head = ["optimizer", *fields.values(), "rate", "decay", "seeds", "s a run"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    key = next(iter(fields))
    order = sorted(found, key=lambda row: mean(values(row, key)) if row["runs"] else float("inf"))
    for row in order:
        if not row["runs"]:
            why = f"missing: {row['missing']}" if row["missing"] else "no run converged"
            lines.append(f"| {row['optimizer']} | {why} |" + " |" * (len(head) - 2))
            continue
        cells = []
        for field in fields:
            each = values(row, field)
            spread = f" ± {stdev(each):.3f}" if len(each) > 1 else ""
            cells.append(f"{mean(each):.3f}{spread}")
        edge = " (edge of the grid)" if row["edge"] else ""
        count = (
            f"{len(row['runs'])}"
            + (" (not all)" if row["missing"] else "")
            + (f", {row['diverged']} diverged" if row["diverged"] else "")
        )
        setting = [f"{row['lr']:g}{edge}", f"{row['weight_decay']:g}", count, f"{row['seconds']:.1f}"]
        lines.append(f"| {row['optimizer']} | " + " | ".join(cells + setting) + " |")
    return "\n".join(lines)


def show(runs: Any, args: Any) -> None:
    """Print the tables, and write them and a picture of each task."""
    from benchmarks.optim import DECAYS, RATES, lengths

    text = []
    for name, task in args.tasks.items():
        tune, steps = lengths(task, args)
        found = rows(runs, name, args)
        how = f"each of {len(RATES)} rates with each of {len(DECAYS)} decays"
        if not args.full:
            how = f"{len(RATES)} rates, then {len(DECAYS)} decays at the best one and its neighbours"
        missing = [f"{row['optimizer']} ({row['missing']})" for row in found if row["missing"]]
        edges = [row["optimizer"] for row in found if row["edge"]]
        text.append(
            f"## {name}: {task.architecture}, {steps} steps, tuned on one other seed with {tune} steps\n\n"
            f"Tuned alike for all: {how}. Mean ± standard deviation of the seeds.\n\n{table(name, found)}\n"
        )
        if missing:
            text.append(f"**Not complete.** Missing: {'; '.join(missing)}.\n")
        if edges:
            text.append(
                f"The best rate is at the edge of the grid, so a better one may lie beyond: {', '.join(edges)}.\n"
            )
        if any(row["runs"] for row in found):
            draw(name, found, task.architecture, steps, args.out / f"optim-{name}.png")
    print("\n".join(text))
    (args.out / "optim.md").write_text("\n".join(text), encoding="utf-8")


def draw(task: str, found: list[dict], model: str, steps: int, path: Path) -> None:
    """Training curves, what the tables say with every seed as a point, and the grid by rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from benchmarks.optim import RATES

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 5), layout="constrained")
    colours = dict(zip([row["optimizer"] for row in found], plt.get_cmap("tab20").colors))
    field, label = next(iter(FIELDS[task].items()))
    for row in found:
        if not row["runs"]:
            continue
        curve = [mean(step) for step in zip(*(run["curve"] for run in row["runs"]))]
        xs = [steps * (i + 1) / len(curve) for i in range(len(curve))]
        left.plot(xs, curve, color=colours[row["optimizer"]], label=row["optimizer"], linewidth=1.2)
    left.set(xlabel="step", ylabel="training loss, mean of the seeds", title=f"{task}, {model}")
    if task in ("digits", "images"):
        left.set_yscale("log")
    left.legend(fontsize=7)
    order = [row for row in found if row["runs"]]
    order.sort(key=lambda row: mean(values(row, field)), reverse=True)
    for i, row in enumerate(order):
        each = values(row, field)
        middle.plot(each, [i] * len(each), ".", color=colours[row["optimizer"]])
        middle.plot(mean(each), i, "|", color="black", markersize=14)
    middle.set_yticks(range(len(order)), [row["optimizer"] for row in order])
    middle.set(xlabel=label, title="every seed, and their mean")
    for row in found:
        name = row["optimizer"]
        grid = []
        for lr in RATES:
            done = [run["measured"]["valid"] for run in row["tuning"] if run["lr"] == lr and run["measured"]]
            grid.append(min(done) if done else float("nan"))
        right.plot(RATES, grid, ".-", color=colours[name], linewidth=1)
    right.set(xscale="log", xlabel="learning rate", ylabel="validation loss", title="the grid (better of the decays)")
    figure.savefig(path, dpi=100)
    plt.close(figure)
