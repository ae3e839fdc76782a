"""The levels view as a picture: time runs to the right, a lane per level, a tick wherever the level is
written.

The time axis is logarithmic, so that periods from one token to millions share one picture. On it the ticks of
a level start at its period and grow denser to the right; where they would touch, a band takes over.
"""

import math
from html import escape
from typing import TYPE_CHECKING

from circadia.levels.level import Level

if TYPE_CHECKING:
    from circadia.levels.view import LevelsView

WIDTH, LABELS, RIGHT = 1120, 364, 36  # the picture, the column of labels, the right margin
TOP, LANE, BOTTOM = 92, 74, 64
CLOSEST = 5.0  # pixels between two ticks below which a band is drawn
INK, QUIET, GRID, PAPER, STRIPE = "#1f2933", "#66727f", "#e3e7eb", "#ffffff", "#f7f8fa"
# One colour for what a level learns from: tokens, gradients, anything else, nothing.
COLOURS = {"tokens": "#0f766e", "gradients": "#b45309", "other": "#4f46e5", "nothing": "#98a2ad"}


def draw(view: "LevelsView") -> str:
    """The picture as SVG text, with a background of its own for light and dark viewers alike."""
    steps = view.tokens_per_step or _nominal_step(view.levels)
    periods = [_tokens(level, steps) for level in view.levels]
    decades = _decades(periods)
    height = TOP + LANE * len(view.levels) + BOTTOM
    sketched = view.tokens_per_step is None and any(_in_steps(level) for level in view.levels)
    body = [
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="{PAPER}"/>',
        _text(28, 40, f"{view.model}: when each level is written", 19, weight=600),
        *_legend(view.levels),
        *_axis(decades, height, sketched),
    ]
    for index, (level, period) in enumerate(zip(view.levels, periods)):
        body += _lane(level, period, TOP + LANE * index, decades, index % 2 == 0, view.tokens_per_step)
    for index, (level, below) in enumerate(zip(view.levels, view.levels[1:])):
        both = level.learns_from == below.learns_from == "gradients"
        if both and not level.parameters and below.parameters:
            body.append(_arrow(_x(periods[index], decades), TOP + LANE * index))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="Inter,Helvetica Neue,Helvetica,Arial,sans-serif">'
    )
    title = f"<title>{escape(view.model)}: {len(view.levels)} levels</title>"
    return "\n".join([head, title, *body, "</svg>", ""])


def _in_steps(level: Level) -> bool:
    return level.unit == "step" and math.isfinite(level.period)


def _tokens(level: Level, steps: float) -> float:
    return level.period * steps if _in_steps(level) else level.period


def _nominal_step(levels: tuple[Level, ...]) -> float:
    """Where to draw an optimizer step of unknown length: well behind the slowest period in tokens."""
    slowest = max([level.period for level in levels if level.unit == "token" and math.isfinite(level.period)] + [1])
    return 10.0 ** max(3, math.ceil(math.log10(slowest)) + 1)


def _decades(periods: list[float]) -> int:
    """Powers of ten on the axis: one more than the longest period needs, and three at least."""
    longest = max([period for period in periods if math.isfinite(period)] + [1])
    return max(3, math.ceil(math.log10(longest) + 1.2))


def _x(tokens: float, decades: int) -> float:
    return LABELS + (WIDTH - LABELS - RIGHT) * math.log10(max(tokens, 1)) / decades


def tick_times(period: float, decades: int) -> list[float]:
    """The multiples of a period that stand at least `CLOSEST` pixels apart on the axis."""
    times = []
    time = period
    while time <= 10**decades and _x(time + period, decades) - _x(time, decades) >= CLOSEST:
        times.append(time)
        time += period
    return times


