"""How a base reads with a memory on: its matrices add what the levels hold, for as long as the memory is worn.

The module of every adapted matrix gets a forward that asks `WORN` whether something is worn in this context. `WORN` is
a context variable: threads and tasks that read with different memories at once do not see each other's, and a memory
worn inside another one replaces it until the inner block ends. A matrix to which nothing is added runs the module's own
forward, so that it gives the base's very bits. Nothing is ever written into the base.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType, MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circadia.models.retrofit.find import Matrix


class Pair(NamedTuple):
    """Of one level, its slots in use side by side: A [S r, in], B [out, S r], and gates [S, in + 1] if it has them."""

    a: Tensor
    b: Tensor
    gate: Tensor | None = None


Pairs = list[Pair]


class Reading:
    """What one matrix adds: full deltas [out, in], and low-rank pairs, with a gate or without.

    leaf    one of the deltas, or None: what the gradient is taken at. All deltas have the same one
    brief   the deltas move after this pass, so that the sum of base and deltas is of no use to the next one. The sum of
            a stack is then held until its backward pass; that of one delta is made again there, which costs no memory
    inputs  a list that takes in what the matrix has read
    """

    def __init__(self, matrix: Matrix, deltas: list[Tensor], pairs: Pairs) -> None:
        self.matrix, self.deltas, self.pairs = matrix, deltas, pairs
        self.leaf: Tensor | None = None
        self.brief = False
        self.inputs: list[Tensor] | None = None
        self.kept: Tensor | None = None

    @torch.no_grad()
    def whole(self) -> Tensor:
        """W + (delta_0 + delta_1 + ...), [out, in], added up once; without W beside a base of few bits."""
        if self.kept is not None:
            return self.kept
        found = total(self.deltas)
        if self.matrix.exact:
            weight = self.matrix.turned(self.matrix.weight)
            found = found + weight if len(self.deltas) == 1 else found.add_(weight)
        if not self.brief or len(self.deltas) > 1:
            self.kept = found
        return found

    def _linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.whole(), bias) if self.leaf is None else _Whole.apply(x, bias, self, self.leaf)

    def __call__(self, x: Tensor) -> Tensor:
        module: Any = self.matrix.module
        if self.inputs is not None:
            self.inputs.append(x.detach())
        if self.deltas and self.matrix.exact:
            y = self._linear(x, module.bias)
        else:
            y = type(module).forward(module, x)
            if self.deltas:  # beside a base of few bits: added into it, a small delta would be rounded away
                y = y + self._linear(wide(x, self.deltas[0]), None).to(y.dtype)
        for a, b, gate in self.pairs:
            rows = wide(x, a)
            inner = rows.matmul(a.mT)
            if gate is not None:
                inner = inner * opened(rows, gate).repeat_interleave(a.shape[0] // gate.shape[0], -1)
            y = y + inner.matmul(b.mT).to(y.dtype)
        return y


def opened(x: Tensor, gate: Tensor) -> Tensor:
    """How far each slot's gate is open for each token: sigmoid(w x + b), the gate of a shared expert in Qwen2-MoE."""
    return torch.sigmoid(x.matmul(gate[..., :-1].mT) + gate[..., -1])


class OfEach:
    """A delta of its own for every sequence of a batch [B, out, in], differentiable as often as wanted."""

    def __init__(self, matrix: Matrix, delta: Tensor) -> None:
        self.matrix, self.delta = matrix, delta

    def __call__(self, x: Tensor) -> Tensor:
        module: Any = self.matrix.module
        y = type(module).forward(module, x)
        rows = wide(x, self.delta).reshape(self.delta.shape[0], -1, x.shape[-1])
        return y + rows.matmul(self.delta.mT).reshape(y.shape).to(y.dtype)


_SWAP = threading.RLock()
WORN: ContextVar[Mapping[nn.Module, Any]] = ContextVar("worn", default=MappingProxyType({}))


def _forward(self: Any, x: Tensor) -> Tensor:
    reading = WORN.get().get(self)
    return type(self).forward(self, x) if reading is None else reading(x)


def install(module: nn.Module) -> None:
    """Let a module read with a memory. A copy of the model keeps it, as a method of the copy."""
    module.forward = MethodType(_forward, module)


def uninstall(base: nn.Module) -> None:
    """Take it away from every module of a model."""
    for module in base.modules():
        own = module.__dict__.get("forward")
        if getattr(own, "__func__", None) is _forward:
            del module.__dict__["forward"]


@contextlib.contextmanager
def worn(readings: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Inside the block, these modules read so."""
    token = WORN.set({**WORN.get(), **readings})
    try:
        yield
    finally:
        WORN.reset(token)


@contextlib.contextmanager
def swapped(base: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, these parameters of a model are other tensors; tied ones everywhere they are used.

    The model itself is changed, so that one thread at a time can do it.
    """
    by_id = {id(p): values[name] for name, p in base.named_parameters() if name in values}
    with _SWAP:
        places = [(m, n, p) for m in base.modules() for n, p in m._parameters.items() if p is not None]
        places = [place for place in places if id(place[2]) in by_id]
        try:
            for module, name, p in places:
                module._parameters[name] = by_id[id(p)]  # type: ignore[assignment]
            yield
        finally:
            for module, name, p in places:
                module._parameters[name] = p


class _Whole(torch.autograd.Function):
    """x (W + sum of deltas)^T + bias. All deltas have the same gradient; it is made once, for the leaf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, reading: Reading, leaf: Tensor) -> Tensor:
        ctx.reading = reading
        ctx.save_for_backward(x)
        return F.linear(x, reading.whole(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,), (dy,), reading = ctx.saved_tensors, grads, ctx.reading
        dx = dy @ reading.whole() if ctx.needs_input_grad[0] else None
        if reading.brief:
            reading.kept = None
        slope = None
        if ctx.needs_input_grad[3]:
            slope = dy.reshape(-1, dy.shape[-1]).mT @ x.reshape(-1, x.shape[-1])
        return dx, None, None, slope


def total(deltas: Any) -> Tensor:
    """Their sum, fastest first. A single one is given as it is."""
    if len(deltas) == 1:
        return deltas[0]
    found = deltas[0] + deltas[1]
    for delta in deltas[2:]:
        found.add_(delta)
    return found


def wide(x: Tensor, memory: Tensor) -> Tensor:
    """In the type that holds both."""
    return x.to(torch.promote_types(x.dtype, memory.dtype))


def holds(tensors: list[Tensor]) -> list[bool]:
    """Is anything in each of these not zero? One answer from the device for all."""
    if not tensors:
        return []
    return torch.stack([x.any() for x in tensors]).tolist()
