"""The picture of ``benchmarks.toys``, and what it says in words: every sentence is filled from the measurements."""

from pathlib import Path
from typing import Any

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")


def says(results: dict[str, Any]) -> list[str]:
    """What was measured."""
    valley, tasks, lags = results["valley"], results["tasks"]["optimizers"], results["lags"]["optimizers"]
    lines = []
    for form in ("delta", "delta, g as it is"):
        same, best = valley[form]["same"], valley[form]["best"]
        lines.append(
            f"Fig. 4, {form}: of {valley['settings']} settings delta momentum is first in {same['delta first']:.0%}, "
            f"momentum in {same['momentum first']:.0%}, together in {same['together']:.0%}, neither arrives in "
            f"{same['neither']:.0%}; each at its own best rate and decay: {best['delta first']:.0%} against "
            f"{best['momentum first']:.0%}."
        )
    order = sorted(tasks, key=lambda name: tasks[name]["final"])
    lines.append(
        "Tasks at right angles, loss at the end (of which forgotten): "
        + ", ".join(f"{name} {tasks[name]['final']:.2g} ({tasks[name]['forgotten']:+.1g})" for name in order)
        + "."
    )
    lines.append(
        "Half and 99 % of the weight of past gradients lie in the last: "
        + ", ".join(f"{name} {row['steps_to_50%']} and {row['steps_to_99%']}" for name, row in lags.items())
        + f" steps (of {results['lags']['steps']})."
    )
    return lines


def draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch

    from benchmarks.toys import psi

    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    valley = results["valley"]
    shown = valley["example"]
    # The landscape with both paths.
    axis = axes[0, 0]
    r, theta = torch.meshgrid(torch.linspace(-5, 5, 200), torch.linspace(-6, 6, 200), indexing="ij")
    setting = shown["setting"]
    height, _ = psi(torch.stack([r, theta], -1), setting["k"], torch.tensor(setting["a"]), torch.tensor(setting["w"]))
    axis.contourf(r, theta, height.log1p(), 20, cmap="Greys", alpha=0.6)
    for colour, (form, steps) in zip(COLOURS, shown["paths"].items()):
        xs, ys = zip(*steps)
        axis.plot(xs, ys, ".-", color=colour, markersize=3, linewidth=0.8, label=form)
    axis.set(xlim=(-5, 5), ylim=(-6, 6), xlabel="r", ylabel="θ", title=f"eq. 53, {_words(setting)}")
    axis.legend()
    axis = axes[0, 1]
    for colour, (form, values) in zip(COLOURS, shown["psi"].items()):
        axis.semilogy([max(x, 1e-16) for x in values], color=colour, label=form)
    axis.axhline(valley["reached"], color="grey", linewidth=0.7, linestyle=":")
    axis.set(xlabel="step", ylabel="ψ", title="The same: median setting of those that both reach")
    axis.legend()
    # Who is first, by decay and rate.
    axis = axes[0, 2]
    bars = [("all", valley["delta"]["same"]), ("each at\nits best", valley["delta"]["best"])]
    bars += [(f"decay\n{value}", row) for value, row in valley["delta"]["by"]["decay"].items()]
    bars += [(f"rate\n{value}", row) for value, row in valley["delta"]["by"]["lr"].items()]
    names = ("delta first", "together", "momentum first", "neither")
    low = [0.0] * len(bars)
    for colour, name in zip((COLOURS[1], COLOURS[3], COLOURS[0], "#dddddd"), names):
        high = [row[name] for _, row in bars]
        axis.bar(range(len(bars)), high, bottom=low, color=colour, label=name)
        low = [a + b for a, b in zip(low, high)]
    axis.set_xticks(range(len(bars)), [label for label, _ in bars], fontsize=7)
    axis.set(ylim=(0, 1), ylabel="share of the settings", title="Who reaches the optimum first")
    axis.legend(fontsize=8, loc="lower right")
    # Tasks.
    tasks = results["tasks"]
    axis = axes[1, 0]
    palette = plt.get_cmap("tab20")
    for i, (name, row) in enumerate(tasks["optimizers"].items()):
        axis.semilogy([max(x, 1e-9) for x in row["first_task"]], color=palette(i), label=name, linewidth=1.2)
    for i in range(1, tasks["tasks"]):
        axis.axvline(i * tasks["steps"], color="grey", linewidth=0.6, linestyle=":")
    axis.set(xlabel="step", ylabel="loss of the first task", title="Tasks at right angles, one after another")
    axis.legend(fontsize=7, ncols=2)
    axis = axes[1, 1]
    order = sorted(tasks["optimizers"], key=lambda name: tasks["optimizers"][name]["final"], reverse=True)
    for i, name in enumerate(order):
        row = tasks["optimizers"][name]
        axis.plot([max(row["learned"], 1e-9), max(row["final"], 1e-9)], [i, i], color="grey", linewidth=1)
        axis.plot(max(row["learned"], 1e-9), i, "o", color=COLOURS[2], label="when learned" if not i else None)
        axis.plot(max(row["final"], 1e-9), i, "o", color=COLOURS[1], label="at the end" if not i else None)
    axis.set_xscale("log")
    axis.set_yticks(range(len(order)), [f"{n} (rate {tasks['optimizers'][n]['lr']:.2g})" for n in order], fontsize=8)
    axis.set(xlabel="mean loss of all tasks", title=f"What is learned, and what is left ({tasks['seeds']} seeds)")
    axis.legend(fontsize=8)
    # Lags.
    lags = results["lags"]
    axis = axes[1, 2]
    for i, (name, row) in enumerate(lags["optimizers"].items()):
        xs = [age + 1 for age in lags["ages"]]
        axis.loglog(xs, [max(x, 1e-9) for x in row["weights"]], color=palette(i), label=name, linewidth=1.2)
    axis.set(xlabel="steps ago", ylabel="share of the last step", ylim=(1e-7, 1), title="How far back each remembers")
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _words(setting: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())
