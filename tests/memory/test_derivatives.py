"""Derivatives by hand, against finite differences, twice: a model may learn by gradients of gradients."""

import pytest
import torch
from torch import Tensor

from circadia.memory.derivatives import gelu_and_slope, inverse, shorten

FUNCTIONS = {
    "inverse": lambda x: inverse(x.triu(1)),
    "gelu and slope": gelu_and_slope,
    "shorten": lambda x: shorten(x, 1.5),
    "shorten, columns": lambda x: shorten(x, 1.5, -2),
}


def draw() -> Tensor:
    """Rows and columns shorter and longer than 1.5."""
    x = torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0] *= 0.3
    return x.requires_grad_()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivative(name: str) -> None:
    assert torch.autograd.gradcheck(FUNCTIONS[name], draw())
    assert torch.autograd.gradgradcheck(FUNCTIONS[name], draw())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_under_vmap(name: str) -> None:
    x = draw().detach()
    want, got = FUNCTIONS[name](x), torch.vmap(FUNCTIONS[name])(x)
    for a, b in zip(*((y,) if isinstance(y, Tensor) else y for y in (want, got))):
        assert torch.allclose(a, b, rtol=1e-12)


def test_values() -> None:
    x = draw().detach()
    eye = torch.eye(5, dtype=x.dtype)
    assert torch.allclose(inverse(x.triu(1)) @ (eye + x.triu(1)), eye.expand_as(x))
    h, slope = gelu_and_slope(x)
    assert torch.allclose(h, torch.nn.functional.gelu(x))
    y = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(torch.nn.functional.gelu(y).sum(), y)
    assert torch.allclose(slope, want)
    lengths = x.norm(dim=-1).clamp_max(1.5)
    assert torch.allclose(shorten(x, 1.5).norm(dim=-1), lengths) and shorten(x, None) is x
