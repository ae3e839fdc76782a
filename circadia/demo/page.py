"""The page: one file, pictures and all, without a script; it opens offline."""

from collections.abc import Sequence
from html import escape
from typing import Any

from circadia.demo.story import DAYS, PERIODS, left_out

STYLE = """
body{font:16px/1.55 system-ui,sans-serif;margin:2.5rem auto;max-width:62rem;padding:0 1.2rem;color:#1f2933;
background:#fff}
h1{font-size:1.9rem;margin-bottom:.2rem}h2{margin-top:2.6rem;font-size:1.25rem}p.quiet,small{color:#66727f}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.35rem .9rem .35rem 0;text-align:left;border-bottom:1px solid
#e3e7eb;vertical-align:top}th{font-weight:600}td.n{text-align:right;font-variant-numeric:tabular-nums}svg{width:100%;
height:auto}code{background:#f3f5f7;padding:.1rem .3rem;border-radius:4px}b.good{color:#0f766e}b.bad{color:#b91c1c}
"""
COLOURS = {"last week": "#4f46e5", "today": "#0f766e"}


def draw(found: dict[str, Any]) -> str:
    """HTML out of what a story found."""
    forgot, correction, rolled = found["forgot"], found["correction"], found["rolled back"]
    asked, woken = _asked(found["asked"]), _asked(found["asked after the night"])
    corrected = [
        (f"after {i}" if i else "before", f"{a:.2f}", f"{b:.2f}") for i, (a, b) in enumerate(correction["nats"])
    ]
    night, evening, morning = found["night"], found["evening"]["learner"], found["after the night"]["learner"]
    cost = night["cost"]
    back = rolled["known"]
    versions = [
        (str(v["number"]), str(v["parent"] or "base"), f"{v['tokens']:,}", v["reason"]) for v in found["versions"]
    ]
    now = f"{forgot['nats after']:.2f} (the base: {forgot['nats of the base']:.2f})"
    files = [str(len(forgot[name])) for name in ("files with its words, before", "files with its words")]
    bits = f"all {forgot['tensors compared']} tensors have the bits of a second life that never read it, and slept, too"
    proof = [
        ("the answer costs, in nats", f"{forgot['nats before']:.2f}", now),
        ("files of the store with its words", *files),
        (bits, "", _mark(forgot["same bits as a life without it"])),
    ]
    says = [
        "<h1>A model that keeps learning</h1>",
        f"<p class=quiet>circadia {escape(found['circadia'])}, base <code>{escape(found['base'])}</code> of "
        f"{found['parameters'] / 1e6:.1f} M parameters. All of this was computed in one run of {found['total']:.0f} "
        f"seconds on {escape(found['machine'])}. The model is very small: it shows what happens, not what a good model "
        "says.</p>",
        f"<h2>It reads</h2><p>Five facts last week, five others today, each {found['rounds']} times. Every chunk is "
        "predicted, then learned. Surprise is what the prediction cost.</p>",
        _curves(found),
        "<h2>Asked today, with nothing but the question before it</h2>",
        _table(("question", "it says", "right"), asked),
        "<h2>Who remembers what, after today</h2><p>Right among 7 to 12 choices; in brackets when asked in words that "
        "were never read. The mother tongue is a piece of Conrad that none of them has read, in bits per byte: less is "
        "better. Fine-tuned: all weights, one AdamW step on each chunk, at two rates.</p>",
        _arms(found["after today"]),
        f"<h2>A correction</h2><p>“{escape(correction['prompt'])} <b>{escape(correction['new'])}</b>, not "
        f"{escape(correction['old'])}.” What each answer costs it, in nats, each time that it was said:</p>",
        _table(("", correction["old"], correction["new"]), corrected),
        f"<h2>A night</h2><p>Once more over {night['windows']} windows of all that it ever observed, corrections "
        f"{night['settings']['corrections']} times as often as what was read, beside "
        f"dreams of the base: {cost['learned']:,} tokens were learned in {night['seconds']:.0f} seconds, where "
        f"its days had {night['tokens read by day']:,}. {escape('; '.join(night['moved']))}. "
        + "".join(f"Left out: {escape(left_out(one))}. " for one in night["superseded"])
        + f"{_judged(night)}</p>",
        _table(("level", "from the base, evening", "morning"), _moved(night)),
        "<p>What it dreamt, or rather the base, so that its mother tongue stays:</p><ul>"
        + "".join(f"<li>{escape(' '.join(dream['text'].split()))}</li>" for dream in night["dreams"])
        + "</ul>",
        "<p>It wakes up, and is asked again with nothing but the question before it. For what was corrected "
        "the right answer is the corrected one; those that are fine-tuned have read it as often.</p>",
        _table(("question", "it says", "right"), woken),
        _arms(
            {"learner, in the evening": evening, "learner, after the night": morning}
            | {f"{arm}, awake": own for arm, own in found["after the night"].items() if arm != "learner"}
        ),
        f"<p>{escape(_worth(found))}</p>",
        f"<h2>Forget one thing</h2><p>“{escape(forgot['sentence'])}” Read {forgot['experiences']} times, then "
        f"forgotten on request: {len(forgot['versions'])} versions erased, {forgot['learned again']} experiences "
        "learned again without it, and the night slept again.</p>",
        _table(("proof", "before", "now"), proof),
        f"<h2>Go back</h2><p>Every version is kept. Rolled back from version {rolled['from']} to {rolled['to']} it "
        f"knows {back['last week']['right']} of {back['last week']['of']} of last week and {back['today']['right']} of "
        f"{back['today']['of']} of today; then it went forth again.</p>",
        _table(("version", "from", "tokens read", "why"), versions),
        "<h2>The whole life</h2>",
        found["picture"],
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    return f"{head}<title>circadia: a model that keeps learning</title><style>{STYLE}</style></head><body>" + "\n".join(
        [*says, "</body></html>\n"]
    )


def _asked(found: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(f"{x['prompt']} ...", x["said"], _mark(x["said"].strip() == x["value"])) for x in found]


def _judged(night: dict[str, Any]) -> str:
    """What became of the night's self."""
    if night["action"] == "accept":
        return f"Version {night['parent']} went to sleep, version {night['version']} woke up."
    return f"The guard did not let it pass ({escape('; '.join(night['reasons']))}): {escape(night['action'])}."


def _moved(night: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(f"every {period}", f"{before:.3f}", f"{after:.3f}") for period, before, after in night["levels"]]


def _worth(found: dict[str, Any]) -> str:
    """What the night was good for and what it cost, whichever way it went."""
    evening, morning = found["evening"]["learner"], found["after the night"]["learner"]
    right = [sum(own[d]["right"] for d in DAYS) for own in (evening, morning)]
    count = sum(evening[d]["of"] for d in DAYS)
    tongue = [own["mother_tongue"] for own in (evening, morning)]
    word = "lost" if tongue[1] > tongue[0] else "won back"
    correction = found["correction"]
    old, new = correction["after the night"]
    times = len(correction["nats"]) - 1
    kept = "outlived the night" if new < old else "did NOT outlive the night"
    why = f"A night goes over what was observed: {found['rounds']} times the one, {times} times the other."
    return (
        f"Right were {right[0]} of {count} in the evening and are {right[1]} now. The night {word} "
        f"{abs(tongue[1] - tongue[0]):.2f} bits per byte of the mother tongue. The correction {kept}: "
        f"{correction['old']} costs {old:.2f} nats, {correction['new']} {new:.2f}." + ("" if new < old else f" {why}")
    )


def _mark(good: bool) -> str:
    return '<b class="good">yes</b>' if good else '<b class="bad">no</b>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells that are marks stay as they are; all else is text."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell if cell.startswith('<b class') else escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _arms(scores: dict[str, Any]) -> str:
    rows = []
    for arm, own in scores.items():
        cells = [f"{own[d]['right']} of {own[d]['of']} ({own[d]['reworded']})" for d in reversed(DAYS)]
        rows.append((arm, *cells, f"{own['mother_tongue']:.2f}"))
    return _table(("", *(f"knows of {d}" for d in reversed(DAYS)), "mother tongue"), rows)


def _curves(found: dict[str, Any]) -> str:
    """Surprise over what was read, and below it when each level was written."""
    points = {name: found[f"curve of {name}"] for name in DAYS}
    end = max(p for own in points.values() for p, _ in own) + PERIODS[0]
    top = max(s for own in points.values() for _, s in own) * 1.05
    width, left, height = 1000, 90, 240

    def x(p: float) -> float:
        return left + (width - left - 20) * p / end

    def y(s: float) -> float:
        return 20 + height * (1 - s / top)

    parts = [f'<svg viewBox="0 0 {width} {height + 60 + 34 * len(PERIODS)}" font-family="sans-serif" font-size="13">']
    for i in range(4):
        s = top * i / 3
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y(s):.1f}" y2="{y(s):.1f}" stroke="#e3e7eb"/>')
        parts.append(f'<text x="{left - 8}" y="{y(s) + 4:.1f}" text-anchor="end" fill="#66727f">{s:.1f}</text>')
    for name, own in points.items():
        line = " ".join(f"{x(p):.1f},{y(s):.1f}" for p, s in own)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{x(own[0][0]) + 12:.1f}" y="34" fill="{COLOURS[name]}">{name}</text>')
    for i, period in enumerate(PERIODS):
        mid = height + 50 + 34 * i
        parts.append(f'<text x="4" y="{mid + 4}" fill="#1f2933">every {period}</text>')
        ticks = range(period, int(end) + 1, period)
        parts += [
            f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{mid - 9}" y2="{mid + 9}" stroke="#b45309"/>' for t in ticks
        ]
    return "\n".join(
        [*parts, "</svg>", "<small>Surprise in nats a byte; the ticks are writes of the two levels.</small>"]
    )
