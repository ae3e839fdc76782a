"""Nights of a learner: one new version or nothing, lived again bit by bit, quarantine, policy, and awake again."""

import json
import os
import signal

import pytest
import torch

from circadia.live import Learner, Policy, Store, StoreError
from circadia.sleep import PRESETS, Dreaming, Entry, Replay, Settings, preset, sleep, words
from tests.live.conftest import raw
from tests.live.learners import A, B, X, differing, make, model

LONG = "Mira lives in Oslo. Her dog eats green apples, and nobody knows why.\n"
SHORT = Settings(
    name="short", dreams=8, dream_length=8,
    replay=Replay(length=12, presentations=4, rows=4, answer=3, every=4, dreams=1, rate=5e-3),
)  # fmt: skip
AWAKE = {"every": 2, "count": 2}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def either(request):
    return model(request.param)


@pytest.fixture(scope="module")
def base():
    return model()


@pytest.fixture
def store(folder):
    with Store.open(folder) as found:
        yield found


def memory(state):
    return {n: x for n, x in getattr(state, "state", state).items() if n.startswith("level")}


def test_a_night_is_one_version_with_a_report(store, either):
    me = make(store, either, "ana", probes=[{"kind": "text", "name": "fox", "text": A, "max": 99}])
    me.observe(LONG, source="a")
    me.observe(B, source="b", commit=False)
    steps = []
    night = me.sleep(SHORT, progress=lambda *step: steps.append(step))
    assert (night.action, night.version, night.parent) == ("accept", 3, 2)
    assert me.version.reason == "sleep: short" and me.version.parent == 2
    assert [step[:2] for step in steps][:2] == [("replay", 0), ("replay", 1)]
    moved = me.diff(2, 3).groups
    assert moved["level1"].moved > 0 and moved["level0"].moved == 0  # into the slowest
    asked = {p["name"]: p for p in night.report["probes"]}
    assert asked["fox"]["before"] != asked["fox"]["after"] and len(asked) > 4
    assert night.report["cost"]["learned"] > 0 and night.report["dreams"]
    assert not any("slept" in n and not torch.equal(x, me.state[n[6:]]) for n, x in me.state.items() if "level" in n)
    again = me.nights()[0]
    assert (again.report, again.version, again.number) == (night.report, 3, night.number)
    assert json.loads(json.dumps(again.report)) == again.report
    status = me.status()
    assert (status["nights"], status["night"]["version"], status["due"], status["quarantine"]) == (1, 3, [], [])
    page = again.html()
    assert "Version 2 went to sleep, version 3 woke up." in page and "fox" in page and "http" not in page
    assert {e.payload["settings"]["name"] for e in me.events("night")} == {"short"}
    assert me.events("slept")[0].payload["entry"] == night.number and me.events("slept")[0].version == 3
    assert store.verify().faults == ()


def test_nights_are_those_of_circadia_sleep(store, base):
    """Two days and their nights by hand: state, journal and the self after the night before."""
    me, state, slept, kept = make(store, base, "ana", gate=False), base.start(), None, []
    for number, text in enumerate((LONG, B + A)):
        me.observe(text)
        me.sleep(SHORT.but(older="slept"))
        ids = torch.tensor(list(text.encode()))
        state = base.learn(ids, state)[1]
        given = {"settings": SHORT.but(older="slept"), "seed": number, "slept": slept, "earlier": kept}
        state, report = sleep(base, state, [Entry(ids, "user", 1.0)], **given)
        slept, kept = state, report.kept
        assert differing({n: x for n, x in me.state.items() if not n.startswith(("text/", "slept/"))}, state) == []


