"""The view of Hugging Face and torch modules: kinds, periods, and sizes against what models really keep."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import circadia
from tests.levels.conftest import CONFIGS


def named(view):
    return {level.name: level for level in view.levels}


def cache_bytes(model, tokens):
    """Bytes that one sequence of the given length really leaves in the model's cache."""
    with torch.no_grad():
        out = model(torch.ones(1, tokens, dtype=torch.long), use_cache=True)
    cache = out.get("past_key_values", out.get("cache_params"))
    total = 0
    for layer in cache.layers:
        for name in ("keys", "values", "conv_states", "recurrent_states"):
            held = getattr(layer, name, None)
            tensors = held.values() if isinstance(held, dict) else [held]
            total += sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return total


@pytest.mark.filterwarnings("ignore")  # transformers says that fast kernels are missing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_state_sizes_are_those_of_the_real_cache(make_model, name, dtype):
    model = make_model(name, dtype=dtype)
    levels = circadia.levels(model).levels
    for tokens in (3, 7):  # below the window of 8
        predicted = sum(
            level.bytes_per_token * tokens if level.bytes_per_token else level.state_bytes for level in levels
        )
        assert predicted == cache_bytes(model, tokens)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", {"attention": 0}),
        ("llama", {"attention": 0}),
        ("llama-gqa", {"attention": 0}),
        ("mistral", {"sliding-window attention": 0}),
        ("gemma2", {"sliding-window attention": 0, "attention": 0}),
        ("mamba", {"Mamba memory": 1}),
        ("mamba2", {"Mamba2 memory": 1}),
        ("qwen3-next", {"attention": 0, "gated delta memory": 1}),
        ("deepseek-v3", {"attention": 0}),
        ("kimi-linear", {"attention": 0, "gated delta memory": 1}),
        ("lfm2", {"attention": 0, "short convolution": 1}),
        ("jamba", {"attention": 0, "Mamba memory": 1}),
    ],
)
def test_kinds_and_periods(make_model, name, expected):
    model = make_model(name, device="meta")
    view = circadia.levels(model)
    periods = {level.name: level.period for level in view.levels}
    assert periods == {**expected, "weights, no optimizer": math.inf}
    assert sum(level.parameters for level in view.levels) == sum(p.numel() for p in model.parameters())
    assert "trainable, no optimizer given" in named(view)["weights, no optimizer"].note


def test_attention_of_llama_by_hand(make_model):
    attention = named(circadia.levels(make_model("llama-gqa", device="meta")))["attention"]
    assert attention.bytes_per_token == 3 * 2 * (2 * 8) * 4  # layers, k and v, two heads of 8, float32
    assert attention.state_bytes == 0 and attention.window is None
    assert [(m.pattern, m.count) for m in attention.members] == [("model.layers.{0..2}.self_attn", 3)]
    assert math.isinf(attention.frequency)


def test_sliding_window_bounds_the_state(make_model):
    sliding = named(circadia.levels(make_model("gemma2", device="meta")))["sliding-window attention"]
    assert sliding.window == 8
    assert sliding.state_bytes == 8 * sliding.bytes_per_token == 8 * 2 * 2 * (2 * 8) * 4
    assert [m.pattern for m in sliding.members] == ["model.layers.{0,2}.self_attn"]


def test_mamba2_by_hand(make_model):
    memory = named(circadia.levels(make_model("mamba2", device="meta")))["Mamba2 memory"]
    convolution, matrices = (64 + 2 * 2 * 16) * 4, 8 * 8 * 16
    assert memory.state_bytes == 3 * (convolution + matrices) * 4
    assert memory.bytes_per_token == 0


def test_tied_weights_count_once(make_model):
    model = make_model("llama-gqa", device="meta")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    view = circadia.levels(model)
    assert view.parameters == sum(p.numel() for p in model.parameters())
    assert view.levels[-1].members[0].pattern == "LlamaForCausalLM"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft, not us
