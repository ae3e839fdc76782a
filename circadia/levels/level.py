"""One level: memories that share an update period, an objective, a rule and a source of knowledge."""

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Unit = Literal["token", "step"]


@dataclass(frozen=True)
class Member:
    """A pattern, such as `model.layers.{0..5}.self_attn`, and how many modules or parameters it covers."""

    pattern: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Level:
    """What is written together, and how often (NL, Def. 2 and 3).

    The period is the time between two updates; the frequency is its inverse. Period 0 is the paper's infinite
    frequency: nothing is iterated, the answer is solved anew at every token (softmax attention). An infinite
    period is frequency zero: nothing in this system ever writes it.
    """

    name: str
    period: float
    unit: Unit = "token"  # what the period counts: tokens of one sequence, or optimizer steps
    members: tuple[Member, ...] = ()
    learns_from: str = ""
    objective: str = ""
    rule: str = ""
    enters: str = ""
    leaves: str = ""
    parameters: int = 0  # parameters written on this level; over all levels they add up to the module's total
    state_bytes: int = 0  # fixed state, or the bound of a growing one
    bytes_per_token: int = 0  # what each token of context adds to the state
    window: int | None = None  # tokens after which a growing state stops growing
    shared: bool = False  # one state for the whole model, not one per sequence
    note: str = ""

    @property
    def frequency(self) -> float:
        """Updates per token, or per optimizer step: the inverse of the period."""
        return math.inf if self.period == 0 else 1 / self.period

    def identity(self) -> tuple[Any, ...]:
        """Everything but members and sizes: memories that agree in it are one level."""
        summed = {"members", "parameters", "state_bytes", "bytes_per_token"}
        return tuple(getattr(self, field.name) for field in fields(self) if field.name not in summed)

    def period_text(self, tokens_per_step: float | None = None) -> str:
        """The period in words."""
        if self.period == 0:
            return "0 (solved at every token)"
        if math.isinf(self.period):
            return "never"
        count = f"{self.period:,.10g}"
        if self.unit == "token":
            return f"{count} token{'s' if self.period != 1 else ''}"
        text = f"{count} optimizer step{'s' if self.period != 1 else ''}"
        return f"{text} ({self.period * tokens_per_step:,.10g} tokens)" if tokens_per_step else text

    def size_text(self) -> str:
        """Parameters and state in words."""
        parts = [f"{count_text(self.parameters)} parameters"] if self.parameters else []
        if self.bytes_per_token:
            text = f"{bytes_text(self.bytes_per_token)} per token"
            if self.window:
                text += f", up to {bytes_text(self.state_bytes)} ({self.window:,} tokens)"
            parts.append(text)
        elif self.state_bytes:
            parts.append(bytes_text(self.state_bytes) + ("" if self.shared else " per sequence"))
        return " + ".join(parts) or "-"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. A period of `None` means never, because JSON has no infinity."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        data["members"] = [asdict(member) for member in self.members]
        data["period"] = None if math.isinf(self.period) else self.period
        return data


def count_text(count: int) -> str:
    """1234567 -> '1.23 M'."""
    for factor, suffix in ((10**12, " T"), (10**9, " B"), (10**6, " M"), (10**3, " k")):
        if count >= factor:
            return f"{count / factor:.3g}{suffix}" if count < 999.5 * factor else f"{count // factor:,}{suffix}"
    return str(count)


def bytes_text(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for factor, suffix in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= factor:
            return f"{count / factor:,.1f} {suffix}"
    return f"{count:,.0f} B"


def summarise(names: Iterable[str]) -> tuple[Member, ...]:
    """Fold names that differ only in numbers into patterns, in order of first appearance."""
    templates: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        parts = name.split(".")
        template = ".".join("#" if part.isdigit() else part for part in parts)
        templates.setdefault(template, []).append(tuple(int(part) for part in parts if part.isdigit()))
    members: list[Member] = []
    for template, found in templates.items():
        numbers = list(dict.fromkeys(found))
        columns = [sorted(set(column)) for column in zip(*numbers)]
        if len(numbers) == math.prod(len(column) for column in columns):
            members.append(Member(_fill(template, columns), len(numbers)))
            continue
        # Not every combination occurs (layers with unequal numbers of experts): fold the last number only.
        for head, group in itertools.groupby(sorted(numbers), key=lambda number: number[:-1]):
            lasts = [number[-1] for number in group]
            members.append(Member(_fill(template, [*([h] for h in head), lasts]), len(lasts)))
    return tuple(members)


def _fill(template: str, columns: list[list[int]]) -> str:
    texts = iter([_ranges(column) for column in columns])
    return re.sub("#", lambda _: next(texts), template)


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '{0..2,5}', [3] -> '3'. The numbers are sorted and unique."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(numbers) == 1:
        return str(numbers[0])
    return "{" + ",".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"
