"""Tiny random models of the architectures that the levels view must get right."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

_LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_LATENT = {**_LLAMA, "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
_EXPERTS = {"num_experts_per_tok": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 3}
CONFIGS = {
    "gpt2": ("GPT2Config", {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "llama": ("LlamaConfig", _LLAMA),
    "llama-gqa": ("LlamaConfig", {**_LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**_LLAMA, "num_key_value_heads": 2, "sliding_window": 8}),
    "gemma2": (
        "Gemma2Config",
        {**_LLAMA, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "num_hidden_layers": 4},
    ),
    "mamba": (
        "MambaConfig",
        {"vocab_size": 64, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3},
    ),
    "mamba2": (
        "Mamba2Config",
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "num_hidden_layers": 3,
        },
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        {
            **_LLAMA,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        {**_LATENT, **_EXPERTS, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    ),
    "kimi-linear": (
        "KimiLinearConfig",
        {
            **_LATENT,
            **_EXPERTS,
            "v_head_dim": 8,
            "linear_num_heads": 2,
            "linear_head_dim": 8,
            "num_local_experts": 2,
            "pad_token_id": 0,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "lfm2": (
        "Lfm2Config",
        {**_LLAMA, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "jamba": (
        "JambaConfig",
        {
            **_LLAMA,
            "num_experts": 2,
            "num_key_value_heads": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
}


def build(name, device="cpu", dtype=torch.float32):
    """One of the tiny models; on the meta device nothing is allocated."""
    config_class, settings = CONFIGS[name]
    config = getattr(transformers, config_class)(**settings)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.fixture
def make_model():
    return build
