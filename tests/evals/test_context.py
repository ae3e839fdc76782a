"""The loss by position is that of one pass over the window, and the summary says whether more context still helps."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from circadia.evals import context
from circadia.evals.suite import Options, Record
from circadia.models import HopeConfig, HopeForCausalLM
from circadia.train.sources import Source
from circadia.train.tokens import Tokenizer


@pytest.fixture
def data(tmp_path):
    text = [{"author": author, "text": author * 60} for author in ("Conrad", "Hardy", "Woolf")]
    (tmp_path / "novels100").mkdir()
    (tmp_path / "novels100" / "a.jsonl").write_text("\n".join(map(json.dumps, text)))
    return tmp_path


@pytest.mark.parametrize("kind", ["hope", "llama"])
def test_streaming_gives_the_loss_of_the_whole(data, kind):
    if kind == "hope":
        net = HopeForCausalLM(HopeConfig(hidden_size=16, num_hidden_layers=1, periods=[8, 16])).eval()
    else:
        net = LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                           num_attention_heads=2, num_key_value_heads=2)).eval()  # fmt: skip
    source = Source((str(data / "novels100" / "a.jsonl"),))
    tokens = context.windows(source, Tokenizer(), context.RULE, 100, 3)
    texts = [bytes(row.tolist()).decode() for row in tokens]
    conrad, woolf = "Conrad" * 60, "Woolf" * 60
    pieces = [text[i : i + 101] for text in (conrad, woolf) for i in range(0, len(text) - 100, 101)]
    assert texts == [pieces[0], pieces[1], pieces[3]] and len(pieces) == 5
    found = context.losses(net, tokens, segment=33, batch=2)
    logits = net(tokens[:, :-1]).logits
    whole = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(3, 100)
    assert torch.allclose(found, whole, atol=1e-5)


def test_the_summary_is_of_the_right_positions():
    ramp = torch.arange(1024.0).repeat(2, 1)
    ramp[1] += 1
    found = context.summary(ramp)
    assert found["spans"] == [[0, 256, 128.0], [256, 512, 384.0], [512, 1024, 768.0]]
    assert found["curve"][:2] == [32.0, 96.0] and len(found["curve"]) == 16
    assert found["gain_of_last_half"]["mean"] == 383.5 - 767.5 and found["gain_of_last_half"]["standard_error"] == 0


def test_the_suite_writes_what_it_measured(data, folder, tmp_path):
    options = Options(bases=(folder,), data=data)
    run = {"model": "small", "weights": "", "length": 128, "windows": 2}
    records = [Record(run, context.run(run, options), 1.0)]
    (table,) = context.table(records)
    row = dict(zip(table.columns, table.rows[0]))
    scores = records[0].scores
    assert scores["windows"] == 2 and scores["trained_length"] is None
    assert row["0 to 128"] == f"{scores['mean']:.4f}" == f"{scores['spans'][0][2]:.4f}"
    context.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
    assert [run["length"] for run in context.runs(options, [])] == [8192]
    with pytest.raises(ValueError, match="no held-out document"):
        context.run({**run, "length": 8192}, options)
