"""Which tokens of each row form which chunk.

A chunk is counted from the beginning of its own document, over real tokens only. So padding writes nothing and moves no
border, a packed row equals its documents one by one, and a stream may be cut anywhere. Two forms:

spans   rows in step, without padding or documents: the rest of an open chunk, whole chunks, an open remainder
grid    anything else: tokens are gathered into [B, n, C] slots, the empty ones marked
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Flags:
    """What a rule has to know of a run of tiles besides their tokens."""

    c: int  # slots of a tile
    first: int | Tensor  # tokens of the document before tile 0 (modulo the chunk); or [B, n], before each tile
    live: Tensor | None = None  # [B, n, c] slots with a real token; None: all
    restart: Tensor | None = None  # [B, n] tiles that begin a document; None: none

    def fresh(self, i: int, chunk: int) -> bool | Tensor:
        """Does a chunk begin with tile i? One answer for all rows, or [B]."""
        if isinstance(self.first, int):
            return (self.first + i * self.c) % chunk == 0
        assert self.live is not None
        return self.live[:, i, 0] & (self.first[:, i] % chunk == 0)

    def restarts(self, i: int) -> Tensor | None:
        """[B] rows whose tile i begins a document."""
        return None if self.restart is None else self.restart[:, i]


@dataclass(frozen=True)
class Tiles:
    """n tiles of c slots, cut out of the token axis of every tensor of a call."""

    n: int
    c: int
    first: int | Tensor
    begin: int = 0  # spans: first token
    index: Tensor | None = None  # grid: [B, n, c] token in each slot, T where empty
    place: Tensor | None = None  # grid: [B, T] slot of each token, n * c where it is padding
    restart: Tensor | None = None

    def cut(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """[B, H, T, ...] -> [B, H, n, c, ...]; empty slots get ``fill``."""
        if self.index is None:
            return x[:, :, self.begin : self.begin + self.n * self.c].unflatten(2, (self.n, self.c))
        nothing = x.new_full((*x.shape[:2], 1, *x.shape[3:]), fill)
        return _take(torch.cat((x, nothing), 2), self.index.flatten(1)).unflatten(2, (self.n, self.c))

    def join(self, y: Tensor) -> Tensor:
        """[B, H, n, c, ...] -> [B, H, tokens, ...]; padding reads 0."""
        y = y.flatten(2, 3)
        if self.place is None:
            return y
        return _take(torch.cat((y, torch.zeros_like(y[:, :, :1])), 2), self.place)

    def flags(self, i: int, j: int) -> Flags:
        """Of tiles i to j."""
        if self.index is None or self.place is None:
            assert isinstance(self.first, int)
            return Flags(self.c, self.first + i * self.c)
        assert isinstance(self.first, Tensor)
        live = self.index[:, i:j] < self.place.shape[1]
        return Flags(self.c, self.first[:, i:j], live, None if self.restart is None else self.restart[:, i:j])


def spans(tokens: int, pos: int, tile: int) -> Iterator[Tiles]:
    """Rows in step, ``pos`` tokens into a chunk: head, body and tail without one empty slot."""
    head = min(-pos % tile, tokens)
    body = (tokens - head) // tile
    tail = tokens - head - body * tile
    if head:
        yield Tiles(1, head, pos, 0)
    if body:
        yield Tiles(body, tile, pos + head, head)
    if tail:
        yield Tiles(1, tail, pos + head + body * tile, head + body * tile)


def grid(mask: Tensor, reset: Tensor | None, pos: Tensor, tile: int) -> tuple[Tiles, Tensor]:
    """Slots for rows that are not in step, and the new position of every row.

    mask [B, T] real tokens, reset [B, T] first tokens of documents, pos [B] tokens of the open chunk.
    """
    b, t = mask.shape
    real = mask.long()
    order = real.cumsum(1) - 1  # number of each real token in its row
    if reset is None:
        since = order + pos[:, None]
    else:
        begins = torch.where(reset, order, torch.full_like(order, -1)).cummax(1).values
        since = torch.where(begins < 0, order + pos[:, None], order - begins)
    slot = since % tile
    opens = mask & (slot == 0)
    tile_of = opens.long().cumsum(1) - (pos % tile == 0).long()[:, None]
    # Without documents the number of tiles is known without looking at the data, so that it compiles.
    n = (t + tile - 2) // tile + 1 if reset is None else max(int(tile_of.max()) + 1, 1)
    where = torch.where(mask, tile_of * tile + slot, n * tile)
    tokens = torch.arange(t, device=mask.device).expand(b, t)
    index = torch.full((b, n * tile + 1), t, device=mask.device).scatter(1, where, tokens)[:, :-1].view(b, n, tile)
    # `first` of a tile is read where its slot 0 is real, or for tile 0.
    padded = torch.cat((since, pos[:, None]), 1)
    first = padded.gather(1, index[:, :, 0])
    restart = None
    if reset is not None:
        restart = torch.cat((reset, reset.new_zeros(b, 1)), 1).gather(1, index[:, :, 0])
    last = torch.where(mask, since + 1, 0)
    at = torch.where(mask, tokens, -1).max(1, keepdim=True).values
    end = torch.where(at.squeeze(1) < 0, pos, last.gather(1, at.clamp_min(0)).squeeze(1))
    return Tiles(n, tile, first, 0, index, where, restart), end


def _take(x: Tensor, index: Tensor) -> Tensor:
    """X [B, H, T, ...] at index [B, S] -> [B, H, S, ...]."""
    at = index[:, None].reshape(index.shape[0], 1, -1, *[1] * (x.ndim - 3))
    return x.take_along_dim(at.expand(*x.shape[:2], -1, *x.shape[3:]), 2)
