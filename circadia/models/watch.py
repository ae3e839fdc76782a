"""What the levels that learn in context did with some text: how far each moved, and how surprised it was.

update    |state after the text - state before it|, the Frobenius norm over all heads and matrices of one sequence
surprise  the inner loss on each token before it is written, by the level's own objective; of a CMS level the local
          objective 1/2 |MLP(x_t) - target_{t+1}|^2, or the model's next-token loss where that is what teaches it

Means over the sequences, the tokens and the layers of a level. It costs one forward pass over the text given here, so
training asks for it now and then, with a single row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circadia.memory import Rule
from circadia.memory.state import State, weights_only
from circadia.models.cache import HopeCache
from circadia.models.levels import PREFIX, Level, Levels
from circadia.models.mixers.memory import MemoryMixer
from circadia.models.model import HopeForCausalLM

Watched = dict[str, dict[str, float]]  # level -> "update" and "surprise"


def learns(net: Any) -> bool:
    """Is there anything to watch?"""
    parts = net.modules() if isinstance(net, HopeForCausalLM) else ()
    return any(isinstance(part, MemoryMixer) or (isinstance(part, Level) and part.learns) for part in parts)


@torch.no_grad()
def watch(net: HopeForCausalLM, ids: Tensor, reset: Tensor | None = None) -> Watched:
    """Read ids [B, T] from fresh memories and say what every level did; the model stays as it was.

    With ``reset`` the update is that of each row's last document.
    """
    mixers = [(part.rule.name, _Rule(part.rule)) for part in net.modules() if isinstance(part, MemoryMixer)]
    seen: dict[int, list[Tensor]] = {}
    cache = HopeCache(net.config.num_hidden_layers)
    with _listening(net, [rule for _, rule in mixers], seen, reset):
        logits = net(ids, use_cache=True, past_key_values=cache, **({} if reset is None else {"reset": reset})).logits
    found: dict[str, dict[str, list[Tensor]]] = {}

    def note(level: str, what: str, value: Tensor) -> None:
        found.setdefault(level, {}).setdefault(what, []).append(value)

    for name, rule in mixers:
        note(name, "update", rule.moved())
        note(name, "surprise", rule.loss())
    blocks: list[Any] = list(net.model.layers)
    for block, state in zip(blocks, cache.states):
        for i, level in enumerate(block.levels.levels):
            if not level.learns:
                continue
            name = f"cms-{level.period}"
            deltas = {n: state[f"{PREFIX}{i}.{n}"] for n in ("up", "out") if f"{PREFIX}{i}.{n}" in state}
            note(name, "update", _norm(deltas) if deltas else logits.new_zeros(()))
            if id(level) in seen:
                note(name, "surprise", torch.stack(seen[id(level)]).mean())
            else:
                loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
                note(name, "surprise", loss)
    return {
        level: {what: torch.stack([x.float() for x in each]).mean().item() for what, each in values.items()}
        for level, values in found.items()
    }


def flat(found: Watched) -> dict[str, float]:
    """One number under each name, for logs: "cms-512/update"."""
    return {f"{level}/{what}": value for level, values in found.items() for what, value in values.items()}


@dataclass
class _Rule:
    """In the place of a mixer's rule: the same, with an eye on it."""

    rule: Rule
    first: State | None = None
    last: State | None = None
    total: Tensor | float = 0.0
    count: int = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, gates: Any, state: State, **how: Any) -> tuple[Tensor, State]:
        y, new, surprise = replace(self.rule, compiled=False)(q, k, v, gates, state, **how, surprise=True)
        if self.first is None:  # a reset later in the row starts from here again
            self.first = weights_only(state)
        self.last = weights_only(new)
        mask = how.get("mask")  # padding is not surprised
        self.total = self.total + surprise.sum()
        self.count += surprise.numel() if mask is None else int(mask.sum()) * surprise.shape[1]
        return y, new

    def moved(self) -> Tensor:
        assert self.first is not None and self.last is not None
        return _norm({name: self.last[name] - w for name, w in self.first.items()})

    def loss(self) -> Tensor:
        return torch.as_tensor(self.total / max(1, self.count))


def _norm(parts: State) -> Tensor:
    """Of one sequence, all parts together; the mean over the batch."""
    square = torch.stack([x.float().square().flatten(1).sum(1) for x in parts.values()]).sum(0)
    return square.sqrt().mean()


@contextmanager
def _listening(net: nn.Module, rules: list[_Rule], seen: dict[int, list[Tensor]], reset: Tensor | None) -> Iterator:
    """Eyes on rules and levels; compiled parts run as they are written, so that nothing is compiled anew for this."""
    mixers: list[Any] = [part for part in net.modules() if isinstance(part, MemoryMixer)]
    levels: list[Any] = [part for part in net.modules() if isinstance(part, Levels)]
    compiled: list[Any] = [part for part in net.modules() if getattr(part, "_compiled_call_impl", None) is not None]
    calls = [part._compiled_call_impl for part in compiled]
    training = net.training

    def note(level: Level, y: Tensor, target: Tensor) -> None:
        loss = 0.5 * (y[:, :-1] - target[:, 1:]).float().square().sum(-1)
        known = torch.ones_like(loss, dtype=torch.bool) if reset is None else ~reset[:, 1:].bool()
        seen.setdefault(id(level), []).append(loss[known].mean() if bool(known.any()) else loss.new_zeros(()))

    try:
        net.eval()
        for mixer, rule in zip(mixers, rules):
            mixer.rule = rule
        for part in levels:
            part.watch = note
        for part in compiled:
            part._compiled_call_impl = None
        yield
    finally:
        for mixer, rule in zip(mixers, rules):
            mixer.rule = rule.rule
        for part in levels:
            part.watch = None
        for part, call in zip(compiled, calls):
            part._compiled_call_impl = call
        net.train(training)
