"""The cost of learning beside reading, at tiny sizes."""

import json

import pytest
import torch

from benchmarks import retrofit as cost

SMALL = ["--hidden", "64", "--layers", "4", "--chunk", "8", "--chunks", "4", "--reps", "2"]


def test_the_report_is_complete(capsys, tmp_path) -> None:
    names = "one level,only the slowest level due"
    assert cost.main([*SMALL, "--only", names, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "retrofit.json").read_text())
    assert list(report["time"]) == list(report["memory"]) == names.split(",")
    for row in report["time"].values():
        each = [learn / read for read, learn in zip(row["seconds"]["read"], row["seconds"]["learn"])]
        assert row["each"] == each and len(each) == 2 and min(each) > 0
    one = report["memory"]["one level"]
    assert one["bound"] == 2 * one["deltas"] + one["activations"] and one["used"] == one["peak"] / one["bound"]
    text = (tmp_path / "retrofit.md").read_text()
    assert text.strip() in capsys.readouterr().out and text.count("| one level |") == 2


@pytest.mark.parametrize("name", cost.SETTINGS)
def test_every_setting_learns_in_the_chunks_that_it_says(name) -> None:
    config = cost.options([*SMALL, "--only", name])
    model = cost.build(name, config)
    report, _ = model.learn(cost.stream(model, 16), model.start())
    periods = [8 * n for n in cost.SETTINGS[name][0]["periods"]]
    assert [level.period for level in report.levels] == periods and model.settings.chunk == 8
    assert [level.updates for level in report.levels] == [128 // period for period in periods]
    layers = {int(site.split(".")[2]) for site in model.sites if ".layers." in site}
    assert layers == ({3} if "quarter" in name else {0, 1, 2, 3})


def test_parts_of_the_bound() -> None:
    config = cost.options([*SMALL, "--only", "one level"])
    model = cost.build("one level", config)
    deltas = 4 * 3 * 64 * (64 * 8 // 3 // 16 * 16) * 4
    found = cost.peak("one level", config)
    assert found["deltas"] == deltas and found["base"] == sum(p.nbytes for p in model.base.parameters())
    # At least the inputs of the three matrices of every layer, and the logits.
    assert found["activations"] >= 4 * 8 * (64 + 64 * 8 // 3 // 16 * 16) * 4 + 8 * 512 * 4
    assert not any(p.requires_grad for p in model.base.parameters())
    used = cost.bounded({"deltas": 10, "activations": 5, "peak": 50})
    assert used["bound"] == 25 and used["used"] == 2.0
    assert torch.equal(cost.stream(model, 2), cost.stream(model, 3)[:16])


def test_bad_options_are_one_line(capsys) -> None:
    for given, said in (
        (["--hidden", "100"], "--hidden 100 is no multiple of 64"),
        (["--only", "x"], "'x' is no setting"),
    ):
        assert cost.main(given) == 2
        assert said in (line := capsys.readouterr().err) and len(line.strip().splitlines()) == 1
