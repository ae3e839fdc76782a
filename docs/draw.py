"""The pictures of concepts.md: `python docs/draw.py` writes them into docs/."""

from pathlib import Path

INK, QUIET, FAST, SLOW, BASE = "#1f2933", "#66727f", "#0f766e", "#4f46e5", "#98a2ad"
HERE = Path(__file__).parent


def text(x: float, y: float, words: str, colour: str = INK, size: int = 15, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, w: float, h: float, colour: str) -> str:
    look = f'rx="8" fill="{colour}" fill-opacity="0.14" stroke="{colour}"'
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" {look}/>'


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = QUIET) -> str:
    look = f'stroke="{colour}" stroke-width="2" marker-end="url(#tip)" fill="none"'
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" {look}/>'


def page(width: int, height: int, *parts: str) -> str:
    tip = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{QUIET}"/></marker></defs>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    back = f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>'
    return "\n".join([head, tip, back, *parts, "</svg>\n"])


def levels() -> str:
    """A model as memories, fastest on top."""
    rows = [
        ("attention", "every token, and all of it kept: a context", FAST),
        ("fast memories", "written every chunk, from what was just read", FAST),
        ("slower levels", "written every 512, 2,048, 8,192 tokens", SLOW),
        ("the base", "written in training, then never", BASE),
    ]
    parts = []
    for i, (name, what, colour) in enumerate(rows):
        y = 24 + 78 * i
        parts += [box(24 + 26 * i, y, 640 - 52 * i, 58, colour), text(344, y + 25, name, INK, 16, "middle")]
        parts.append(text(344, y + 45, what, QUIET, 13, "middle"))
    parts += [arrow(700, 40, 700, 320), text(714, 60, "often,"), text(714, 80, "little"), text(714, 300, "seldom,")]
    return page(800, 346, *parts, text(714, 320, "lasting"))


def rhythms() -> str:
    """Which level is written when."""
    parts = [text(24, 30, "tokens read", QUIET, 13), arrow(130, 26, 770, 26)]
    for i, (period, colour) in enumerate(((16, FAST), (64, FAST), (256, SLOW))):
        y = 70 + 56 * i
        parts.append(text(24, y + 5, f"every {period}"))
        parts.append(f'<line x1="130" x2="770" y1="{y}" y2="{y}" stroke="#e3e7eb"/>')
        for t in range(period, 513, period):
            x = 130 + 640 * t / 512
            parts.append(
                f'<line x1="{x:g}" x2="{x:g}" y1="{y - 13}" y2="{y + 13}" stroke="{colour}" stroke-width="2.5"/>'
            )
    parts.append(
        text(130, 224, "A tick is a write: the mean gradient of everything read since the last one.", QUIET, 13)
    )
    return page(800, 244, *parts)


def sleep() -> str:
    """Day, night, morning."""
    parts = []
    for x, name in ((24, "day"), (290, "night"), (556, "next morning")):
        parts.append(text(x, 34, name, INK, 17))
    parts += [
        box(24, 56, 220, 54, FAST), text(40, 80, "fast memory"), text(40, 99, "predicts, then learns", QUIET, 13),
        box(24, 190, 220, 54, BASE), text(40, 214, "journal"), text(40, 233, "what was read", QUIET, 13),
        box(290, 56, 220, 54, SLOW), text(306, 80, "the older self dreams"), text(306, 99, "what must stay", QUIET, 13),
        box(290, 123, 220, 54, SLOW), text(306, 147, "replay"), text(306, 166, "both, in turns", QUIET, 13),
        box(290, 190, 220, 54, SLOW), text(306, 214, "surprising windows"), text(306, 233, "what is new", QUIET, 13),
        box(556, 123, 220, 54, FAST), text(572, 147, "a new version"),
        text(572, 166, "if the guard lets it", QUIET, 13),
        arrow(134, 112, 134, 186), arrow(246, 217, 286, 217), arrow(400, 188, 400, 180), arrow(400, 112, 400, 120),
        arrow(512, 150, 552, 150),
    ]  # fmt: skip
    return page(800, 268, *parts)


if __name__ == "__main__":
    for name, draw in (("levels", levels), ("rhythms", rhythms), ("sleep", sleep)):
        (HERE / f"concept-{name}.svg").write_text(draw(), encoding="utf-8")
