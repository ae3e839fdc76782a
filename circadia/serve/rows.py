"""Texts of different lengths as rows of one batch, each read on from its own keys and values.

Rows end at the same place: a shorter one has padding on its left, which the mask hides. So every row gets its next
token in the same column, and rows may come and go between two passes. What it must equal is each row by itself.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest logit; other types have few bits


class Rows:
    """Of one base."""

    def __init__(self, base: Any) -> None:
        from transformers import DynamicCache

        self.base, self.lengths = base, list[int]()
        # Without the config every layer keeps all it has read, also where the base looks at the last tokens only: the
        # mask hides the others. Layers that forget by themselves could not be padded.
        self.cache = DynamicCache()
        self._takes = inspect.signature(base.forward).parameters
        self.device = next(iter(base.parameters())).device

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return max(self.lengths, default=0)

    @torch.no_grad()
    def read(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, vocabulary] after these tokens: new rows, or as many more of each row."""
        if self.lengths and len({len(own) for own in tokens}) != 1:
            raise ValueError("tokens: rows that have begun go on by the same number each")
        lengths = [n + len(own) for n, own in zip(self.lengths or [0] * len(tokens), tokens)]
        most, width = max(map(len, tokens)), max(lengths)
        ids = torch.tensor([[0] * (most - len(own)) + list(own) for own in tokens], device=self.device)
        places = torch.arange(width, device=self.device) - torch.tensor([[width - n] for n in lengths]).to(self.device)
        given: dict[str, Any] = {"attention_mask": (places >= 0).long()}
        if "position_ids" in self._takes:
            given["position_ids"] = places[:, -most:].clamp_min(0)
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        out = self.base(input_ids=ids, past_key_values=self.cache, use_cache=True, **given)
        self.lengths = lengths
        return out.logits[:, -1]

    def join(self, other: "Rows") -> None:
        """Its rows come after these."""
        if not self.lengths:
            self.cache, self.lengths = other.cache, other.lengths
            return
        width = max(self.width, other.width)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat((_padded(mine.keys, width), _padded(theirs.keys, width)))
            mine.values = torch.cat((_padded(mine.values, width), _padded(theirs.values, width)))
        self.lengths = self.lengths + other.lengths

    def keep(self, rows: Sequence[int]) -> None:
        """Only these, and no more padding than they need."""
        if len(rows) == len(self.lengths):
            return
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        cut = self.width - max((self.lengths[i] for i in rows), default=0)
        for layer in self.cache.layers:
            layer.keys = layer.keys[:, :, cut:].index_select(0, index.to(layer.keys.device))
            layer.values = layer.values[:, :, cut:].index_select(0, index.to(layer.values.device))
        self.lengths = [self.lengths[i] for i in rows]
        if not rows:
            self.cache = type(self.cache)()


def _padded(x: Tensor, width: int) -> Tensor:
    """[B, heads, T, size] to the width, zeros first."""
    return F.pad(x, (0, 0, width - x.shape[-2], 0))


def fault(base: Any) -> str | None:
    """Why this base cannot read rows of different lengths at once: found by trying, not by a list of names."""
    first, second, late = [5, 3, 7, 4, 6, 2, 9], [8, 1, 3], [2, 6]
    try:
        alone = []
        for prompt in (first, second, late):
            rows = Rows(base)
            alone.append([rows.read([prompt])[0], *(rows.read([[token]])[0] for token in (1, 4, 3))])
        rows, new = Rows(base), Rows(base)
        (a0, b0), (a1, b1) = rows.read([first, second]), rows.read([[1], [1]])
        c0 = new.read([late])[0]
        rows.join(new)
        a2, b2, c1 = rows.read([[4], [4], [1]])
        rows.keep([1, 2])
        b3, c2 = rows.read([[3], [4]])
        together = [[a0, a1, a2], [b0, b1, b2, b3], [c0, c1, c2]]
    except Exception as error:  # a base's own code may raise anything
        return f"{type(error).__name__}: {error}"[:200]
    for one, other in zip(alone, together):
        for x, y in zip(one, other):
            away, scale = float((x - y).abs().max()), float(x.abs().max())
            if not away <= CLOSE.get(x.dtype, 0.05) * scale:
                return f"its logits with padding are {away:.2g} away from those without"
    return None
