"""A whole night: presets, reports, budgets, stops; its filter, its schedule, its dreams, and the morning after."""

import json
import time
from dataclasses import replace
from datetime import datetime

import pytest
import torch

from circadia.sleep import (
    DEFAULT,
    PRESETS,
    Dreaming,
    Entry,
    Filter,
    Interrupted,
    Meter,
    Probe,
    Rehearsal,
    Replay,
    Report,
    Schedule,
    Settings,
    Task,
    due,
    preset,
    sleep,
)
from circadia.sleep.dream import _loss, chosen, dream, importance, random_expert, tasks_of
from circadia.sleep.filter import check, otherwise
from circadia.sleep.rehearse import anchored, read, step, unanchored
from circadia.sleep.schedule import last, until
from circadia.sleep.schedule import read as read_by_clock
from circadia.sleep.student import Student, Teacher, written
from circadia.sleep.windows import losses, probes, scores, surprising
from tests.models.retrofit.conftest import same, text
from tests.sleep.conftest import seeded


def small(settings):
    """The same arm, with less of everything."""
    sizes = {"texts": 6, "length": 6, "prefix": 4, "steps": 3, "rows": 4, "group": 2}
    parts = {
        "replay": {"length": 8, "presentations": 2, "answer": 3, "rows": 4, "every": 3},
        "seeding": sizes,
        "again": sizes,
        "dreaming": {"length": 6, "tasks": 1, "relations": 1, "candidates": 4, "keep": 1, "steps": 2, "learn": 2},
    }
    return settings.but(dreams=8, dream_length=8, **{n: p for n, p in parts.items() if getattr(settings, n)})


@pytest.fixture
def two(tiny, journal):
    """A model of two levels, and its self after a day."""
    levels = dict(capacity=["full", "lowrank"], slots=[1, 4], rank=2, rate=0.5)
    model = tiny(periods=(8, 16), config={"num_hidden_layers": 1}, **levels)
    return model, model.learn(torch.cat([entry.tokens for entry in journal]), model.start())[1]


@pytest.mark.parametrize("name", PRESETS)
def test_every_arm(two, journal, name):
    model, state = two
    kept = {n: x.clone() for n, x in state.items()}
    settings = small(preset(name)).but(inner=min(2, preset(name).inner))
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    new, report = sleep(model, state, journal, settings, seed=3)
    same(state, kept)
    changed = {n for n in new if n in state and not torch.equal(new[n], state[n])}
    assert bool(changed) == (name != "no-sleep")
    assert not any(n.startswith(("stream/", "clock/")) for n in changed)
    if name in ("full", "journal-replay", "self-generated"):
        same(new, sleep(model, state, journal, settings, seed=3)[0])
        assert any(not torch.equal(x, new[n]) for n, x in sleep(model, state, journal, settings, seed=4)[0].items())
    data = json.loads(report.json())
    assert data["preset"] == name and data["entries"] == 4 and not data["refused"]
    assert all(p["before"] >= 0 and p["after"] >= 0 for p in data["probes"]) and len(data["probes"]) > 3
    assert (report.older[0] == report.older[1]) == (name == "no-sleep")
    assert f"# A night: {name}" in report.markdown() and "<h1>A night" in report.html()


def test_the_default_night_binds_the_day_and_keeps_the_stream(tiny):
    model = tiny(config={"initializer_range": 0.6})
    day = [Entry(text(24, seed=i), source="x", number=i) for i in range(3)]
    _, state = model.learn(torch.cat([e.tokens for e in day]), model.start())
    settings = preset().but(dreams=8, dream_length=16, replay=dict(length=16, presentations=800, rate=0.03, bound=0.7))
    assert settings.name == DEFAULT
    new, report = sleep(model, state, day, settings)
    assert report.bound[1] > 0.6 > 0.2 > report.bound[0]
    for name in ("clock/tokens", "stream/context", "stream/pending"):
        assert torch.equal(new[name], state[name])
    # Replay stops at the check after which enough is bound, so that its steps are fewer than all.
    assert report.parts[0]["part"] == "replay" and report.parts[0]["steps"] in (50, 100)
    # The next reading decays to the night's weights.
    name = "level0/anchor/delta/model.layers.0.mlp.up_proj"
    assert torch.equal(new[name], new[name.replace("anchor/", "")]) and name not in state


