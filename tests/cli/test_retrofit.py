"""`circadia retrofit`."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertModel
from typer.testing import CliRunner

import circadia
from circadia.cli import app
from circadia.models.retrofit import load
from tests.models.retrofit.conftest import base_of, text


def run(*arguments):
    return CliRunner().invoke(app, ["retrofit", *map(str, arguments)])


@pytest.fixture
def source(tmp_path):
    base_of("llama").save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_dry_run_shows_the_levels_and_writes_nothing(source, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    done = run(source, "--periods", "4,16", "--assign", "fast-last", "--dry-run")
    assert done.exit_code == 0 and sorted(tmp_path.rglob("*")) == before
    for piece in ("memory 0 (full delta)", "16 tokens", "level 0: 1.15 k parameters of memory", "layers [0, 1]"):
        assert piece in done.output, piece


def test_without_periods_it_is_what_python_makes(tmp_path):
    base_of("llama", max_position_embeddings=512).save_pretrained(tmp_path / "source")
    done = run(tmp_path / "source", tmp_path / "out")
    assert done.exit_code == 0, done.output
    made = circadia.retrofit(tmp_path / "out").settings.levels
    assert made == circadia.retrofit(tmp_path / "source").settings.levels
    assert [level.period for level in made] == [256, 1024] and made[0].rate != made[1].rate
    assert run(tmp_path / "source", tmp_path / "own", "--rate", "0.07", "--decay", "0.5").exit_code == 0
    own = circadia.retrofit(tmp_path / "own").settings.levels
    assert [(level.period, level.rate, level.decay) for level in own] == [(256, 0.07, 0.5), (1024, 0.07, 0.5)]


def test_from_a_folder_to_a_lora_a_delta_and_a_merged_model(source, tmp_path):
    done = run(source, tmp_path / "out", "--periods", "4,16", "--capacity", "lowrank", "--rank", "2", "--copy-base")
    assert done.exit_code == 0, done.output
    model = load(tmp_path / "out")
    fresh = model.load_state(tmp_path / "out" / "memory.safetensors")
    _, state = model.learn(text(64), fresh)
    model.save_state(state, tmp_path / "out" / "memory.safetensors")
    for what in ("--export-peft", "--export-delta", "--merge"):
        assert run(tmp_path / "out", tmp_path / what[2:], what).exit_code == 0
    assert (tmp_path / "export-peft" / "adapter_config.json").is_file()
    assert (tmp_path / "export-delta" / "delta.safetensors").is_file()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merge")
    ids = text(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids, state=state).logits, rtol=1e-4, atol=1e-4)
    shown = CliRunner().invoke(app, ["levels", str(tmp_path / "out")])
    assert shown.exit_code == 0 and "memory 1 (low-rank 2)" in shown.output


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--periods", "16,4"], "must increase"),
        (["--periods", "4,six"], "'six' is no whole number"),
        (["--assign", '{"9": 0}', "--periods", "4"], "layer 9 does not exist"),
        (["--assign", "[[0]"], "is no JSON"),
        (["--layers", "last:9"], "layers='last:9'"),
        (["--merge"], "is no retrofit"),
        (["--merge", "--rate", "0.1"], "leave out --rate"),
        (["--periods", "4", "--memory", "none"], "--memory"),
        (["--merge", "--export-peft"], "exclude each other"),
    ],
)
def test_bad_input_is_one_line(source, tmp_path, arguments, said):
    done = run(source, tmp_path / "out", *arguments)
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(source, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(source, tmp_path / "file" / "out", "--periods", "4")
    assert done.exit_code == 2 and "Not a directory" in done.stderr.splitlines()[-1]


def test_an_encoder_is_refused(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=48, **small)).save_pretrained(tmp_path / "bert")
    done = run(tmp_path / "bert", tmp_path / "out", "--dry-run")
    assert done.exit_code == 2 and "no causal language model" in done.stderr
