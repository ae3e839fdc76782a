"""Newton-Schulz: the nearest orthogonal matrix by matrix products alone (Nested Learning, eq. 42-44).

The quintic of Jordan's Muon (https://kellerjordan.github.io/posts/muon/) does not converge to U V^T: its five steps
bring every singular value near 1, to about [0.7, 1.2]. The cubic converges, more slowly, and is the one that the paper
derives.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]
QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
CUBIC: Coefficients = (1.5, -0.5, 0.0)
CPU_BATCH_BYTES = 2**15  # matrices up to this size gain from a batch on a CPU


def newton_schulz(
    x: Tensor,
    steps: int = 5,
    coefficients: Coefficients = QUINTIC,
    *,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """X <- a X + b (X X^T) X + c (X X^T)^2 X on matrices [..., m, n], from X / |X|_F.

    A tall matrix is transposed, so that the products are of the smaller side; zero stays zero. ``dtype`` is that of
    the products: the matrices' own if None, ``torch.bfloat16`` as in ``torch.optim.Muon``.
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: Newton-Schulz needs matrices [..., m, n]")
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).to(dtype or x.dtype)
    y = y if x.ndim == 2 else y.reshape(-1, *y.shape[-2:])
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp_min(eps)  # no singular value is above 1
    add_product: Any = torch.addmm if y.ndim == 2 else torch.baddbmm
    for _ in range(steps):
        gram = y @ y.mT
        # The cubic needs no product of the gram matrix with itself.
        poly = add_product(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        y = add_product(y, poly, y, beta=a)
    y = y.to(x.dtype)
    return (y.mT if tall else y).reshape(x.shape)


def gram_newton_schulz(x: Tensor, steps: int = 5, coefficients: Coefficients = QUINTIC, *, eps: float = 1e-7) -> Tensor:
    """The same as `newton_schulz`, with all steps on the gram matrix R = Y Y^T of the smaller side.

    Every step multiplies Y by a polynomial Z of R from the left: Y <- Z Y makes R <- Z R Z, so that only the product Q
    of all Z is kept and Y is touched twice. Worth it if one side is at least twice the other; not for half precision,
    where R loses what is small.
    """
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = y if x.ndim == 2 else y.reshape(-1, *y.shape[-2:])
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp_min(eps)
    add_product: Any = torch.addmm if y.ndim == 2 else torch.baddbmm
    gram, product = y @ y.mT, None
    for i in range(steps):
        factor = add_product(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if i < steps - 1:
            gram = factor @ gram @ factor
    y = y if product is None else product @ y
    return (y.mT if tall else y).reshape(x.shape)


def inner_step(o: Tensor, g: Tensor, rate: float) -> Tensor:
    """One step of the optimization inside Muon as printed (eq. 44): O - rate (O - g + 2 O (O^T O - I)).

    From O = g with rate 1/4 it is the cubic map 1.5 g - 0.5 g g^T g. The printed objective |O^T O - I|^2 lacks the
    term 1/2 |O - g|^2 that the step descends too.
    """
    eye = torch.eye(o.shape[-1], dtype=o.dtype, device=o.device)
    return o - rate * (o - g + 2 * o @ (o.mT @ o - eye))


def orthogonalize(
    matrices: Sequence[Tensor],
    steps: int = 5,
    coefficients: Coefficients = QUINTIC,
    *,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Newton-Schulz on many matrices; those of one shape, lying or standing, are one batch.

    On a CPU only if they are small: large ones are faster one by one, from its cache. Long ones are done on their gram
    matrices, unless the products are in half precision.
    """
    batches: dict[tuple[object, ...], list[int]] = {}
    wide = [x.mT if x.shape[-2] > x.shape[-1] else x for x in matrices]
    for i, x in enumerate(wide):
        size = x.shape[-2] * x.shape[-1] * (dtype or x.dtype).itemsize
        alone = i if x.ndim == 2 and x.device.type == "cpu" and size > CPU_BATCH_BYTES else None
        batches.setdefault((x.shape[-2:], x.dtype, x.device, alone), []).append(i)
    out = list(matrices)
    for members in batches.values():
        given = [wide[i] for i in members]
        if len(given) == 1:
            made = [_orthogonal(given[0], steps, coefficients, eps, dtype)]
        elif all(x.ndim == 2 for x in given):
            made = list(_orthogonal(torch.stack(given), steps, coefficients, eps, dtype).unbind())
        else:
            flat = [x.reshape(-1, *x.shape[-2:]) for x in given]
            parts = _orthogonal(torch.cat(flat), steps, coefficients, eps, dtype).split([len(x) for x in flat])
            made = [part.reshape(x.shape) for part, x in zip(parts, given)]
        for i, o in zip(members, made):
            # Whoever adds this to a weight would otherwise read it across its rows, at many times the cost.
            out[i] = o.mT.contiguous() if wide[i] is not matrices[i] else o
    return out


def _orthogonal(x: Tensor, steps: int, coefficients: Coefficients, eps: float, dtype: torch.dtype | None) -> Tensor:
    """The form that costs less."""
    exact = min(x.dtype.itemsize, (dtype or x.dtype).itemsize) >= 4
    if exact and x.shape[-1] >= 2 * x.shape[-2]:
        return gram_newton_schulz(x.to(dtype or x.dtype), steps, coefficients, eps=eps).to(x.dtype)
    return newton_schulz(x, steps, coefficients, eps=eps, dtype=dtype)


SCALES = ("none", "original", "match_rms_adamw")


def shape_scale(kind: str, shape: torch.Size) -> float:
    """What the step of a matrix is multiplied by, as in ``torch.optim.Muon``.

    "original" sqrt(max(1, m/n)), Jordan's; "match_rms_adamw" 0.2 sqrt(max(m, n)), after which the learning rate and
    weight decay of AdamW fit (Moonlight, arXiv 2502.16982).
    """
    m, n = shape[-2:]
    if kind == "original":
        return max(1.0, m / n) ** 0.5
    return 0.2 * max(m, n) ** 0.5 if kind == "match_rms_adamw" else 1.0
