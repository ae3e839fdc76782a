"""Windows of earlier nights: how many are kept, that a night shows them beside its day, and what that costs."""

import pytest
import torch

from circadia.sleep import Entry, Meter, Replay, Window, preset, sleep
from circadia.sleep.replay import replay
from circadia.sleep.student import Student, Teacher, written
from circadia.sleep.windows import losses, thinned
from tests.models.retrofit.conftest import same, text
from tests.sleep.conftest import seeded

HOW = Replay(length=8, presentations=30, rows=4, earlier=2, answer=3, every=99, dreams=0, rate=0.02, keep=6)


def day(number):
    """Three entries, of as many windows."""
    return [Entry(text(9, seed=10 * number + i), number=10 * number + i) for i in range(3)]


def test_every_night_keeps_as_many_as_another():
    nights = [list("abcdefgh"), list("ij"), [], list("klmnop")]
    assert thinned(nights, 99) == [list("abcdefgh"), list("ij"), list("klmnop")]
    assert thinned(nights, 8) == [list("acf"), list("ij"), list("kmo")]
    assert thinned(nights, 9) == [list("acf"), list("ij"), list("klno")]
    assert thinned(nights, 3) == [["a"], ["i"], ["k"]]
    assert thinned(nights, 2) == [["i"], ["k"]] and thinned(nights, 0) == []


def test_a_step_learns_from_both_and_counts_both(tiny):
    model = tiny(rate=0.5)
    rows, old = [text(9, seed=1), text(9, seed=2)], [text(9, seed=3)]

    def night(earlier, how=HOW):
        student = Student(model, model.start(), written(model, "slowest", model.start()))
        meter = Meter()
        told = replay(student, rows, None, None, [], how, seeded(), meter, {}, (), earlier)
        assert told["steps"] == 15, "30 presentations of two windows, four a step"
        return student.state(), meter.learned

    both, alone, none = night(old), night([]), night(old, Replay(**{**vars(HOW), "earlier": 0}))
    assert both[1] == 15 * 6 * 8 and alone[1] == none[1] == 15 * 4 * 8
    same(alone[0], none[0])
    for row in (*rows, *old):
        cost = [float(losses(Teacher(model, s), [row])[0].mean()) for s in (both[0], alone[0], model.start())]
        assert cost[0] < 0.7 * cost[2]
        assert (cost[1] < 0.7 * cost[2]) == any(row is one for one in rows)


def test_what_a_night_hands_on_is_bounded_and_kept_bound(tiny):
    model = tiny(rate=0.5)
    settings = preset().but(dreams=4, dream_length=8, replay=vars(HOW))
    lives = {}
    for name, earlier in (("all", 2), ("alone", 0)):
        state, kept, sizes = model.start(), [], []
        for number in range(4):
            given = dict(seed=number, slept=state if number else None, earlier=kept)
            how = settings.but(replay={"earlier": earlier})
            new, report = sleep(model, state, day(number), how, **given)
            same(new, sleep(model, state, day(number), how, **given)[0])
            state, kept = new, report.kept
            sizes.append([len(night) for night in kept])
        lives[name] = state
        assert sizes == [[3], [3, 3], [2, 2, 2], [1, 1, 2, 2]]
        assert [night[0].number for night in kept] == [0, 10, 20, 30] and "kept" not in report.to_dict()
        assert report.parts[0].get("earlier") == (6 if earlier else None)
        assert ("beside 6 of earlier nights" in report.moved[0]) == bool(earlier)
    first = [[float(x.mean()) for x in losses(Teacher(model, s), [e.tokens for e in day(0)])] for s in lives.values()]
    assert sum(first[0]) < 0.7 * sum(first[1])


def test_without_a_day_nothing_is_gone_over(tiny):
    model = tiny()
    kept = [[Window(text(9, seed=1), "a", 1.0, 1, 0, 2.0)]]
    settings = preset().but(dreams=4, dream_length=8, replay=vars(HOW))
    new, report = sleep(model, model.start(), [], settings, earlier=kept)
    assert all(torch.equal(new[n], x) for n, x in model.start().items()) and report.cost["learned"] == 0
    assert report.kept == kept


def test_a_window_goes_through_json():
    window = Window(text(9, seed=1), "a", 0.5, 3, 7, 2.25, True)
    again = Window.from_dict(window.to_dict())
    assert again.tokens.dtype == torch.int64 and again.to_dict() == window.to_dict() and again.correction


@pytest.mark.parametrize("name", ["earlier", "keep"])
def test_errors(name):
    with pytest.raises(ValueError, match=f"{name}=-1"):
        Replay(**{name: -1})