@pytest.mark.parametrize("at", [1, 5, 9, 14])
def test_a_stopped_night_changes_nothing_and_goes_on_with_the_same_bits(two, journal, at):
    model, state = two
    settings = small(preset("full"))
    probe = Probe("given", journal[0].tokens[:10], 6)
    whole, report = sleep(model, state, journal, settings, seed=1, probes=[probe])
    kept, count = {n: x.clone() for n, x in state.items()}, iter(range(10**6))
    with pytest.raises(Interrupted) as stopped:
        sleep(model, state, journal, settings, seed=1, probes=[probe], stop=lambda: next(count) == at)
    same(state, kept)
    seen = []
    again, later = sleep(
        model, state, journal, settings, seed=1, probes=[probe], resume=stopped.value.progress,
        progress=lambda what, i, n: seen.append((what, i)),
    )  # fmt: skip
    same(again, whole)
    assert [p | {"reward": 0} for p in later.parts] == [p | {"reward": 0} for p in report.parts]
    assert not seen or seen[0] != ("filter", 0) or at < 4


def test_what_a_stopped_night_has_can_be_given_twice(two, journal):
    model, state = two
    settings, count = small(preset("full")), iter(range(10**6))
    whole, _ = sleep(model, state, journal, settings, seed=1)
    with pytest.raises(Interrupted) as stopped:
        sleep(model, state, journal, settings, seed=1, stop=lambda: next(count) == 9)
    assert list(stopped.value.progress["held"]) == ["replay"]

    def crash():
        assert next(count) < 12, "in the middle of a part"

    with pytest.raises(AssertionError, match="in the middle"):
        sleep(model, state, journal, settings, seed=1, stop=crash, resume=stopped.value.progress)
    same(sleep(model, state, journal, settings, seed=1, resume=stopped.value.progress)[0], whole)


def test_a_budget_that_was_enough_has_ended_nothing(two, journal):
    model, state = two
    settings, costs = small(preset()), []
    new, report = sleep(model, state, journal, settings, progress=lambda *_: costs.append(1))
    cost = report.cost["read"] + report.cost["made"] + 3 * report.cost["learned"]
    for less in range(0, int(cost), 100):  # down to where the last step has begun
        paid, told = sleep(model, state, journal, settings, work=cost - less)
        if not told.stopped_by_budget:
            same(paid, new)
        else:
            assert told.parts[0]["steps"] < report.parts[0]["steps"]
            return
    pytest.fail("no budget was too small")


def test_dropout_is_off_asleep(tiny, journal):
    model = tiny(family="gpt2", config={"n_layer": 1})  # which has some while it is trained
    state, settings = model.start(), small(preset())
    want, _ = sleep(model, state, journal, settings, start=1)
    rested = step(model, state, [journal[0].tokens[:8]])
    model.train()
    same(sleep(model, state, journal, settings, start=1)[0], want)
    same(step(model, state, [journal[0].tokens[:8]]), rested)
    assert model.base.training


@pytest.mark.parametrize("positions", [64, 100])
def test_what_does_not_fit_into_a_short_base_is_left_out(tiny, positions):
    levels = dict(capacity=["full", "lowrank"], slots=[1, 3], rank=2)
    model = tiny(periods=(8, 16), family="gpt2", config={"n_positions": positions, "n_layer": 1}, **levels)
    day = [Entry(text(120, seed=10 + i), source="ab"[i % 2], number=i) for i in range(2)]
    short = {"replay": {"presentations": 1, "rows": 2}, "seeding": {"steps": 1, "length": 8, "rows": 2}}
    settings = preset("full").but(
        dreams=4, dream_length=8, **short, dreaming={"steps": 1, "learn": 1, "tasks": 2, "candidates": 4}
    )
    _, report = sleep(model, model.start(), day, settings, start=1)
    assert report.dropped and all(f"more than {positions} positions" in one for one in report.dropped)
    assert report.parts[-1]["part"] == "dreaming"


def test_budgets_end_a_night_early(two, journal):
    model, state = two
    settings = small(preset("full"))
    new, report = sleep(model, state, journal, settings, work=3000)
    assert report.stopped_by_budget and report.dropped == ["level 0 to 1: the budget was used up"]
    full, _ = sleep(model, state, journal, settings)
    assert any(not torch.equal(x, new[n]) for n, x in full.items())
    none, report = sleep(model, state, journal, small(preset()), seconds=1e-9)
    assert report.stopped_by_budget and all(torch.equal(none[n], x) for n, x in state.items())


