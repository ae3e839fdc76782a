"""At initialisation a memory lasts: half of its norm is left after 1,000 tokens that say nothing."""

import pytest
import torch
import torch.nn.functional as F

from circadia.models import HopeForCausalLM
from circadia.models.context import Context
from circadia.models.mixers.table import MIXERS
from circadia.models.presets import ARCHITECTURES, preset

ATTENTION = {"attention", "sliding_attention"}
PRESETS = [name for name, row in ARCHITECTURES.items() if not set(row["mixers"]) <= ATTENTION]
OTHERS = sorted(set(MIXERS) - ATTENTION - {m for row in ARCHITECTURES.values() for m in row["mixers"]})


def written(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the tokens have written, in one row: the memory's matrices, the cells of an LSTM, the W of an SRWM."""
    aside = ("memory.start.", "memory.momentum.", "memory.pos", "memory.ln")
    names = [n for n in state if n in ("c", "W") or (n.startswith("memory.") and not n.startswith(aside))]
    return torch.cat([state[n].double().flatten() for n in names])


@pytest.mark.parametrize("heads", [4, 8, 16])
@pytest.mark.parametrize("name", PRESETS + OTHERS)
def test_a_memory_keeps_half_of_its_norm(name: str, heads: int) -> None:
    """A token that says nothing has the embedding 0: no key, no value, and gates at their offsets.

    (Random tokens write, and a delta rule is there to overwrite: that is capacity, not decay.)
    """
    config = preset(name if name in ARCHITECTURES else "linear", "tiny")
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = 1, heads, heads
    if name in OTHERS:
        config.mixers = [name]
    config.mixers = [m for m in config.mixers if m not in ATTENTION]
    mixer = HopeForCausalLM(config).model.layers[0].mixer
    x, other = F.rms_norm(torch.randn(2, 1, 256, config.hidden_size), (config.hidden_size,))
    with torch.no_grad():
        states = [mixer(z, {}, Context())[1] for z in (x, other)]
        after = [mixer(torch.zeros(1, 1000, config.hidden_size), state, Context())[1] for state in states]
    assert written(after[0]).norm() > 0.5 * written(states[0]).norm()
    # And it is not only the learned start that is left: so is what told the two texts apart. (RetNet's published decays
    # leave 0.496 of that.)
    assert (written(after[0]) - written(after[1])).norm() > 0.4 * (written(states[0]) - written(states[1])).norm()