def test_forgetting_across_nights_is_a_life_without_it(store, either):
    me = make(store, either, "ana", rehearse=AWAKE)
    for text, source in ((LONG, "a"), (X * 2, "secret"), (B * 2, "b")):
        me.observe(text, source=source)
    me.sleep(SHORT)
    me.observe(A + B, source="c")
    me.observe(X, source="secret")
    me.sleep(SHORT)
    me.observe(LONG, source="d")
    me.observe(X, source="secret")
    me.sleep(SHORT)  # of this night nothing of the day but LONG is left
    twin = make(store, either, "twin", rehearse=AWAKE)
    for text, source in ((LONG, "a"), (B * 2, "b"), (None, ""), (A + B, "c"), (None, ""), (LONG, "d"), (None, "")):
        twin.sleep(SHORT) if text is None else twin.observe(text, source=source)
    assert differing(me, twin)
    done = me.forget(source="secret")
    assert differing(me, twin) == [] and int(me.state["slept/nights"]) == 3 and int(me.state["awake/counts"][3]) > 0
    assert len(me.nights()) == 3 and done.replayed == 6
    assert X[:11].encode() not in raw(store.folder)
    assert [n.report["entries"] for n in me.nights()] == [n.report["entries"] for n in twin.nights()]
    me.observe(A)
    twin.observe(A)
    assert differing(me.sleep(SHORT) and me, twin.sleep(SHORT) and twin) == []
    assert store.verify().faults == ()


def test_what_was_said_in_other_words_goes_with_what_is_forgotten(store, base, monkeypatch):
    monkeypatch.setattr(words, "KEEPS", 0.0)
    monkeypatch.setattr(words, "ALIKE", (0.0, 1.0))
    own = SHORT.but(
        replay={"variations": 2}, dreaming=Dreaming(questions=1, tasks=1, relations=1, candidates=4, steps=2)
    )
    me, twin = make(store, base, "ana"), make(store, base, "twin")
    for one in (me, twin):
        one.observe(LONG, source="a")
    me.observe(X * 2, source="secret")
    night = me.sleep(own)
    assert night.report["parts"][0]["variations"] > 0 and night.report["parts"][1]["part"] == "dreaming"
    twin.sleep(own)
    assert differing(me, twin)
    me.forget(source="secret")
    assert differing(me, twin) == [] and X[:11].encode() not in raw(store.folder)


def test_a_night_that_had_only_what_is_forgotten_never_was(store, base):
    me, twin = make(store, base, "ana"), make(store, base, "twin")
    me.observe(LONG, source="a")
    twin.observe(LONG, source="a")
    me.sleep(SHORT)
    twin.sleep(SHORT)
    me.observe(X * 3, source="secret")
    me.sleep(SHORT)
    assert twin.sleep(SHORT).action == "none" and len(twin.versions()) == 2
    me.observe(B, source="b")
    twin.observe(B, source="b")
    me.sleep(SHORT)
    twin.sleep(SHORT)
    me.forget(source="secret")
    assert differing(me, twin) == [] and len(me.nights()) == len(twin.nights()) == 2


def test_back_before_a_night_and_forth_and_over_to_another_store(store, base, tmp_path):
    me = make(store, base, "ana", rehearse=AWAKE)
    me.observe(LONG + B)
    awake = dict(me.state)
    night = me.sleep(SHORT)
    asleep = dict(me.state)
    me.rollback(night.parent)
    assert differing(me, awake) == [] and me.due(asked=True).tokens == len(LONG + B)
    again = me.sleep(SHORT)
    assert differing(me, asleep) == [] and again.version != night.version
    me.rollback(night.version)
    me.observe(A, commit=False)
    want = dict(me.state)
    me.close()
    with Learner.open(store, "ana", base) as me:  # what was open is learned again, rehearsal and all
        me.commit()
        assert differing(me, want) == []
        me.export(tmp_path / "ana.circadia")
        me.sleep(SHORT)
        with Learner.import_(tmp_path / "other", tmp_path / "ana.circadia", base=base) as other:
            assert differing(other.sleep(SHORT) and other, me) == []
            assert other.verify().faults == () and len(other.nights()) == 3