def test_what_is_not_finite_is_refused(two, journal):
    model, state = two
    bad = {**state, "level0/grad/delta/model.layers.0.mlp.up_proj": torch.tensor(float("nan"))}
    new, report = sleep(model, bad, journal, small(preset()))
    assert "not finite" in report.refused and new is bad


def test_many_nights_hold_as_many_numbers(two, journal):
    model, state = two
    settings = small(preset("no-dreaming")).but(filter=None, replay=None)
    sizes, used = [], []
    for night in range(5):
        state, report = sleep(model, state, journal, settings, seed=night)
        sizes.append(report.sizes["parameters"])
        used.append(len(report.sizes["experts"]["level 1"]))
    assert len(set(sizes)) == 1 and used == [1, 2, 3, 3, 3]
    _, report = sleep(model, state, journal, settings.but(full="refuse"))
    assert "full='refuse'" in report.dropped[0] and report.sizes["experts"]["level 1"] == [1, 2, 3]


def test_windows_are_chosen_by_the_self_of_the_morning(tiny, journal):
    model = tiny(periods=(20,), rate=0.5)
    _, state = model.learn(torch.cat([entry.tokens for entry in journal]), model.start())
    _, slept = model.learn(text(80, seed=5), model.start())
    settings, found = small(preset()), []
    for who, morning in (("morning", slept), ("evening", slept), ("morning", state)):
        _, report = sleep(model, state, journal, settings.but(surprised=who), slept=morning)
        found.append([probe["name"] for probe in report.probes])
    want = surprising(Teacher(model, slept), journal, 8)
    assert found[0] == [f"{w.number}:{w.start}" for w in want] != found[1] == found[2]


def test_filter_holds_back_for_each_reason(two):
    model, state = two
    slow = Teacher(model, None)
    base = text(40, seed=1)
    bound = Probe("known", base[:12], 8)
    other = base[:30].clone()
    other[8:12] = (other[8:12] - 3 + 5) % 45 + 3
    entries = [
        Entry(text(30, seed=2), "a", 1.0, 1),
        Entry(text(30, seed=3), "b", 0.1, 2),
        Entry(text(30, seed=4), "c", 0.4, 3),
        Entry(text(30, seed=5), "d", 0.4, 4),
        Entry(text(30, seed=5), "e", 0.4, 5),
        Entry(other, "f", 1.0, 6),
        Entry(base[:30], "g", 1.0, 7),
    ]
    how = Filter(bound=99.0)
    passed, held = check(model, state, slow, entries, [bound], how, seeded(), Meter())
    assert [(h.number, h.reason) for h in held] == [(2, "low trust"), (3, "single source"), (6, "contradiction")]
    assert [e.number for e in passed] == [1, 4, 5, 7] and "known" in held[2].detail
    assert otherwise(entries[5], bound, 6) == other[8:12].tolist() and otherwise(entries[6], bound, 6) is None
    # A probe that is not bound yet says nothing; a person may let one pass.
    assert [h.number for h in check(model, state, slow, entries, [bound], Filter(bound=0.0), seeded(), Meter())[1]] == [
        2,
        3,
    ]
    assert [h.number for h in check(model, state, slow, entries, [bound], how, seeded(), Meter(), [2, 6])[1]] == [3]


def test_filter_asks_slow_memory_and_tries(tiny):
    model = tiny(config={"initializer_range": 0.6})
    fact, lie = text(24, seed=7), text(24, seed=8)
    how = preset().but(dreams=4, dream_length=8, replay=dict(length=23, presentations=300, dreams=0, rate=0.03))
    slept, _ = sleep(model, model.start(), [Entry(fact)], how)
    slow = Teacher(model, slept)
    twisted = fact.clone()
    twisted[[6, 12, 18]] = (twisted[[6, 12, 18]] + 9) % 45 + 3
    loose = Filter(sure=0.5, nats=2.0, wrong=0.1)
    _, held = check(model, slept, slow, [Entry(fact, number=1), Entry(twisted, number=2)], [], loose, seeded(), Meter())
    assert [(h.number, h.reason) for h in held] == [(2, "contradiction")]
    probe = Probe("fact", fact[:20], 12)
    assert scores(slow, [probe])[0] < 1.0
    trial = Filter(trial=60, rate=0.05, bound=1.0, wrong=1.0)
    _, held = check(model, slept, slow, [Entry(lie, number=3)], [probe], trial, seeded(), Meter())
    assert [h.reason for h in held] == ["failed probe"]


