"""What a model costs, without allocating it: parameters, state, operations per token."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from circadia.models.config import HopeConfig
from circadia.models.context import Context
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
    """Run one block of each kind on the meta device and count: two rounds of whatever its costs repeat after."""
    state = grows = 0
    flops = 2 * config.hidden_size * config.vocab_size
    for mixer in set(config.layer_mixers):
        at = config.layer_mixers.index(mixer)
        layers = config.layer_mixers.count(mixer)
        repeats = MIXERS[mixer].repeats
        length = tokens if repeats is None else 2 * repeats(config)
        with torch.device("meta"), torch.no_grad():
            block = HopeBlock(config, at).requires_grad_(False)
            with FlopCounterMode(display=False) as counter:
                long = _bytes(block, config, length)
            each = (long - _bytes(block, config, length // 2)) // (length - length // 2)
        flops += layers * counter.get_total_flops() // length
        grows += layers * each
        state += layers * (long - each * length)
    return Cost(count(config), state, grows, flops, tokens)


def _bytes(block: HopeBlock, config: HopeConfig, tokens: int) -> int:
    """Of the state after so many tokens."""
    _, state = block(torch.zeros(1, tokens, config.hidden_size), {}, Context())
    return sum(x.numel() * x.element_size() for x in state.values())
