"""A base that knows nothing, for suites that start from a trained one."""

import pytest
import torch

from circadia.evals.bases import Base
from circadia.models import HopeConfig, HopeForCausalLM


@pytest.fixture
def folder(tmp_path):
    """Bytes, two attention layers."""
    torch.manual_seed(0)
    config = HopeConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                        mixers=["attention"], periods=[0])  # fmt: skip
    net = HopeForCausalLM(config)
    with torch.no_grad():  # as if trained: what it says depends on what it has read
        for p in net.parameters():
            p.mul_(4.0 if p.ndim == 2 else 1.0)
    net.save_pretrained(tmp_path / "bases" / "small")
    return tmp_path / "bases" / "small"


@pytest.fixture
def base(folder):
    return Base.load(folder)