def test_a_quarantined_entry_is_not_learned(two, journal):
    model, state = two
    suspect = [*journal, Entry(text(40, seed=77), "spam", 0.1, 9)]
    clean, _ = sleep(model, state, journal, small(preset().but(filter=Filter())))
    filtered, report = sleep(model, state, suspect, small(preset().but(filter=Filter())))
    same(clean, filtered)
    assert report.quarantined[0]["number"] == 9 and "low trust" in report.markdown()


def test_due_by_the_clock_of_the_levels(tiny):
    model = tiny(periods=(4, 8, 16))
    assert [due(model, t) for t in (0, 3, 4, 8, 16)] == [[], [], [(0, 1)], [(0, 1), (1, 2)], [(0, 1), (1, 2)]]
    assert until(model, 5) == 3 and until(model, 8, level=1) == 8


def test_reading_by_the_clock_stops_before_a_level_overwrites_itself(tiny):
    model = tiny(periods=(8, 16), chunk=4)
    ids, met = text(37, seed=4), []

    def border(pairs, before, after):
        met.append((int(before["clock/tokens"]), int(after["clock/tokens"]), pairs))
        name = "level0/delta/model.layers.0.mlp.up_proj"
        assert int(before["level0/count"]) > 0 == int(after["level0/count"])
        assert not torch.equal(before[name], after[name])
        return after

    report, state = read_by_clock(model, ids, model.start(), border)
    assert met == [(t - 4, t, [(0, 1)]) for t in (8, 16, 24, 32)]
    plain, want = model.learn(ids, model.start())
    same(state, want)
    assert [c.surprise for c in report.chunks] == [c.surprise for c in plain.chunks] and report.pending == 1


def test_schedule_by_need():
    plan = Schedule(tokens=1000, idle=60, surprise=500, hour=3)
    noon = 1_700_000_000.0
    quiet = dict(now=noon, slept=noon - 3600, active=noon - 1, tokens=10, surprise=1.0)
    three = replace(plan, hour=None)
    assert three.why(**quiet) == []
    assert len(three.why(**quiet | dict(active=noon - 61))) == 1
    assert "1000 make a day" in three.why(**quiet | dict(tokens=1000))[0]
    assert "surprise" in three.why(**quiet | dict(surprise=500.0))[0]
    assert len(plan.why(**quiet | dict(slept=noon - 86400))) == 1 and plan.why(**quiet | dict(slept=noon)) == []
    nothing = quiet | dict(tokens=0, active=0.0, slept=0.0)
    assert plan.why(**nothing) == [] and plan.why(**nothing, asked=True) == ["on demand"]
    with pytest.raises(ValueError, match="hour=24"):
        Schedule(hour=24)


