"""Studies of many runs: each is done once, whoever kills or shares them, and the tables say what the logs say."""

import json
import random
from types import SimpleNamespace

import pytest

from benchmarks import grid, language
from circadia.train import Diverged
from circadia.train import checkpoint as checkpoint_file
from circadia.train import loop as loop_file
from circadia.train.log import read

SMALL = "model.config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}"


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Two seeds, two rates, and text of authors of whom some are held out."""
    monkeypatch.setenv("CIRCADIA_HOME", str(tmp_path / "home"))
    chance = random.Random(0)
    rows = [
        {"author": author, "text": " ".join(chance.choice(("sea", "ship", "old", "night")) for _ in range(400))}
        for author in ("Conrad", "Woolf", "Cbronte", "Kipling", "Hardy", "Eliot")
    ]
    path = tmp_path / "novels: one.jsonl"  # a path that YAML would take for a mapping
    path.write_text("\n".join(json.dumps(row) for row in rows))
    sizes = ["--tokens", "512", "--tune-tokens", "256", "--length", "32", "--batch", "4", "--micro", "2"]
    study = ["--seeds", "0,1", "--rates", "1e-3,2e-2", "--presets", "gated-deltanet", "--eval-tokens", "200"]
    end = ["--threads", "1", "--set", SMALL, "train.device=cpu"]
    return [*sizes, *study, "--data", str(path), "--out", str(tmp_path / "out"), *end]


def lines(folder):
    return [{k: x for k, x in line.items() if k not in ("seconds", "waited")} for line in read(folder)]


def test_a_study_tunes_runs_every_seed_and_reports_what_the_logs_say(options, tmp_path, capsys, monkeypatch):
    assert language.main(options) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "tune gated-deltanet/tiny lr=0.001", "tune gated-deltanet/tiny lr=0.02",
        "gated-deltanet/tiny lr=0.02 seed=0", "gated-deltanet/tiny lr=0.02 seed=1", str(tmp_path / "out/report.md"),
    ]  # fmt: skip
    (row,) = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    folder = tmp_path / "out/final/gated-deltanet-tiny"
    ends = [[one["bits_per_byte"] for one in lines(folder / f"seed-{s}") if one["kind"] == "eval"] for s in (0, 1)]
    assert [run["bits_per_byte"] for run in row["runs"]] == [end[-1] for end in ends] and ends[0] != ends[1]
    assert row["runs"][0]["curve"] == [[128 * (i + 1), value] for i, value in enumerate(ends[0])]
    assert row["rate"] == 0.02 and row["tried"]["0.02"] < row["tried"]["0.001"]
    report = (tmp_path / "out/report.md").read_text()
    assert f"{(ends[0][-1] + ends[1][-1]) / 2:.4f}" in report and "0.02 (edge of the grid)" in report
    monkeypatch.setattr(grid, "train", None)  # what is finished is not run again
    assert language.main(options) == 0
    with pytest.raises(SystemExit) as stop:
        language.main([*options, "--tokens", "640"])
    assert stop.value.code == 2 and "was run with another train.tokens" in capsys.readouterr().err


def test_a_killed_study_goes_on_where_it_was(options, tmp_path, monkeypatch):
    options = [*options, "--rates", "1e-2", "--seeds", "0"]
    assert language.main([*options, "--out", str(tmp_path / "whole")]) == 0
    plain = loop_file.Run.step

    def killed(self):
        if self.place.step == 3:
            raise KeyboardInterrupt
        plain(self)
        self.last_save = -1e9  # a checkpoint after every step

    monkeypatch.setattr(loop_file.Run, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        language.main(options)
    monkeypatch.setattr(loop_file.Run, "step", plain)
    assert language.main(options) == 0
    name = "final/gated-deltanet-tiny/seed-0"
    kept = [line for line in lines(tmp_path / "out" / name) if line["kind"] != "resume"]
    assert kept == lines(tmp_path / "whole" / name)
    assert any(line["kind"] == "resume" for line in lines(tmp_path / "out" / name))


def test_a_run_that_diverges_is_finished_and_never_the_best(options, tmp_path, monkeypatch):
    plain = grid.train

    def train(config, **given):
        if config.optim.lr == 2e-2:
            loop_file.Path(config.out).mkdir(parents=True)
            plain(config, **given)
            (loop_file.Path(config.out) / "report.md").unlink()
            raise Diverged("ten steps in a row")
        return plain(config, **given)

    monkeypatch.setattr(grid, "train", train)
    assert language.main([*options, "--seeds", "0"]) == 0
    (row,) = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert row["rate"] == 1e-3 and row["tried"]["0.02"] is None and len(row["runs"]) == 1


def test_a_run_of_another_process_is_left_to_it(options, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out/final/gated-deltanet-tiny/seed-0"
    folder.mkdir(parents=True)
    held = checkpoint_file.lock(folder)
    held.__enter__()
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        held.__exit__(None, None, None)

    monkeypatch.setattr(grid, "time", SimpleNamespace(sleep=sleep))
    assert language.main([*options, "--rates", "1e-2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0][-6:] for line in said[:2]] == ["seed=1", "seed=0"] and slept == [grid.WAIT]


def test_mistakes_are_one_line(options, capsys):
    for wrong in (["--presets", "nothing"], ["--seeds", "a"], ["--rates", "-1"], ["--set", "trian.spike=1"]):
        with pytest.raises(SystemExit) as stop:
            language.main([*options, *wrong])
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
