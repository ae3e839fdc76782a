"""The base that comes with the package: what its README says, that it is packaged, and that every door takes it."""

import hashlib
import json
import math
import re
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import circadia
from circadia.cli import app

ROOT = Path(__file__).parents[2]
FOLDER = circadia.bundled()
NOVEL = "It was a fine evening, and the old man walked slowly down to the sea, where his daughter waited for him."


def test_it_is_what_its_readme_says():
    told, weights = (FOLDER / "README.md").read_text(), (FOLDER / "model.safetensors").read_bytes()
    assert len(weights) <= 10 * 2**20 and hashlib.sha256(weights).hexdigest() in told
    log = [json.loads(line) for line in (FOLDER / "log.jsonl").read_text().splitlines()]
    assert f"**{log[-1]['bits_per_byte']:.3f} bits per byte**" in told and f"{log[0]['parameters']:,}" in told
    read = sum(1 for one in log if one["kind"] == "step"), log[-1]["step"] * 16 * 512
    assert read[0] > 40 and f"{read[1]:,} bytes" in told


def test_it_is_in_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["circadia"]
    packed = {file for pattern in patterns for file in (ROOT / "circadia").glob(pattern)}
    assert {FOLDER / name for name in ("model.safetensors", "config.json", "README.md", "log.jsonl")} <= packed


def test_it_has_read_english():
    model = circadia.retrofit("bundled", periods=[64])
    bits = model.score(torch.tensor(list(NOVEL.encode()))).surprise / math.log(2)
    upside_down = model.score(torch.tensor(list(NOVEL[::-1].encode()))).surprise / math.log(2)
    assert bits < 2.3 and upside_down > 3.0


def test_a_learner_names_it_and_finds_it_again(tmp_path, monkeypatch):
    """By its name, not by where this installation has it, and not by a folder that happens to be called so."""
    monkeypatch.chdir(tmp_path)
    Path("bundled").mkdir()
    with circadia.Learner.create("store", "bundled", "ana", periods=[64]) as me:
        assert me.config["base"] == "bundled" and me.reader.words.bytes
        me.observe("Mira lives in Oslo. " * 8)
        before = me.score(NOVEL)
    with circadia.Learner.open("store", "ana") as me:
        assert me.score(NOVEL) == before and me.version is not None


def test_commands_take_it(tmp_path):
    def run(*words):
        found = CliRunner().invoke(app, list(map(str, words)))
        assert found.exit_code == 0, (found.output, found.exception)
        return found.output

    assert "1.04 M parameters" in run("levels", "bundled")
    made = json.loads(run("learner", "new", "ana", "--store", tmp_path / "s", "--periods", "64", "--json"))
    assert made["levels"][0]["period"] == 64
    run("retrofit", "bundled", tmp_path / "r", "--periods", "64")
    assert json.loads((tmp_path / "r" / "retrofit.json").read_text())["base"] == "bundled"
    run("levels", tmp_path / "r")
    assert circadia.retrofit(tmp_path / "r").settings.levels[0].period == 64


def test_names_are_told(tmp_path):
    assert re.search(r"base.*\[default: +bundled\]", CliRunner().invoke(app, ["serve", "--help"]).output, re.S)
    with pytest.raises(ValueError, match="no such folder"):
        circadia.retrofit("./bundled-not-there")
