"""Windows in the self's own words: what is kept of what it says, questions, and a night with both."""

import pytest
import torch

from circadia.sleep import Dreaming, Entry, Interrupted, Meter, Replay, Settings, preset, sleep, words
from circadia.sleep.dream import tasks_of
from circadia.sleep.replay import replay
from circadia.sleep.student import Student, Teacher, written
from circadia.sleep.windows import losses, probes, surprising
from tests.models.retrofit.conftest import same, text
from tests.sleep.conftest import seeded
from tests.sleep.test_night import small


@pytest.fixture
def loose(monkeypatch):
    """What a random model says is kept, if the window makes it likelier."""
    monkeypatch.setattr(words, "KEEPS", 0.0)
    monkeypatch.setattr(words, "ALIKE", (0.0, 1.0))


@pytest.fixture
def day(tiny):
    """A model that reads, its self after a day, windows and their probes."""
    model = tiny(rate=0.5)
    entries = [Entry(text(24, seed=i), "ab"[i % 2], number=i) for i in range(3)]
    state = model.learn(torch.cat([e.tokens for e in entries]), model.start())[1]
    who = Teacher(model, state)
    found = surprising(who, entries, 12, span=24)
    return model, state, who, found, probes(who, found, 3)


def nats(model, state, first, rest):
    """Mean loss of `rest` after `first`, by hand."""
    ids = torch.cat((first, rest))
    with torch.no_grad(), model.wearing(state) as base:
        logits = base(ids[None, :-1]).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[-rest.numel() :], rest))


def test_the_point_is_kept_by_what_was_said_and_not_by_what_was_given():
    window, point = torch.arange(10, 30), torch.arange(20, 26)
    says = lambda text, given=0: words.says(torch.tensor(text), given, window, point)  # noqa: E731
    other = [*range(40, 46), *range(20, 24), *range(26, 30)]
    assert words.run(other, point.tolist()) == 4 and words.run([1, 20, 2, 21, 22], point.tolist()) == 2
    assert says(other) and not says(other, given=9)
    assert not says(window.tolist()), "a copy"
    assert not says([*range(40, 60), *range(20, 26)]), "something else"
    assert not says([*range(10, 20), *range(40, 44), 20, 21]), "two of six are not the point"


