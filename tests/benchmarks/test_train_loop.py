"""The benchmark of the loop: both sides do the same work, and what it says is what it measured."""

import json

import pytest
import torch

from benchmarks import train_loop
from circadia.train import load
from circadia.train import loop as loop_file
from circadia.train.distributed import World

SMALL = ["--length", "32", "--batch", "2", "--reps", "2"]


def test_the_bare_step_and_the_loop_write_the_same_weights(tmp_path, monkeypatch):
    """On the same batch, at a learning rate that stands still."""
    monkeypatch.setenv("CIRCADIA_HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("abcdefgh" * 200)
    config = load(
        {
            "model": {"preset": "gated-deltanet/tiny", "config": {"hidden_size": 16, "num_hidden_layers": 1}},
            "data": {"path": str(tmp_path / "a.txt"), "length": 32, "heldout": 0.0},
            "optim": {"schedule": "constant", "warmup": 0.0},
            "train": {"batch": 2, "device": "cpu"},
            "out": str(tmp_path / "run"),
        }
    )
    run = loop_file.Run(config, tmp_path, World(0, 1, torch.device("cpu")), None)
    run.open(0)
    made = []
    plain = loop_file.make.model
    monkeypatch.setattr(loop_file.make, "model", lambda *args: made.append(plain(*args)) or made[-1])
    steps = train_loop.bare(run)
    first = next(run.batches)
    for _ in range(train_loop.STEPS):
        run.batch = first
        run.step()
    run.log.close()
    start = plain(config.model, run.data.tokenizer, config.seed)
    steps()
    for a, b, c in zip(run.net.parameters(), made[0].parameters(), start.parameters()):
        assert torch.allclose(a, b, atol=1e-5) and not torch.equal(a, c)


def test_the_command_measures_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CIRCADIA_HOME", "kept by the test")
    assert train_loop.main([*SMALL, "--json", str(tmp_path / "a.json")]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "a.json").read_text())["result"]
    seconds = {name: one["seconds"] for name, one in found["contestants"].items()}
    each = sorted(mine / theirs - 1 for mine, theirs in zip(seconds["loop"], seconds["bare"]))
    assert found["overhead"]["median"] == pytest.approx(sum(each) / 2)
    assert f"{found['overhead']['median']:+.2%}" in shown and 0 < found["waited"] < 0.5


def test_mistakes_are_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        train_loop.main(["--preset", "nothing/tiny", *SMALL])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
