"""Windows by surprise, probes, sampling, and replay."""

import pytest
import torch

from circadia.sleep import Entry, Meter, Probe, Replay
from circadia.sleep.losses import divergence
from circadia.sleep.replay import replay
from circadia.sleep.sample import sample, starts
from circadia.sleep.student import Student, Teacher, apart, written
from circadia.sleep.windows import batch, losses, probes, scores, share_bound, surprising
from tests.models.retrofit.conftest import same, text
from tests.sleep.conftest import seeded


def test_the_window_is_where_the_loss_is_highest(tiny):
    model = tiny()
    who = Teacher(model, None)
    entry = Entry(text(24, seed=3), source="x", number=7)
    (window,) = surprising(who, [entry], length=6, span=24)
    with torch.no_grad():
        logits = model.base(entry.tokens[None, :-1]).logits[0]
    each = torch.nn.functional.cross_entropy(logits, entry.tokens[1:], reduction="none")
    means = [float(each[i : i + 6].mean()) for i in range(each.numel() - 5)]
    best = max(range(len(means)), key=means.__getitem__)
    assert window.start == best and window.surprise == pytest.approx(means[best], rel=1e-5)
    assert torch.equal(window.tokens, entry.tokens[best : best + 7])
    assert (window.number, window.source) == (7, "x")


def test_padding_is_no_label():
    ids, labels = batch([torch.tensor([5, 6, 7, 8]), torch.tensor([9, 4])])
    assert ids[0].tolist() == [5, 6, 7] and int(ids[1, 0]) == 9
    assert labels.tolist() == [[6, 7, 8], [4, -100, -100]]


def test_rows_of_other_lengths_beside_it_change_nothing(tiny):
    who = Teacher(tiny(), None)
    rows = [text(20, seed=1), text(7, seed=2), text(13, seed=4)]
    together = losses(who, rows)
    for row, each in zip(rows, together):
        torch.testing.assert_close(each, losses(who, [row])[0], rtol=1e-5, atol=1e-5)


def test_how_far_two_are_apart_is_measured_some_rows_at_a_time(tiny):
    model = tiny(rate=0.5)
    one, other = Teacher(model, None), Teacher(model, model.learn(text(40), model.start())[1])
    ids, seen = text(70, seed=3).view(7, 10), []
    want = float(divergence(one.logits(ids), other.logits(ids)))
    hook = model.base.register_forward_hook(lambda base, given, made: seen.append(len(made.logits)))
    assert apart(one, other, ids, 3) == pytest.approx(want, rel=1e-5) and want > 0.01
    hook.remove()
    assert seen == [3, 3, 3, 3, 1, 1]


def test_the_most_surprising_are_kept_in_order(tiny):
    who = Teacher(tiny(), None)
    entries = [Entry(text(40, seed=i), number=i) for i in range(5)]
    every = surprising(who, entries, length=5)
    kept = surprising(who, entries, length=5, limit=4)
    best = sorted((w.surprise for w in every), reverse=True)[:4]
    assert sorted((w.surprise for w in kept), reverse=True) == best
    assert [(w.number, w.start) for w in kept] == sorted((w.number, w.start) for w in kept)


def test_a_probe_asks_for_what_was_hard(tiny):
    who = Teacher(tiny(), None)
    (window,) = surprising(who, [Entry(text(24, seed=3))], length=16, span=24)
    (probe,) = probes(who, [window], answer=3)
    each = losses(who, [window.tokens])[0]
    at = probe.cue - 1
    assert probe.cue >= 5 and float(each[at : at + 3].mean()) == pytest.approx(
        max(float(each[i : i + 3].mean()) for i in range(4, 14)), rel=1e-5
    )
    assert scores(who, [probe])[0] == pytest.approx(float(each[at : at + 3].mean()), rel=1e-5)
    assert share_bound([0.1, 0.3, 0.2, 9.0], 0.2) == 0.5


@pytest.mark.parametrize("family", ["llama", "gpt2", "circadia"])
def test_sampling_with_a_cache_equals_reading_everything_again(tiny, family):
    model = tiny(family=family)
    _, state = model.learn(text(16, seed=5), model.start())
    who, prompts = Teacher(model, state), torch.tensor([[4, 9], [7, 3], [30, 31]])
    made = sample(who, prompts, 9, seeded(1), batch=2)
    ids = []
    generator = seeded(1)
    for part in prompts.split(2):
        for _ in range(9):
            with torch.no_grad(), model.wearing(state) as base:
                chances = base(part, use_cache=False).logits[:, -1].softmax(-1)
            part = torch.cat((part, torch.multinomial(chances, 1, generator=generator)), 1)
        ids.append(part)
    assert torch.equal(made, torch.cat(ids))
    assert not torch.equal(made, sample(who, prompts, 9, seeded(2), batch=2))