def test_the_hour_is_that_of_the_local_clock(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    try:
        time.tzset()
        for now, day in (
            ((3, 29, 1), (3, 28)),
            ((3, 29, 4), (3, 29)),
            ((10, 25, 1), (10, 24)),
            ((10, 26, 1), (10, 25)),
        ):
            found = datetime.fromtimestamp(last(datetime(2026, *now).timestamp(), 3))
            assert found == datetime(2026, *day, 3), now  # the night in which the clocks change, and those beside it
    finally:
        monkeypatch.undo()
        time.tzset()


def test_reading_decays_to_the_slept_weights(tiny):
    model = tiny(decay=0.5, rate=1e-9)
    slept = model.learn(text(16, 3), {n: x + 0.1 if "/delta/" in n else x for n, x in model.start().items()})[1]
    name = "level0/delta/model.layers.0.mlp.up_proj"
    _, free = model.learn(text(16, 5), slept)
    _, held = model.learn(text(16, 5), anchored(model, slept))
    torch.testing.assert_close(free[name], slept[name] * 0.25, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(held[name], slept[name], rtol=1e-3, atol=1e-6)
    same(unanchored(model, anchored(model, slept)), slept)


def test_a_rehearsal_step_is_a_step_of_the_level(tiny):
    model = tiny(rate=0.5, decay=0.3, clip=None)
    rows = [text(9, seed=1), text(6, seed=2)]
    state = model.learn(text(8, 3), model.start())[1]
    new = step(model, state, rows)
    deltas = {n: x.detach().requires_grad_() for n, x in state.items() if "/delta/" in n}
    from torch.func import functional_call

    weights = {n.split("/")[-1] + ".weight": x for n, x in deltas.items()}
    whole = {n: model.base.get_parameter(n).detach() + x for n, x in weights.items()}
    total = 0
    for row in rows:
        logits = functional_call(model.base, whole, (row[None, :-1],), {"use_cache": False}).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits, row[1:]) / 2
    grads = torch.autograd.grad(total, list(deltas.values()))
    for (name, x), g in zip(deltas.items(), grads):
        torch.testing.assert_close(new[name], x.detach() - 0.5 * g, rtol=1e-4, atol=1e-6)
    assert int(new["level0/steps"]) == int(state["level0/steps"]) + 1
    same({n: x for n, x in new.items() if n not in deltas and n != "level0/steps"},
         {n: x for n, x in state.items() if n not in deltas and n != "level0/steps"})  # fmt: skip


def test_rehearsal_keeps_within_its_budget_and_keeps_what_it_rehearses(tiny):
    model = tiny(rate=0.5)
    rows = [text(8, seed=1)]
    state = model.start()
    for _ in range(40):
        state = step(model, state, rows)
    other = text(160, seed=5)
    none, some, little = Rehearsal([]), Rehearsal(rows, every=1, count=1), Rehearsal(rows, every=1, count=1, budget=0.2)
    ends = [read(model, other, state, r) for r in (none, some, little)]
    kept = [float(losses(Teacher(model, end), rows)[0].mean()) for _, end in ends]
    assert kept[1] < kept[2] < kept[0]
    assert some.tokens == 20 * 7 and little.tokens <= 0.2 * 160 < little.tokens + 7
    same(ends[0][1], model.learn(other, state)[1])


def test_dreams_that_help_are_rewarded_and_learned(two):
    model, state = two
    (window,) = surprising(Teacher(model, state), [Entry(text(24, 3), "a", number=1)], 12, span=24)
    (probe,) = probes(Teacher(model, state), [window], 3)
    how = Dreaming(candidates=6, keep=2, random=1, length=6, steps=4, learn=6, learn_rate=0.02)
    new, made = dream(model, state, [Task("t", window.tokens, (probe,))], how, "slowest", seeded(1), Meter())
    assert len(made) == 3 and {d.reward for d in made} <= {0, 1}
    assert all(d.reward == (d.after < d.before) for d in made)
    assert all(d.before == pytest.approx(scores(Teacher(model, state), [probe])[0]) for d in made)
    good = [d for d in made if d.reward]
    assert good, "none helped with this seed: take another"
    rows = [torch.cat((window.tokens, d.tokens)) for d in good]
    cost = [sum(float(x[12:].mean()) for x in losses(Teacher(model, s), rows)) for s in (state, new)]
    assert cost[1] < cost[0]


def test_a_dream_is_learned_behind_its_task_alone(two):
    model, state = two
    rows, student = [text(9, 1), text(7, 2)], Student(model, state, [])
    want = [float(each[skip:].mean()) for each, skip in zip(losses(Teacher(model, state), rows), (4, 2))]
    assert float(_loss(student, rows, [5, 3], Meter())) == pytest.approx(sum(want) / 2, rel=1e-5)


def test_selection_by_hand(two):
    # The first is best; the second says the same and loses by it, so that the third is taken.
    how = Dreaming(candidates=3, keep=2, random=0, eta=1.0)
    values, overlap = torch.tensor([3.0, 2.5, 1.0]), torch.tensor([[4.0, 3.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    assert chosen(values, overlap, how, seeded()) == [0, 2] and chosen(values, None, how, seeded()) == [0, 1]
    model, state = two
    task = Task("t", torch.tensor([5, 6, 7, 8, 9]), (Probe("p", text(8, 1), 4),))
    rows = [torch.tensor([5, 6, 7, 8, 30]), torch.tensor([9, 8, 7, 6, 5])]
    values, _ = importance(model, state, task, rows, replace(how, select="overlap", gram=4), 0, Meter())
    assert values.tolist() == [0.5, 0.0]
    # The probe's own text points where the probe's gradient does.
    same_text = [task.probes[0].tokens, text(8, 2)]
    for select in ("greats", "influence"):
        values, _ = importance(model, state, task, same_text, replace(how, select=select), 0, Meter())
        assert values[0] > values[1]
    norms, _ = importance(model, state, task, same_text, replace(how, select="norm"), 0, Meter())
    assert bool((norms > 0).all())


def test_dreams_of_two_experiences_are_from_different_sources(two, journal):
    model, state = two
    who = Teacher(model, state)
    windows = surprising(who, journal, 8)
    own = probes(who, windows, 3)
    source = {f"{w.number}:{w.start}": w.source for w in windows}
    found = tasks_of(windows, own, Dreaming(tasks=2, relations=3), seeded())
    pairs = [task for task in found if len(task.probes) == 2]
    assert len(found) == 5 and len(pairs) == 3
    assert all({source[p.name] for p in task.probes} == {"a", "b"} for task in pairs)


def test_the_random_expert_is_one_in_use_or_of_the_size_asked_for(two):
    model, state = two
    how = Dreaming(noise=0.25)
    for name, (a, b) in random_expert(model, state, how, seeded()).items():
        weight = model.sites[name].matrix.weight
        assert float((b @ a).norm()) == pytest.approx(0.25 * float(weight.norm()), rel=1e-4)
    used = model.allocate(state, 1, 2)
    site = model.own[1][0].name
    assert torch.equal(random_expert(model, used, how, seeded())[site][0], used[f"level1/a/{site}"][2])


def test_errors_name_what_is_wrong(two, tiny, journal):
    model, state = two
    with pytest.raises(ValueError, match="preset='good'"):
        sleep(model, state, journal, "good")
    with pytest.raises(ValueError, match="the model knows 0 to 47"):
        sleep(model, state, [Entry(torch.tensor([99]))])
    with pytest.raises(ValueError, match="has token -1: the model knows 0 to 47"):
        sleep(model, state, [Entry(torch.tensor([5, -1]))])
    with pytest.raises(ValueError, match="2 entries have number=0"):
        sleep(model, state, [Entry(text(20)), Entry(text(20, 1))])
    for tokens, cue in ((text(8), 0), (text(8), 8), (text(1), 1)):
        with pytest.raises(ValueError, match=f"probe 'p': cue={cue} of {len(tokens)} tokens"):
            Probe("p", tokens, cue)
    with pytest.raises(ValueError, match="task 't' has no probes"):
        Task("t", text(8), ())
    with pytest.raises(ValueError, match="into=7"):
        written(model, 7, state)
    with pytest.raises(ValueError, match="sleeps=3 is no setting"):
        Settings.from_dict({"sleeps": 3})
    with pytest.raises(ValueError, match="rows=0"):
        Replay(rows=0)
    single, whole = tiny(), tiny(target="all")
    for who, settings, said in (
        (single, small(preset("two-teacher")), "seeding has no pair of levels"),
        (model, small(preset("full")).but(pairs=((0, 5),)), "sender=0, receiver=5"),
        (tiny(periods=(8, 16)), small(preset("full")).but(pairs=((0, 1),)), "level 1 has no pool of experts"),
        (model, small(preset()).but(into="slow"), "into='slow'"),
        (whole, small(preset().but(dreaming=Dreaming())), "target='all'"),
    ):
        with pytest.raises(ValueError, match=said):  # before anything is done
            sleep(who, who.start(), journal, settings, stop=lambda: pytest.fail("the night has begun"))


def test_a_probe_without_a_number_is_told_again():
    report = Report(probes=[{"name": "x", "before": float("inf"), "after": 1.0}])
    again = Report.from_dict(json.loads(report.json()))
    assert "| x | nan | 1.000 |" in again.markdown() and again.json() == report.json()


def test_a_night_without_a_day_teaches_nothing(two):
    model, state = two
    new, report = sleep(model, state, [], small(preset()))
    assert report.windows == 0 and report.json() and "–" in report.markdown() and report.parts[0]["bound"] is None
    assert all(torch.equal(new[n], x) for n, x in state.items())


def test_a_slept_state_is_saved_and_read_on(two, journal, tmp_path):
    model, state = two
    slept, _ = sleep(model, state, journal, small(preset()))
    model.save_state(slept, tmp_path / "slept.safetensors")
    again = model.load_state(tmp_path / "slept.safetensors")
    same(again, slept)
    same(model.learn(text(20, 8), again)[1], model.learn(text(20, 8), slept)[1])


def test_settings_change_part_by_part():
    made = preset().but(replay={"rows": 3}, dreaming={"keep": 2})
    assert made.replay == replace(preset().replay, rows=3) and made.dreaming == Dreaming(keep=2)
