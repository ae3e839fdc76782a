"""The command from end to end, at tiny sizes."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import memory, memory_report
from benchmarks.harness import ROOT, machine, measure, result
from benchmarks.inputs import Shape, draw
from circadia.memory import RULES

compiler = torch.compile
TINY = ["--heads", "1", "--width", "4", "--tokens", "64", "--loop-tokens", "16", "--chunk", "8", "--reps", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A copy of the checkout in which one rule writes 1 % too much."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for folder in ("circadia", "benchmarks", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = copy / "circadia/memory/linear.py"
    right = 'None, gates["eta"][..., None] * v)'
    text = source.read_text()
    assert text.count(right) == 1
    source.write_text(text.replace(right, 'None, gates["eta"][..., None] * v * 1.01)'))
    options = ["--rules", "linear,mamba2,dgd", "--quick", *TINY, "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *options], cwd=copy, capture_output=True, text=True
    )
    return done, copy / "out"


def test_a_red_rule_has_no_ratio(run) -> None:
    done, out = run
    assert done.returncode == 1, done.stderr
    assert "mamba2: tests red: no ratio (test_fast_equals_reference[mamba2-65-16]: failure)" in done.stdout
    assert any(line.split()[:4] == ["mamba2", "tests", "red:", "no"] for line in done.stdout.splitlines())
    report = json.loads((out / "memory.json").read_text())
    assert {name: v["green"] for name, v in report["verified"].items()} == {
        "linear": True,
        "mamba2": False,
        "dgd": True,
    }
    assert {r["rule"] for r in report["results"]} == {"linear", "dgd"}


def test_the_report_is_complete(run) -> None:
    done, out = run
    report = json.loads((out / "memory.json").read_text())
    assert report["benchmark"] == "memory"
    assert report["config"]["tokens"] == 64 and report["config"]["threads"] == 1
    assert report["machine"]["versions"]["torch"] and report["machine"]["cpu"] and report["machine"]["threads"] == 1
    timed = {(r["section"], r["rule"], r["pass"], r["tokens"]) for r in report["results"]}
    for rule in ("linear", "dgd"):
        for which in memory.PASSES:
            assert {("attention", rule, which, 64), ("loop", rule, which, 16)} <= timed
    for r in report["results"]:
        if r["section"] == "peers":
            assert r["contestants"] == {"flash-linear-attention": {"not_measured": "needs a GPU"}}
            continue
        (rival,) = set(r["contestants"]) - {r["ours"]}
        mine, theirs = r["contestants"][r["ours"]], r["contestants"][rival]
        assert len(mine["seconds"]) == len(theirs["seconds"]) == 2
        assert r["ratios"][rival]["each"] == [b / a for a, b in zip(mine["seconds"], theirs["seconds"])]
    assert "flash-linear-attention not measured: needs a GPU" in done.stdout
    assert (out / "memory.png").read_bytes().startswith(b"\x89PNG")


# Torch says that its caches are off, which is what the benchmark wants.
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_sweep_and_compile(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path) -> None:
    """The sections that take long, with two short lengths and a compiler that only traces."""

    def no_compiler(*_: object) -> None:
        raise RuntimeError("there is no compiler")

    monkeypatch.setattr(memory, "SWEEP", (16, 32))
    config = memory.options(["--rules", "linear,dgd", "--sweep", "--compile", *TINY, "--out", str(tmp_path)])
    assert config["few"] == ["dgd"]
    green = {name: {"green": True} for name in config["rules"]}
    results = []
    for backend in ("eager", no_compiler):
        monkeypatch.setattr(torch, "compile", functools.partial(compiler, backend=backend))
        contests = memory.programme(config, ["linear", "dgd"], str)
        results.append([result(c, t) for c, t in zip(contests, measure(contests, 1))])
    lengths = [r["tokens"] for r in results[0] if r["section"] == "sweep" and r["pass"] == "forward"]
    assert lengths == [16, 32]
    traced, refused = ([r for r in some if r["section"] == "compile"] for some in results)
    assert [r["rule"] for r in traced] == ["dgd", "dgd"]
    assert all(r["compile_seconds"] > 0 and "eager" in r["ratios"] for r in traced)
    assert all("not_measured" in r["contestants"]["compiled"] and not r["ratios"] for r in refused)
    for some in results:
        report = {"config": config, "verified": green, "machine": machine("cpu"), "results": some}
        memory_report.show(report, Console(width=80))
        memory_report.plot(report, tmp_path / "memory.png")
    shown = capsys.readouterr().out
    assert shown.count("ratio to attention by length") == 2 and shown.count("torch.compile, tokens/s") == 1
    assert "dgd, compile: compiled not measured: " in shown
    assert "there is no compiler" in shown
    assert "linear, " not in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rules", "dgd,dgdd"], "--rules: 'dgdd' is unknown: use some of linear"),
        (["--reps", "0"], "'0' is not a positive number"),
        (["--tokens", "many"], "'many' is not a positive number"),
        (["--device", "abacus"], "--device 'abacus' cannot be used here"),
        (["--out", "{file}/inside"], "cannot be made"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options_are_one_line(options: list[str], said: str, capsys, tmp_path) -> None:
    file = tmp_path / "file"
    file.touch()
    try:
        code = memory.main([option.format(file=file) for option in options])
    except SystemExit as left:
        code = left.code
    captured = capsys.readouterr()
    assert code == 2
    assert said in captured.err and captured.err.count("\n") == 1
    assert captured.err.startswith("python -m benchmarks.memory: ") and not captured.out


@pytest.mark.parametrize("name", RULES)
def test_inputs_are_in_range(name: str) -> None:
    """A rule checks its inputs itself: it takes these, and forgets neither at once nor diverges."""
    rule = RULES[name]
    inputs = draw(rule, Shape(2, 2, 200, 6)).require_grad()
    y, _ = rule(inputs.q, inputs.k, inputs.v, inputs.gates, inputs.state, chunk=16)
    assert 1e-3 < y.square().mean() ** 0.5 < 1e2
    assert all(x.requires_grad and x.is_leaf and x.is_contiguous() for x in inputs.leaves())
    first = inputs.first(7)
    assert {x.shape[2] for x in (first.q, *first.gates.values())} == {7}
