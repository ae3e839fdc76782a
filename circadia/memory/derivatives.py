"""Functions whose derivative by hand takes a fraction of autograd's passes.

What a backward pass uses is an input or an output of the function, so that it can be differentiated again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _Inverse(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(n: Tensor) -> Tensor:
        eye = torch.eye(n.shape[-1], dtype=n.dtype, device=n.device).expand_as(n)
        # From the right: for matrices in rows that is the order which LAPACK reads, and several times as fast.
        return torch.linalg.solve_triangular(n, eye, upper=True, left=False, unitriangular=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ grads[0] @ inverse.mT).triu(1)


def inverse(n: Tensor) -> Tensor:
    """(I + N)^-1 of a strictly upper triangular N, by substitution; its gradient needs no second solve."""
    return _Inverse.apply(n)


class _GeluAndSlope(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> tuple[Tensor, Tensor]:
        cdf = (a * 0.7071067811865476).erf().add(1.0).mul(0.5)
        return a * cdf, torch.addcmul(cdf, a, _bell(a))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        a, slope = ctx.saved_tensors
        return grads[0] * slope + grads[1] * _bell(a) * (2.0 - a * a)


def gelu_and_slope(a: Tensor) -> tuple[Tensor, Tensor]:
    """Exact GELU and its derivative."""
    return _GeluAndSlope.apply(a)


def _bell(a: Tensor) -> Tensor:
    """The density of the normal distribution."""
    return (a * a).mul(-0.5).exp().mul(0.3989422804014327)


class _Shorten(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, top: float, axis: int) -> tuple[Tensor, Tensor]:
        # Not ``vector_norm``, which is 80 times as slow over an axis that is not the last.
        square = (x * x).sum(axis, keepdim=True)
        scale = square.rsqrt().mul(top).masked_fill(square <= (top * (1.0 + 1e-6)) ** 2, 1.0)
        return x * scale, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.top, ctx.axis = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, scale = ctx.saved_tensors
        along = (x * grads[0]).sum(ctx.axis, keepdim=True) + grads[1]
        pull = (along * scale**3 / ctx.top**2).masked_fill(scale == 1.0, 0.0)
        return grads[0] * scale - x * pull, None, None


def shorten(x: Tensor, top: float | None, axis: int = -1) -> Tensor:
    """At most ``top`` long along the axis.

    A vector as long as ``top`` up to rounding stays as it is, or rounding would decide about its gradient: a target
    shortened to 1 is an error that must be no longer than 1.
    """
    return x if top is None else _Shorten.apply(x, top, axis)[0]