def test_what_the_window_makes_likelier_is_taken(day, monkeypatch):
    model, state, who, (window, *_), _ = day
    said = [text(9, seed=50 + i) for i in range(5)] + [text(9, seed=50)]
    start, ask = torch.tensor([1]), (7, 9)
    before = torch.cat((window.tokens, torch.tensor(ask)))
    gains = [nats(model, state, start, x) - nats(model, state, before, x) for x in said]
    meter = Meter()
    assert words.about(who, window.tokens, said, [0] * 6, ask, meter, None) == pytest.approx(gains, abs=1e-4)
    assert meter.read == 6 * (before.numel() + 1 + 2 * 9)
    want = [i for i in sorted(range(5), key=lambda i: -gains[i]) if gains[i] > 0]
    assert 1 < len(want) < 5, "take other texts"
    monkeypatch.setattr(words, "said", lambda who, rows, given, *_: said if given == 0 else [])
    monkeypatch.setattr(words, "says", lambda text, *_: True)
    monkeypatch.setattr(words, "TRIES", 12 // len(want))
    found = words.variations(who, [window], {window.name: window.tokens[5:8]}, len(want), ask, seeded(), meter)
    assert [x.tolist() for x in found[0]] == [said[i].tolist() for i in want], "the likeliest first, none twice"
    one = words.variations(who, [window], {window.name: window.tokens[5:8]}, 1, ask, seeded(), meter)
    assert [x.tolist() for x in one[0]] == [said[want[0]].tolist()]


def test_variations_are_sampled_with_the_window_before_them(day, loose, monkeypatch):
    model, state, who, found, own = day
    seen = []
    sampled = words.sample
    monkeypatch.setattr(
        words, "sample", lambda who, prompts, *rest: seen.append(prompts) or sampled(who, prompts, *rest)
    )
    points, meter = {p.name: p.tokens[p.cue :] for p in own}, Meter()
    made = words.variations(who, found, points, 2, (), seeded(3), meter)
    assert [p[0].tolist() for p in seen] == [
        [*found[0].tokens.tolist(), 1], [*found[0].tokens.tolist(), 1, *found[0].tokens[:3].tolist()]
    ]  # fmt: skip
    assert all(p.shape[0] == 3 * 4 for p in seen) and meter.made == 2 * 12 * (13 + 1 + 13)
    assert sum(map(len, made)) > 2 and all(x.numel() == 13 for texts in made for x in texts)
    for window, texts in zip(found, made):
        assert all(nats(model, state, torch.cat((window.tokens, torch.tensor([1]))), x)
                   < nats(model, state, torch.tensor([1]), x) for x in texts)  # fmt: skip
    again = words.variations(who, found, points, 2, (), seeded(3), Meter())
    assert [[x.tolist() for x in texts] for texts in made] == [[x.tolist() for x in texts] for texts in again]
    assert words.variations(who, found, {}, 2, (), seeded(3), Meter()) == [[], [], []], "no point, nothing to keep"


def test_a_base_of_few_positions_says_less_or_nothing(tiny):
    model = tiny(config={"max_position_embeddings": 20})
    who, rows = Teacher(model, None), [text(13, 1)]
    (said,) = words.said(who, rows, 2, 13, (), seeded(), Meter(), None)
    assert said.numel() == 20 - 14 and torch.equal(said[:2], rows[0][:2])
    assert words.said(who, [text(18, 1)], 0, 18, (), seeded(), Meter(), None) == []


def test_a_question_is_a_beginning_that_the_window_answers(day, monkeypatch):
    model, state, who, (window, *_), (probe, *_) = day
    cues = [text(probe.cue, seed=80 + i) for i in range(6)]
    monkeypatch.setattr(words, "said", lambda *_: cues)
    answer, before = probe.tokens[probe.cue :], torch.cat((window.tokens, torch.tensor([1])))
    gains = []
    for cue in cues:
        far = nats(model, state, torch.cat((torch.tensor([1]), cue)), answer)
        gains.append(far - nats(model, state, torch.cat((before, cue)), answer))
    order = [i for i in sorted(range(6), key=lambda i: -gains[i]) if gains[i] > 0]
    assert 1 < len(order) < 6, "take other cues"
    found = words.questions(who, window, probe, 9, (), seeded(), Meter())
    assert [q.tokens[: q.cue].tolist() for q in found] == [cues[i].tolist() for i in order]
    assert all(torch.equal(q.tokens[q.cue :], answer) for q in found)
    assert found[0].name == f"{probe.name}, asked anew 1"
    anew = lambda w, p: words.questions(who, w, p, 1, (), seeded(), Meter()) if w is window else []  # noqa: E731
    tasks = tasks_of(day[3], day[4], Dreaming(tasks=3), seeded(), anew)
    asked = {task.name: [p.name for p in task.probes] for task in tasks[:3]}
    assert asked[probe.name] == [probe.name, found[0].name] and sorted(map(len, asked.values())) == [1, 1, 2]


def test_replay_shows_a_window_and_its_variations_in_turn(tiny):
    model = tiny(config={"initializer_range": 0.6})
    rows, others = [text(12, 1), text(12, 2)], [[text(12, 3)], []]
    ends = []
    for beside in (others, (), [[], []]):
        student, meter = Student(model, model.start(), written(model, "slowest", model.start())), Meter()
        how = Replay(presentations=300, rows=4, dreams=0, rate=0.03)
        told = replay(student, rows, None, None, [], how, seeded(), meter, {}, beside)
        costs = [float(x.mean()) for x in losses(student, [*rows, text(12, 3)])]
        ends.append((student.state(), told["steps"], meter.learned, costs))
    same(ends[1][0], ends[2][0])
    assert ends[0][1:3] == ends[1][1:3], "a night is not longer by them"
    assert max(ends[0][3]) < 0.3 and max(ends[1][3][:2]) < 0.3 < 2 < ends[1][3][2]


def test_a_night_in_its_own_words(day, loose):
    model, state, _, _, _ = day
    entries = [Entry(text(24, seed=i), "ab"[i % 2], number=i, correction=i == 2) for i in range(3)]
    dreaming = {"length": 6, "tasks": 1, "relations": 0, "candidates": 3, "keep": 1, "steps": 2, "learn": 2}
    plain = small(preset()).but(replay={"length": 12}, dreaming=dreaming, corrections=3)
    how = plain.but(replay={"variations": 2}, dreaming={"questions": 2}, ask=(5,))
    assert Settings.from_dict(how.to_dict() | {"ask": [5]}) == how
    new, report = sleep(model, state, entries, how, seed=2)
    same(new, sleep(model, state, entries, how, seed=2)[0])
    without, bare = sleep(model, state, entries, plain, seed=2)
    assert any(not torch.equal(x, without[n]) for n, x in new.items())
    (part, _), (old, _) = report.parts, bare.parts
    assert part["variations"] > 2 and part["steps"] == old["steps"] and "variations" not in old
    assert report.cost["made"] > bare.cost["made"] and report.cost["read"] > bare.cost["read"]
    assert any(d["about"].endswith("in other words") for d in report.dreams)
    for at in (0, 1, 6):
        count = iter(range(10**6))
        with pytest.raises(Interrupted) as stopped:
            sleep(model, state, entries, how, seed=2, stop=lambda at=at, count=count: next(count) == at)
        same(sleep(model, state, entries, how, seed=2, resume=stopped.value.progress)[0], new)


def test_nothing_is_made_when_the_budget_is_used_up(day, loose):
    model, state, *_ = day
    how = small(preset()).but(replay={"variations": 2})
    _, report = sleep(model, state, [Entry(text(24, seed=1))], how, work=1)
    assert report.dropped == ["replay: the budget was used up"] and report.cost["made"] == 8 * 8


def test_the_arm_with_everything_has_both():
    assert preset("full").replay.variations and preset("full").dreaming.questions
    assert not preset().replay.variations and not Dreaming().questions


def test_errors(day):
    with pytest.raises(ValueError, match="the model knows tokens 0 to 47"):
        sleep(day[0], day[1], [], small(preset()).but(ask=(5, 48)))
    with pytest.raises(ValueError, match="variations=2 are of windows, which whole=True has not"):
        Replay(whole=True, variations=2)
    with pytest.raises(ValueError, match="variations=-1"):
        Replay(variations=-1)
    with pytest.raises(ValueError, match="questions=-1"):
        Dreaming(questions=-1)
    with pytest.raises(ValueError, match="ask='In other words:'"):
        Settings(ask="In other words:")
