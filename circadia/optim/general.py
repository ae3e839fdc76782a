"""The general forms: any objective, any retention (Nested Learning, eq. 35-41, 56-60), and DGD, their closed case."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from circadia.optim import check

RATES = ("exact", "printed", "proximal")


def gm(m: Tensor, objective: Callable[[Tensor], Tensor], rate: float, decay: float = 1.0) -> Tensor:
    """Generalised momentum (eq. 35-37): m <- alpha m - eta grad_m L(m; xhat, -delta); then W += m.

    ``objective`` is m -> L(m; xhat, -delta). With <m xhat, delta> it is momentum (eq. 33).
    """
    return decay * m - rate * grad(objective)(m)


def ggd(
    w: Tensor,
    objective: Callable[[Tensor], Tensor],
    retention: Callable[[Tensor], Tensor],
    *,
    rate: float,
    steps: int,
) -> Tensor:
    """Generalised gradient descent (Def. 5, eq. 59): argmin_W L(W; x_t, u_t) + Ret(W; W_t, W_{t-1}, ...).

    Solved by ``steps`` steps of gradient descent at ``rate`` from W_t. As printed the loss does not depend on W; it is
    read as L(W; x, u), where u = f_{W_t}(x) is a constant (A9).
    """
    new = w
    slope = grad(lambda weights: objective(weights) + retention(weights))
    for _ in range(steps):
        new = new - rate * slope(new)
    return new


def learn_preconditioner(p: Tensor, ghat: Tensor, g: Tensor, rate: float) -> Tensor:
    """P <- P - zeta grad_P 1/2 |P ghat - g|^2 (eq. 39-41, L2): P learns to map ghat to g; then W -= eta P^-1 g (38)."""
    return p - rate * (p @ ghat - g) @ ghat.mT


def dgd(w: Tensor, g: Tensor, gram: Tensor, lr: Any, *, rate: str = "exact", erase: float = 1.0) -> Tensor:
    """Delta gradient descent (eq. 56-57): W <- W (I - eta' C) - eta' G.

    Over a batch C is the mean of x x^T [n, n] and G the mean of delta x^T [m, n]; the paper has one sample.

    rate "exact"     eta' = eta / (1 + eta tr C), tr C the mean of |x|^2: for one sample of any length the minimiser of
                     1/2 |W x - u|^2 + 1/(2 eta) |W - W_t|^2 with u = -delta
    rate "printed"   eta' = eta / (1 + eta): the same where |x| = 1
    rate "proximal"  the minimiser of the mean over the batch: W - eta (W C + G) (I + eta C)^-1
    erase            factor of the W C term; 1 is the paper's rule, 0 leaves normalised gradient descent
    """
    check.one_of("rate", rate, RATES)
    if rate == "proximal":
        error = erase * (w @ gram) + g
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return w - lr * torch.linalg.solve(eye + lr * gram, error, left=False)
    size = gram.diagonal(dim1=-2, dim2=-1).sum(-1) if rate == "exact" else 1.0
    return dgd_from_outputs(w, g, w @ gram, size, lr, erase=erase)


def dgd_from_outputs(w: Tensor, g: Tensor, held: Tensor, size: Any, lr: Any, *, erase: float = 1.0) -> Tensor:
    """The same from ``held`` = W C, the mean of (W x) x^T, where a layer has W x at hand; ``size`` is tr C, or 1."""
    return w - lr / (1 + lr * size) * ((held if erase == 1 else erase * held) + g)
