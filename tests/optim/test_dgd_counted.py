"""Which tokens DGD counts: those with a gradient, of whatever sign."""

import torch
from torch import nn

from circadia.optim import DGD


def test_tokens_without_a_gradient_are_not_counted():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, bias=False)
    optimizer = DGD(layer, lr=0.1)
    x = torch.randn(4, 3)
    # Falling, rising, mixed with zeros, and nothing.
    delta = torch.tensor([[-1.0, 0.0], [0.0, 2.0], [-1.0, 1.0], [0.0, 0.0]])
    layer(x).backward(delta)
    (seen,) = optimizer.seen.values()
    assert float(seen["count"]) == 3 and torch.allclose(seen["size"], x[:3].square().sum())
    held = seen.get("held", None)
    assert held is not None and torch.allclose(held, layer.weight.detach() @ x[:3].T @ x[:3], atol=1e-6)
