"""The textbook optimizers are associative memories: the derived form against the textbook one, step by step."""

import pytest
import torch
from torch import nn

from circadia.optim import memories, rules

D = torch.float64


def test_backprop_writes_an_association() -> None:
    """Eq. 8-9: SGD on a linear layer, and the minimum of the proximal objective."""
    layer = nn.Linear(6, 4, bias=False, dtype=D)
    x = torch.randn(6, dtype=D)
    y = layer(x)
    y.retain_grad()
    y.square().sum().backward()
    new = memories.backprop_write(layer.weight.detach(), x, y.grad, 0.1)
    assert torch.allclose(new, layer.weight - 0.1 * layer.weight.grad)
    w = new.clone().requires_grad_()
    loss = (w @ x) @ y.grad + (w - layer.weight.detach()).square().sum() / 0.2
    assert torch.autograd.grad(loss, w)[0].abs().max() < 1e-12


def test_momentum_is_gradient_descent_on_a_memory() -> None:
    """Eq. 10-13, 33: W += m, against torch's SGD."""
    p = nn.Parameter(torch.randn(4, 6, dtype=D))
    w, m = p.detach().clone(), torch.zeros(4, 6, dtype=D)
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.8)
    for _ in range(12):
        x, delta = torch.randn(6, dtype=D), torch.randn(4, dtype=D)
        p.grad = torch.outer(delta, x)
        optimizer.step()
        m = memories.momentum_write(m, x, delta, 0.1, 0.8)
        w = w + m
        assert torch.allclose(w, p)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_optimum_of_the_elementwise_regression(ridge: float) -> None:
    """Eq. 101-103: sum |m o g_i - P|^2 + lambda |m|^2 is at rest at (H + lambda)^-1 o M o P."""
    grads, target = torch.randn(9, 5, dtype=D), torch.rand(5, dtype=D)
    state = memories.regression_start(grads[0])
    for g in grads:
        state = memories.regression_write(state, g)
    m = memories.regression_read(state, target, ridge).requires_grad_()
    loss = (m * grads - target).square().sum() + ridge * m.square().sum()
    assert torch.autograd.grad(loss, m)[0].abs().max() < 1e-12


def test_adam_by_accumulators() -> None:
    """Eq. 104-105 as they stand: P = sum g^2 gives momentum that never fades, P = sqrt(sum g^2) Adam's division.

    The step is M / (sqrt(b2) (sqrt(H) + eps)) with M = b1 sum g and H = b2 sum g^2.
    """
    b1, b2 = 0.9, 0.999
    state = memories.regression_start(torch.zeros(5, dtype=D))
    total, energy = torch.zeros(5, dtype=D), torch.zeros(5, dtype=D)
    for g in torch.randn(12, 5, dtype=D):
        state = memories.regression_write(state, g, (b1, b2))
        total, energy = total + g, energy + g * g
        assert torch.allclose(memories.regression_read(state, b2 * energy), b1 * total)
        got = memories.regression_read(state, energy.sqrt())
        assert torch.allclose(got, state["product"] / (b2**0.5 * state["energy"].sqrt()))
        # So with the paper's accumulators it is the sum of gradients over AdaGrad's size, and no running mean.
        assert torch.allclose(got, b1 / b2 * total / energy.sqrt())


@pytest.mark.parametrize(("b1", "b2", "equal"), [(0.9, 0.9, True), (0.9, 0.999, False)])
def test_adam_by_running_means(b1: float, b2: float, equal: bool) -> None:
    """Fading samples make the regression the real Adam: of one objective if beta1 = beta2, of two windows otherwise."""
    rule = rules.Adam(lr=1.0, betas=(b1, b2), eps=0.0)
    w, grads = torch.zeros(5, dtype=D), torch.randn(12, 5, dtype=D)
    held, state = rule.init(w), memories.regression_start(w)
    for t, g in enumerate(grads, 1):
        direction, held = rule.direction(g, held, t)
        state = memories.regression_write(state, g, (1 - b1, 1 - b2), (b1, b2))
        mean, square = state["product"] / (1 - b1**t), state["energy"] / (1 - b2**t)
        read = memories.regression_read({"product": mean, "energy": square}, square.sqrt())
        assert torch.allclose(read, direction)
    m = read.requires_grad_()
    age = torch.arange(12, dtype=D).flip(0)[:, None]
    loss = (b1**age * (m * grads - square.sqrt()).square()).sum() * (1 - b1) / (1 - b1**12)
    assert (torch.autograd.grad(loss, m)[0].abs().max() < 1e-12) == equal


def test_rmsprop_reads_the_last_gradient() -> None:
    rule = rules.RMSProp(lr=1.0, alpha=0.9, eps=0.0)
    held, state = rule.init(torch.zeros(5, dtype=D)), memories.regression_start(torch.zeros(5, dtype=D))
    for g in torch.randn(8, 5, dtype=D):
        direction, held = rule.direction(g, held, 1)
        state = memories.regression_write(state, g, (1.0, 0.1), (0.0, 0.9))
        assert torch.allclose(memories.regression_read(state, state["energy"].sqrt()), direction)


def test_adagrad_with_momentum() -> None:
    """Eq. 106-111: on gradients along the axes the outer-product form is the element-wise one, in any basis."""
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=D))
    state = {"product": torch.zeros(4, dtype=D), "energy": torch.zeros(4, 4, dtype=D)}
    total, energy = torch.zeros(4, dtype=D), torch.zeros(4, dtype=D)
    for t in range(12):
        g = torch.zeros(4, dtype=D)
        g[t % 3] = torch.randn((), dtype=D)  # the fourth axis never has a gradient
        state = memories.outer_write(state, turn @ g, (0.9, 0.99))
        total, energy = total + 0.9 * g, energy + 0.99 * g * g
        want = torch.where(energy > 0, total / energy.clamp_min(1e-300).sqrt(), 0.0)
        assert torch.allclose(memories.outer_read(state), turn @ want)


def test_adagrad_reads_the_last_gradient() -> None:
    rule = rules.AdaGrad(lr=1.0, eps=0.0)
    held, state = rule.init(torch.zeros(5, dtype=D)), memories.regression_start(torch.zeros(5, dtype=D))
    for g in torch.randn(8, 5, dtype=D):
        direction, held = rule.direction(g, held, 1)
        state = memories.regression_write(state, g, fade=(0.0, 1.0))
        assert torch.allclose(memories.regression_read(state, state["energy"].sqrt()), direction)
