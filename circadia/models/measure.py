"""What a model costs, without allocating it: parameters, state, operations per token."""

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

    A memory costs the same for every two chunks; the levels are run until each of them has learned.
    """
    state = grows = 0
    flops = 2 * config.hidden_size * config.vocab_size
    for mixer in set(config.layer_mixers):
        at = config.layer_mixers.index(mixer)
        layers = config.layer_mixers.count(mixer)
        length = tokens if MIXERS[mixer].attention else 2 * config.chunk
        block = _on_meta(HopeBlock, config, at).mixer
        operations, long = _run(block, config, length)
        each = (long - _run(block, config, length // 2)[1]) // (length - length // 2)
        flops += layers * operations // length
        grows += layers * each
        state += layers * (long - each * length)
    length = 2 * max(config.periods) + 1
    operations, held = _run(_on_meta(Levels, config), config, length)
    blocks = config.num_hidden_layers
    return Cost(count(config), state + blocks * held, grows, flops + blocks * operations // length, tokens)


def _on_meta(kind: type, *arguments: object) -> Any:
    with torch.device("meta"):
        return kind(*arguments).requires_grad_(False)


def _run(part: nn.Module, config: HopeConfig, tokens: int) -> tuple[int, int]:
    """Operations, and bytes of the state after so many tokens."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _, state = part(torch.zeros(1, tokens, config.hidden_size), {}, Context())
    return counter.get_total_flops(), sum(x.numel() * x.element_size() for x in state.values())
