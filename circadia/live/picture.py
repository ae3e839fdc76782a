"""A life as a picture: surprise over what was read, ticks of each level, versions, rollbacks and forgettings."""

import itertools
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circadia.live.status import story

if TYPE_CHECKING:
    from circadia.live.learner import Learner

WIDTH, LEFT, RIGHT, TOP, PLOT, LANE = 1120, 150, 36, 64, 240, 34
INK, QUIET, GRID, LINE, BACK, GOOD = "#1f2933", "#66727f", "#e3e7eb", "#0f766e", "#b91c1c", "#4f46e5"


def write(me: "Learner", path: Path) -> Path:
    """SVG, or PNG by way of matplotlib."""
    if path.suffix == ".svg":
        path.write_text(draw(me), encoding="utf-8")
    elif path.suffix == ".png":
        _png(me, path)
    else:
        raise ValueError(f"{path}: give a file that ends in .svg or .png")
    return path


def collect(me: "Learner") -> dict[str, Any]:
    """Along all that was ever read, also what was rolled back: points of surprise, ticks, and marks."""
    points: list[tuple[float, float, float]] = []
    marks: list[tuple[float, str, str]] = []
    ticks: list[list[float]] = [[] for _ in me.model.settings.levels]
    at = 0.0
    for entry in story(me):
        if entry["what"] == "commit":
            count = entry.get("tokens", 0)
            start = entry["until"] - count
            points += [(at + max(0, p - start), s, w) for p, s, w in entry.get("curve", [])]
            for i, level in enumerate(me.model.settings.levels):
                first = start // level.period + 1
                ticks[i] += [at + t * level.period - start for t in range(first, entry["until"] // level.period + 1)]
            at += count
            marks.append((at, "version" if entry["current"] else "held", str(entry["version"])))
        else:
            text = {"rollback": f"to {entry.get('to') or 'base'}"}.get(entry["what"], "")
            marks.append((at, entry["what"], text))
    return {"points": points, "ticks": ticks, "marks": marks, "end": max(at, 1.0)}


def draw(me: "Learner") -> str:
    """The picture as SVG text."""
    found = collect(me)
    levels = me.model.settings.levels
    height = TOP + PLOT + LANE * (len(levels) + 2) + 40
    top = max([s for _, s, _ in found["points"]], default=1.0) * 1.05

    def x(t: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * t / found["end"]

    def y(s: float) -> float:
        return TOP + PLOT * (1 - s / top)

    body = [f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>',
            _text(28, 36, f"{me.name}: {int(found['end']):,} tokens read", INK, 19)]  # fmt: skip
    for i in range(5):
        height_of, right = y(top * i / 4), WIDTH - RIGHT
        body.append(_line(LEFT, height_of, right, height_of, GRID))
        body.append(_text(LEFT - 10, height_of + 4, f"{top * i / 4:.2f}", QUIET, 12, "end"))
        read = found["end"] * i / 4
        body.append(_text(x(read), height - 14, f"{read:,.0f}", QUIET, 12, "middle"))
    body.append(_text(28, TOP + 14, "surprise", INK, 13))
    body.append(_text(28, TOP + 30, "nats a token", QUIET, 11))
    if found["points"]:
        line = " ".join(f"{x(t):.1f},{y(s):.1f}" for t, s, _ in found["points"])
        body.append(f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.6"/>')
        weak = [(t, s) for t, s, w in found["points"] if w < 0.5]
        body += [f'<circle cx="{x(t):.1f}" cy="{y(s):.1f}" r="2.6" fill="{BACK}"/>' for t, s in weak]
    for i, level in enumerate(levels):
        mid = TOP + PLOT + LANE * (i + 0.7)
        body += [
            _text(28, mid + 4, f"level {i}, {level.period:,}", INK, 13),
            _line(LEFT, mid, WIDTH - RIGHT, mid, GRID),
        ]
        body += _ticks(sorted(x(t) for t in found["ticks"][i]), mid)
    for lane, (kinds, title) in enumerate(
        ((("version", "held", "feedback"), "versions"), (("rollback", "forgot", "hold"), "rolled back, forgot"))
    ):
        mid = TOP + PLOT + LANE * (len(levels) + lane + 0.7)
        body += [_text(28, mid + 4, title, INK, 13), _line(LEFT, mid, WIDTH - RIGHT, mid, GRID)]
        free = 0.0
        for t, kind, text in found["marks"]:
            if kind in kinds:
                colour = {"version": GOOD, "held": BACK, "feedback": "#b45309"}.get(kind, BACK)
                body.append(f'<circle cx="{x(t):.1f}" cy="{mid:.1f}" r="5" fill="{colour}"/>')
                label = text if kind in ("version", "held") else f"{kind} {text}".strip()
                if kind != "feedback" and x(t) > free:
                    body.append(_text(min(x(t), WIDTH - RIGHT - 4), mid - 8, label, QUIET, 11, "middle"))
                    free = x(t) + 7 * len(label)
    note = "red points: chunks of weight under 0.5"
    body.append(_text(WIDTH - RIGHT, 36, note, QUIET, 12, "end"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
    return "\n".join([head, *body, "</svg>\n"])


def _ticks(places: list[float], mid: float) -> list[str]:
    """Ticks, or where they would touch a band."""
    near = [b - a for a, b in itertools.pairwise(places)]
    if near and sorted(near)[len(near) // 2] < 3:
        return [f'<rect x="{places[0]:.1f}" y="{mid - 7:.1f}" width="{places[-1] - places[0]:.1f}" height="14" '
                f'fill="{LINE}" opacity="0.5"/>']  # fmt: skip
    return [_line(p, mid - 7, p, mid + 7, LINE, 1.6) for p in places]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, colour: str, size: int, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _png(me: "Learner", path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(f"{path}: PNG needs matplotlib, pip install 'circadia[eval]'; or give a .svg file") from None
    found, levels = collect(me), me.model.settings.levels
    figure = Figure(figsize=(11, 5))
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    if found["points"]:
        upper.plot([p[0] for p in found["points"]], [p[1] for p in found["points"]], color=LINE)
        weak = [p for p in found["points"] if p[2] < 0.5]
        upper.plot([p[0] for p in weak], [p[1] for p in weak], ".", color=BACK)
    upper.set_ylabel("surprise, nats a token")
    names = [f"level {i}, {level.period}" for i, level in enumerate(levels)] + ["versions", "rolled back, forgot"]
    for i, places in enumerate(found["ticks"]):
        lower.plot(places, [i] * len(places), "|", color=LINE)
    for t, kind, _ in found["marks"]:
        back = kind in ("rollback", "forgot", "hold")
        lower.plot([t], [len(levels) + back], "o", color=BACK if back or kind == "held" else GOOD)
    lower.set_yticks(range(len(names)), names)
    lower.invert_yaxis()
    lower.set_xlabel("tokens read")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
