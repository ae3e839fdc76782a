"""Training on rows of many chunks: an outer gradient that grows from chunk to chunk, clipped, teaches nothing."""

import pytest
import torch

from circadia.models import HopeConfig, HopeForCausalLM
from circadia.models.mixers.table import MIXERS

STEPS, ROW, CHUNK, SYMBOLS = 6, 768, 16, 64


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_outer_gradient_stays_small_over_many_chunks(mixer: str) -> None:
    """Not before the first step, when memories hardly matter, but while a model is trained."""
    torch.manual_seed(0)
    config = HopeConfig(
        vocab_size=SYMBOLS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mixers=[mixer], chunk=CHUNK
    )
    model = HopeForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    common = torch.rand(SYMBOLS, generator=generator) ** 3  # some symbols come more often: there is something to learn
    norms, losses = [], []
    for _ in range(STEPS):
        row = torch.multinomial(common, ROW, replacement=True, generator=generator)[None]
        loss = model(row, labels=row).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert max(norms) < 5.0
    assert losses[-1] < losses[0] - 0.2
