"""One pass over a stream: every chunk is predicted token by token while the memories write it; then it is weighed.

The model writes as it reads, so what a chunk of weight w leaves is a part of the way that it went:

    M <- M + w (M' - M)          M: memories and their momentum before the chunk, M': after it

w = 1 keeps M', bit for bit; w = 0 keeps M, with nothing faded or written; between them no memory moves further than w
of what the chunk would have moved it, whatever rule wrote it and however it is gated. (To scale the learned rates
instead would need a second pass, since the weight follows from the prediction, and would let retention fade what is
there.) The near past and the clocks go on in any case.

A CMS level whose period P is longer than a chunk adds up gradients: G <- G + w g, n <- n + w tokens. When its period
ends it takes its step on the mean G / n, clipped, and goes the share n / P of the way. So a gradient that is clipped
anyway is weighed, too, and a period in which nothing counts leaves the level as it is, without decay. What earlier
chunks of a period taught arrives at its end, also behind a chunk of weight 0. The step is taken at the end of the
chunk, where `circadia.levels.cms` takes it before the next token: the same numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.levels import cms
from circadia.memory.check import Unwritable
from circadia.memory.rates import hearing
from circadia.memory.state import START
from circadia.models import online
from circadia.models.cache import HopeCache, State
from circadia.models.levels import PREFIX, Level
from circadia.models.mixers.memory import MEMORY
from circadia.models.mixers.titans import BEFORE
from circadia.models.native import state as states
from circadia.models.native.layout import Block, owned
from circadia.models.retrofit.report import ChunkReport, LevelReport

if TYPE_CHECKING:
    from circadia.models.native.model import NativeModel

Weigh = Callable[[ChunkReport], float]
WINDOWS = ("k", "v", "at")


@dataclass
class Stream:
    """A state on its way through chunks. The tensors of the state that came in are never written."""

    model: "NativeModel"
    given: State
    weigh: Weigh | None = None
    blocks: list[State] = field(init=False)  # what each block holds
    hidden: Tensor | None = field(init=False)
    clock: int = field(init=False)
    steps: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = states.nested(len(self.model.blocks), self.given)
        self.hidden = self.given.get("stream/hidden")
        self.clock = int(self.given["clock/tokens"])
        self.steps = [int(self.given[f"level{i}/steps"]) for i in range(len(self.model.settings.levels))]

    @torch.no_grad()
    def predict(self, ids: Tensor) -> tuple[Tensor, Tensor, list[State], dict[str, float]]:
        """Read tokens: their logits, the last hidden state, what the blocks hold then, and the rates they chose."""
        base, given = self.model.base, [self.seen(block, own) for block, own in zip(self.model.blocks, self.blocks)]
        with hearing() as heard:
            if self.model.config.learns_from_loss and ids.numel() == self.model.settings.chunk:
                hidden, raw, means = online.gradients(base, ids[None], given)
                for (at, index, _), mean in means:
                    own = f"{PREFIX}{index}."
                    for n in cms.NAMES:
                        raw[at][own + n] = self.blocks[at][own + n]
                        raw[at][own + "sum." + n] = self.blocks[at][own + "sum." + n] + ids.numel() * mean[n]
            else:
                cache = HopeCache(len(given))
                for layer, own_state in zip(cache.layers, given):
                    layer.write(own_state, 0)
                hidden = base.model(ids[None], past_key_values=cache, use_cache=True).last_hidden_state
                raw = cache.states
        seen = hidden[:, :-1] if self.hidden is None else torch.cat((self.hidden.to(hidden.dtype), hidden[:, :-1]), 1)
        logits = base.lm_head(seen)[0]
        rates = {kind: float(sum(x.sum() for x in each) / sum(x.numel() for x in each)) for kind, each in heard.items()}
        return logits, hidden[:, -1:], raw, rates

    def seen(self, block: Block, own: State) -> State:
        """What a block takes: without the sums of a period that has had its step, and without our own weights."""
        kept = dict(own)
        for i, level in block.cms.items():
            prefix = f"{PREFIX}{i}."
            kept.pop(prefix + "weight")
            if level.signal == "loss" or self.clock % level.period == 0:
                for n in cms.NAMES:
                    kept.pop(f"{prefix}sum.{n}")
        return kept

    @torch.no_grad()
    def take(self, ids: Tensor, levels: list[LevelReport]) -> ChunkReport:
        """Predict a whole chunk, and learn it as far as it weighs."""
        count, refused = ids.numel() - (self.hidden is None), ""
        rates: dict[str, float] = {}
        try:
            logits, hidden, raw, rates = self.predict(ids)
            nats = nats_of(logits, ids)
            if not math.isfinite(nats):
                refused = "the loss is not finite"
            elif not all(bool(x.isfinite().all()) for own in raw for x in own.values() if x.is_floating_point()):
                refused = "what it would write is not finite"
        except Unwritable as error:  # a memory that looks at its inputs
            nats, refused = math.nan, str(error)
        chunk = ChunkReport(self.clock, count, nats / max(1, count), refused, rates=rates)
        weight = 0.0 if refused else 1.0
        if self.weigh is not None and count and not refused:
            weight = float(self.weigh(chunk))
            if not 0 <= weight <= 1:
                raise ValueError(f"weigh gave {weight!r} for the chunk at {chunk.start}: it must be from 0 to 1")
            chunk = replace(chunk, weight=weight)
        if refused:  # the near past stays as well: it would carry it on
            raw = [block.later(old, ids.numel()) for block, old in zip(self.model.blocks, self.blocks)]
        else:
            self.hidden = owned(hidden)
        before, self.clock = self.blocks, self.clock + ids.numel()
        after = [self.after(b, old, new, weight) for b, old, new in zip(self.model.blocks, before, raw)]
        self.blocks = [{n: owned(x) for n, x in own.items()} for own in after]
        self.report(before, weight, levels)
        return chunk

    def after(self, block: Block, old: State, raw: State, weight: float) -> State:
        """What a block holds after a chunk of this weight."""
        new: State = {}
        for name, x in raw.items():
            if not name.startswith(PREFIX):
                new[name] = part(old[name], x, weight) if block.kind(name) in ("memory", "momentum") else x
        for name in [n for n in new if block.kind(n) == "anchor"]:
            period = block.segment if name.startswith(BEFORE) else block.periods()[name.removeprefix(MEMORY + START)]
            assert period is not None
            if self.clock % period == 0:  # the next token takes a new one
                new[name] = new[block.source(name)]
        if block.full:
            room = self.model.settings.context or 0
            new |= {n: new[n][:, max(0, new[n].shape[1] - room) :] for n in WINDOWS if n in new}
        for i, level in block.cms.items():
            own = f"{PREFIX}{i}."
            mine, made = ({n.removeprefix(own): x for n, x in s.items() if n.startswith(own)} for s in (old, raw))
            new |= {own + n: x for n, x in self.level(level, mine, made, weight).items()}
        return new

    def level(self, level: Level, old: State, raw: State, weight: float) -> State:
        """A CMS level after a chunk of this weight."""
        size, period = self.model.settings.chunk, level.period
        ends = self.clock % period == 0
        sums = [f"sum.{n}" for n in cms.NAMES]
        new = {**old, **{n: x for n, x in raw.items() if n in ("last", "pos")}}
        if period < size:
            if weight:
                made = stepped(level, raw, {n: raw[f"sum.{n}"] / period for n in cms.NAMES})
                new |= {n: part(old[n], x, weight) for n, x in made.items()}
        else:
            new |= {n: part(old[n], raw[n], weight) for n in sums}
            new["weight"] = old["weight"] + weight * size
            total = float(new["weight"])
            if ends and total:
                made = stepped(level, new, {n: new[f"sum.{n}"] / total for n in cms.NAMES})
                new |= {n: part(old[n], made[n], total / period) for n in cms.NAMES}
        if ends:
            new |= {n: torch.zeros_like(old[n]) for n in (*sums, "weight")}
        if level.parent and self.clock % level.parent == 0:  # where nothing was learned, the level is at home already
            new |= cms.restarted(new, level.rates())
        return new

    def report(self, before: list[State], weight: float, levels: list[LevelReport]) -> None:
        """What moved, level by level."""
        size = self.model.settings.chunk
        squares = [0.0] * len(levels)
        learned = [weight > 0] * len(levels)
        for block, old, new in zip(self.model.blocks, before, self.blocks):
            for name in old:
                if block.kind(name) == "memory":
                    at = self.model.settings.levels.index(block.level(name))
                    squares[at] += float((new[name] - old[name]).double().square().sum())
            for i, level in block.cms.items():
                at = self.model.settings.levels.index(block.levels[f"{PREFIX}{i}."])
                learned[at] = weight > 0 or (level.period > size and float(old[f"{PREFIX}{i}.weight"]) > 0)
        for at, (report, square) in enumerate(zip(levels, squares)):
            ended = self.clock // report.period - (self.clock - size) // report.period if learned[at] else 0
            report.updates, report.moved = report.updates + ended, report.moved + square**0.5
            self.steps[at] += ended

    def end(self, rest: Tensor) -> State:
        """The state after the last whole chunk, with the tokens of the open one."""
        model = self.model
        kept = {n: x for n, x in self.given.items() if not n.startswith("stream/") and not n.startswith("level")}
        found = {**kept, **states.flat(model.blocks, model.settings.levels, self.blocks)}
        found |= {f"level{i}/steps": torch.tensor(n) for i, n in enumerate(self.steps)}
        if self.hidden is not None:
            found["stream/hidden"] = self.hidden
        return {**found, "clock/tokens": torch.tensor(self.clock), "stream/pending": rest.clone()}


def nats_of(logits: Tensor, ids: Tensor) -> float:
    """Summed loss of the tokens that the logits are for, the last ones."""
    if not logits.shape[0]:
        return 0.0
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return float(F.cross_entropy(wide, ids[-logits.shape[0] :], reduction="sum"))


def part(old: Tensor, new: Tensor, share: float) -> Tensor:
    """This share of the way, exact at both ends."""
    return new if share == 1 else old if share == 0 else old + share * (new - old)


def stepped(level: Level, state: State, mean: State) -> State:
    """A level after its step, and its home."""
    made = cms.stepped(state, mean, level.rates(), level.how(True).clip)
    homes = {n: x for n, x in state.items() if n.startswith("home.")}
    return {n: x for n, x in {**homes, **made}.items() if not n.startswith("sum.")}
