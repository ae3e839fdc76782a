"""A memory of which some entries are trained, the others are only worn; and a teacher, of which none is.

Entries are named as in circadia/models/retrofit/state.py. Of a pool of low-rank experts single slots can be trained:
the others stay as they are, to the bit.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.state import State, key, parts_of
from circadia.models.retrofit.wear import Pair, Reading, swapped, total, worn
from circadia.sleep.losses import divergence

Extra = tuple[Tensor, Tensor]  # A [r, in], B [out, r]
Part = tuple[str, int | None]  # an entry of the state, and a slot of it


class Teacher:
    """Somebody who is asked what comes next. None: the base."""

    def __init__(self, model: RetrofitModel, state: State | None) -> None:
        if state is not None:
            model.check(state)
        self.model, self.state = model, state
        self._readings = model.readings(state) if model.settings.target == "mlp" else None

    @contextlib.contextmanager
    def wearing(self) -> Iterator[nn.Module]:
        """The base with this memory. The sums of base and deltas are made once for all blocks."""
        if self._readings is None:
            with self.model.wearing(self.state) as base:
                yield base
            return
        with worn(self._readings):
            yield self.model.base

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Of rows of tokens [n, t]."""
        with self.wearing() as base:
            return _logits(base, ids)


def apart(one: Teacher, other: Teacher, ids: Tensor, size: int = 4) -> float:
    """F of the two on rows of tokens [n, t]; some at a time, as what is said of them all is wide."""
    parts = ids.to(one.model.device).split(size)
    return sum(len(x) * float(divergence(one.logits(x), other.logits(x))) for x in parts) / len(ids)


class Student:
    """Leaves with gradients for some entries of a state, and extra low-rank pairs that are in no state."""

    def __init__(
        self, model: RetrofitModel, state: State, parts: Sequence[Part], extra: Mapping[str, Extra] | None = None
    ) -> None:
        model.check(state)
        self.model, self.given, self.parts = model, state, list(parts)
        self.leaves: list[Tensor] = []
        for name, slot in self.parts:
            if name not in state:
                raise ValueError(f"{name!r} is no entry of this state: see circadia/models/retrofit/state.py")
            held = state[name] if slot is None else state[name][slot]
            self.leaves.append(held.detach().clone().requires_grad_())
        self.extra: dict[str, Extra] = {}
        for site, (a, b) in (extra or {}).items():
            self.extra[site] = (a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_())
            self.leaves += self.extra[site]

    def _held(self) -> State:
        """The state with the leaves in their places, differentiable."""
        held = dict(self.given)
        for (name, slot), leaf in zip(self.parts, self.leaves):
            if slot is None:
                held[name] = leaf
            else:
                whole = held[name]
                held[name] = torch.cat((whole[:slot], leaf[None], whole[slot + 1 :]))
        return held

    @contextlib.contextmanager
    def wearing(self) -> Iterator[nn.Module]:
        """The base with the memory as it is now, differentiable."""
        model, held = self.model, self._held()
        if model.settings.target == "all":
            values = {}
            for name, p in model.base.named_parameters():
                values[name] = (p.detach() + total([x for _, x in model.deltas(held, name)])).to(p.dtype)
            with swapped(model.base, values):
                yield model.base
            return
        readings: dict[nn.Module, Any] = {}
        for name, site in model.sites.items():
            assert site.matrix is not None
            deltas = [x for _, x in model.deltas(held, name)]
            pairs = [*model.pairs(held, name), *([Pair(*self.extra[name])] if name in self.extra else [])]
            whole = total(deltas) if deltas else None
            reading = Reading(site.matrix, [] if whole is None else [whole.detach()], pairs)
            if whole is not None and whole.requires_grad:
                reading.leaf, reading.brief = whole, True
            readings[site.matrix.module] = reading
        with worn(readings):
            yield model.base

    def logits(self, ids: Tensor) -> Tensor:
        """Of rows of tokens [n, t]. The backward pass may be run after the block of `wearing` has ended."""
        with self.wearing() as base:
            return _logits(base, ids)

    def state(self) -> State:
        """A new state with what was learned; every other entry is the very tensor that was given."""
        return {name: x if x is self.given[name] else x.detach().clone() for name, x in self._held().items()}


def _logits(base: Any, ids: Tensor) -> Tensor:
    found = base(ids, use_cache=False).logits
    return found.to(torch.promote_types(found.dtype, torch.float32))


def written(model: RetrofitModel, into: str | int, state: State) -> list[Part]:
    """What a night writes: "slowest" or "fastest" of the levels of each matrix; the "last" level; or by number.

    In a stack all levels of a matrix are one sum, so that this says only which of them shall keep it: the faster ones
    decay to the slower ones. Of a low-rank level the slots in use are written.
    """
    into = len(model.own) - 1 if into == "last" else into
    if into not in ("slowest", "fastest") and (isinstance(into, bool) or into not in range(len(model.own))):
        raise ValueError(
            f"into={into!r}: use 'slowest', 'fastest', 'last' or the number of a level, 0 to {len(model.own) - 1}"
        )
    parts: list[Part] = []
    for name in model.sites:
        holding = [i for i, own in enumerate(model.own) if any(site.name == name for site in own)]
        chosen = [into] if into in holding else []
        if isinstance(into, str):
            chosen = [holding[-1] if into == "slowest" else holding[0]]
        for i in chosen:
            assert isinstance(i, int)
            if model.settings.levels[i].capacity == "full":
                parts.append((key(i, "delta", name), None))
            else:
                for slot in state[key(i, "mask")].nonzero().flatten().tolist():
                    parts += [(key(i, part, name), slot) for part in parts_of(model.settings.levels[i])]
    if not parts:
        raise ValueError(f"into={into!r}: no matrix has a memory there that could be written")
    return parts