def test_texts_start_where_the_base_says(tiny):
    model = tiny()
    assert starts(model, 2).tolist() == [[1], [1]] and starts(model, 1, start=5).tolist() == [[5]]
    assert starts(tiny(family="circadia", config={"bos_token_id": None, "vocab_size": 256}), 1).tolist() == [[10]]


def run(model, state, rows, how, dreams=None, older=None, asked=(), seed=0, **budget):
    student = Student(model, state, written(model, "slowest", state))
    meter = Meter(**budget)
    told = replay(student, rows, dreams, older, list(asked), how, seeded(seed), meter, {})
    return told, student.state(), meter


def test_replay_binds_what_it_repeats_and_stops_when_it_is_bound(tiny):
    model = tiny(config={"initializer_range": 0.6})  # so that its logits can be large
    rows = [text(12, seed=20), text(12, seed=21)]
    asked = [Probe("a", rows[0], 6), Probe("b", rows[1], 6)]
    how = Replay(rows=4, presentations=400, rate=0.05, every=10, bound=0.3, enough=1.0)
    told, state, meter = run(model, model.start(), rows, how, asked=asked)
    before, after = scores(Teacher(model, None), asked), scores(Teacher(model, state), asked)
    assert max(after) <= 0.3 < min(before) and told["bound"] == 1.0
    assert told["steps"] < 200 and told["steps"] % 10 == 0  # 200 is all of the presentations
    assert meter.learned == told["steps"] * 4 * 11


def test_dreams_of_an_older_self_hold_it(tiny):
    model = tiny()
    rows = [text(12, seed=20), text(12, seed=21)]
    older = Teacher(model, None)
    dreams = sample(older, starts(model, 16), 12, seeded(3))
    fresh = sample(older, starts(model, 16), 12, seeded(4))
    free = run(model, model.start(), rows, Replay(rows=4, presentations=60, rate=0.01, dreams=0), dreams, older)
    held = run(model, model.start(), rows, Replay(rows=4, presentations=60, rate=0.01, dreams=4), dreams, older)
    own = torch.cat(losses(older, list(fresh))).mean()
    drift = [float(torch.cat(losses(Teacher(model, r[1]), list(fresh))).mean() - own) for r in (free, held)]
    assert drift[1] < 0.6 * drift[0]


def test_only_what_is_named_is_written(tiny):
    model = tiny(periods=(8, 16), assign="stacked", capacity=["full", "lowrank"], rank=2, slots=[1, 3])
    _, state = model.learn(text(32, seed=6), model.start())
    rows = [text(12, seed=20)]
    student = Student(model, state, written(model, 1, state))
    replay(student, rows, None, None, [], Replay(rows=2, presentations=6), seeded(), Meter(), {})
    after = student.state()
    moved = {name for name in state if not torch.equal(state[name], after[name])}
    assert moved and all(name.startswith(("level1/a/", "level1/b/")) for name in moved)
    for name in moved:  # slots 1 and 2 are not in use
        assert torch.equal(state[name][1:], after[name][1:])
    same({n: x for n, x in state.items() if n not in moved}, {n: x for n, x in after.items() if n not in moved})


def test_a_budget_ends_it_and_a_seed_fixes_it(tiny):
    model = tiny()
    rows, how = [text(12, seed=20), text(12, seed=21)], Replay(rows=2, presentations=30)
    told, state, meter = run(model, model.start(), rows, how, work=500)
    assert told["steps"] == -(-500 // (3 * 2 * 11)) and meter.over
    same(state, run(model, model.start(), rows, how, work=500)[1])
    assert not torch.equal(
        state["level0/delta/model.layers.0.mlp.up_proj"],
        run(model, model.start(), rows, how, work=500, seed=1)[1]["level0/delta/model.layers.0.mlp.up_proj"],
    )


def test_every_parameter_can_be_written(tiny):
    model = tiny(target="all")
    rows = [text(12, seed=20)]
    _, state, _ = run(model, model.start(), rows, Replay(rows=2, presentations=40, rate=0.01))
    before, after = (losses(Teacher(model, s), rows)[0].mean() for s in (None, state))
    assert after < 0.7 * before
