"""The picture of ``benchmarks.recall``: three curves and a bar chart, the same colours and names in all."""

from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from benchmarks.recall_report import figures, spread

INK, MUTED, FAINT = "#222222", "#6f6f6f", "#e4e4e4"
# Colours that colour-blind readers can tell apart.
FAMILIES = {
    "Hebbian": "#8a8a8a",
    "delta": "#0072b2",
    "DGD": "#009e73",
    "deep": "#d98200",
    "self-modifying": "#b0508c",
}
PLAIN = "#111111"  # linear attention, which all others are held against
DEEP_DGD = "#c0392b"  # MLP memories with the DGD factor
SOLID, DASHED, DOTTED = "-", (0, (5, 1.5)), (0, (3, 3))
# The rules drawn boldly and named, with what they stand for; the others stay thin, in the colour of their family.
NAMED = {
    "linear": ("linear", SOLID),
    "mamba2": ("mamba2: decay", DASHED),
    "deltanet": ("deltanet: delta rule", SOLID),
    "dgd": ("dgd: DGD, matrix", DOTTED),
    "dla": ("dla: MLP", SOLID),
    "titans": ("titans: MLP, L2", DASHED),
    "dgd_mlp": ("dgd_mlp: MLP, DGD", SOLID),
    "self_modifying": ("self_modifying", SOLID),
}


def draw(results: dict[str, Any], out: Path) -> Path:
    """Write recall.png and recall.svg."""
    config = results["config"]
    width, chance = config["width"], config["chance"]
    settings = {"font.family": "DejaVu Sans", "font.size": 10, "axes.edgecolor": MUTED, "text.color": INK}
    with plt.rc_context({**settings, "svg.hashsalt": "recall"}):
        figure, ((pairs, alike), (long, again)) = plt.subplots(2, 2, figsize=(15.6, 10.6))
        figure.subplots_adjust(left=0.045, right=0.88, top=0.82, bottom=0.065, hspace=0.42, wspace=0.48)
        figure.text(0.014, 0.975, title(results), fontsize=16.5, weight="bold", va="top")
        size = 4 * width**2
        figure.text(
            0.014,
            0.938,
            f"Recall of key-value pairs, no training. Every memory has a state of about {size:,} bytes: a"
            f" {width} × {width} matrix, or an MLP with as many weights. Mean and"
            f" standard deviation (band) over {config['seeds']} seed{'s' * (config['seeds'] > 1)}.\n"
            "Each rule takes the best rate, retention and momentum of one grid for each panel,"
            " found on another seed. Thin lines: the other rules of a family.",
            fontsize=10,
            color=MUTED,
            va="top",
            linespacing=1.5,
        )
        for axes, task in ((pairs, "pairs"), (alike, "alike")):
            curves = {label: rule["per_seed"][task] for label, rule in results["rules"].items()}
            _curves(axes, results, config["counts"], curves)
            axes.set_xlabel("stored pairs")
            _line(axes, width, f"d_k = {width}: exact recall of a matrix ends here")
        _head(pairs, "How many pairs fit?", "random keys")
        _head(alike, "And if keys look alike?", f"keys share a direction, mean cosine {config['alike']}")

        edges = [0] + [n for i in range(3, 12) if (n := 2**i) < config["pairs"]] + [config["pairs"]]
        spans = list(pairwise(edges))
        middles = [-((max(a, 1) * b) ** 0.5) for a, b in spans][::-1]
        ages = {
            label: [[mean(seed[::-1][a:b]) for a, b in reversed(spans)] for seed in rule["per_seed"]["long"]]
            for label, rule in results["rules"].items()
        }
        _curves(long, results, middles, ages)
        long.set_xlabel("how many pairs ago it was stored: old on the left, new on the right")
        _line(long, -width, f"the newest {width} are to the right")
        _head(long, f"What is left of {config['pairs']} pairs?", f"one long stream, tuned to keep its newest {width}")

        box = again.get_position()  # its names stand on the left, and nothing on the right
        again.set_position((box.x0 + 0.035, box.y0, 0.985 - box.x0 - 0.035, box.height))
        _bars(again, results)
        _head(again, "A key is stored again: which value comes back?", f"{width // 2} random keys, each stored twice")
        for axes in (pairs, alike, long):
            axes.axhline(chance, color=MUTED, lw=0.8, ls=":")
        pairs.text(config["counts"][0] * 1.06, chance + 0.01, f"chance: {chance:.1%}", fontsize=8, color=MUTED)
        png = out / "recall.png"
        figure.savefig(png, dpi=150)
        figure.savefig(out / "recall.svg", metadata={"Date": None})
        plt.close(figure)
    return png


