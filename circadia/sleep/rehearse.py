"""Awake again: what keeps the next day's reading from wiping the night's work.

Without it, 50 KB of other text took 70 to 85 % of right answers to 10 to 20 %; with a step on six windows of the
journal after every second chunk 55 to 60 % were left, with decay to the slept weights 25 to 35 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from circadia.models.retrofit import Report, RetrofitModel
from circadia.models.retrofit.learn import reading, tokens_of
from circadia.models.retrofit.state import State, key, parts_of
from circadia.models.retrofit.step import Step, stepped
from circadia.models.retrofit.stream import rates_of
from circadia.sleep.losses import nats, over_sequences
from circadia.sleep.student import Student
from circadia.sleep.windows import IGNORED, batch


def anchored(model: RetrofitModel, state: State) -> State:
    """The self as it is now is what its levels decay to from now on: those that decay at all, instead of to nothing."""
    new = dict(state)
    for i, level in enumerate(model.settings.levels):
        if not level.fades or level.feed == "faster":
            continue
        for site in model.own[i]:
            for part in parts_of(level):
                new[key(i, "anchor", part, site.name)] = state[key(i, part, site.name)].clone()
    return new


def unanchored(model: RetrofitModel, state: State) -> State:
    """Decay leads where the settings say again; slow copies that the settings ask for stay."""
    return {
        name: x
        for name, x in state.items()
        if name.split("/")[1:2] != ["anchor"]
        or name.rpartition("/")[2] in model.anchored[int(name.partition("/")[0].removeprefix("level"))]
    }


def step(model: RetrofitModel, state: State, rows: Sequence[Tensor], level: int = 0) -> State:
    """One update of a level, by its own rule and rate but without decay, on whole windows."""
    settings = model.settings.levels[level]
    if settings.optimizer == "dgd":
        raise ValueError("optimizer='dgd' learns from the inputs of one stream: rehearsal needs another rule")
    names = [f"{part}/{site.name}" for part in parts_of(settings) for site in model.own[level]]
    student = Student(model, state, [(key(level, name), None) for name in names])
    ids, labels = (x.to(model.device) for x in batch(rows))
    with reading(model):
        loss = over_sequences(nats(student.logits(ids), labels), (labels != IGNORED).float())
    found = torch.autograd.grad(loss, student.leaves, allow_unused=True)
    start, end = f"level{level}/opt/", f"/{names[0]}"
    kept = [n[len(start) : -len(end)] for n in state if n.startswith(start) and n.endswith(end)]
    after = stepped(
        settings,
        Step(
            memory={name: state[key(level, name)] for name in names},
            sums={n: torch.zeros_like(x) if g is None else g for n, x, g in zip(names, student.leaves, found)},
            count=1,
            number=int(state[key(level, "steps")]) + 1,
            opt={name: {what: state[key(level, "opt", what, name)] for what in kept} for name in names},
            anchors={},
            grams={},
            sizes=_sizes(model, level) if settings.bound is not None else {},
            rates=rates_of(model, level)[0],
            decays={site.name: 0.0 for site in model.own[level]},
        ),
    )
    if after is None:  # not finite: refused
        return state
    new = {**state, **{key(level, name): x for name, x in after.memory.items()}}
    for name, own in after.opt.items():
        new |= {key(level, "opt", what, name): x for what, x in own.items()}
    new[key(level, "steps")] = state[key(level, "steps")] + 1
    return new


def _sizes(model: RetrofitModel, level: int) -> dict[str, float]:
    weights = dict(model.base.named_parameters())
    own = {s.name: weights[s.name] if s.matrix is None else s.matrix.weight for s in model.own[level]}
    return {name: float(w.detach().float().norm()) for name, w in own.items()}


@dataclass
class Rehearsal:
    """A step on `count` windows after every so many chunks; `budget` bounds its tokens as a share of those read."""

    rows: Sequence[Tensor]
    every: int = 2
    count: int = 6
    budget: float = 1.0
    seed: int = 0
    level: int = 0
    steps: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    read: int = field(default=0, init=False)
    chunks: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("every", "count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        if self.budget < 0:
            raise ValueError(f"budget={self.budget!r} must not be below 0")
        self._generator = torch.Generator().manual_seed(self.seed)

    def after(self, model: RetrofitModel, state: State, tokens: int) -> State:
        """Call it after each chunk of so many tokens."""
        self.chunks, self.read = self.chunks + 1, self.read + tokens
        if not self.rows or self.chunks % self.every:
            return state
        drawn = torch.randint(len(self.rows), (self.count,), generator=self._generator).tolist()
        rows = [self.rows[i] for i in drawn]
        cost = sum(row.numel() - 1 for row in rows)
        if self.tokens + cost > self.budget * self.read:
            return state
        self.steps, self.tokens = self.steps + 1, self.tokens + cost
        return step(model, state, rows, self.level)


def read(model: RetrofitModel, tokens: Any, state: State, rehearsal: Rehearsal) -> tuple[Report, State]:
    """`model.learn`, chunk by chunk, with rehearsal between them."""
    ids, report, chunk = tokens_of(model, tokens), Report(), model.settings.chunk
    at = 0
    while at < ids.numel():
        size = chunk - state["stream/pending"].numel()
        part, state = model.learn(ids[at : at + size], state)
        report.chunks += part.chunks
        report.pending, report.seconds = part.pending, report.seconds + part.seconds
        if part.chunks:
            state = rehearsal.after(model, state, chunk)
        at += size
    return report, state
