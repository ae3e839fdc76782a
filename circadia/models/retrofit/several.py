"""Rows of one batch that read with different memories in one forward pass.

What it must equal is each row read by itself, `Reading` by `Reading`. Everything but the adapted matrices is read for
all rows at once as it is. Of an adapted matrix W:

    y_i = W x_i                      a row without a memory
    y_i = W x_i + B_i (A_i x_i)      low-rank: one pass over W and two `bmm` for all such rows together; with gates
                                     one more, g_i(x_i) beside A_i x_i, 1 where a level has none
    y_i = (W + delta_i) x_i          full: one product for each memory, over all of its rows. A `bmm` would need every
                                     learner's matrices side by side, copied anew whenever a row comes or goes
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from circadia.models.retrofit.wear import Pair, Reading, wide


class Several:
    """How one matrix reads [B, ..., in], or [B T, in], as some MLPs are given it."""

    def __init__(self, module: nn.Module, readings: Sequence[Reading | None]) -> None:
        self.module, self.readings = module, readings
        device = next(iter([*module.parameters(), *module.buffers()])).device
        own: dict[int, tuple[Reading, list[int]]] = {}
        light = []
        for i, reading in enumerate(readings):
            if reading is not None and reading.deltas:
                own.setdefault(id(reading), (reading, []))[1].append(i)
            else:
                light.append(i)
        self.own = [(torch.tensor(rows, device=device), reading) for reading, rows in own.values()]
        self.light = torch.tensor(light, device=device)
        self.pairs = _stacked([readings[i] for i in light])

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(self.readings), -1, x.shape[-1])
        if not self.own:
            y = self._lightly(rows)
            return y.reshape(*x.shape[:-1], y.shape[-1])
        parts = [(index, reading(rows[index])) for index, reading in self.own]
        if self.light.numel():
            parts.append((self.light, self._lightly(rows[self.light])))
        first = parts[0][1]
        y = first.new_empty(rows.shape[0], *first.shape[1:])
        for index, part in parts:
            y[index] = part
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def _lightly(self, rows: Tensor) -> Tensor:
        module: Any = self.module
        y: Tensor = type(module).forward(module, rows)
        if self.pairs is not None:
            a, b, gate = self.pairs
            wider = wide(rows, a)
            inner = wider.bmm(a.mT)
            if gate is not None:
                inner = inner * torch.sigmoid(wider.bmm(gate[..., :-1].mT) + gate[:, None, :, -1])
            y = y + inner.bmm(b.mT).to(y.dtype)
        return y


def several(rows: Sequence[Mapping[nn.Module, Reading]]) -> dict[nn.Module, Several]:
    """For `worn`: one entry of `rows` for each row of the batch, an empty one where it has no memory."""
    modules = dict.fromkeys(module for own in rows for module in own)
    return {module: Several(module, [own.get(module) for own in rows]) for module in modules}


def _stacked(readings: Sequence[Reading | None]) -> Pair | None:
    """A [B, r, in] and B [B, out, r] of every row, of all levels side by side; zeros where a row has fewer.

    Gates, if there are any, [B, r, in + 1], one for each of the r: with b infinite where a pair is always on.
    """
    ranks = [sum(pair.a.shape[0] for pair in reading.pairs) if reading else 0 for reading in readings]
    if not any(ranks):
        return None
    like_a, like_b, _ = next(pair for reading in readings if reading for pair in reading.pairs)
    a = like_a.new_zeros(len(readings), max(ranks), like_a.shape[1])
    b = like_b.new_zeros(len(readings), like_b.shape[0], max(ranks))
    gates = a.new_zeros(*a.shape[:2], a.shape[2] + 1)
    gates[..., -1] = torch.inf
    gated = False
    for i, reading in enumerate(readings):
        at = 0
        for down, up, gate in reading.pairs if reading else ():
            own = slice(at, at + down.shape[0])
            a[i, own], b[i, :, own] = down, up
            if gate is not None:
                gates[i, own], gated = gate.repeat_interleave(down.shape[0] // gate.shape[0], 0), True
            at = own.stop
    return Pair(a, b, gates if gated else None)