def test_stopped_it_changes_nothing_and_goes_on_with_the_same_bits(store, base):
    me, twin = make(store, base, "ana"), make(store, base, "twin")
    for one in (me, twin):
        one.observe(LONG + B)
    want, before, count, limit = twin.sleep(SHORT, seed=5), dict(me.state), [0], 5

    def late():
        count[0] += 1
        return count[0] > limit

    def looked(*step):  # who opens it meanwhile is not told that it was stopped
        assert not any("a night was stopped" in text for text in Learner.open(store, "ana", base).found)

    assert me.sleep(SHORT, seed=5, stop=late, progress=looked).action == "stopped"
    assert differing(me, before) == [] and len(me.versions()) == 1 and me.nights() == []
    seen = []
    assert me.sleep(resume=True, progress=lambda *s: seen.append(s)).action == "accept"
    assert seen[0] == ("replay", 5, want.report["parts"][0]["steps"]) and len(seen) < 8
    assert differing(me, twin) == []
    with pytest.raises(ValueError, match="no night of 'ana' was stopped"):
        me.sleep(resume=True)
    me.observe(A)
    twin.observe(A)
    twin.sleep(SHORT, compute=9000)
    count[0], limit = 0, 2
    assert me.sleep(SHORT, compute=9000, stop=late).action == "stopped"
    me.close()
    with Learner.open(store, "ana", base) as again:  # in another process it begins anew
        assert any("a night was stopped" in text for text in again.found)
        again.sleep(resume=True)
        assert differing(again, twin) == []


def test_what_time_cut_short_is_lived_again_to_the_same_step(store, base):
    me = make(store, base, "ana")
    me.observe(X, source="secret")
    me.observe(LONG * 6, source="a")
    slow = SHORT.but(replay={"presentations": 4000})
    night = me.sleep(slow, minutes=0.5 / 60)
    assert night.report["stopped_by_budget"] and 0 < night.report["parts"][0]["steps"] < 4000
    cut = night.report["cut"]
    me.observe(B)
    me.forget(source="secret")
    twin = make(store, base, "twin")
    twin.observe(LONG * 6, source="a")
    twin.sleep(slow, compute=cut)
    twin.observe(B)
    assert differing(me, twin) == []
    half = make(store, base, "half")
    half.observe(LONG * 3)
    cost = half.sleep(slow, compute="20 days").report["cost"]
    whole = cost["read"] + cost["made"] + 3 * cost["learned"]
    assert 60 * len(LONG) * 3 <= whole < 1.3 * 60 * len(LONG) * 3


def test_a_night_that_is_fitted_to_a_price(store, base):
    me = make(store, base, "ana")
    me.observe(X, source="secret")
    me.observe(LONG * 6, source="a")
    whole = me.sleep(SHORT)
    me.rollback(whole.parent)
    night = me.sleep(SHORT, fit=8)
    cost = night.report["cost"]
    assert cost["read"] + cost["made"] + 3 * cost["learned"] <= 3 * 8 * (len(X) + len(LONG) * 6)
    assert 0 < night.report["windows"] < whole.report["windows"]
    assert night.report["parts"][0]["steps"] < whole.report["parts"][0]["steps"]
    me.observe(B)
    me.forget(source="secret")  # the price is that of the day as it is then
    twin = make(store, base, "twin")
    twin.observe(LONG * 6, source="a")
    twin.sleep(SHORT, fit=8)
    twin.observe(B)
    assert differing(me, twin) == []


@pytest.mark.parametrize("action", ["hold", "rollback"])
def test_the_guard_lets_nothing_become_current(store, base, action):
    me = make(store, base, "ana")
    me.observe(LONG)
    before = dict(me.state)
    me.probes([{"kind": "norm", "name": "size", "max": 1e-4, "action": action}])
    night = me.sleep(SHORT)
    assert night.action == action and differing(me, before) == [] and me.version.number == 1
    assert (night.version is None) == (action == "rollback") and "size" in night.reasons[0]
    assert me.nights()[0].action == action and "size" in night.markdown() and "size" in me.nights()[0].markdown()
    assert me.sleep(SHORT).action == action  # the day is still to be slept on
    if action == "hold":
        me.accept(night.version)
        assert int(me.state["slept/nights"]) == 1 and me.nights()[-1].action == "accept"
    me.forget(source="user")
    assert me.nights() == [] and LONG[:20].encode() not in raw(store.folder)


