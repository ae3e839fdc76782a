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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circadia.models.retrofit.find import Matrix

Pairs = list[tuple[Tensor, Tensor]]


class Reading:
    """What one matrix adds: full deltas [out, in], and low-rank pairs A [r, in], B [out, r].

    keep    add base and deltas up once and hold the sum: for reading. Otherwise they are added up for every pass, and
            again in the backward pass, so that only one matrix at a time exists twice
    inputs  a list that takes in what the matrix has read
    """

    def __init__(self, matrix: Matrix, deltas: list[Tensor], pairs: Pairs, keep: bool, inputs: list | None = None):
        self.matrix, self.deltas, self.pairs, self.keep, self.inputs = matrix, deltas, pairs, keep, inputs
        self.kept: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        module: Any = self.matrix.module
        if self.inputs is not None:
            self.inputs.append(x.detach())
        if not self.deltas or not self.matrix.exact:
            y = type(module).forward(module, x)
        elif self.keep:
            if self.kept is None:
                self.kept = whole(self.matrix, self.deltas)
            y = F.linear(x, self.kept, module.bias)
        else:
            y = _Whole.apply(x, module.bias, self.matrix, *self.deltas)
        # Beside a base of few bits: added into it, a small delta would be rounded away.
        if self.deltas and not self.matrix.exact:
            y = y + _wide(x, self.deltas[0]).matmul(total(self.deltas).mT).to(y.dtype)
        for a, b in self.pairs:
            y = y + _wide(x, a).matmul(a.mT).matmul(b.mT).to(y.dtype)
        return y


class OfEach:
    """A delta of its own for every sequence of a batch [B, out, in], differentiable as often as wanted."""

    def __init__(self, matrix: Matrix, delta: Tensor) -> None:
        self.matrix, self.delta = matrix, delta

    def __call__(self, x: Tensor) -> Tensor:
        module: Any = self.matrix.module
        y = type(module).forward(module, x)
        rows = _wide(x, self.delta).reshape(self.delta.shape[0], -1, x.shape[-1])
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
    """x (W + sum of deltas)^T + bias. All deltas have the same gradient; it is made for those that ask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, matrix: Matrix, *deltas: Tensor) -> Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(x, *deltas)
        return F.linear(x, whole(matrix, deltas), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *deltas = ctx.saved_tensors
        (dy,) = grads
        dx = dy @ whole(ctx.matrix, deltas) if ctx.needs_input_grad[0] else None
        given: list[Tensor | None] = [None] * len(deltas)
        if any(ctx.needs_input_grad[3:]):
            slope = dy.reshape(-1, dy.shape[-1]).mT @ x.reshape(-1, x.shape[-1])
            given = [slope if wanted else None for wanted in ctx.needs_input_grad[3:]]
        return dx, None, None, *given


def whole(matrix: Matrix, deltas: Any) -> Tensor:
    """W + (delta_0 + delta_1 + ...), [out, in]."""
    return matrix.turned(matrix.weight.detach()) + total(deltas)


def total(deltas: Any) -> Tensor:
    """Fastest first."""
    found = deltas[0]
    for delta in deltas[1:]:
        found = found + delta
    return found


def _wide(x: Tensor, memory: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, memory.dtype))


def holds(tensors: list[Tensor]) -> list[bool]:
    """Is anything in each of these not zero? One answer from the device for all."""
    if not tensors:
        return []
    return torch.stack([x.any() for x in tensors]).tolist()