def _lane(
    level: Level, period: float, top: float, decades: int, striped: bool, tokens_per_step: float | None
) -> list[str]:
    middle, left, right = top + LANE / 2, LABELS, WIDTH - RIGHT
    key = level.learns_from if level.learns_from in COLOURS else "other"
    colour = COLOURS["tokens" if level.learns_from.startswith("tokens") else key]
    svg = [f'<rect x="12" y="{top}" width="{WIDTH - 24}" height="{LANE}" rx="6" fill="{STRIPE}"/>'] if striped else []
    svg += [
        f'<rect x="20" y="{top + 14}" width="4" height="{LANE - 28}" rx="2" fill="{colour}"/>',
        _text(36, top + 26, _clip(level.name, 38), 14.5, weight=600),
        _text(36, top + 44, _clip(level.period_text(tokens_per_step), 48), 12, fill=QUIET),
        _text(36, top + 61, _clip(level.size_text(), 48), 12, fill=QUIET),
    ]
    if period == 0:
        return [*svg, _band(left, right, middle, colour, 0.85)]
    if math.isinf(period):
        return [*svg, _line(left, right, middle, colour, 'class="never" stroke-dasharray="2 5"')]
    times = tick_times(period, decades)
    after = min(right, _x(times[-1] + period if times else period, decades))
    svg += [
        _line(left, after, middle, colour, 'stroke-opacity="0.4"'),
        _band(after, right, middle, colour, 0.3),
    ]
    for time in times:
        x = _x(time, decades)
        svg.append(
            f'<line class="tick" x1="{x:.1f}" y1="{middle - 15}" x2="{x:.1f}" y2="{middle + 15}" '
            f'stroke="{colour}" stroke-width="2" stroke-linecap="round"/>'
        )
    return svg


def _line(left: float, right: float, y: float, colour: str, style: str) -> str:
    ends = f'x1="{left:.1f}" y1="{y}" x2="{right:.1f}" y2="{y}"'
    return f'<line {ends} stroke="{colour}" stroke-width="1.5" {style}/>'


def _band(left: float, right: float, middle: float, colour: str, opacity: float) -> str:
    return (
        f'<rect class="band" x="{left:.1f}" y="{middle - 15}" width="{right - left:.1f}" height="30" rx="3" '
        f'fill="{colour}" fill-opacity="{opacity}"/>'
    )


def _arrow(x: float, top: float) -> str:
    """From the first tick of one lane to that of the next: what an optimizer holds enters the weights."""
    start, end, colour = top + LANE / 2 + 19, top + 1.5 * LANE - 21, COLOURS["gradients"]
    return (
        f'<path class="arrow" d="M{x:.1f} {start} V{end} m-4 -6 l4 6 l4 -6" fill="none" stroke="{colour}" '
        f'stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round"/>'
    )


def _legend(levels: tuple[Level, ...]) -> list[str]:
    words = {
        "tokens": "learns from tokens",
        "gradients": "from gradients",
        "other": "from another signal",
        "nothing": "frozen",
    }
    present = {"tokens" if level.learns_from.startswith("tokens") else level.learns_from for level in levels}
    present = {key if key in COLOURS else "other" for key in present}
    svg, x = [], 28.0
    for key in [key for key in COLOURS if key in present]:
        svg.append(f'<circle cx="{x + 4}" cy="62" r="4.5" fill="{COLOURS[key]}"/>')
        svg.append(_text(x + 15, 66, words[key], 12, fill=QUIET))
        x += 34 + 6.3 * len(words[key])
    return svg


def _axis(decades: int, height: int, nominal: bool) -> list[str]:
    base = height - BOTTOM + 6
    svg = []
    for decade in range(decades + 1):
        x = _x(10**decade, decades)
        svg.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{base}" stroke="{GRID}"/>')
        svg.append(_text(x, base + 18, _power(decade), 12, fill=QUIET, anchor="middle"))
    label = "tokens read, logarithmic; a band: too frequent to tell apart"
    if nominal:
        label += " (length of an optimizer step not given: its place is only a sketch)"
    return [*svg, _text(WIDTH - RIGHT, base + 40, label, 12, fill=QUIET, anchor="end")]


def _power(decade: int) -> str:
    return f"{10 ** (decade % 3)}{['', 'k', 'M', 'G', 'T', 'P'][decade // 3]}" if decade < 18 else f"1e{decade}"


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _text(x: float, y: float, text: str, size: float, fill: str = INK, weight: int = 400, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
