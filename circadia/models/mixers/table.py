"""The mixers by name: one row each. A new one is a row here, or a row and a file."""

from dataclasses import dataclass

from circadia.memory import RULES, Rule


@dataclass(frozen=True, kw_only=True)
class MixerRow:
    """How a mixer is made from a memory rule; ``rule=None`` is attention."""

    name: str
    summary: str
    rule: Rule | None = None
    attention: bool = False
    windowed: bool = False
    silu: bool = True  # of q, k and v after the convolution
    top_rate: float = 2.0  # eta = top_rate sigmoid(.)
    # Retention sigmoid(. + bias), the bias spread over the heads from short to long.
    alpha_bias: tuple[float, float] = (3.0, 8.0)
    # The same for the rate. A delta rule that writes at rate 1 with every token has erased a random direction within a
    # few times its width: half of the heads start slow, or nothing would be left of 2,000 tokens ago.
    eta_bias: tuple[float, float] = (0.0, 0.0)
    start_gain: float | None = None  # of a deep memory's last matrix


def _memory(name: str, summary: str, **settings) -> MixerRow:
    return MixerRow(name=name, summary=summary, rule=settings.pop("rule", RULES.get(name)), **settings)


MIXERS: dict[str, MixerRow] = {
    row.name: row
    for row in [
        MixerRow(name="attention", summary="softmax attention over everything before", attention=True),
        MixerRow(name="sliding_attention", summary="softmax attention over a window", attention=True, windowed=True),
        _memory("linear", "linear attention"),
        _memory("retnet", "RetNet: a fixed decay per head"),
        _memory("mamba2", "Mamba-2: scalar data-dependent decay", top_rate=1.0),
        _memory("deltanet", "DeltaNet", eta_bias=(-5.0, 0.0)),
        _memory("gated_deltanet", "Gated DeltaNet", alpha_bias=(8.0, 3.0), eta_bias=(-5.0, 0.0)),
        _memory("ttt", "TTT-MLP: gradient descent through a layer norm", top_rate=0.2),
        _memory("dla", "deep linear attention", top_rate=0.2),
        _memory("titans", "Titans LMM: momentum, forget gate, data-dependent rates", top_rate=0.2),
        _memory(
            "self_modifying",
            "self-modifying Titans: k, v and rates from memories that rewrite themselves",
            silu=False,
            alpha_bias=(8.0, 8.0),
        ),
    ]
}
