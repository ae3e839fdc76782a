"""Configurations: files, overrides, messages, stages."""

import pytest
from typer.testing import CliRunner

from circadia.cli import app
from circadia.train import load
from circadia.train.config import changed, dump

BASE = {"model": {"preset": "gated-deltanet/tiny"}, "data": {"path": "x"}}


def test_yaml_toml_and_overrides_say_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {preset: dla/tiny}\ndata: {path: x, length: 64}\noptim: {lr: 3e-4}\n")
    (tmp_path / "a.toml").write_text('[model]\npreset="dla/tiny"\n[data]\npath="x"\nlength=64\n[optim]\nlr=3e-4\n')
    asked = ["model.preset=dla/tiny", "data.path=x", "data.length=64", "optim.lr=3e-4"]
    found = [load(tmp_path / "a.yaml"), load(tmp_path / "a.toml"), load(None, asked)]
    assert found[0] == found[1] == found[2]
    assert (found[0].optim.lr, found[0].data.length) == (3e-4, 64)
    numbers = load(
        BASE, ["optim.settings.eps=1e-8", "model.config.cms_rate=.5E1", "train.tokens=2e7", "data.path='1e3'"]
    )
    assert numbers.optim.settings == {"eps": 1e-8} and numbers.model.config == {"cms_rate": 5.0}
    assert numbers.train.tokens == 20_000_000
    (tmp_path / "numbers.yaml").write_text(dump(numbers))
    assert load(tmp_path / "numbers.yaml") == numbers
    over = load(tmp_path / "a.yaml", ["data.heldout=[a*, 'author=B']", "optim.settings.betas=[0.9, 0.9]", "seed=3"])
    assert (over.data.heldout, over.optim.settings, over.seed) == (["a*", "author=B"], {"betas": [0.9, 0.9]}, 3)
    assert sorted(changed(found[0], over)) == ["data.heldout", "optim.settings.betas", "seed"]


def test_what_is_written_is_read_back():
    config = load({**BASE, "stages": [{"name": "a"}, {"name": "b", "optim": {"lr": 1}}]}, ["optim.periods.'*'=5"])
    import yaml

    assert load(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=1", r"lr is unknown: did you mean optim\.lr\?"),
        ("optim.warm_up=1", r"optim\.warm_up is unknown: did you mean optim\.warmup\?"),
        ("train.save_evry=1", r"did you mean train\.save_every\?"),
        ("data.length=0", r"data\.length=0: input should be greater than 0"),
        ("optim.schedule=linear", r"optim\.schedule='linear': input should be 'cosine', 'wsd' or 'constant'"),
        ("data.heldout=1.5", r"data\.heldout=1\.5: give a fraction below 1"),
        ("model.path=y", r"give one of model\.preset"),
        ("data.carry=true data.streaming=true", r"data\.carry=true needs rows at fixed places"),
        ("data.streaming=true train.eval_tokens=0", r"train\.eval_tokens=0 means all"),
        ("length", r"'length' is no override: write key=value"),
        ("model.preset.x=1", r"model\.preset\.x: preset is 'gated-deltanet/tiny' and has no fields"),
        ("optim.lr=[", r"the value is no YAML"),
        ("stages=[{name: a, train: {tokns: 1}}]", r"stages\[0\] \(a\): train\.tokns .* did you mean train\.tokens\?"),
        ("stages=[{nam: a}]", r"did you mean stages\.0\.name\?"),
        ("stages=[{name: a},{name: a}]", r"names \['a', 'a'\] repeat"),
        ("stages=[{name: a, train: {device: cpu}}]", r"stages\[0\]\.train\.device holds for the whole run"),
    ],
)
def test_mistakes_are_named_with_their_repair(override, message):
    parts = [override] if override.startswith("stages") else override.split()
    with pytest.raises(ValueError, match=message):
        load(BASE, parts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.yaml", None, "no such file"),
        ("a.json", "{}", "ends in .yaml, .yml or .toml"),
        ("a.yaml", "[1]", "expected keys with values, found list"),
        ("a.toml", "a=", "cannot be read"),
        ("a.yaml", "optim: {lr: 1}", "model is missing; data is missing: give data.path or --data"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name)


def test_a_stage_changes_what_it_names_and_nothing_else():
    stages = [{"name": "a"}, {"name": "b", "model": {"chunk": 4}, "optim": {"lr": 5}, "train": {"tokens": 7}}]
    config = load({**BASE, "model": {"preset": "dla/tiny", "config": {"chunk": 8, "conv_window": 2}}, "stages": stages})
    assert changed(config.stage(0), config.stage(1)) == ["model.config.chunk", "optim.lr", "train.tokens"]
    assert config.stage(1).model.config == {"chunk": 4, "conv_window": 2}
    assert config.names == ["a", "b"] and load(BASE).names == ["train"]


@pytest.mark.parametrize("arguments", [["lr=1"], ["--preset", "dla/huge", "--data", "README.md"], ["nowhere.yaml"]])
def test_the_command_line_answers_in_one_line(arguments, tmp_path):
    done = CliRunner().invoke(app, ["train", *arguments, f"out={tmp_path / 'run'}"])
    assert done.exit_code == 2
    assert done.stderr.startswith("circadia: ") and done.stderr.count("\n") == 1
