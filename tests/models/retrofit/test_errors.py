"""Bad input: one clear line each. And what is found by structure, or left alone."""

import copy
import threading

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from circadia.models import HopeForCausalLM, preset
from circadia.models.retrofit import retrofit
from tests.models.retrofit.conftest import SMALL, base_of, text

BERT = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"periods": [8, 4]}, "must increase"),
        ({"periods": [8, 8]}, "must increase"),
        ({"periods": [8, 12]}, "12 is no multiple of 8"),
        ({"periods": []}, "periods="),
        ({"periods": [0]}, r"periods\[0\]=0"),
        ({"periods": [2.5]}, r"periods\[0\]=2.5"),
        ({"assign": {7: 0}}, "layer 7 does not exist"),
        ({"assign": {0: 3}}, "level 3 of layer 0 does not exist"),
        ({"assign": {0: 0}}, "gives level 1 no layer"),
        ({"assign": [[0], [1]]}, "2 groups for 3 periods"),
        ({"assign": "fast"}, "assign='fast' is unknown"),
        ({"assign": "fast-first", "layers": "first:2"}, "2 layers can be adapted"),
        ({"layers": "last:9"}, "layers='last:9'"),
        ({"layers": [5]}, "layer 5 does not exist"),
        ({"assign": {0: 0, 1: 1, 2: 2}, "layers": [0]}, "goes with a named assignment"),
        ({"chunk": 3}, "chunk=3 does not divide"),
        ({"context": -1}, "context=-1"),
        ({"context": 500}, "longer than the model's 128 positions"),
        ({"periods": [512]}, "chunk=512 is longer than the 128 positions"),
        ({"capacity": "half"}, "capacity='half' is unknown"),
        ({"capacity": ["full"]}, "1 entries for 3 periods"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is unknown"),
        ({"options": {"beta": 1}}, "'beta' is no option of optimizer='gd'"),
        ({"rate": -1.0}, "rate=-1.0"),
        ({"decay": 2}, "decay=2 is outside"),
        ({"learning_rate": 1}, "is no setting of a level"),
        ({"target": "head"}, "target='head' is unknown"),
        ({"target": "all", "layers": [0]}, "leave out assign and layers"),
        ({"target": "all", "capacity": "lowrank"}, "target='all' writes vectors"),
        ({"gate": "moe", "capacity": "lowrank"}, "gate='moe' is unknown"),
        ({"gate": "router"}, "gate='router' is for experts, and capacity='full' has none"),
        ({"feed": "faster"}, "the fastest level has none to take from"),
        ({"feed": ["gradient", "faster", "faster"], "assign": "fast-last"}, "use assign='stacked'"),
        ({"optimizer": "dgd", "capacity": "lowrank"}, "needs whole matrices"),
        ({"listen": 6}, "listen=6 is longer than period=4"),
        ({"listen": [4, 6, 4]}, "listen=6 is no multiple of chunk=4"),
    ],
)
def test_settings(tiny, settings, said):
    with pytest.raises(ValueError, match=said):
        tiny(**settings)


def changed(config, **changes):
    return type(config).from_dict({**config.to_dict(), **changes})


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: BertModel(BertConfig(**BERT)), "no causal language model"),
        (lambda: BertLMHeadModel(BertConfig(**BERT)), "looks both ways"),
        (lambda: T5ForConditionalGeneration(T5Config(vocab_size=48, d_model=16, d_ff=16, num_layers=1, num_heads=2)),
         "an encoder with a decoder"),
        (lambda: nn.Linear(2, 2), "pass a Hugging Face causal language model"),
        (lambda: base_of("mixtral", num_local_experts=4), "no MLP to retrofit: the experts and the router"),
        (lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model(
            "mamba", vocab_size=48, hidden_size=16, num_hidden_layers=2, state_size=4)), "has no MLP"),
        (lambda: HopeForCausalLM(changed(preset("hope", "tiny"), num_hidden_layers=1)),
         "learn in context already"),
    ],
)  # fmt: skip
def test_models(make, said):
    with pytest.raises(ValueError, match=said):
        retrofit(make(), [8])


