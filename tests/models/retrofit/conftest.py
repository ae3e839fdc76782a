"""Tiny random models of every family, and a text with something to learn."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from circadia.models import HopeForCausalLM, preset
from circadia.models.retrofit import retrofit

SMALL = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
GPT2 = {
    "vocab_size": 48,
    "n_embd": 16,
    "n_inner": 24,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 128,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": SMALL,
    "mistral": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL,
    "gemma2": SMALL,
    "gemma3_text": SMALL,
    "phi3": SMALL,
    "gpt2": GPT2,
    "gpt_neox": SMALL,
    "olmo2": SMALL,
    "smollm3": SMALL,
    "circadia": {},  # transformer++, see base_of
}


def base_of(family, dtype=torch.float32, seed=0, **changes):
    """A tiny model with random weights."""
    torch.manual_seed(seed)
    if family == "circadia":
        config = preset("transformer++", "tiny")
        small = {**SMALL, "num_hidden_layers": 3, **changes}
        small = {name: value for name, value in small.items() if name in config.to_dict()}
        config = type(config).from_dict({**config.to_dict(), **small})
        return HopeForCausalLM(config).to(dtype).eval()
    config = AutoConfig.for_model(family, **{**FAMILIES.get(family, SMALL), **changes})
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def text(length, seed=0, period=None):
    """Random tokens; with a period, a piece repeated again and again."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 48, (period or length,), generator=generator)
    return ids.repeat(-(-length // ids.numel()))[:length]


@pytest.fixture
def tiny():
    """`tiny("llama", periods=[8, 16])`: a retrofit of a tiny model."""

    def make(family="llama", periods=(4, 8, 16), dtype=torch.float32, seed=0, config=None, **settings):
        return retrofit(base_of(family, dtype, seed, **(config or {})), periods, **settings)

    return make


def same(a, b):
    """Equal in keys and bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name
