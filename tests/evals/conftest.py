"""Small files laid out as the data are, and a base to read them with."""

import gzip
import json
import lzma

import pytest
import torch

from circadia.evals import read, streams
from circadia.evals.bases import Base
from circadia.models import HopeConfig, HopeForCausalLM, preset


@pytest.fixture
def data(tmp_path):
    """Sources of the same layout, each made of words of its own."""

    def words(stem, kilobytes):
        return " ".join(f"{stem}{i}" for i in range(kilobytes * 1024 // 8))

    novels = [("Conrad", "sea"), ("Woolf", "lit"), ("Cbronte", "moor"), ("Kipling", "jun"), ("Hardy", "wes")]
    (tmp_path / "novels100").mkdir()
    with lzma.open(tmp_path / "novels100/novels.jsonl.xz", "wt") as file:
        for author, stem in novels:
            file.write(json.dumps({"author": author, "title": stem, "year": 1900, "text": words(stem, 96)}) + "\n")
    (tmp_path / "domains").mkdir()
    for name, stem in (("legal.txt", "law"), ("medical.txt", "med")):
        with gzip.open(tmp_path / f"domains/{name}.gz", "wt") as file:
            file.write(words(stem, 96))
    rows = {
        "code_mbpp": [{"text": "add", "code": f"x = {i}", "test_list": ["assert x"]} for i in range(4000)],
        "code_HumanEval": [{"prompt": "def f():\n", "canonical_solution": "    return 1\n"}],
        "math_gsm8k_train": [{"question": f"{i} + {i}?", "answer": f"{2 * i}"} for i in range(9000)],
    }
    for name, lines in rows.items():
        with gzip.open(tmp_path / f"domains/{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, lines)))
    streams._novels.cache_clear()
    read._own.cache_clear()
    yield tmp_path
    streams._novels.cache_clear()
    read._own.cache_clear()


@pytest.fixture
def trained(tmp_path):
    """Two layers over bytes, as if trained a little."""
    torch.manual_seed(0)
    config = preset("transformer++", "tiny")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "vocab_size": 256}  # fmt: skip
    HopeForCausalLM(type(config).from_dict({**config.to_dict(), **small})).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


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
