"""`circadia levels`: folders, adapters, optimizers, output forms, and one-line errors."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from typer.testing import CliRunner

from circadia.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a config and no weights, as for a model of 7 billion parameters."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("llama")
    LlamaConfig(num_key_value_heads=8, dtype="bfloat16").save_pretrained(folder)
    return folder


def test_a_large_model_is_read_without_weights(llama):
    result = run("levels", llama, "--json")
    assert result.exit_code == 0, result.output
    view = json.loads(result.stdout)
    attention, weights = view["levels"]
    assert attention["bytes_per_token"] == 32 * 2 * 8 * 128 * 2  # layers, k and v, heads, width, bfloat16
    assert view["parameters"] == weights["parameters"] == 5_933_109_248
    assert weights["note"] == "trainable, no optimizer given"


def test_muon_leaves_embeddings_head_and_vectors_to_adamw(llama):
    result = run("levels", llama, "--json", "--optimizer", "muon", "--tokens-per-step", 1000)
    view = json.loads(result.stdout)
    rows = {level["name"]: level["parameters"] for level in view["levels"]}
    ends_and_norms = 2 * 32000 * 4096 + 65 * 4096
    assert rows["weights trained by AdamW"] == ends_and_norms
    assert rows["weights trained by Muon"] == view["parameters"] - ends_and_norms
    assert view["tokens_per_step"] == 1000


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_table_and_picture(llama, tmp_path, name):
    result = run("levels", llama, "--optimizer", name, "--picture", tmp_path / "levels.svg")
    assert result.exit_code == 0, result.output
    assert "LlamaForCausalLM: 5.93 B parameters on 3 levels, fastest first" in result.stdout
    assert "128.0 KiB per token" in result.stdout and "1 optimizer step" in result.stdout
    ElementTree.parse(tmp_path / "levels.svg")


def test_encoder_decoder_and_encoder(tmp_path):
    from transformers import T5Config, ViTConfig

    T5Config(num_layers=2, d_model=32, d_kv=8, num_heads=4, d_ff=16, vocab_size=8).save_pretrained(tmp_path / "t5")
    ViTConfig(num_hidden_layers=2).save_pretrained(tmp_path / "vit")
    view = json.loads(run("levels", tmp_path / "t5", "--json").stdout)
    assert [level["name"] for level in view["levels"]] == [
        "attention",
        "cross-attention",
        "weights, no optimizer",
    ]
    view = json.loads(run("levels", tmp_path / "vit", "--json").stdout)
    assert view["model"] == "ViTModel" and view["levels"][0]["name"] == "attention"


def test_adapter_folder(llama, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        base_model_name_or_path=str(llama),
        task_type="CAUSAL_LM",
        target_modules=["q_proj"],
        inference_mode=True,
    )
    config.save_pretrained(tmp_path)
    view = json.loads(run("levels", tmp_path, "--json", "--optimizer", "adamw").stdout)
    rows = {level["name"]: level["parameters"] for level in view["levels"]}
    assert rows["low-rank adapters trained by AdamW"] == 32 * 2 * 8 * 4096
    assert rows["frozen weights"] == 5_933_109_248


def test_adapter_without_its_base(tmp_path):
    pytest.importorskip("peft")
    settings = {"peft_type": "LORA", "base_model_name_or_path": "/nowhere/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    result = run("levels", tmp_path)
    assert result.exit_code == 2
    assert "adapter of a base model that is not at hand: /nowhere/base: no such folder" in result.stderr


def broken(folder):
    (folder / "config.json").write_text("{")
    return [folder]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda folder: ["/nowhere/model"], "/nowhere/model: no such folder"),
        (lambda folder: [folder], "the folder has neither config.json nor adapter_config.json"),
        (broken, "its config cannot be read; check config.json there"),
        (lambda folder: ["bad:name"], "its config cannot be read; check the name and the network"),
        (lambda folder: [__file__], "is a file; pass the folder"),
        (lambda folder: ["x", "--picture", folder / "no" / "a.svg"], "--picture: the folder"),
    ],
    ids=["path", "folder", "broken", "name", "file", "picture"],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    result = run("levels", *arguments(tmp_path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr and result.stderr.startswith("circadia: ") and result.stderr.count("\n") == 1


def test_an_unknown_id_without_network_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("levels", "nobody/nothing")
    assert result.exit_code == 2
    assert result.stderr.startswith("circadia: nobody/nothing: its config cannot be read")
    assert result.stderr.count("\n") == 1


def test_tokens_per_step_is_checked(llama):
    result = run("levels", llama, "--tokens-per-step", -3)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "tokens_per_step must be above 0 and finite, got -3.0" in result.stderr