def test_lora_trains_the_adapters_and_freezes_the_base(make_model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "k_proj"])
    model = peft.get_peft_model(make_model("llama-gqa"), config)
    trainable = [p for p in model.parameters() if p.requires_grad]
    levels = named(circadia.levels(model, torch.optim.AdamW(trainable)))
    assert list(levels) == [
        "attention",
        "AdamW moments",
        "low-rank adapters trained by AdamW",
        "frozen weights",
    ]
    assert levels["low-rank adapters trained by AdamW"].parameters == 3 * (4 * 32 + 32 * 4 + 4 * 32 + 16 * 4)
    assert levels["frozen weights"].parameters == sum(p.numel() for p in make_model("llama-gqa").parameters())
    assert levels["frozen weights"].frequency == 0
    assert levels["attention"].bytes_per_token == 3 * 2 * 16 * 4  # k_proj is wrapped and still recognised
    assert any("lora_A" in member.pattern for member in levels["AdamW moments"].members)


def test_torch_modules():
    levels = named(circadia.levels(nn.Transformer(32, 4, 2, 3, 64, batch_first=True)))
    assert levels["attention"].bytes_per_token == (2 + 3) * 2 * 32 * 4
    assert levels["cross-attention"].bytes_per_token == 3 * 2 * 32 * 4
    assert levels["cross-attention"].learns_from == "tokens of the encoder"
    alone = named(circadia.levels(nn.MultiheadAttention(16, 2, kdim=8, vdim=4)))
    assert alone["attention"].bytes_per_token == 2 * 16 * 4


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("module", "name", "numbers"),
    [
        (nn.LSTM(8, 16, num_layers=2), "LSTM state", 2 * (16 + 16)),
        (nn.LSTM(8, 16, proj_size=4, bidirectional=True), "LSTM state", 2 * (4 + 16)),
        (nn.GRU(8, 16, bidirectional=True), "GRU state", 2 * 16),
        (nn.RNN(8, 16), "RNN state", 16),
        (nn.LSTMCell(8, 16), "LSTM state", 32),
    ],
    ids=["lstm", "lstm-projected", "gru", "rnn", "cell"],
)
def test_recurrent_states(module, name, numbers):
    memory = circadia.levels(module).levels[0]
    assert (memory.name, memory.period, memory.state_bytes) == (name, 1, numbers * 4)
    if not isinstance(module, nn.LSTMCell):
        _, state = module(torch.zeros(5, 1, 8))
        assert sum(part.nbytes for part in (state if isinstance(state, tuple) else [state])) == memory.state_bytes


def test_mlp_has_one_level_and_batch_norm_two():
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert [level.name for level in circadia.levels(mlp).levels] == ["weights, no optimizer"]
    norm = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    statistics = circadia.levels(norm).levels[0]
    assert (statistics.name, statistics.state_bytes, statistics.unit) == ("batch statistics", 64, "step")
    assert named(circadia.levels(norm.eval()))["batch statistics"].period == math.inf


@pytest.mark.filterwarnings("ignore")  # transformers announces changes in these old models
@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        # Each keeps its state outside of the usual cache, so the numbers are counted by hand from the code.
        (
            "rwkv",
            {"num_hidden_layers": 2, "hidden_size": 32, "attention_hidden_size": 16, "vocab_size": 8},
            {"RWKV memory": 2 * (2 * 32 + 3 * 16) * 4},
        ),
        (
            "recurrent_gemma",
            {
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "lru_width": 32,
                "num_attention_heads": 4,
                "vocab_size": 8,
            },
            {"gated linear recurrence": 2 * (32 * 3 + 32) * 4},
        ),
        (
            "minimax",
            {
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "head_dim": 8,
                "vocab_size": 8,
            },
            {"attention": 0, "gated linear attention": 4 * 8 * 8 * 4},
        ),
    ],
)
def test_memories_outside_of_the_cache(model_type, settings, expected):
    config = AutoConfig.for_model(model_type, pad_token_id=0, **settings)
    with torch.device("meta"):
        view = circadia.levels(AutoModelForCausalLM.from_config(config))
    assert {level.name: level.state_bytes for level in view.levels[:-1]} == expected


def test_fused_projections_and_unknown_attention():
    class CausalSelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.n_head, self.n_embd = 4, 32
            self.c_attn = nn.Linear(32, 96)

    class OddAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(4, 4)

    assert circadia.levels(CausalSelfAttention()).levels[0].bytes_per_token == 2 * 32 * 4
    odd = circadia.levels(nn.Sequential(OddAttention())).levels[0]
    assert odd.name == "attention (size unknown)" and "OddAttention" in odd.note
