"""The suite of adaptation: its arithmetic by hand, and its arms on a tiny base."""

import pytest
import torch

from circadia.evals import adapt
from circadia.evals.suite import Options, Record
from circadia.models.retrofit import adapt as adaptation

LONG = 3 * adapt.CHUNK


def small(folder):
    return adapt._retrofit(adapt.base_model(folder), 0.3)


def test_blind_reading_is_reading_without_learning(trained) -> None:
    """A chunk sees the token before it and nothing else: what a memory that never moves reads."""
    model = small(trained)
    rows = torch.randint(256, (2, LONG), generator=torch.Generator().manual_seed(0))
    still = adapt._retrofit(model.base, 0.0)
    with torch.no_grad():
        found = adapt.blind(model, rows)
    torch.testing.assert_close(found, adapt.nats(still, rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, adapt.nats(model, rows, learns=False))
    moved = adapt.nats(adapt._retrofit(model.base, 1.0), rows)
    first = adapt.CHUNK - 1
    torch.testing.assert_close(moved[:, :first], found[:, :first], rtol=1e-4, atol=1e-5)
    assert (moved[:, first:] - found[:, first:]).abs().min(0).values.median() > 1e-6
    with torch.no_grad():
        one = adaptation.run(model, rows[:1], second=False)
    assert one.shape == (1, LONG, 256)


def test_means_by_chunk() -> None:
    found = torch.cat([torch.full((1, adapt.CHUNK - (i == 0)), float(i)) for i in range(3)], 1)
    assert adapt.by_chunk(found).tolist() == [[0.0, 1.0, 2.0]]


def record(arm, *rows, seed=0):
    bits = {kind: [list(row) for row in rows] for kind in ("novels", *adapt.OTHER)}
    scores = {"bits": bits, "train_seconds": 6.0, "steps": 3}
    return Record({"base": "b", "seed": seed, "arm": arm, "steps": 3, "chunks": 4}, scores, 0.0)


def test_gains_are_paired_by_sequence() -> None:
    records = [record("control", (3.0, 3.0, 3.0, 2.0), (2.0, 2.0, 2.0, 2.0)),
               record("unadapted", (3.0, 2.8, 2.7, 1.5), (2.0, 1.9, 1.8, 1.7)),
               record("second order", (3.1, 2.8, 2.6, 1.4), (2.0, 1.9, 1.6, 1.6)),
               record("second order", (0.0,) * 4, (0.0,) * 4, seed=1)]  # fmt: skip
    assert adapt.gains(records, "unadapted", "novels", (2, 2)) == pytest.approx([0.2, 0.1])
    assert adapt.gains(records, "second order", "legal", (3, 4)) == pytest.approx([0.5, 0.4])
    assert adapt.gains(records, "second order", "code", (1, 4), over="unadapted") == pytest.approx([0.025, 0.075])
    novels, others = adapt.table(records[:3])
    last = novels.rows[-1]
    # Chunks 3 and 4: unadapted .4 and .25 bits, second order .5 and .4.
    assert last[0] == "second order" and last[4] == "+0.450 ±0.050" and last[5] == "+38 %" and last[6] == "2.00"
    assert [row[0] for row in others.rows] == ["control", "unadapted", "second order"]


def test_arms_from_end_to_end(data, trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(adapt, "CHUNKS", 3)
    monkeypatch.setattr(adapt, "RATES", (0.3, 1.0))
    monkeypatch.setattr(adapt, "_sequences", lambda texts, count, chunks: _few(texts))
    options = Options(depth="quick", steps=4, seeds=1, data=data, bases=(trained,))
    plan = adapt.runs(options, [])
    assert [run["arm"] for run in plan] == list(adapt.ARMS) and plan[0]["steps"] == 4
    adapt._control.cache_clear()
    records = [Record(run, adapt.run(run, options), 0.0) for run in plan]
    adapt._control.cache_clear()
    by_arm = {one.run["arm"]: one.scores for one in records}
    # The same weights, chosen rate: its first chunk is the control's.
    first = [row[0] for row in by_arm["unadapted"]["bits"]["novels"]]
    assert first == pytest.approx([row[0] for row in by_arm["control"]["bits"]["novels"]], abs=1e-4)
    assert by_arm["unadapted"]["rate"] in (0.3, 1.0) and len(by_arm["unadapted"]["tried"]) == 2
    assert by_arm["rates only"]["steps"] == 1 and by_arm["second order"]["steps"] == 4
    for arm in ("rates only", "first order", "second order"):
        assert any(abs(rate - adapt.RATE) > 1e-4 for rate in by_arm[arm]["rates"].values())
    assert by_arm["first order"]["bits"] != by_arm["second order"]["bits"]
    last = adapt.gains(records, "unadapted", "legal", (3, 3))
    assert all(gain > 0 for gain in last)  # the same few letters again and again
    assert len(adapt.table(records)) == 2
    adapt.plot(records, tmp_path / "adapt.png")
    assert (tmp_path / "adapt.png").stat().st_size > 10_000


def _few(texts):
    return torch.stack([text.tokens[:LONG] for text in texts[:2]] * (1 if len(texts) > 1 else 2))


def test_a_base_and_data_are_asked_for(data, trained) -> None:
    with pytest.raises(ValueError, match="give --base FOLDER"):
        adapt.runs(Options(data=data), [])
    with pytest.raises(ValueError, match="--models third order"):
        adapt.runs(Options(data=data, bases=(trained,), models=("third order",)), [])
    with pytest.raises(ValueError, match="too short for 9 sequences"):
        adapt._sequences([adapt.Text(torch.zeros(9000), 9000)], 9, 8)
    # What the others are compared with is always run.
    plan = adapt.runs(Options(data=data, bases=(trained,), models=("first order",), depth="quick"), [])
    assert [run["arm"] for run in plan] == ["control", "unadapted", "first order"]
