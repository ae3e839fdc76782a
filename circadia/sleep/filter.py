"""Where bad memories must stop: before anything is consolidated, every experience is checked against slow memory.

low trust      its source is trusted less than `trust`
single source  it is trusted less than `alone`, and no other source says anything like it
contradiction  what it says where a bound probe's cue stands is not what is bound; or slow memory, sure of something
               else, is wrong on too many of its tokens
failed probe   a trial on a copy, with its windows alone, unbinds something that was bound
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.state import State
from circadia.sleep.checks import kinds
from circadia.sleep.fit import Meter
from circadia.sleep.losses import nats
from circadia.sleep.replay import Replay, replay
from circadia.sleep.student import Student, Teacher, written
from circadia.sleep.windows import Entry, Probe, batch, scores, surprising


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Bounds.

    gram, shared   tokens of a piece of text, and the share of an entry's pieces that another source must have too
    sure, nats     slow memory is sure where one token has this probability, and wrong where the true one costs this
    wrong          the share of tokens from which on that is a contradiction
    cue            tokens of a probe's cue that must stand in an entry for the two to be compared
    trial          steps of the trial; 0: none. It costs as much as that many steps of replay for every entry
    """

    trust: float = 0.3
    alone: float = 0.5
    gram: int = 8
    shared: float = 0.2
    sure: float = 0.95
    nats: float = 6.0
    wrong: float = 0.1
    cue: int = 6
    trial: int = 0
    rate: float = 2e-3
    bound: float = 0.5

    def __post_init__(self) -> None:
        kinds(self, {"gram": 1, "cue": 1}, above=("rate",))
        for name in ("trust", "alone", "shared", "sure", "wrong"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is outside [0, 1]")


@dataclass(frozen=True)
class Held:
    """An experience in quarantine, and why."""

    number: int
    source: str
    reason: str
    detail: str


def check(
    model: RetrofitModel, state: State, slow: Teacher, journal: Sequence[Entry], probes: Sequence[Probe], how: Filter,
    generator: torch.Generator, meter: Meter, admitted: Sequence[int] = (),
) -> tuple[list[Entry], list[Held]]:  # fmt: skip
    """Those that may be consolidated, and those held back. `admitted`: numbers that a person has let pass."""
    before = scores(slow, probes) if probes else []
    known = [probe for probe, value in zip(probes, before) if value <= how.bound]
    grams: dict[str, set[tuple[int, ...]]] = {}
    for entry in journal:
        grams.setdefault(entry.source, set()).update(pieces(entry, how.gram))
    passed, held = [], []
    for at, entry in enumerate(journal):
        meter.step("filter", at, len(journal))
        reason = (
            None if entry.number in admitted else _why(model, state, slow, entry, known, grams, how, generator, meter)
        )
        if reason is None:
            passed.append(entry)
        else:
            held.append(Held(entry.number, entry.source, *reason))
    return passed, held


def pieces(entry: Entry, size: int) -> set[tuple[int, ...]]:
    """All runs of `size` tokens."""
    ids = entry.tokens.tolist()
    return {tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)}


def _why(
    model: RetrofitModel, state: State, slow: Teacher, entry: Entry, known: list[Probe],
    grams: dict[str, set[tuple[int, ...]]], how: Filter, generator: torch.Generator, meter: Meter,
) -> tuple[str, str] | None:  # fmt: skip
    if entry.trust < how.trust:
        return "low trust", f"{entry.trust:g} is less than {how.trust:g}"
    if entry.trust < how.alone:
        own = pieces(entry, how.gram)
        others = [own & found for source, found in grams.items() if source != entry.source]
        share = len(set().union(*others)) / len(own) if own else 0.0
        if share < how.shared:
            return "single source", f"trust {entry.trust:g}, and other sources have {share:.0%} of it"
    for probe in known:
        said = otherwise(entry, probe, how.cue)
        if said is not None:
            return "contradiction", f"says {said} where {probe.tokens[probe.cue :].tolist()} is bound ({probe.name})"
    share = wrong(slow, entry, how, meter)
    if share >= how.wrong:
        return "contradiction", f"slow memory was sure of something else on {share:.0%} of its tokens"
    return _trial(model, state, entry, known, how, generator, meter) if how.trial and known else None


def otherwise(entry: Entry, probe: Probe, cue: int) -> list[int] | None:
    """What an entry says after a probe's cue, if it is not the answer."""
    ids, asked, answer = entry.tokens.tolist(), probe.tokens[: probe.cue].tolist(), probe.tokens[probe.cue :].tolist()
    asked = asked[-max(cue, 1) :]
    if len(asked) < cue:
        return None
    found = [
        ids[i + len(asked) : i + len(asked) + len(answer)]
        for i in range(len(ids) - len(asked) - len(answer) + 1)
        if ids[i : i + len(asked)] == asked
    ]
    return found[0] if found and answer not in found else None


@torch.no_grad()
def wrong(slow: Teacher, entry: Entry, how: Filter, meter: Meter) -> float:
    """Share of tokens where slow memory is sure, and wrong."""
    count = total = 0
    for row in entry.tokens.split(slow.model.settings.chunk):
        if row.numel() < 2:
            continue
        ids, labels = (x.to(slow.model.device) for x in batch([row]))
        logits = slow.logits(ids)
        top = logits.softmax(-1).amax(-1)
        count += int(((top >= how.sure) & (nats(logits, labels) >= how.nats)).sum())
        total += labels.numel()
        meter.read += labels.numel()
    return count / max(1, total)


def _trial(
    model: RetrofitModel, state: State, entry: Entry, known: list[Probe], how: Filter, generator: torch.Generator,
    meter: Meter,
) -> tuple[str, str] | None:  # fmt: skip
    rows = [window.tokens for window in surprising(Teacher(model, state), [entry], 56, meter=meter)]
    before = scores(Teacher(model, state), known)
    student = Student(model, state, written(model, "slowest", state))
    steps = Replay(rate=how.rate, rows=8, presentations=how.trial * 8 / max(1, len(rows)))
    replay(student, rows, None, None, [], steps, generator, meter, {})
    for probe, was, now in zip(known, before, scores(student, known)):
        if was <= how.bound < now:
            return "failed probe", f"{probe.name}: {was:.2f} to {now:.2f} nats a token after a trial"
    return None