def test_quarantine_waits_for_a_word_and_goes_with_what_is_forgotten(store, base, tmp_path):
    me, short = make(store, base, "ana"), SHORT.but(filter={"wrong": 1.0, "trial": 0})
    me.observe(LONG, source="a")
    me.observe("A stranger says that", source="web", trust=0.2)
    me.observe(" apples are blue, all of them.\n", source="web", trust=0.2)
    me.observe("Rumour has it that Oslo is a fish.\n", source="blog", trust=0.1)
    night = me.sleep(short)
    assert [(q["source"], q["reason"]) for q in night.report["quarantined"]] == [
        ("web", "low trust"),
        ("blog", "low trust"),
    ]
    held = me.quarantine()
    assert [(q.number, q.members, q.status) for q in held] == [(2, (2, 3), "held"), (4, (4,), "held")]
    assert "0.2 is less than 0.3" in held[0].detail
    with pytest.raises(ValueError, match="number=7 is not in quarantine: give some of 2, 4"):
        me.admit(7)
    assert me.sleep(SHORT).action == "none"  # held, also where a night does not filter
    me.export(tmp_path / "ana.circadia")
    assert me.admit(2)[0].status == "admitted" and me.drop(4)[0].status == "dropped"
    assert me.version.reason == "dropped 4"
    me.close()
    with Learner.open(store, "ana", base) as me:
        assert [q.status for q in me.quarantine()] == ["admitted", "dropped"]
        night = me.sleep(short)
        assert night.report["entries"] == 1 and not night.report["quarantined"]
        assert me.sleep(short).action == "none"  # learned once
        want = dict(me.state)
        me.observe(X, source="secret")
        me.forget(source="secret")
        assert differing(me, want) == []
        me.forget(source="web")
        assert [q.number for q in me.quarantine()] == [4] and b"apples are blue" not in raw(store.folder)
        me.rollback(None)
        assert me.quarantine() == []
    with Learner.import_(tmp_path / "other", tmp_path / "ana.circadia", base=base) as other:
        assert [q.status for q in other.quarantine()] == ["held", "held"]


def test_the_next_night_follows_what_was_said(store, base):
    """Admitted: bit by bit as in a life whose filter let it pass. Held: as in one where the night did not see it."""
    lives = {name: make(store, base, name) for name in ("held", "admitted", "open")}
    for name, me in lives.items():
        me.observe(LONG, source="a")
        me.observe(B, source="web", trust=0.2)
        me.sleep(SHORT if name == "open" else SHORT.but(filter={"wrong": 1.0, "trial": 0}))
        if name == "admitted":
            me.admit(2)
        me.observe(A, source="a")
        assert me.sleep(SHORT).report["entries"] == {"held": 1, "admitted": 2, "open": 1}[name]
    assert differing(lives["held"], lives["admitted"]) and differing(lives["held"], lives["open"])
    # The whole life: what is held stays out, and what stood around it is one entry.
    whole = {name: me.sleep(SHORT, days=None).report["entries"] for name, me in lives.items()}
    assert whole == {"held": 1, "admitted": 3, "open": 3}


def test_corrections_are_slept_on(store, base):
    me = make(store, base, "ana")
    answer = me.generate("Who? ", max_new_tokens=4)
    me.feedback(answer.id, correction="Mira, of Oslo, in the north.")
    me.feedback(answer.id, good=True)
    dreaming = {"tasks": 1, "relations": 0, "candidates": 3, "keep": 1, "length": 6, "steps": 2, "learn": 2}
    night = me.sleep(SHORT.but(dreaming=dreaming))
    assert night.report["entries"] == 1
    assert any(d["about"].startswith("correction") for d in night.report["dreams"])


