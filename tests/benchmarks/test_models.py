"""The command from end to end, at tiny sizes."""

import functools
import json
from pathlib import Path

import pytest
import torch

from benchmarks import models

compiler = torch.compile


# The compiler looks at it itself and hides the warning, but not from a filter that makes it an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_report_is_complete(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    """Steps in both forms, decoding and memory; the compiler only traces."""
    monkeypatch.setattr(torch, "compile", functools.partial(compiler, backend="eager"))
    monkeypatch.setattr(models, "DECODED", 2)
    options = ["--presets", "ttt,linear", "--tokens", "64", "--reps", "2", "--contexts", "8,20", "--threads", "1"]
    assert models.main([*options, "--compile", "--decode", "--memory", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "models.json").read_text())
    steps = [r for r in report["results"] if r["section"] == "step"]
    assert [(r["preset"], r["form"]) for r in steps] == [("ttt", "eager"), ("ttt", "compiled"), ("linear", "eager")]
    assert [("first_step_seconds" in r) for r in steps] == [False, True, False]
    for r in steps:
        mine, theirs = r["contestants"][r["preset"]], r["contestants"]["transformer++"]
        assert mine["tokens_per_second"] == 64 / mine["median"]
        each = [b / a for a, b in zip(mine["seconds"], theirs["seconds"])]
        assert r["ratios"]["transformer++"]["each"] == each
    decoded = [r for r in report["results"] if r["section"] == "decode"]
    assert [list(r["contestants"]) for r in decoded] == [["8 tokens", "20 tokens", "transformer++, 512 tokens"]] * 2
    assert set(report["memory"]) == {"transformer++", "ttt", "linear"}
    assert all(known["bytes"] >= 0 for known in report["memory"].values())
    text = (tmp_path / "models.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert text.count("| ttt | compiled | 64 |") == 1 and text.count("\n### ") == 3


def test_a_step_is_a_whole_step() -> None:
    """All parameters get a gradient, and the optimizer sees them: a rate of zero leaves them as they are."""
    layer = torch.nn.Linear(3, 3)
    seen = []
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.abs().sum().item()))
    before = layer.weight.detach().clone()
    models.stepper(layer, lambda x: layer(x).square().sum(), torch.ones(2, 3))()
    assert seen and seen[0] > 0 and torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--presets", "tt"], "--presets: 'tt' is unknown: use some of"),
        (["--tokens", "2k"], "--tokens '2k': give lengths"),
        (["--out", "{file}/inside"], "cannot be made"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options_are_one_line(options: list[str], said: str, capsys, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert models.main([option.format(file=file) for option in options]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out
