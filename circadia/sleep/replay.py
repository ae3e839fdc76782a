"""Learning asleep: the journal's surprising windows again and again, and beside them the dreams of an older self.

    L = CE(windows) + guard KL(old || self)(dreams of old)

What an older self says by itself, with that self as teacher, is what keeps a night from ruining the rest: no old text
needs to be stored. On a small base of bytes the windows alone bound 18 of 20 facts and took its own text from 2.0 to
6.0 bits a byte; beside dreams they bound as many, at 2.5. A fact was shown 200 times, in four windows of 50 each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circadia.sleep.checks import kinds
from circadia.sleep.fit import Fit, Meter
from circadia.sleep.losses import divergence, nats, over_sequences
from circadia.sleep.student import Student, Teacher
from circadia.sleep.windows import IGNORED, Probe, batch, scores, share_bound


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How windows are gone over.

    presentations  of each window at most; less where the probes are bound before
    rows, dreams   of windows and of the older self's dreams in a step; dreams=0: nothing guards what was known
    earlier        windows of earlier nights in a step, beside the `rows` of the day, so that their number does not make
                   a night longer; 0: the day alone, which wipes out what the nights before have bound
    keep           windows that a night hands on to the next ones, of all nights together
    guard          weight of the dreams
    distance       how far from the older self: "forward", "reverse", "jsd"; "ce": its dreams are learned as they are
    enough, bound  the night's learning ends when this share of the probes costs at most `bound` nats a token
    variations     of each window in the self's own words, see words.py; it and its window are shown in turn, so that a
                   night is not longer by them
    """

    length: int = 56
    windows: int | None = None  # at most, the most surprising; None: one of each span
    presentations: float = 50.0
    rows: int = 16
    earlier: int = 8
    keep: int = 256
    dreams: int = 4
    guard: float = 1.0
    distance: str = "forward"
    rate: float = 2e-3
    enough: float = 0.95
    bound: float = 0.15
    answer: int = 12
    probes: int = 64
    every: int = 50
    whole: bool = False  # spans of a chunk instead of windows: plain fine-tuning on the journal
    variations: int = 0

    def __post_init__(self) -> None:
        kinds(self, {"length": 2, "rows": 1, "answer": 1, "probes": 1, "every": 1}, above=("rate",))
        if self.distance not in ("forward", "reverse", "jsd", "ce"):
            raise ValueError(f"distance={self.distance!r}: use forward, reverse, jsd or ce")
        if self.whole and self.variations:
            raise ValueError(f"variations={self.variations} are of windows, which whole=True has not: leave one out")


def replay(
    student: Student, rows: list[Tensor], dreams: Tensor | None, older: Teacher | None, probes: list[Probe],
    how: Replay, generator: torch.Generator, meter: Meter, held: dict[str, Any],
    others: Sequence[Sequence[Tensor]] = (), earlier: Sequence[Tensor] = (),
) -> dict[str, Any]:  # fmt: skip
    """Train the student; what came of it. `others` are variations of each row, `earlier` rows of earlier nights."""
    if not rows:
        return {"steps": 0, "refused": 0, "windows": 0, "bound": None}
    steps = max(1, round(how.presentations * len(rows) / how.rows))
    fit = Fit(student, steps, how.rate, generator, held)
    device = student.model.device
    guarded = dreams is not None and older is not None and how.dreams > 0 and how.guard > 0

    def shown(i: int) -> Tensor:
        if not others or not others[i]:
            return rows[i]
        return [rows[i], *others[i]][int(torch.randint(1 + len(others[i]), (1,), generator=generator))]

    def loss() -> Tensor:
        some = [shown(i) for i in torch.randint(len(rows), (how.rows,), generator=generator).tolist()]
        if earlier and how.earlier:
            some += [earlier[i] for i in torch.randint(len(earlier), (how.earlier,), generator=generator).tolist()]
        ids, labels = (x.to(device) for x in batch(some))
        meter.learned += ids.numel()
        value = over_sequences(nats(student.logits(ids), labels), (labels != IGNORED).float())
        if guarded:
            value = value + how.guard * distance(student, older, dreams, how, generator, meter)  # type: ignore[arg-type]
        return value

    def enough() -> bool:
        meter.read += sum(probe.tokens.numel() for probe in probes)
        return bool(probes) and share_bound(scores(student, probes), how.bound) >= how.enough

    fit.run(loss, meter, "replay", enough, how.every)
    told = {"steps": fit.at, "refused": fit.refused, "windows": len(rows)}
    return {**told, "bound": share_bound(scores(student, probes), how.bound) if probes else None}


def distance(
    student: Student, older: Teacher, dreams: Tensor, how: Replay, generator: torch.Generator, meter: Meter
) -> Tensor:
    """From an older self, on some of its dreams."""
    drawn = torch.randint(len(dreams), (how.dreams,), generator=generator)
    text = dreams[drawn].to(student.model.device)
    meter.learned += text[:, 1:].numel()
    logits = student.logits(text[:, :-1])
    if how.distance == "ce":
        return nats(logits, text[:, 1:]).mean()
    meter.read += text[:, 1:].numel()
    return divergence(older.logits(text[:, :-1]), logits, how.distance)
