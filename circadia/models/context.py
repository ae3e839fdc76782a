"""What one forward pass knows of its tokens: padding, documents, and the order of real tokens in each row."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """None where there is nothing to know: all tokens real, one document."""

    mask: Tensor | None = None  # [B, T] real tokens
    reset: Tensor | None = None  # [B, T] first tokens of documents
    order: Tensor | None = None  # [B, T] tokens with the real ones first, in their order
    back: Tensor | None = None  # [B, T] place of each token in that order
    count: Tensor | None = None  # [B] real tokens
    since: Tensor | None = None  # [B, T] in that order: tokens since the document began, large if before this call
    keep: bool = True  # will the state after these tokens be used?

    @property
    def plain(self) -> bool:
        return self.order is None

    @staticmethod
    def of(mask: Tensor | None, reset: Tensor | None, keep: bool = True) -> "Context":
        if mask is not None and not torch.compiler.is_compiling() and bool(mask.all()):
            mask = None
        if mask is None and reset is None:
            return Context(keep=keep)
        assert mask is not None or reset is not None
        looking = mask is not None and reset is not None and not torch.compiler.is_compiling()
        if looking and bool((reset & ~mask).any()):  # type: ignore[operator]
            raise ValueError("reset is set where mask is False: mark the first real token of the document instead")
        real = torch.ones_like(reset) if mask is None else mask  # type: ignore[arg-type]
        order = (~real).long().argsort(dim=1, stable=True)
        count = real.sum(1)
        place = torch.arange(real.shape[1], device=real.device).expand_as(order)
        started = place if reset is None else reset.gather(1, order) & (place < count[:, None])
        far = torch.full_like(place, 1 << 40)
        if reset is None:
            since = far
        else:
            begun = torch.where(started.bool(), place, torch.full_like(place, -1)).cummax(1).values
            since = torch.where(begun < 0, far, place - begun)
        return Context(mask, reset, order, order.argsort(1), count, since, keep)


def take(x: Tensor, index: Tensor) -> Tensor:
    """X [B, T, ...] at index [B, S] along the tokens."""
    return x.take_along_dim(index.view(*index.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]), 1)