def test_a_correction_can_count_more_than_what_was_read(store, base):
    """The day says one thing four times, the user another once."""
    me = make(store, base, "ana")
    prompt, read, right = "The ferry to Skarn leaves at", " eight.", " three."
    for _ in range(4):
        me.observe(f"{prompt}{read}\n", source="timetable")
    answer = me.generate(prompt, max_new_tokens=4)
    me.feedback(answer.id, correction=right)
    evening = me.version.number
    told, learned = {}, {}
    # Without this the night would know that what was read is out of date.
    how = SHORT.but(latest=False, replay={"presentations": 40, "length": 40, "rate": 1e-2})
    for times in (1, 8):
        night = me.sleep(how, corrections=times)
        assert night.report["windows"] == 5 and "5 windows" in night.report["moved"][0]
        told[times] = me.score(prompt + right) - me.score(prompt + read)
        learned[times] = night.report["cost"]["learned"]
        me.rollback(evening)
    assert told[8] < 0 < told[1] and learned[8] > 2 * learned[1]


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("no-expansion", "off-policy-only")])
def test_every_arm_sleeps_on_what_it_can(store, base, name):
    me = make(store, base, "ana")
    me.observe(LONG)
    sizes = {"texts": 4, "length": 6, "prefix": 4, "steps": 2, "rows": 2, "group": 2}
    dreaming = {"tasks": 1, "relations": 0, "candidates": 3, "keep": 1, "length": 6, "steps": 2, "learn": 2}
    parts = {"replay": vars(SHORT.replay) | {"whole": preset(name).replay.whole} if preset(name).replay else {},
             "again": sizes, "seeding": sizes, "dreaming": dreaming}  # fmt: skip
    changes = {n: x for n, x in parts.items() if getattr(preset(name), n) is not None}
    changes |= {"dreams": 8, "dream_length": 8, "inner": min(1, preset(name).inner)}
    if preset(name).seeding is not None:  # three stacked full levels have no pool
        with pytest.raises(ValueError, match="seeding has no pair of levels"):
            me.sleep(name, **changes)
        assert me.version.number == 1 and Learner.open(store, "ana", base).found == []
        return
    night = me.sleep(name, **changes)
    assert night.action == "accept" and me.events("night")[0].payload["settings"]["name"] == name


def test_a_pool_takes_a_night_as_an_expert(store):
    base = model(capacity=["full", "lowrank"], slots=[1, 3], rank=2, gate=["always", "router"])
    me = make(store, base, "ana")
    me.observe(LONG)
    sizes = {"texts": 4, "length": 6, "prefix": 4, "steps": 2, "rows": 2, "group": 2}
    night = me.sleep("literal-seeding", seeding=sizes, dreams=8, dream_length=8)
    assert night.report["sizes"]["experts"] == {"level 1": [1]} and "expert 1 of level 1" in night.report["moved"][0]
    me.observe(X, source="secret")
    me.observe(B)
    want = dict(make(store, base, "none").state)
    me.sleep("literal-seeding", seeding=sizes, dreams=8, dream_length=8)
    twin = make(store, base, "twin")
    for text in (LONG, B):
        twin.observe(text)
        twin.sleep("literal-seeding", seeding=sizes, dreams=8, dream_length=8)
    me.forget(source="secret")
    assert differing(me, twin) == [] and differing(me, want)
    gates = {n: x for n, x in me.state.items() if "level1/gate/" in n and not n.startswith("level")}
    assert gates and all(torch.equal(x, me.state[n.removeprefix("slept/")]) for n, x in gates.items())
    assert me.verify().faults == ()


def test_due_says_why(store, base):
    me = make(store, base, "ana", sleep="period,tokens=100,surprise=1e6", gate=False)
    assert me.policy == Policy(period=-1, tokens=100, surprise=1e6) and not me.due()
    me.observe("1234567", commit=False)
    found = me.due()
    assert found.pairs == ((0, 1),) and found.tokens == 7
    assert [r.partition(" is about")[0] for r in found.reasons] == ["level 0"]
    assert me.due(asked=True).reasons[0] == "on demand"
    for name, word in (("nats", "surprise=30"), ("idle", "idle=1e-9"), ("hour", "hour=0")):
        one = make(store, base, name, sleep=word, gate=False)
        read = one.observe(LONG)
        now = one.due()
        assert bool(now) == (name != "hour")  # made after midnight, and not slept through one since
        assert now.surprise == pytest.approx(read.surprise * 64, rel=1e-6)
        assert not now or one.sleep(SHORT).action == "accept"
        assert not one.due() and one.due().tokens == (0 if now else len(LONG))
    plain = make(store, base, "plain")
    plain.observe(LONG * 3)
    assert not plain.due() and plain.due().surprise > 0
    with Learner.open(store, "ana", base) as again:
        assert again.policy == me.policy


