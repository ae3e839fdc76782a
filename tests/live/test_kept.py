"""Windows that a learner's nights hand on: gone over again, and gone with what is forgotten."""

import pytest
import torch

from circadia.live import Learner, Store, commits
from circadia.live.day import day
from circadia.sleep import Entry, sleep
from tests.live.conftest import raw
from tests.live.learners import A, B, X, differing, make, model
from tests.live.test_sleeping import LONG, SHORT

HOW = SHORT.but(replay={"keep": 8})


@pytest.fixture(scope="module")
def base():
    return model()


@pytest.fixture
def store(folder):
    with Store.open(folder) as found:
        yield found


def kept(me):
    """What the next night would show beside its day, as text."""
    return [[bytes(window.tokens.tolist()).decode() for window in night] for night in day(me, 1).earlier]


def test_a_night_goes_over_what_earlier_nights_have_kept(store, base):
    """As by hand with `circadia.sleep.sleep`."""
    me, state, slept, handed = make(store, base, "ana", gate=False), base.start(), None, []
    for number, text in enumerate((LONG, B + A, X * 2)):
        me.observe(text)
        night = me.sleep(HOW)
        ids = torch.tensor(list(text.encode()))
        state = base.learn(ids, state)[1]
        entry = Entry(ids, "user", 1.0, number=10 * number)
        state, report = sleep(base, state, [entry], HOW, seed=number, slept=slept, earlier=handed)
        assert night.report["parts"][0].get("earlier", 0) == sum(map(len, handed))
        slept, handed = state, report.kept
        assert differing({n: x for n, x in me.state.items() if not n.startswith(("text/", "slept/"))}, state) == []
    assert [len(night) for night in day(me, 1).earlier] == [2, 3, 3], "of the three nights eight in all"
    # A night over several days has those days' windows once.
    assert [len(night) for night in day(me, 2).earlier if night] == [2, 3] and not any(day(me, None).earlier)


def test_what_is_forgotten_leaves_no_window(store, base, tmp_path):
    me, twin = (make(store, base, name, rehearse={"every": 2, "count": 2}) for name in ("ana", "twin"))
    for text, source in ((LONG, "a"), (X * 2, "secret"), (None, ""), (B * 2, "b"), (None, ""), (A, "c")):
        for one in (me, twin):
            if text is None:
                one.sleep(HOW)
            elif one is me or source != "secret":
                one.observe(text, source=source)
    assert {window.source for night in day(me, 1).earlier for window in night} == {"a", "secret", "b"}
    assert differing(me, twin)
    me.forget(source="secret")
    evening = kept(me)
    assert differing(me, twin) == [] and evening == kept(twin) and len(evening) == 2
    reports = [one.number for one in store.experiences("ana") if one.kind == "report"]
    told = [commits.header(store.payload("ana", number))["kept"] for number in reports]
    assert len(told) == 2 and not any(w["source"] == "secret" for one in told for night in one for w in night)
    assert X[:11].encode() not in raw(store.folder)
    # They go back with a rollback, and over with an export.
    me.commit()
    me.export(tmp_path / "ana.circadia")
    with Learner.import_(tmp_path / "other", tmp_path / "ana.circadia", base=base) as other:
        assert kept(other) == evening
        assert differing(other.sleep(HOW) and other, twin.sleep(HOW) and twin) == []
    me.rollback(me.nights()[-1].version)
    assert kept(me) == [["Mira lives in", " Oslo. Her do", "g eats green ", "apples, and n", "obody knows w"]]


def test_what_was_dropped_after_a_night_is_not_gone_over_again(store, base):
    me = make(store, base, "ana", gate=False)
    me.observe(LONG, source="a")
    me.observe(B, source="web", trust=0.2)
    careful = HOW.but(filter={"wrong": 1.0, "trial": 0})
    me.sleep(careful)
    me.admit(2)
    me.sleep(careful)
    assert [len(night) for night in kept(me)] == [4, 4]
    me.drop(2)
    assert [len(night) for night in kept(me)] == [4, 0]


def test_a_correction_takes_the_place_of_what_was_read(store, base):
    """The day says one thing four times, in one entry; the user another once. And so on the next day."""
    me = make(store, base, "ana", gate=False)
    prompt, read, right = "The ferry to Skarn leaves at", " eight.", " three."
    how = SHORT.but(corrections=8, replay={"presentations": 40, "length": 40, "rate": 1e-2})
    for _ in range(4):
        me.observe(f"{prompt}{read}\n", source="timetable")
    before = me.version.number
    me.sleep(how)
    first = day(me, 1).earlier[0]
    answer = me.generate(prompt, max_new_tokens=4)
    me.feedback(answer.id, correction=right)
    night = me.sleep(how)
    (told,) = night.report["superseded"]
    assert (told["was"], told["now"], told["windows"]) == ("eight", "three", len(first))
    assert me.score(prompt + right) < me.score(prompt + read)
    left = [text for night in kept(me) for text in night]
    assert not any("eight" in text for text in left) and left[-1] == prompt + right
    assert "three" in me.nights()[0].markdown()
    # What was read on is no word against it.
    me.observe(f"{prompt}{read}\n", source="timetable")
    assert me.sleep(how).report["superseded"] == []
    me.rollback(before)
    answer = me.generate(prompt, max_new_tokens=4)
    me.feedback(answer.id, correction=right)
    night = me.sleep(how)
    assert night.report["superseded"][0]["was"] == "eight"
    assert me.score(prompt + right) < me.score(prompt + read)
