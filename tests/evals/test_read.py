"""Reading on: the arithmetic by hand, the streams from small files, and a few arms from end to end."""

import functools

import pytest

from circadia.evals import read, streams
from circadia.evals.read import Point, at_gain, points, ratios
from circadia.evals.suite import Options, Record


def record(arm, rate=0.0, stream="a", base="b", **scores):
    return Record({"arm": arm, "rate": rate, "stream": stream, "base": base}, scores, 0.0)


FROZEN = record("frozen", read=[3.0, 4.0], after=[3.1, 4.1], end=[3.1, 4.1], own=2.0, own_before=2.0,
                seconds_reading=2.0)  # fmt: skip


def point(arm, rate, gain, forget, own=0.0, pair=("b", "a")):
    return Point(arm, rate, pair, gain, forget, 0.0, own, 1.0)


def test_points_of_a_run() -> None:
    learned = dict(read=[2.5, 3.7], after=[2.4, 3.6], end=[2.75, 3.6], own=2.25, own_before=2.0, seconds_reading=5.0)
    other = record("MLPs", 0.3, stream="b", **learned)  # its frozen base has not been scored yet
    (found,) = points([FROZEN, record("MLPs", 0.3, **learned), other, record("MLPs", 0.3, "novels", **learned)])
    assert (found.arm, found.rate, found.pair) == ("MLPs", 0.3, ("b", "a"))
    assert found.gain == pytest.approx((3.0 + 4.0) / 2 - (2.5 + 3.7) / 2)
    assert found.forget == pytest.approx(2.75 - 2.4)  # of the first source: nothing comes after the last one
    assert found.worse == pytest.approx(2.75 - 3.1)
    assert (found.own, found.seconds) == (0.25, 2.5)


def test_a_curve_is_read_at_a_gain() -> None:
    curve = [point("full", 0.2, 0.6, 0.5), point("full", 0.1, 0.4, 0.2), point("full", 0.4, 0.55, 0.9)]
    assert at_gain(curve, 0.2, "forget") == pytest.approx(0.1)  # half way from nothing
    assert at_gain(curve, 0.4, "forget") == pytest.approx(0.2)
    assert at_gain(curve, 0.5, "forget") == pytest.approx(0.35)
    assert at_gain(curve, 0.61, "forget") is None and at_gain(curve, 0.0, "forget") is None
    # A rate beyond the largest gain does harm only: the curve has ended, and nothing after it counts.
    assert at_gain([*curve, point("full", 0.8, 0.7, 0.1)], 0.65, "forget") is None
    assert at_gain([], 0.1, "forget") is None


def test_ratios_are_taken_pair_by_pair() -> None:
    found = []
    for pair, forget in ((("b", "a"), 0.2), (("b", "c"), 0.8)):
        found += [point("full", 0.1, 0.4, forget, pair=pair), point("MLPs", 0.3, 0.2, 0.1, pair=pair)]
    found.append(point("MLPs", 0.3, 0.9, 0.1, pair=("b", "b")))  # without a reference: left out
    assert ratios(found, "MLPs", 0.3, "forget") == [pytest.approx(1.0), pytest.approx(0.25)]
    assert ratios(found, "MLPs", 0.6, "forget") == []
    assert ratios(found, "MLPs", 0.3, "own") == []  # a reference without harm gives no ratio
    assert ratios(found, "full", 0.1, "forget") == pytest.approx([1.0, 1.0])


def test_a_stream_is_made_of_its_sources(data) -> None:
    found = streams.stream(data, "a", kilobytes=2, unseen=1)
    assert [p.source for p in found] == ["Conrad", "legal", "medical", "code"]
    for passage, stem in zip(found, (b"sea", b"law", b"med", b"# add\nx = ")):
        assert len(passage.read) == 2048 and len(passage.unseen) == 1024 and stem in passage.read
        assert passage.read + passage.unseen in streams.source_text(data, passage.source)
    assert streams.stream(data, "b", 2, 1)[0].read not in [p.read for p in found]


def test_a_source_that_returns_goes_on_and_one_that_is_read_again_does_not(data) -> None:
    law = streams.stream(data, "returning", kilobytes=2, unseen=1)[::2]
    text = streams.source_text(data, "legal")
    start = int(streams.PLACES["returning"] * len(text))
    assert b"".join(p.read + p.unseen for p in law) == text[start : start + 3 * 3072]
    first, second, again = streams.stream(data, "novels", kilobytes=2, unseen=1)
    assert again == first != second


def test_a_passage_over_the_end_goes_on_at_the_beginning(data, monkeypatch) -> None:
    text = streams.source_text(data, "medical")
    monkeypatch.setitem(streams.PLACES, "b", 1 - 1000 / len(text))
    passage = streams.stream(data, "b", kilobytes=2, unseen=1)[0]
    whole = passage.read + passage.unseen
    tail = len(text) - int(streams.PLACES["b"] * len(text))
    assert whole == text[-tail:] + text[: 3072 - tail]


def test_own_text_is_of_authors_that_were_trained_on(data) -> None:
    assert b"wes" in (own := streams.own_text(data, 2)) and len(own) == 2048
    assert not any(stem in own for stem in (b"sea", b"lit", b"moor", b"jun"))
    (novel,) = streams.own_novels(data, 3)
    assert b"wes" in novel and len(novel) == 3072


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda data: streams.stream(data, "z", 2), "stream='z' is unknown"),
        (lambda data: streams.stream(data, "a", 500), "Conrad has .* bytes and stream 'a' needs .* read less"),
        (lambda data: streams.source_text(data, "Austen"), "source='Austen' is unknown"),
        (lambda data: streams.source_text(data / "domains", "legal"), "no such file; --data must be a folder"),
        (lambda data: read.runs(Options(data=data), []), "give --base FOLDER"),
        (lambda data: read.runs(Options(data=data, bases=(data,)), []), "there is no config.json in it"),
    ],
)
def test_bad_input_is_named(data, call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call(data)


def test_two_arms_from_end_to_end(data, trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(read, "_own", lambda folder: streams.own_text(folder, 1))
    monkeypatch.setattr(streams, "stream", functools.partial(streams.stream, unseen=1))
    options = Options(depth="quick", data=data, bases=(trained,), models=("MLPs",))
    plan = [{**run, "kilobytes": 3} for run in read.runs(options, [])]
    assert {run["arm"] for run in plan} == {"frozen", "full", "MLPs"}
    plan = [run for run in plan if (run["arm"], run["rate"]) in (("frozen", 0.0), ("full", 0.1), ("MLPs", 0.1))]
    records = [Record(run, read.run(run, options), 0.0) for run in plan]
    frozen, full, mlps = (one.scores for one in records)
    assert frozen["after"] == frozen["end"] and frozen["own"] == frozen["own_before"] and not frozen["norms"]
    # Words of few letters: whoever learns reads better, and whoever moves more does more.
    assert all(a < b for a, b in zip(full["read"], frozen["read"])) and mlps["own"] != frozen["own"]
    assert full["norms"]["level 0"] > 0 and len(full["curve"]) == 4
    found = {p.arm: p for p in points(records)}
    assert found["full"].gain > found["MLPs"].gain > 0
    (table,) = read.table(records)
    assert [row[0] for row in table.rows] == ["full", "MLPs"] and table.rows[0][7] == "1.00"
    read.plot(records, tmp_path / "read.png")
    assert (tmp_path / "read.png").stat().st_size > 10_000
