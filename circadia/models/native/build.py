"""`native`: one of Circadia's own models becomes one that learns a stream with the memories that it has."""

import math
from pathlib import Path
from typing import Any

from circadia.models.model import HopeForCausalLM
from circadia.models.native.layout import Block
from circadia.models.native.model import NativeModel
from circadia.models.native.settings import Settings

CONTEXT = 512  # tokens that full attention sees before a chunk, unless the chunk is longer
CHUNK = 64  # where nothing in the model has a period


def able(base: Any) -> bool:
    """Is this a model of our own with a memory that learns in context?"""
    return isinstance(base, HopeForCausalLM) and any(block.levels for block in _blocks(base))


def native(model: Any, *, chunk: int | None = None, context: int | None = None) -> NativeModel:
    """Let a Hope, a Titans, a gated DeltaNet or any other stack of ours keep what it learns, over any length of text.

    model      a `HopeForCausalLM`, or its folder. It is frozen: what changes is its memory, which is a value
    chunk      tokens that are weighed together, and after which a memory can be kept. It divides, or is divided by,
               every period of the model. Default: the longest chunk of a memory or segment, else the fastest period
    context    only with full attention: how many tokens before a chunk it sees, since a state may not grow for ever.
               Default 512, or the chunk where that is longer
    """
    source = str(model) if isinstance(model, (str, Path)) else None
    if source is not None:
        from circadia.models.retrofit.build import loaded

        model = loaded(source)
    if not isinstance(model, HopeForCausalLM):
        raise ValueError(f"model is a {type(model).__name__}, no model of Circadia's own: use circadia.retrofit(model)")
    blocks = _blocks(model)
    levels = sorted({level for block in blocks for level in block.levels.values()}, key=lambda x: (x.period, x.name))
    if not levels:
        raise ValueError(
            f"mixers={model.config.mixers} with periods={model.config.periods}: nothing in this model learns in "
            "context: use circadia.retrofit(model), which gives its MLPs memories"
        )
    full = any(block.full for block in blocks)
    if context is not None and not full:
        raise ValueError(f"context={context!r}: no block has full attention, what it sees is built in: leave it out")
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 0):
        raise ValueError(f"context={context!r} must be a whole number of tokens, at least 0")
    size = _chunk(chunk, blocks, model.config)
    room = (max(CONTEXT, size) if context is None else context) if full else None
    return NativeModel(model, blocks, Settings(levels=tuple(levels), chunk=size, context=room), source)


def _blocks(base: HopeForCausalLM) -> list[Block]:
    return [Block.of(block) for block in base.model.layers]


def _chunk(chunk: int | None, blocks: list[Block], config: Any) -> int:
    """Checked, or chosen."""
    borders = sorted({period for block in blocks for period in block.borders()})
    if config.learns_from_loss:
        fastest = config.periods[0]
        if chunk not in (None, fastest):
            raise ValueError(
                f"chunk={chunk!r}: with cms_signal='loss' the levels learn by pieces of periods[0]={fastest} tokens: "
                "leave it out"
            )
        chunk = fastest
    if chunk is None:
        inside = {p for block in blocks for p in block.borders() - {level.period for level in block.cms.values()}}
        chunk = max(inside) if inside else borders[0] if borders else min(CHUNK, config.chunk)
        if not _fits(chunk, borders):
            chunk = math.gcd(*borders)
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk={chunk!r} must be a whole number of tokens, at least 1")
    if not _fits(chunk, borders):
        raise ValueError(
            f"chunk={chunk} and the model's periods {borders}: each must divide the other: give {math.gcd(*borders)}"
        )
    return chunk


def _fits(chunk: int, borders: list[int]) -> bool:
    return all(chunk % border == 0 or border % chunk == 0 for border in borders)
