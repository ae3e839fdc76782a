"""A memory's state is a value: a flat ``dict[str, Tensor]``, batch first, heads second.

A bare state holds the weights alone ("w", or "w0", "w1", ... from the input side on) and means: at the
border of a chunk, at the beginning of a life. A rule returns them with what a resumption needs:

    start.NAME     the weights at the start of the current chunk, where gradients and targets are taken (eq. 90)
    momentum.NAME  the momentum of the inner optimizer
    pos            [B] tokens already written in the current chunk

Entries that no rule writes (the affine part of a layer norm) are ordinary entries too.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

State = dict[str, Tensor]

START, MOMENTUM, POS = "start.", "momentum.", "pos"


def rows(state: State, index: Tensor | slice | list[int]) -> State:
    """Some sequences of a batch, as a state of their own."""
    return {name: x[index] for name, x in state.items()}


def detach(state: State) -> State:
    """The same values, cut from the graph that made them."""
    return {name: x.detach() for name, x in state.items()}


def expand(state: State, batch: int) -> State:
    """A learned start without a batch axis, [H, ...], given to every sequence of a batch."""
    return {name: x.expand(batch, *x.shape) for name, x in state.items()}


def weights_only(state: State) -> State:
    """The bare state: what has been learned, as the beginning of a new chunk."""
    return {name: x for name, x in state.items() if not name.startswith((START, MOMENTUM)) and name != POS}


def precision(state: State) -> torch.dtype:
    """The type of the weights, wherever they stand: files give states back in an order of their own, counts first."""
    return next(x.dtype for x in state.values() if x.is_floating_point())


def state_bytes(state: State) -> int:
    """Bytes of one sequence's state."""
    return sum(x[0].numel() * x.element_size() for x in state.values())


def select(flag: Tensor, new: State, old: State) -> State:
    """Row by row: ``new`` where the flag [B] is set, else ``old``."""
    return {name: choose(flag, new[name], old[name]) for name in old}


def choose(flag: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``torch.where`` over the batch axis."""
    return torch.where(flag.view(-1, *[1] * (old.ndim - 1)), new, old)


def limit(w: Tensor, top: float | None) -> Tensor:
    """Scale a matrix down until its root-mean-square singular value is at most ``top``.

    |W|_F <= top sqrt(min(m, n)). Memories that make their own targets grow with them: without a bound the MLP form
    diverges within a few chunks.
    """
    if top is None:
        return w
    most = top * min(w.shape[-2:]) ** 0.5
    return w * (most / torch.linalg.vector_norm(w, dim=(-2, -1), keepdim=True).clamp_min(most))


def complete(state: State, weights: Iterable[str], *, anchored: bool, momentum: bool) -> State:
    """Fill in what a bare state leaves out: it is at the start of a chunk, with no momentum."""
    full = dict(state)
    for name in weights:
        if momentum:
            full.setdefault(MOMENTUM + name, torch.zeros_like(state[name]))
        if anchored:
            full.setdefault(START + name, state[name])
    if anchored and POS not in full:
        w = next(iter(state.values()))
        full[POS] = torch.zeros(w.shape[0], dtype=torch.int64, device=w.device)
    return full
