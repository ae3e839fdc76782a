"""Textbook optimizers as the associative memories that Nested Learning derives (eq. 8-13, 33, App. B eq. 101-111).

Each function solves or descends the memory's own objective; `tests/optim/test_memories.py` holds it against the
textbook form, step by step.

Where the paper writes "=", Adam's case holds for accumulators that never fade: M = b1 sum g, H = b2 sum g^2 and no
correction. Real Adam has running means. They solve the same regression with exponentially weighted samples, exactly
if beta1 = beta2 and eps = 0; with beta1 != beta2 no single regression has Adam as its optimum.
"""

import torch
from torch import Tensor

from circadia.optim.general import gm
from circadia.optim.rules import State


def backprop_write(w: Tensor, x: Tensor, surprise: Tensor, lr: float) -> Tensor:
    """argmin_W <W x, u> + 1/(2 eta) |W - W_t|^2 (eq. 8-9): the layer stores x -> u, its local surprise; this is SGD."""
    return w - lr * torch.outer(surprise, x)


def momentum_write(m: Tensor, x: Tensor, surprise: Tensor, lr: float, decay: float = 1.0) -> Tensor:
    """Gradient descent on <m x, u> + (1 - alpha)/(2 eta) |m|^2 (eq. 10-13, 33); then W += m."""
    penalty = (1 - decay) / (2 * lr)
    return gm(m, lambda memory: (memory @ x) @ surprise + penalty * memory.square().sum(), lr)


def regression_start(w: Tensor) -> State:
    """An empty element-wise regression."""
    return {"product": torch.zeros_like(w), "energy": torch.zeros_like(w)}


def regression_write(
    state: State, g: Tensor, betas: tuple[float, float] = (1.0, 1.0), fade: tuple[float, float] = (1.0, 1.0)
) -> State:
    """One more sample of sum |m o g_i - P|^2 (eq. 101-104): M <- f1 M + b1 g, H <- f2 H + b2 g^2.

    The paper has no fading (f = 1) and Mtilde with g = -grad; with fade = beta and betas = 1 - beta these are Adam's
    running means. RMSProp keeps the last gradient alone in M: fade (0, alpha).
    """
    return {
        "product": fade[0] * state["product"] + betas[0] * g,
        "energy": fade[1] * state["energy"] + betas[1] * g * g,
    }


def regression_read(state: State, target: Tensor, ridge: float = 0.0) -> Tensor:
    """The optimum m* = (H + lambda)^-1 o M o P (eq. 103).

    Target P = H gives momentum; P = sqrt(H) gives M / sqrt(H), Adam's and RMSProp's division.
    """
    return state["product"] * target / (state["energy"] + ridge)


def outer_write(state: State, g: Tensor, betas: tuple[float, float] = (1.0, 1.0)) -> State:
    """AdaGrad with momentum (eq. 106-109) for a vector: M <- M + b1 g, H <- H + b2 g g^T."""
    return {"product": state["product"] + betas[0] * g, "energy": state["energy"] + betas[1] * torch.outer(g, g)}


def outer_read(state: State, eps: float = 1e-12) -> Tensor:
    """H^-1/2 M (eq. 110-111); on directions where no gradient was, H^-1/2 is 0."""
    values, vectors = torch.linalg.eigh(state["energy"])
    inverse = torch.where(values > eps * values.max(), values.clamp_min(eps).rsqrt(), torch.zeros_like(values))
    return vectors @ (inverse * (vectors.mT @ state["product"]))
