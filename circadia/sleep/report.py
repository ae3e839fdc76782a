"""What a night tells afterwards, as JSON and as a page."""

import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from circadia.sleep.windows import Window


@dataclass
class Report:
    """One night. Losses are nats a token."""

    preset: str = ""
    seed: int = 0
    refused: str = ""  # why nothing was changed, if so
    entries: int = 0
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    superseded: list[dict[str, Any]] = field(default_factory=list)  # what was said otherwise later, see latest.py
    windows: int = 0
    parts: list[dict[str, Any]] = field(default_factory=list)  # what each part did, in order
    moved: list[str] = field(default_factory=list)  # from where to where
    dropped: list[str] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)  # name, before, after
    bound: tuple[float, float] = (math.nan, math.nan)  # share of the probes, before and after
    older: tuple[float, float] = (math.nan, math.nan)  # distance from the older self on its unseen dreams
    dreams: list[dict[str, Any]] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    stopped_by_budget: bool = False
    cut: float | None = None  # where time ended it: the same work as a budget ends it there again
    kept: list[list[Window]] = field(default_factory=list, repr=False)  # by night, for the next ones; not told
    cost: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {n: _plain(x) for n, x in asdict(replace(self, kept=[])).items() if n != "kept"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """Back from JSON, where numbers that are none are null."""
        pairs = {name: tuple(math.nan if x is None else x for x in data[name]) for name in ("bound", "older")}
        probes = [{n: math.nan if x is None else x for n, x in one.items()} for one in data["probes"]]
        return cls(**{**data, **pairs, "probes": probes})

    def json(self) -> str:
        """Numbers that are none are null."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def markdown(self) -> str:
        """A page to read."""
        lines = [f"# A night: {self.preset or 'own settings'}", ""]
        if self.refused:
            lines += [f"**Nothing was changed: {self.refused}.**", ""]
        cost = self.cost
        lines += [
            f"{self.entries} experiences, {len(self.quarantined)} of them held back; {self.windows} windows gone over.",
            f"{cost.get('seconds', 0):.1f} s; tokens learned {cost.get('learned', 0):,.0f}, read "
            f"{cost.get('read', 0):,.0f}, made {cost.get('made', 0):,.0f}; seed {self.seed}."
            + (" The budget ended it." if self.stopped_by_budget else ""),
            "",
            "| | before | after |",
            "| --- | --- | --- |",
            f"| probes bound | {_share(self.bound[0])} | {_share(self.bound[1])} |",
            f"| nats from the older self on its own text | {_number(self.older[0])} | {_number(self.older[1])} |",
        ]
        lines += _list("Moved", self.moved)
        lines += _list("Dropped", self.dropped)
        lines += _list(
            "Held back", [f"{q['number']} ({q['source']}): {q['reason']}; {q['detail']}" for q in self.quarantined]
        )
        lines += _list("Said otherwise later", [superseded(one) for one in self.superseded])
        lines += _list("Parts", [", ".join(f"{k} {_number(v)}" for k, v in part.items()) for part in self.parts])
        if self.probes:
            lines += ["", "## Probes", "", "| probe | before | after |", "| --- | --- | --- |"]
            lines += [f"| {_cell(p['name'])} | {p['before']:.3f} | {p['after']:.3f} |" for p in self.probes]
        lines += _list("Dreams", [f"{d['about']}: {d['text']!r}" for d in self.dreams])
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """The same page for a browser, without anything from elsewhere."""
        return page(self.markdown())


def superseded(one: Mapping[str, Any]) -> str:
    """A line: what is gone over no more, and what was said in its place."""
    now, was = (f"{one['beginning']}{one[end]}" for end in ("now", "was"))
    return f"{one['entry']}: {was!r}; {one['by']}: {now!r}"


def page(text: str) -> str:
    """A page in Markdown, as HTML that needs nothing from elsewhere."""
    return (
        '<!doctype html><meta charset="utf-8"><title>A night</title>'
        "<style>body{font:15px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{border:1px solid #888;padding:.2em .6em;text-align:left}</style>"
        + _html(text)
    )


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(name): _plain(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _number(x: Any) -> str:
    if isinstance(x, float):
        return f"{x:.4g}" if math.isfinite(x) else "–"
    return str(x)


def _share(x: float) -> str:
    return f"{x:.0%}" if math.isfinite(x) else "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _list(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {line}" for line in lines)] if lines else []


def _html(text: str) -> str:
    """Headings, lists, tables and paragraphs of the pages above."""
    out: list[str] = []
    kind = ""
    for line in [*text.splitlines(), ""]:
        now = "ul" if line.startswith("- ") else "table" if line.startswith("|") else ""
        if now != kind:
            out += [f"</{kind}>"] * bool(kind) + [f"<{now}>"] * bool(now)
            kind = now
        escaped = html.escape(line.replace("**", ""))
        if now == "ul":
            out.append(f"<li>{escaped[2:]}</li>")
        elif now == "table":
            if not set(line) <= set("|- "):
                cells = escaped.strip("|").replace("\\|", "&#124;").split("|")
                out.append("<tr>" + "".join(f"<td>{cell.strip()}</td>" for cell in cells) + "</tr>")
        elif line.startswith("#"):
            size = len(line) - len(line.lstrip("#"))
            out.append(f"<h{size}>{escaped[size:].strip()}</h{size}>")
        elif line:
            out.append(f"<p>{escaped}</p>")
    return "\n".join(out)
