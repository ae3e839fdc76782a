"""The ablation: variants are what they say, and the table says what the runs said."""

import json
import random
from dataclasses import replace

import pytest
import torch

from circadia.evals import ablation
from circadia.evals.runner import Interrupted
from circadia.evals.suite import Options, Record
from circadia.models import HopeForCausalLM
from circadia.train import Diverged
from circadia.train.make import configured


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Text of authors of whom some are held out."""
    monkeypatch.setenv("CIRCADIA_HOME", str(tmp_path / "home"))
    chance = random.Random(0)
    rows = [
        {"author": author, "text": " ".join(chance.choice(("sea", "ship", "old", "night")) for _ in range(400))}
        for author in ("Conrad", "Woolf", "Cbronte", "Kipling", "Hardy", "Eliot")
    ]
    (tmp_path / "novels100").mkdir()
    (tmp_path / "novels100" / "novels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def cell(name, stage="test", seed=0):
    return {"model": name, "size": "tiny", "tokens": 256, "length": 32, "batch": 2, "eval_tokens": 64, "seed": seed,
            "rate": 1e-2, "stage": stage}  # fmt: skip


def test_variants_of_the_ablation_are_what_they_say(data):
    """By the rule that the mixers of each model write with."""
    made = {}
    for name in ablation.VARIANTS:
        config = ablation.configured(cell(name), data / "novels100", data / "run", "cpu")
        config = configured(config.model, {"vocab_size": 256})
        with torch.device("meta"):
            made[name] = HopeForCausalLM(config)
    rule = {name: net.model.layers[0].mixer.rule for name, net in made.items()}
    whole = rule["hope"]
    assert (whole.inertia, whole.adaptive_q, whole.erase, whole.decays, whole.static) == (True, True, True, True, ())
    expected = {
        "without DGD": {"erase": False, "objective": "l2"},
        "without momentum": {"inertia": False},
        "without weight decay": {"decays": False},
        "without CMS": {},
        "static k": {"static": ("k",)},
        "static v": {"static": ("v",)},
        "static q": {"adaptive_q": False},
        "default hope": {"inertia": False, "adaptive_q": False},
    }
    assert {name: replace(whole, **changes) for name, changes in expected.items()} == {
        name: one for name, one in rule.items() if name != "hope"
    }
    periods = {name: net.config.periods for name, net in made.items()}
    assert periods.pop("without CMS") == [0] and set(map(tuple, periods.values())) == {(512, 2048, 8192)}
    sizes = [sum(p.numel() for p in net.parameters()) for net in made.values()]
    assert max(sizes) / min(sizes) < 1.1


def test_a_run_is_that_of_training_and_the_table_says_so(data, tmp_path, monkeypatch):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    changes = {"hope": {"periods": [8, 16]}, "without CMS": {"periods": [0]}}
    for name, change in changes.items():
        monkeypatch.setitem(ablation.VARIANTS, name, (ablation.WHOLE, {**small, **change}))
    options = Options(data=data)
    records = [Record(cell(name), ablation.run(cell(name), options), 1.0) for name in changes]
    whole, without = (one.scores for one in records)
    assert whole["tokens"] == 256 and whole["bits"] != without["bits"] and whole["curve"][-1] == (256, whole["bits"])
    assert whole["curve"][-1][1] < whole["curve"][0][1] and 1 < whole["bits"] < 9
    tuning = ablation.run(cell("hope", stage="tune"), options)
    assert tuning["tokens"] == 64 and len(tuning["curve"]) == 1
    (table,) = ablation.table(records)
    rows = {row[0]: dict(zip(table.columns, row)) for row in table.rows}
    assert rows["without CMS"]["difference"] == f"{without['bits'] - whole['bits']:+.4f}"
    assert (rows["without CMS"]["paper: perplexity"], rows["hope"]["paper: accuracy"]) == ("13.04", "58.1")
    ablation.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


def test_a_run_that_diverged_is_finished_and_one_that_was_stopped_is_not(data, monkeypatch):
    def train(config):
        plain(config)
        raise Diverged("ten steps in a row")

    plain = ablation.train
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "periods": [8]}
    monkeypatch.setitem(ablation.VARIANTS, "hope", (ablation.WHOLE, small))
    monkeypatch.setattr(ablation, "train", train)
    scores = ablation.run(cell("hope"), Options(data=data))
    assert scores["bits"] is None and ablation.goal(scores) < ablation.goal({"bits": 1e9})
    (table,) = ablation.table([Record(cell("hope"), scores, 1.0)])
    assert table.rows[0][1] == "-" and table.rows[0][3] == "0 of 1"
    monkeypatch.setattr(ablation, "train", lambda config: replace(plain(config), stopped="SIGTERM"))
    with pytest.raises(Interrupted):
        ablation.run(cell("hope"), Options(data=data))


def test_the_whole_model_is_always_there(data):
    options = Options(data=data, models=("static q",), depth="quick")
    assert [run["model"] for run in ablation.runs(options, [])] == ["hope", "static q"]