def test_paths(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        retrofit(str(tmp_path / "nothing"), [8])
    BertModel(BertConfig(**BERT)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="looks both ways"):
        retrofit(tmp_path / "bert", [8])


def test_tokens(tiny):
    model = tiny()
    for wrong, said in (([[1, 2], [3, 4]], "one row"), ([0.5], "one row"), ([48], "knows 0 to 47"), ([-1], "from -1")):
        with pytest.raises(ValueError, match=said):
            model.learn(wrong, model.start())
    report, state = model.learn([], model.start())
    assert not report.chunks and report.surprise != report.surprise and state["stream/pending"].numel() == 0
    with pytest.raises(ValueError, match="state is a NoneType"):
        model.learn([1], None)


def test_experts_are_left_alone_and_named():
    config = {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12}
    model = retrofit(base_of("qwen2_moe", num_experts_per_tok=2, **config), [8], rate=1.0)
    assert {name.split("mlp.")[1].split(".")[0] for name in model.sites} == {"shared_expert"}
    assert len(model.sites) == 9 and "experts" in model.anatomy.left[0]
    _, state = model.learn(text(16), model.start())
    assert state["level0/delta/model.layers.2.mlp.shared_expert.up_proj"].any()


def test_a_family_that_nobody_named_works_by_structure():
    config = {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}
    model = retrofit(base_of("opt", **config), [8], layers="first:2")
    assert {name.rpartition(".")[2] for name in model.sites} == {"fc1", "fc2"} and len(model.sites) == 4


class Int8(nn.Module):
    """A weight of 8 bits, as quantisers make them: its own class, no floating-point weight."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))

    def forward(self, x):
        return x @ (self.weight * self.scale).mT.to(x.dtype)


@pytest.mark.parametrize("capacity", ["full", "lowrank"])
def test_a_quantised_base(capacity):
    base = base_of("llama")
    for layer in base.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, Int8(getattr(layer.mlp, name)))
    model, ids = retrofit(base, [8], capacity=capacity, rank=2, rate=2.0), text(64)[None]
    with torch.no_grad():
        plain = base(ids).logits
        _, state = model.learn(ids, model.start())
        assert torch.equal(model(ids, state=model.start()).logits, plain) and torch.equal(base(ids).logits, plain)
        assert not torch.equal(model(ids, state=state).logits, plain)
    with pytest.raises(ValueError, match="quantised and cannot take in a delta"):
        model.merge(state)
    with pytest.raises(ValueError, match="is quantised"):
        retrofit(base, [8], bound=0.1)


def test_the_fingerprint_reads_tensors_made_of_several(tiny):
    """As torchao's are: data and scales in one tensor, of which no bytes can be taken."""
    from torch.testing._internal.two_tensor import TwoTensor

    def fingerprint(scale):
        base = base_of("llama")
        linear = base.model.layers[0].mlp.up_proj
        linear.weight = nn.Parameter(TwoTensor(linear.weight.detach(), linear.weight.detach() * scale))
        model = retrofit(base, [8])
        assert not model.sites["model.layers.0.mlp.up_proj"].matrix.plain
        return model.fingerprint()

    assert fingerprint(1.0) == fingerprint(1.0) != fingerprint(2.0)


@pytest.mark.parametrize("target", ["mlp", "all"])
def test_a_copy_of_the_model_is_one_of_its_own(tiny, target):
    model, ids = tiny(rate=2.0, target=target), text(20)[None]
    _, state = model.learn(text(64), model.start())
    with torch.no_grad():
        wanted = model(ids, state=state).logits
        twin = copy.deepcopy(model)
        for p in model.parameters():
            p.zero_()
        assert torch.equal(twin(ids, state=state).logits, wanted)
        assert not torch.equal(model(ids, state=state).logits, wanted)


def test_memories_are_worn_by_one_thread_and_one_block_at_a_time(tiny):
    model, ids = tiny(rate=2.0), text(20)[None]
    states = [None, *(model.learn(text(64, seed=i), model.start())[1] for i in (1, 2))]
    with torch.no_grad():
        wanted = [model(ids, state=s).logits for s in states]
        with model.wearing(states[1]) as base:
            with model.wearing(states[2]):
                assert torch.equal(base(ids).logits, wanted[2])
            with pytest.raises(RuntimeError), model.wearing(None):
                assert torch.equal(base(ids).logits, wanted[0])
                raise RuntimeError
            assert torch.equal(base(ids).logits, wanted[1])
            seen = []
            other = threading.Thread(target=lambda: seen.append(base(ids).logits.detach()))
            other.start()
            other.join()
            assert torch.equal(seen[0], wanted[0])
        assert torch.equal(base(ids).logits, wanted[0])