def test_observe_sleeps_by_policy_before_the_level_overwrites_itself(store):
    base = model(periods=(8, 64, 128))
    quick = SHORT.but(replay={"presentations": 1})
    PRESETS["quick-for-this-test"] = quick
    try:
        me = make(store, base, "ana", sleep="period,preset=quick-for-this-test", gate=False)
        done = me.observe(LONG[i : i + 20] for i in range(0, 60, 20))
        assert done.nights == []
        done = me.observe(LONG[60:] + LONG[:30])
        assert [n.action for n in done.nights] == ["accept"] and me.nights()[0].report["entries"] == 1
        state = store.load("ana", done.nights[0].version)
        assert int(state["clock/tokens"]) == 56 and state["stream/pending"].numel() == 4  # the period ends at 64
        assert int(state["level1/steps"]) == 0 and int(me.state["level1/steps"]) == 1
        twin = make(store, base, "twin", gate=False)
        twin.observe(LONG[:60])
        twin.sleep(quick)
        twin.observe(LONG[60:] + LONG[:30])
        assert differing(me, twin) == []
    finally:
        del PRESETS["quick-for-this-test"]


def test_rehearsal_does_not_depend_on_the_split_and_keeps_within_its_budget(store, base):
    lives = {}
    for name, cut, given in (("whole", 999, AWAKE), ("pieces", 7, AWAKE), ("plain", 999, False)):
        me = lives[name] = make(store, base, name, rehearse=given, gate=False)
        me.observe(LONG)
        me.sleep(SHORT)
        text = A + B + X + A
        for i in range(0, len(text), cut):
            me.observe(text[i : i + cut], commit=i % 2 == 0)
    assert differing(lives["whole"], lives["pieces"]) == []
    assert differing(memory(lives["whole"]), memory(lives["plain"]))
    chunks, read, spent, steps = lives["whole"].state["awake/counts"].tolist()
    assert read == 8 * chunks and 0 < spent <= read and steps > 3
    few = make(store, base, "few", rehearse={"every": 1, "count": 2, "windows": 3, "budget": 0.5}, gate=False)
    for _ in range(2):
        few.observe(LONG)
        few.sleep(SHORT)
    few.observe(A * 3)
    assert len(few.state["awake/windows"]) == 3 and few.state["awake/counts"][2] <= 0.5 * few.state["awake/counts"][1]


