"""Plots of suites, with matplotlib: pip install 'circadia[eval]'."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Bars = Mapping[str, Mapping[str, Sequence[float]]]  # group -> label -> values over seeds
Curves = Mapping[str, Mapping[float, Sequence[float]]]  # label -> x -> values over seeds


def _figure(columns: int, rows: int = 1, height: float = 3.2) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("the plot of a suite needs matplotlib: pip install 'circadia[eval]'") from error
    figure = Figure(figsize=(max(5.0, 3.6 * columns), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _colour(index: int) -> str:
    return f"C{index % 10}"


def bars(groups: Bars, ylabel: str, path: Path) -> None:
    """A group of bars a task: group -> label -> values over seeds; each seed is a dot."""
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    figure, (axes,) = _figure(1, height=3.6)
    figure.set_figwidth(max(5.0, 1.2 + 0.22 * (len(labels) + 1) * len(groups)))
    wide = 0.8 / max(1, len(labels))
    for i, label in enumerate(labels):
        at = [
            (g + (i + 0.5) * wide - 0.4, values[label]) for g, values in enumerate(groups.values()) if label in values
        ]
        axes.bar([x for x, _ in at], [sum(v) / len(v) for _, v in at], wide, label=label, color=_colour(i), alpha=0.6)
        axes.plot([x for x, v in at for _ in v], [y for _, v in at for y in v], ".", color=_colour(i), markersize=4)
    axes.set_xticks(range(len(groups)), list(groups), rotation=20, ha="right")
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def lines(panels: Mapping[str, Curves], xlabel: str, ylabel: str, path: Path, log: bool = True) -> None:
    """A panel each, a curve a model: the mean over seeds, and the range between the lowest and the highest."""
    columns = min(4, len(panels))
    figure, axes = _figure(columns, -(-len(panels) // columns))
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    for panel, (title, curves) in zip(axes, panels.items()):
        for label, points in curves.items():
            xs = sorted(points)
            colour = _colour(labels.index(label))
            panel.plot(xs, [sum(points[x]) / len(points[x]) for x in xs], ".-", color=colour, label=label)
            panel.fill_between(xs, [min(points[x]) for x in xs], [max(points[x]) for x in xs], color=colour, alpha=0.2)
        if log:
            panel.set_xscale("log", base=2)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel(xlabel)
        panel.set_ylabel(ylabel)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def ways(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], thick: str, xlabel: str, path: Path
) -> None:
    """A panel each, titled by what its y is: label -> points in their order, one label drawn thick and black."""
    figure, axes = _figure(len(panels), height=4.5)
    for panel, (title, curves) in zip(axes, panels.items()):
        for i, (label, points) in enumerate(curves.items()):
            style = {"color": "black", "linewidth": 2.5} if label == thick else {"color": _colour(i)}
            panel.plot(*zip(*points), marker="osv^Dpx*+"[i % 9], label=label, **style)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel(xlabel)
    axes[-1].legend(fontsize=6)
    figure.savefig(path, dpi=120)
