"""Learners on tiny random bases of every family, for the tests of this folder."""

import torch

from circadia.live import Learner
from circadia.models import HopeConfig, HopeForCausalLM, preset
from circadia.models.native import native
from circadia.models.retrofit import retrofit
from tests.models.retrofit.conftest import SMALL, base_of

# Random weights are worse than a guess, which the gate takes for noise: its bound is moved out of the way.
LOUD = {"ngram": 4, "noise": (3.0, 4.0), "remember": 512, "window": 4, "warmup": 2}
A = "The quick brown fox jumps over the lazy dog, again.\n"
B = "Another sentence, with other words in it.\nAnd more.\n"
X = "canary-7f3a Zebras keep 12 qwerty secrets.\n"


# Models of our own that learn with their own memories, byte-level and tiny.
TINY = {"vocab_size": 256, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "chunk": 8,
        "initializer_range": 0.2, "num_hidden_layers": 1}  # fmt: skip
NATIVE = {
    "native hope": {"mixers": ["self_modifying"], "periods": [8, 16]},
    "native titans": {"mixers": ["titans"]},
    "native hybrid": {"mixers": ["gated_deltanet", "sliding_attention"], "num_hidden_layers": 2, "sliding_window": 12},
}


def own(seed=0, **config):
    """A model of our own, as it is before it learns."""
    torch.manual_seed(seed)
    return HopeForCausalLM(HopeConfig(**{**TINY, **config})).eval()


def model(family="llama", periods=(8, 16), vocab=256, **settings):
    """A byte-level base, retrofitted, or one that has memories of its own."""
    if family in NATIVE:
        return native(own(**NATIVE[family]))
    if family == "hope":
        config = preset("hope", "tiny")
        small = {name: value for name, value in SMALL.items() if name in config.to_dict()}
        small |= {"vocab_size": vocab, "num_hidden_layers": 2, "periods": [0]}
        torch.manual_seed(0)
        base = HopeForCausalLM(type(config).from_dict({**config.to_dict(), **small})).eval()
    else:
        layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
        base = base_of(family, **{"vocab_size": vocab, layers: 1})
    return retrofit(base, periods, **{"context": 8, **settings})


def make(store, base, name, gate=LOUD, **given):
    return Learner.create(store, base, name, gate=gate, **given)


def differing(a, b):
    """Names of entries of two states whose bits differ."""
    a, b = getattr(a, "state", a), getattr(b, "state", b)
    return sorted(n for n in {**a, **b} if n not in a or n not in b or not torch.equal(a[n], b[n]))