def test_decay_leads_to_what_was_slept(store):
    base = model(decay=0.5, rate=1e-9)
    for anchor in (True, False):
        me = make(store, base, f"anchor-{anchor}", gate=False)
        me.observe(LONG)
        me.sleep(SHORT.but(anchor=anchor))
        slept = {n: x for n, x in memory(me).items() if n.startswith("level1/delta/")}
        me.observe(A * 4)
        for name, x in slept.items():
            left = float((me.state[name] * x).sum() / (x * x).sum())
            assert left == pytest.approx(1.0 if anchor else 0.5**13, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda me: me.sleep("nap"), "preset='nap' is unknown"),
        (lambda me: me.sleep(minutes=0), "minutes=0 must be above 0"),
        (lambda me: me.sleep(compute="much"), "compute='much'"),
        (lambda me: me.sleep(minutes=float("inf")), "minutes=inf must be above 0"),
        (lambda me: me.sleep(minutes="5"), "minutes='5' must be above 0"),
        (lambda me: me.sleep(compute=float("inf")), "compute=inf"),
        (lambda me: me.sleep(compute="nan days"), "compute='nan days'"),
        (lambda me: me.sleep(seed=-1), "seed=-1"),
        (lambda me: me.sleep(days=0), "days=0"),
        (lambda me: me.sleep(replay={"speed": 3}), "speed"),
        (lambda me: me.sleep(speed=3), "speed"),
        (lambda me: me.sleep(resume=True), "no night of 'ana' was stopped"),
        (lambda me: make(me.store, me.model, "b", sleep="soon"), "'soon' is not understood"),
        (lambda me: make(me.store, me.model, "b", sleep="period=7"), "period=7, but the levels are 0 to 1"),
        (lambda me: make(me.store, me.model, "b", sleep="preset=full"), "nothing says when"),
        (lambda me: make(me.store, me.model, "b", sleep="hour=3", journal=False), "without a journal"),
        (lambda me: make(me.store, me.model, "b", rehearse={"every": 0}), "every=0"),
        (lambda me: make(me.store, me.model, "b", rehearse={"often": 1}), "often"),
        (lambda me: make(me.store, me.model, "b", rehearse={"level": 5}), "level=5"),
    ],
)
def test_what_is_wrong_is_said(store, base, call, words):
    me = make(store, base, "ana")
    me.observe(LONG)
    with pytest.raises(ValueError, match=words):
        call(me)
    assert me.events("night") == [] and store.learners() == ["ana"]


def test_without_a_journal_nobody_sleeps(store, base):
    me = make(store, base, "ana", journal=False)
    me.observe(A)
    with pytest.raises(StoreError, match="the journal is off"):
        me.sleep(SHORT)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workload", ["Sleeping", "SleepingQwen"])
def test_kills_in_mid_sleep_lose_nothing(tmp_path, workload):
    """A short run of ``python -m benchmarks.learner_kills --asleep``."""
    from benchmarks import kills, learner_kills

    found = kills.kills(tmp_path, getattr(learner_kills, workload)(), count=3, seed=5, longest=1.0)
    assert found["faults"] == [] and found["checks"] >= 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_every_stage_of_a_night(tmp_path, base):
    """The waking version stays, and the night that is taken up again has the bits of one that nobody stopped."""
    with Store.open(tmp_path / "s") as store:
        make(store, base, "ana").observe(LONG + B)
        twin = make(store, base, "twin")
        twin.observe(LONG + B)
        twin.sleep(SHORT)
        want, before = dict(twin.state), None
        twin.delete()
    hit = set()
    for stage in (0, 5, "sleep", "report", "commit"):
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            _until(tmp_path / "s", base, stage, writes)
        os.close(writes)
        with open(reads, "rb") as pipe:
            hit.add(pipe.read().decode())
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        with Store.open(tmp_path / "s") as store, Learner.open(store, "ana", base) as me:
            assert any("a night was stopped" in text for text in me.found)
            before = before or dict(me.state)
            assert differing(me, before) == [] and me.version.number == 1
            me.commit()  # whoever changes it next finds nothing to learn
            assert differing(me, before) == [] and me.nights() == []
            assert store.verify().faults == ()
    assert hit == {"replay", "sleep", "report", "commit"}
    with Store.open(tmp_path / "s") as store, Learner.open(store, "ana", base) as me:
        assert me.sleep(resume=True).action == "accept" and differing(me, want) == []
        me.forget(source="user")
        assert LONG[:20].encode() not in raw(store.folder) and me.nights() == []


def _until(folder, base, stage, pipe):
    """In the child: up to a step of the night, or the entry, the report or the version at its end; then SIGKILL."""

    def die(where):
        os.write(pipe, where.encode())
        os.kill(os.getpid(), signal.SIGKILL)

    with Store.open(folder) as store, Learner.open(store, "ana", base) as me, me.writing() as writer:
        remember, commit = writer.remember, writer.commit
        writer.remember = lambda *a, **k: (remember(*a, **k), a[-1] == stage and die(stage))[0]
        writer.commit = lambda *a, **k: (stage == "commit" and die(stage), commit(*a, **k))[1]
        me.sleep(SHORT, progress=lambda what, at, of: at == stage and die(what))
    os._exit(1)
