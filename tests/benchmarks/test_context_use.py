"""The loss by position is that of one pass over the window, and the summary says whether more context still helps."""

import json

import pytest
import torch
import torch.nn.functional as F

from benchmarks import context_use
from circadia.models import HopeConfig, HopeForCausalLM


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    HopeForCausalLM(HopeConfig(hidden_size=16, num_hidden_layers=1, periods=[8, 16])).save_pretrained(
        tmp_path / "model"
    )
    text = [{"author": author, "text": author * 60} for author in ("Conrad", "Hardy", "Woolf")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, text)))
    return tmp_path


def test_streaming_gives_the_loss_of_the_whole(folder):
    net = HopeForCausalLM.from_pretrained(folder / "model")
    source = context_use.Source((str(folder / "a.jsonl"),))
    tokens = context_use.windows(source, context_use.Tokenizer(), ["author=Conrad", "author=Woolf"], 100, 3)
    texts = [bytes(row.tolist()).decode() for row in tokens]
    conrad, woolf = "Conrad" * 60, "Woolf" * 60
    pieces = [text[i : i + 101] for text in (conrad, woolf) for i in range(0, len(text) - 100, 101)]
    assert texts == [pieces[0], pieces[1], pieces[3]] and len(pieces) == 5
    found = context_use.losses(net, tokens, segment=33, batch=2)
    logits = net(tokens[:, :-1]).logits
    whole = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(3, 100)
    assert torch.allclose(found, whole, atol=1e-5)


def test_the_summary_is_of_the_right_positions():
    ramp = torch.arange(1024.0).repeat(2, 1)
    ramp[1] += 1
    found = context_use.summary(ramp)
    assert found["spans"] == [[0, 256, 128.0], [256, 512, 384.0], [512, 1024, 768.0]]
    assert found["curve"][:2] == [32.0, 96.0] and len(found["curve"]) == 16
    assert found["gain_of_last_half"]["mean"] == 383.5 - 767.5 and found["gain_of_last_half"]["standard_error"] == 0


def test_the_command_writes_what_it_measured(folder, capsys):
    sizes = ["--length", "128", "--windows", "2", "--segment", "50", "--data", str(folder / "a.jsonl")]
    same = [f"a={folder}/model", f"b={folder}/model"]
    assert context_use.main([*same, *sizes, "--heldout", "author=[CW]*", "--out", str(folder)]) == 0
    a, b = json.loads((folder / "context_use.json").read_text())["models"]
    assert a["name"] == "a" and a["curve"] == b["curve"] and a["windows"] == 2
    assert f"| a | {a['spans'][0][2]:.4f} |" in capsys.readouterr().out
    for wrong, said in (([str(folder), *sizes], "no model there"), ([*same, *sizes[2:]], "no held-out document")):
        with pytest.raises(SystemExit) as stop:
            context_use.main([*wrong, "--heldout", "author=[CW]*"])
        assert stop.value.code == 2 and said in capsys.readouterr().err
