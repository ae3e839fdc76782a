"""The mixers by name: one row each. A new one is a row here, or a row and a file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from circadia.memory import RULES, Rule
from circadia.models.mixers.attention import Attention
from circadia.models.mixers.lstm import LSTM
from circadia.models.mixers.memory import MemoryMixer, Writing
from circadia.models.mixers.srwm import SRWM
from circadia.models.mixers.titans import MemoryAsContext, MemoryAsGate, MemoryAsLayer

Config = Any  # HopeConfig, which reads this table and so cannot be imported here


@dataclass(frozen=True, kw_only=True)
class MixerRow:
    """How a mixer is made: a module ``mixer(x [B, T, D], state, ctx) -> (y [B, T, D], state)``."""

    name: str
    summary: str
    build: Callable[[Config], nn.Module]
    rule: str | None = None  # by which its memory is written
    rotary: bool = False  # turns its heads by pairs of channels
    repeats: Callable[[Config], int] = lambda config: 1  # tokens after which the work of its memory repeats
    keeps_tokens: bool = False  # what it holds grows with the tokens, for ever or up to a window


# The last matrix of an MLP memory has no erasing factor, and takes part in the gradients of the others. At a step of 1
# or 1 / chunk it is rewritten within a chunk or two, and the outer gradient grows with every chunk: to 1e6 within fifty
# steps of training on rows of 2,048 tokens, so that, clipped, nothing is learned. Slow, it is the decoder of what the
# first matrix holds, and models learn from long rows (docs/experiments.md).
SLOW = 1 / 2048  # step of the last matrix, as a share of the first one's


def _slow(name: str) -> Rule:
    return replace(RULES[name], output_scale=SLOW)  # type: ignore[call-arg]


def _memory(name: str, summary: str, **settings) -> MixerRow:
    writing = settings.pop("writing", None) or Writing(**{"rule": RULES[name], **settings})
    return MixerRow(
        name=name,
        summary=summary,
        build=lambda c: MemoryMixer(c, writing),
        rule=writing.rule.name,
        repeats=lambda c: c.chunk,
    )


# Counted up one by one, 4 heads would all have forgotten a token after 1,000 others: they span what RetNet's 8 do.
RETNET = Writing(rule=replace(RULES["retnet"], span=7.0))  # type: ignore[call-arg]
TITANS = Writing(rule=_slow("titans"), top_rate=0.2)

MIXERS: dict[str, MixerRow] = {
    row.name: row
    for row in [
        MixerRow(
            name="attention",
            summary="softmax attention over everything before",
            build=Attention,
            rotary=True,
            keeps_tokens=True,
        ),
        MixerRow(
            name="sliding_attention",
            summary="softmax attention over a window",
            build=lambda c: Attention(c, c.sliding_window),
            rotary=True,
            keeps_tokens=True,
        ),
        _memory("linear", "linear attention"),
        _memory("retnet", "RetNet: a fixed decay per head", writing=RETNET),
        _memory("mamba2", "Mamba-2: scalar data-dependent decay", top_rate=1.0),
        _memory("deltanet", "DeltaNet", eta_bias=(-5.0, 0.0)),
        _memory("gated_deltanet", "Gated DeltaNet", alpha_bias=(8.0, 8.0), eta_bias=(-5.0, 0.0)),
        _memory("ttt", "TTT-MLP: gradient descent through a layer norm", top_rate=0.2),
        _memory("dla", "deep linear attention", rule=_slow("dla"), top_rate=0.2),
        _memory("titans", "Titans LMM: momentum, forget gate, data-dependent rates", writing=TITANS),
        MixerRow(
            name="titans_mac",
            summary="Titans, memory as context: segments attend to what the memory recalls for them",
            build=lambda c: MemoryAsContext(c, TITANS),
            rule="titans",
            rotary=True,
            repeats=lambda c: c.segment,
        ),
        MixerRow(
            name="titans_mag",
            summary="Titans, memory as gate: the memory gates sliding-window attention beside it",
            build=lambda c: MemoryAsGate(c, TITANS),
            rule="titans",
            rotary=True,
            repeats=lambda c: c.chunk,
            keeps_tokens=True,
        ),
        MixerRow(
            name="titans_mal",
            summary="Titans, memory as layer: sliding-window attention over what the memory gives",
            build=lambda c: MemoryAsLayer(c, TITANS),
            rule="titans",
            rotary=True,
            repeats=lambda c: c.chunk,
            keeps_tokens=True,
        ),
        _memory(
            "self_modifying",
            "self-modifying Titans: k, v and rates from memories that rewrite themselves",
            rule=_slow("self_modifying"),
            silu=False,
            alpha_bias=(8.0, 8.0),
        ),
        MixerRow(name="lstm", summary="LSTM, for formal languages", build=LSTM),
        MixerRow(name="srwm", summary="self-referential weight matrix, sequential", build=SRWM),
    ]
}
