"""What a model costs, without allocating it: parameters, state, operations per token."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from circadia.models.config import HopeConfig
from circadia.models.context import Context
from circadia.models.levels import Levels
from circadia.models.mixers.table import MIXERS
from circadia.models.model import HopeBlock
from circadia.models.presets import count


@dataclass(frozen=True)
class Cost:
    """Of one sequence in float32."""

    parameters: int
    state_bytes: int  # that do not grow with the context
    bytes_per_token: int  # that do
    flops_per_token: int  # forward, averaged over ``tokens``
    tokens: int


def cost(config: HopeConfig, tokens: int = 2048) -> Cost:
    """Run one mixer of each kind and the levels on the meta device and count.

    Over as few tokens as show what many cost; the levels are run until each of them has learned.
    """
    state = grows = 0
    flops = float(2 * config.hidden_size * config.vocab_size)
    one_chunk = copy.copy(config)  # what a memory holds does not depend on its chunks
    one_chunk.chunk = tokens
    for mixer in set(config.layer_mixers):
        at, layers, row = config.layer_mixers.index(mixer), config.layer_mixers.count(mixer), MIXERS[mixer]
        part, whole = (_on_meta(HopeBlock, c, at).mixer for c in (config, one_chunk))
        # Attention compares every two tokens, all else costs the same again and again: the operations are a polynomial
        # of degree 2 in the tokens, so three values give all (Newton).
        n = row.repeats(config)
        one, two, three = (_run(part, config, i * n)[0] for i in (1, 2, 3))
        s = tokens / n - 1
        flops += layers * (one + s * (two - one) + s * (s - 1) / 2 * (three - 2 * two + one)) / tokens
        short, long = (tokens // 2, tokens) if row.keeps_tokens else (n, 2 * n)
        less, more = (_run(whole, config, length)[1] for length in (short, long))
        each = (more - less) // (long - short)
        grows += layers * each
        state += layers * (more - each * long)
    length = 2 * max(config.periods) + 1
    operations, held = _run(_on_meta(Levels, config), config, length)
    blocks = config.num_hidden_layers
    flops += blocks * operations / length
    return Cost(count(config), state + blocks * held, grows, round(flops), tokens)


def _on_meta(kind: type, *arguments: object) -> Any:
    with torch.device("meta"):
        return kind(*arguments).requires_grad_(False)


def _run(part: nn.Module, config: HopeConfig, tokens: int) -> tuple[int, int]:
    """Operations, and bytes of the state after so many tokens."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _, state = part(torch.zeros(1, tokens, config.hidden_size), {}, Context())
    return counter.get_total_flops(), sum(x.numel() * x.element_size() for x in state.values())


def activation_bytes(config: HopeConfig, tokens: int, recompute: bool = False) -> int:
    """What one row keeps for the backward pass in float32, blocks and head; with ``recompute`` only one block's."""
    each: list[int] = []
    for mixer in config.layer_mixers:
        known = config.layer_mixers.index(mixer)
        each.append(_saved(_on_meta(HopeBlock, config, known), config, tokens) if known == len(each) else each[known])
    head = 3 * 4 * tokens * config.vocab_size  # logits, their probabilities and the gradient
    if recompute:
        return max(each) + 4 * tokens * config.hidden_size * len(each) + head
    return sum(each) + head


def _saved(block: nn.Module, config: HopeConfig, tokens: int) -> int:
    """Bytes of the storages that autograd holds after a forward pass, weights left out."""
    block.requires_grad_(True)
    own = {p.untyped_storage()._cdata for p in block.parameters()}
    held: dict[int, torch.Tensor] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage()._cdata not in own:
            held[x.untyped_storage()._cdata] = x  # kept, so that its place is not given to another one
        return x

    with torch.device("meta"), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        x = torch.zeros(1, tokens, config.hidden_size, requires_grad=True)
        block(x, {}, Context(keep=False))
    return sum(x.untyped_storage().nbytes() for x in held.values())
