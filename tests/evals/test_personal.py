"""Two lives of one base, and one that reads too much."""

import random

import pytest

from circadia.evals import personal, streams
from circadia.evals.suite import Options, Record


def plan(data, folder, arm):
    options = Options(depth="quick", data=data, bases=(folder,), models=(arm,))
    (run,) = personal.runs(options, [])
    return run, options


def test_texts_are_apart(data):
    chance = random.Random(0)
    learned, unseen = personal.passage(data, "legal", 40 * 1024, chance)
    assert len(learned) == 40 * 1024 and len(unseen) == 16 * 1024
    assert not set(learned.split()[1:-1]) & set(unseen.split()[1:-1])
    with pytest.raises(ValueError, match=r"legal has [\d,]+ bytes, and 118,784 are needed"):
        personal.passage(data, "legal", 100 * 1024, chance)


def test_each_becomes_better_on_its_own(data, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(personal, "SOURCES", ("legal", "maths"))
    run, options = plan(data, folder, "full")
    assert run["mode"] == personal.LIVES and run["stage"] == "test"
    found = personal.run({**run, "kilobytes": 24, "rate": 0.3}, options)
    assert set(found["sources"]) == {"legal", "maths"}
    for who in ("one", "two"):
        assert found[who]["own kind"] > found[who]["the other's"] and found[who]["own kind"] > 0.1
    assert found["one"]["the base's"] != found["two"]["the base's"], "both have read the same"
    still = personal.run({**run, "kilobytes": 24, "rate": 0.0}, options)
    assert all(value == 0.0 for who in ("one", "two") for value in still[who].values())
    assert personal.goal(found) == pytest.approx(sum(found[who]["own kind"] for who in ("one", "two")) / 2)
    (table,) = personal.table([Record(run, found, 0.0)])
    assert table.rows[0][:4] == ("small", "full", f"{run['rate']:g}", "1")
    gains = [found[who]["own kind"] - found[who]["the other's"] for who in ("one", "two")]
    assert table.rows[0][7].startswith(f"{sum(gains) / 2:+.3f}")
    personal.plot([Record(run, found, 0.0)], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5_000


def test_too_much(data, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "HELD_OUT", ("Conrad",))
    run, options = plan(data, folder, "rank 4")
    assert run["mode"] == personal.MUCH and run["times"] == 4
    with pytest.raises(ValueError, match=r"rank 4. holds \d+ bytes"):
        personal.run(run, options)
    monkeypatch.setattr(personal, "BITS", 16.0)  # a memory of this base is too small
    found = personal.run({**run, "rate": 0.01}, options)
    # Two MLPs, each with a map from 16 to 2 x 16 and one back: 4 (in + out) numbers for each.
    assert found["numbers"] == 2 * 4 * ((16 + 32) + (16 + 16)) and len(found["gained"]) == len(found["at once"]) == 4
    assert found["gained"][-1] == pytest.approx(found["at once"][-1]) and found["at once"][-1] > 0
    (table,) = personal.table([Record(run, found, 0.0)])
    assert [row[4] for row in table.rows] == ["right after it", "at the end"]
    assert table.rows[1][5] == f"{found['gained'][0]:+.3f}"
    personal.plot([Record(run, found, 0.0)], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5_000


def test_bad_input_is_named(data, folder):
    with pytest.raises(ValueError, match="--models joint: this suite offers full"):
        personal.runs(Options(data=data, bases=(folder,), models=("joint",)), [])
