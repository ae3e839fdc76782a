"""Several two-layer memories that are written with one key, as two tensors: fewer and larger operations.

    rows [B, H, S hidden + R, d]   their first matrices one below the other (their input is the same, so together they
                                   are one matrix), then the R linear skips
    tops [B, H, S, d, hidden]      their second matrices; one with a single output is filled up with rows of zeros,
                                   which stay zero: no error ever reaches them

The names carry the prefixes of ``circadia.memory.state``: "start.rows", "momentum.tops".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.memory.layout import Flags
from circadia.memory.state import MOMENTUM, START, State, choose, select

PARTS = ("rows", "tops")


@dataclass(frozen=True)
class Stack:
    """Which memories, in which order. The first one may have a chunk of its own."""

    names: tuple[str, ...]
    skips: tuple[str, ...]  # the last memories of ``names``: one output, and a skip that is a row

    def pack(self, state: State) -> State:
        """From entries NAME.w0, NAME.w1, NAME.skip, with all their prefixes."""
        packed: State = {}
        for prefix in ("", START, MOMENTUM):
            if prefix + self.names[0] + ".w0" not in state:
                continue
            own = {name: [state[f"{prefix}{name}.{part}"] for part in ("w0", "w1")] for name in self.names}
            widths = {w0.shape[-2] for w0, _ in own.values()}
            if len(widths) > 1:
                raise ValueError(f"state: the memories have hidden widths {sorted(widths)}: give them all the same")
            below = [state[f"{prefix}{name}.skip"] for name in self.skips]
            packed[prefix + "rows"] = torch.cat([w0 for w0, _ in own.values()] + below, 2)
            d = below[0].shape[-1]
            packed[prefix + "tops"] = torch.stack([F.pad(w1, (0, 0, 0, d - w1.shape[-2])) for _, w1 in own.values()], 2)
        return packed

    def unpack(self, packed: State) -> State:
        """Back to the entries by name."""
        state: State = {}
        for prefix in ("", START, MOMENTUM):
            if prefix + "rows" not in packed:
                continue
            rows, tops = packed[prefix + "rows"], packed[prefix + "tops"]
            heights = [tops.shape[-1]] * len(self.names) + [1] * len(self.skips)
            parts = rows.split(heights, 2)
            for name, w0, w1 in zip(self.names, parts, tops.unbind(2)):
                state[f"{prefix}{name}.w0"] = w0
                state[f"{prefix}{name}.w1"] = w1[:, :, :1] if name in self.skips else w1
            for name, skip in zip(self.skips, parts[len(self.names) :]):
                state[f"{prefix}{name}.skip"] = skip
        return state

    def blocks(self, x: Tensor) -> Tensor:
        """Rows of the first matrices, memory by memory: [B, H, S hidden + R, ...] -> [B, H, S, hidden, ...]."""
        s = len(self.names)
        return x[:, :, : x.shape[2] - len(self.skips)].unflatten(2, (s, (x.shape[2] - len(self.skips)) // s))

    def opened(
        self, packed: State, i: int, flags: Flags, periods: tuple[int, int], top: float | None, initial: State | None
    ) -> State:
        """``Rule.opened`` for the stack; ``periods`` of the first memory and of the others."""
        restart = flags.restarts(i)
        if restart is not None:
            assert initial is not None
            packed = select(restart, initial, packed)
        fresh = [flags.fresh(i, period) for period in periods]
        if all(f is False for f in fresh):
            return packed
        packed = dict(packed)
        for part, limit in zip(PARTS, (self._limit_rows, self._limit_tops)):
            for key in (part, MOMENTUM + part):
                if key in packed and top is not None:
                    packed[key] = self._where(fresh, limit(packed[key], top), packed[key], part)
            packed[START + part] = self._where(fresh, packed[part], packed[START + part], part)
        return packed

    def _limit_rows(self, rows: Tensor, top: float) -> Tensor:
        """Each matrix at most so long, see ``state.limit``."""
        first, skips = self.blocks(rows), rows[:, :, rows.shape[2] - len(self.skips) :]
        most = top * min(first.shape[-2:]) ** 0.5
        scale = most / torch.linalg.vector_norm(first, dim=(-2, -1), keepdim=True).clamp_min(most)
        skip_scale = top / torch.linalg.vector_norm(skips, dim=-1, keepdim=True).clamp_min(top)
        return rows * torch.cat((scale.expand(*first.shape[:4], 1).flatten(2, 3), skip_scale), 2)

    def _limit_tops(self, tops: Tensor, top: float) -> Tensor:
        norm = torch.linalg.vector_norm(tops, dim=(-2, -1), keepdim=True)
        full = len(self.names) - len(self.skips)
        most = norm.new_full((len(self.names), 1, 1), top)
        most[:full] *= min(tops.shape[-2:]) ** 0.5
        return tops * (most / norm.maximum(most))

    def _where(self, fresh: list[bool | Tensor], new: Tensor, old: Tensor, part: str) -> Tensor:
        """``new`` for the memories (and rows of the batch) whose chunk begins."""
        if all(f is True for f in fresh):
            return new
        own = 1 if part == "tops" else self.blocks(new).shape[3]
        pairs = zip(fresh, new.tensor_split([own], 2), old.tensor_split([own], 2))
        return torch.cat([(n if f else o) if isinstance(f, bool) else choose(f, n, o) for f, n, o in pairs], 2)
