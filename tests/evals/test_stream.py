"""Sources one after another: what is read and what is not, bits by hand, an arm that learns and one that cannot."""

import gzip
import math

import pytest
import torch
import torch.nn.functional as F

from circadia.evals import stream, streams
from circadia.evals.arms import Arm, Example, Sliding, make
from circadia.evals.bases import Base
from circadia.evals.suite import Options, Record


@pytest.fixture
def bibles(data):
    (data / "domains" / "genesis").mkdir()
    for i, version in enumerate(stream.GENESIS):
        with gzip.open(data / "domains" / "genesis" / f"{version}.txt.gz", "wt") as file:
            file.write(" ".join(f"{'aeiou'[i]}{k}" for k in range(9000)))
    return data


def test_what_is_learned_is_never_tested(bibles, monkeypatch):
    monkeypatch.setattr(stream, "UNSEEN", 4)
    for name, wanted in stream.STREAMS.items():
        orders = set()
        for seed in range(4):
            found = stream.sources(bibles, name, 8, seed)
            assert found == stream.sources(bibles, name, 8, seed)
            orders.add(tuple(each for each, _, _ in found))
            assert {each for each, _, _ in found} == set(wanted)
            for each, learned, unseen in found:
                assert len(learned.encode()) == 8192 and len(unseen.encode()) == 4096
                if each not in ("code", "maths"):  # words of those repeat
                    assert not set(learned.split()[1:-1]) & set(unseen.split()[1:-1])
        assert (len(orders) == 1) == (name == "domains")
    firsts = {stream.sources(bibles, "domains", 8, seed)[0][1] for seed in (0, 1, 1000)}
    assert len(firsts) == 3  # another place for each seed, that of tuning among them
    with pytest.raises(ValueError, match=r"english-kjv has .* at least"):
        monkeypatch.setattr(stream, "UNSEEN", 30)
        monkeypatch.setitem(stream.STREAMS, "genesis", ("english-kjv",))
        stream.sources(bibles, "genesis", 8, 0)
    (bibles / "domains/genesis/german.txt.gz").unlink()
    with pytest.raises(ValueError, match=r"german.txt.gz: no such file"):
        stream._genesis(bibles, "german")


def test_bits_by_hand(base):
    text = "".join(chr(97 + (i * i) % 26) for i in range(2 * stream.CHUNK + 40))
    ids = torch.tensor([list(text.encode())])
    wanted = 0.0
    for at in (0, stream.CHUNK):
        rows = ids[:, at : at + stream.CHUNK + 1]
        wanted += F.cross_entropy(base.model(rows[:, :-1]).logits[0], rows[0, 1:]).item() / 2 / math.log(2)
    assert stream.bits(Arm(base), base, text) == pytest.approx(wanted, rel=1e-5)
    sliding = Sliding(base, window=32)
    sliding.learn([Example("", "of what was read before it")])
    ids = torch.tensor([list(b"of what was read before it") + list(text.encode())[: stream.CHUNK + 1]])
    logits = base.model(ids[:, :-1]).logits[0, -stream.CHUNK :]
    one = F.cross_entropy(logits, ids[0, -stream.CHUNK :]).item() / math.log(2)
    assert stream.bits(sliding, base, text[: stream.CHUNK + 1]) == pytest.approx(one, rel=1e-5)


def test_from_end_to_end(data, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "UNSEEN", 1)
    monkeypatch.setattr(stream, "STREAMS", {"domains": ("legal", "medical")})
    options = Options(depth="quick", data=data, bases=(folder,), models=("frozen", "full", "joint"))
    plan = [{**run, "kilobytes": 6} for run in stream.runs(options, [])]
    assert [(run["arm"], run["stage"]) for run in plan] == [(arm, "test") for arm in ("frozen", "full", "joint")]
    records = [Record(run, stream.run(run, options), 0.0) for run in plan]
    frozen, full, joint = (one.scores["metrics"]["bits"] for one in records)
    assert all(row == frozen["start"] for row in frozen["matrix"])
    assert full["matrix"][0][0] < full["start"][0] and full["matrix"][1][1] < full["start"][1]
    assert len(full["curves"][0]) == stream.PARTS + 1 and full["curves"][0][0] == full["start"][0]
    assert len(joint["matrix"]) == 1
    assert stream.goal(records[0].scores) == pytest.approx(-(frozen["start"][0] + sum(frozen["start"]) / 2) / 2)
    whole, matrix = stream.table(records)
    assert [row[1] for row in whole.rows] == ["frozen", "full", "joint"] and len(matrix.rows) == 3 + 3 + 2
    assert "small, frozen: +0.000" in whole.notes[1]
    stream.plot(records, tmp_path / "stream.png")
    assert (tmp_path / "stream.png").stat().st_size > 5_000


def test_bad_input_is_named(data, folder):
    for options, said in (
        (Options(data=data), "--base"),
        (Options(bases=(folder,)), "domains"),
        (Options(data=data, bases=(folder,), models=("retrieval",)), "this suite offers frozen"),
    ):
        with pytest.raises(ValueError, match=said):
            stream.runs(options, [])


def test_every_arm_takes_part(folder):
    base = Base.load(folder)
    for name in set(stream.ARMS) - {"Cartridge", "carried memory"}:
        arm = make(name, base, 0.01, 0)
        arm.learn([Example("", "x" * 300)])
        assert math.isfinite(stream.bits(arm, base, "some text of a source. " * 20)), name
    assert set(streams.HELD_OUT) == set(stream.STREAMS["authors"])