def title(results: dict[str, Any]) -> str:
    """The finding: the delta rule against linear attention where keys look alike, and where they come again."""
    linear, delta = figures(results, "linear"), figures(results, "deltanet")
    width = results["config"]["width"]
    a, b = (100 * mean(x["alike one"]) for x in (linear, delta))
    newer, older = 100 * mean(delta["newer"]), 100 * mean(linear["newer"])
    return (
        f"Similar keys: the delta rule recalls {b:.0f}% of {width} pairs, linear attention {a:.0f}%."
        f" Overwritten keys: {newer:.0f}% against {older:.0f}%."
    )


def colour(rule: dict[str, Any]) -> str:
    own = {"linear": PLAIN, "dgd_mlp": DEEP_DGD, "dgd_mlp_layer": DEEP_DGD}
    return own.get(rule["rule"], FAMILIES[rule["family"]])


def _curves(axes: Axes, results: dict[str, Any], x: list[float], curves: dict[str, list[list[float]]]) -> None:
    """One curve a rule, [seeds][points]; the named ones are labelled at their right end."""
    ends = {}
    for label, rows in curves.items():
        rule = results["rules"][label]
        if label == "self_modifying, large":
            continue  # not of the same size: it is in the table
        points = list(zip(*rows))
        middle = [mean(point) for point in points]
        if label not in NAMED:
            axes.plot(x, middle, color=colour(rule), lw=0.8, alpha=0.4, zorder=2)
            continue
        axes.plot(x, middle, color=colour(rule), lw=2.4, ls=NAMED[label][1], zorder=3)
        low, high = ([m + side * spread(list(p)) for m, p in zip(middle, points)] for side in (-1, 1))
        axes.fill_between(x, low, high, color=colour(rule), alpha=0.13, lw=0, zorder=1)
        ends[label] = middle[-1]
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlim(x[0], x[-1])
    ticks = x if x[0] > 0 else [-(2.0**i) for i in range(12, 0, -1) if -x[-1] <= 2.0**i <= -x[0]]
    axes.set_xticks(ticks, [f"{abs(t):.0f}" for t in ticks])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color=FAINT, lw=0.8)
    axes.tick_params(colors=MUTED, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for label, at in _apart(ends, 0.056, 0.0, 1.02).items():
        axes.annotate(
            NAMED[label][0],
            (1.0, ends[label]),
            (1.04, at),
            ("axes fraction", "data"),
            ("axes fraction", "data"),
            color=colour(results["rules"][label]),
            weight="bold",
            fontsize=10,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour(results["rules"][label]),
                "lw": 0.7,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )


def _apart(ends: dict[str, float], gap: float, low: float, high: float) -> dict[str, float]:
    """Heights for labels, in the order of their curves and at least ``gap`` from each other."""
    order = sorted(ends, key=lambda label: ends[label])
    at = [ends[label] for label in order]
    for _ in range(200):
        for i in range(len(at) - 1):
            lack = gap - (at[i + 1] - at[i])
            if lack > 0:
                at[i], at[i + 1] = at[i] - lack / 2, at[i + 1] + lack / 2
        shift = max(low - at[0], 0.0) or min(high - at[-1], 0.0)
        at = [y + shift for y in at]
    return dict(zip(order, at))


def _bars(axes: Axes, results: dict[str, Any]) -> None:
    labels = [label for label in results["rules"] if label != "self_modifying, large"]
    for y, label in enumerate(labels):
        rule = results["rules"][label]
        newer, older, neither = (mean(share) for share in zip(*rule["per_seed"]["again"]))
        axes.barh(y, newer, color=colour(rule), height=0.72)
        axes.barh(y, older, left=newer, color=colour(rule), alpha=0.28, height=0.72)
        axes.barh(y, neither, left=newer + older, color="#f1f1f1", height=0.72)
        if newer > 0.08:
            axes.text(
                newer - 0.008, y, f"{newer:.0%}", color="white", fontsize=8.5, ha="right", va="center", weight="bold"
            )
        else:
            axes.text(newer + older + 0.008, y, f"{newer:.0%}", color=MUTED, fontsize=8.5, va="center")
    axes.set_yticks(range(len(labels)), labels)
    for tick, label in zip(axes.get_yticklabels(), labels):
        tick.set_color(colour(results["rules"][label]))
        tick.set_fontweight("bold" if label in NAMED else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("full colour: the newer value     pale: the older one     grey: another entry of the codebook")
    axes.tick_params(length=0, axis="both")
    axes.tick_params(axis="x", colors=MUTED)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _head(axes: Axes, question: str, detail: str) -> None:
    axes.text(0, 1.125, question, transform=axes.transAxes, fontsize=13, weight="bold", va="bottom")
    axes.text(0, 1.07, detail, transform=axes.transAxes, fontsize=10, color=MUTED, va="bottom")
    axes.xaxis.label.set_color(MUTED)


def _line(axes: Axes, x: float, text: str) -> None:
    axes.axvline(x, color=MUTED, lw=0.9, ls=(0, (2, 2)), zorder=0)
    axes.annotate(text, (x, 1.0), (0, 2), ("data", "axes fraction"), "offset points", fontsize=8, color=MUTED)
