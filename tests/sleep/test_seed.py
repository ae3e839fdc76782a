"""Knowledge seeding and the transfer between levels; the pool of experts."""

import pytest
import torch

from circadia.models.retrofit import retrofit
from circadia.sleep import Meter, pool
from circadia.sleep.consolidate import consolidate, prospective
from circadia.sleep.losses import divergence
from circadia.sleep.sample import sample, starts
from circadia.sleep.seed import Seeding, imitated, taught, texts
from circadia.sleep.student import Student, Teacher
from circadia.sleep.windows import surprising
from tests.models.retrofit.conftest import base_of, same, text
from tests.sleep.conftest import seeded

SHORT = dict(texts=8, length=8, prefix=4, rows=4, steps=3, group=2)


@pytest.fixture
def two(tiny):
    """A whole fast level, and a slow one of experts."""

    def make(**settings):
        given = dict(capacity=["full", "lowrank"], rank=3, slots=[1, 4], chunk=8, rate=0.5) | settings
        return tiny(periods=(16, 32), **given)

    return make


def learned(model, tokens=56, seed=6):
    return model.learn(text(tokens, seed, period=12), model.start())[1]


def logits(model, state):
    return Teacher(model, state).logits(text(24, 9)[None])


@pytest.mark.parametrize("gate", ["always", "router"])
def test_only_the_new_expert_changes(two, gate):
    model = two(gate=["always", gate])
    before = learned(model)
    after = prospective(model, before, 0)
    assert not torch.equal(
        before["level0/delta/model.layers.0.mlp.up_proj"], after["level0/delta/model.layers.0.mlp.up_proj"]
    )
    weights = {name: p.clone() for name, p in model.base.named_parameters()}
    state, told = consolidate(model, before, after, 0, 1, Seeding(**SHORT), [], seeded(), Meter(), {})
    for name, x in state.items():
        if name.startswith(("level1/a/", "level1/b/", "level1/gate/")):
            assert torch.equal(x[0], after[name][0]) and torch.equal(x[2:], after[name][2:]), name
            assert not torch.equal(x[1], model.allocate(after, 1, 1)[name][1]), name
        elif name == "level1/mask":
            assert x.tolist() == [True, True, False, False]
        else:
            assert torch.equal(x, after[name]), name
    assert any(name.startswith("level1/gate/") for name in state) == (gate == "router")
    assert all(torch.equal(p, weights[name]) for name, p in model.base.named_parameters())
    assert told["moved"].startswith("level 0 into expert 1 of level 1")


def test_the_prospective_update_is_the_one_that_learning_makes(two):
    model = two()
    ids = text(16, 3)
    _, half = model.learn(ids[:8], model.start())
    name = "level0/delta/model.layers.0.mlp.up_proj"
    assert not bool(half[name].any()) and int(half["level0/count"]) == 7
    made = prospective(model, half, 0)
    gradient = half["level0/grad/delta/model.layers.0.mlp.up_proj"] / 7
    assert int(made["level0/count"]) == 0 and torch.equal(made["clock/tokens"], half["clock/tokens"])
    # Gradient descent: along the gradient, by the rate, the clip and the decay of the first update.
    along = torch.nn.functional.cosine_similarity(-made[name].flatten(), gradient.flatten(), dim=0)
    assert float(along) == pytest.approx(1.0, abs=1e-5)
    same(half, model.learn(ids[:8], model.start())[1])
    assert prospective(model, made, 0) is made


def test_a_slow_level_ahead_of_its_period_counts_what_the_fast_one_still_holds():
    """`listen` of a whole period says nothing new, but makes each level add up its gradients by itself."""
    ids = text(32, 3)
    ends = []
    for listen in (None, [8, 16]):
        model = retrofit(base_of("llama"), [8, 16], chunk=4, listen=listen)
        _, state = model.learn(ids[:12], model.start())
        state = prospective(model, state, 1)
        ahead = {name: x for name, x in state.items() if name.startswith("level1/delta/")}
        assert any(bool(x.any()) for x in ahead.values())
        ends.append((ahead, model.learn(ids[12:], state)[1]))
    (ahead, end), (alone, after) = ends
    for name, x in ahead.items():
        torch.testing.assert_close(x, alone[name], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(end[name], after[name], rtol=1e-4, atol=1e-7)
    assert int(end["level1/count"]) == 0


def test_a_freed_sender_comes_back_through_the_receiver(two):
    model = two(rate=1.0)
    before = learned(model, 160)
    how = Seeding(**SHORT | dict(steps=50, texts=32, rows=16), alpha=1.0, free="all", on_policy=0.3, rate=0.03)
    state, told = consolidate(model, before, before, 0, 1, how, [], seeded(), Meter(), {})
    emptied = pool.freed(model, before, 0, "all")
    fresh = sample(Teacher(model, before), starts(model, 32), 12, seeded(5))[:, :-1]
    want = Teacher(model, before).logits(fresh)
    lost, left = (float(divergence(want, Teacher(model, s).logits(fresh))) for s in (emptied, state))
    assert left < 0.5 * lost and told["distance_last"] < told["distance_first"]
    assert not any(bool(x.any()) for n, x in state.items() if n.startswith("level0/delta/"))


@pytest.mark.parametrize("weigh", [None, lambda chunk: 0.5], ids=["whole", "by half"])
def test_a_sender_freed_ahead_of_its_period_counts_no_token_twice(tiny, weigh):
    model = tiny(periods=(8, 16, 32), chunk=4)
    ids = text(28, 3)
    _, state = model.learn(ids[:12], model.start(), weigh)
    freed = pool.freed(model, prospective(model, state, 1), 1, "all")
    assert not any(bool(x.any()) for n, x in freed.items() if n.startswith("level1/delta/"))
    _, after = model.learn(ids[12:], freed, weigh)
    _, plain = model.learn(ids[12:], state, weigh)
    for name in [n for n in plain if n.endswith(("/count", "/weight"))]:
        assert torch.equal(after[name], plain[name]), name


def test_the_older_teacher_holds_what_must_stay(two):
    model = two(rate=1.0)
    before = learned(model, 160)
    older = Teacher(model, None)
    dreams = sample(older, starts(model, 32), 8, seeded(3))
    fresh = sample(older, starts(model, 32), 8, seeded(4))[:, :-1]
    far = []
    for weight in (0.0, 4.0):
        how = Seeding(**SHORT | dict(steps=20, older_rows=8), alpha=1.0, free="all", older=weight, rate=0.03)
        state, _ = consolidate(model, before, before, 0, 1, how, [], seeded(), Meter(), {}, older=older, dreams=dreams)
        far.append(float(divergence(older.logits(fresh), Teacher(model, state).logits(fresh))))
    assert far[1] < 0.6 * far[0]


@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_the_share_on_policy_is_what_is_sampled(two, on_policy):
    model = two()
    before = learned(model)
    how, meter = Seeding(**SHORT, on_policy=on_policy, alpha=1.0, sources=("nothing",)), Meter()
    consolidate(model, before, before, 0, 1, how, [], seeded(), meter, {})
    assert meter.made == 8 * 9 + on_policy * 3 * 4 * 8


def test_study_shows_the_window_to_the_teacher_alone(two, journal):
    model = two()
    who = Teacher(model, None)
    windows = surprising(who, journal, length=10)
    how, meter = Seeding(**SHORT, sources=("study",)), Meter()
    (some,) = texts(who, windows, how, seeded(), meter)
    assert some.hint.shape == (8, 12) and some.prompt.shape == (8, 4)
    assert all(torch.equal(h[:4], p) and int(h[-1]) == 1 for h, p in zip(some.hint, some.prompt))
    student = Student(model, model.start(), pool.parts(model, 1, 0))
    value = taught(who, student, some.hint, some.prompt, some.text, how, meter)
    with torch.no_grad():
        p = model.base(torch.cat((some.hint, some.prompt, some.text), 1)[:, :-1]).logits[:, -8:]
        q = model.base(torch.cat((some.prompt, some.text), 1)[:, :-1]).logits[:, -8:]
    assert float(value.detach()) == pytest.approx(float(divergence(p, q)), rel=1e-4) and float(value.detach()) > 0.01
    with pytest.raises(ValueError, match="windows of the journal"):
        texts(who, [], how, seeded(), meter)


def test_imitation_raises_what_was_rewarded(two):
    model = two(config={"initializer_range": 0.6})
    state = model.allocate(model.start(), 1, 1)
    student = Student(model, state, pool.parts(model, 1, 1))
    how = Seeding(**SHORT | dict(group=16), gamma=1.0)
    prompt, row = torch.tensor([1]), text(2, 5)
    # The judge rewards completions that begin with an even token.
    judge = lambda made, meant: made[0] % 2 == 0  # noqa: E731
    optimizer, generator, got = torch.optim.Adam(student.leaves, lr=0.1), seeded(), []
    for _ in range(40):
        loss, mean = imitated(student, prompt, row, how, judge, generator, Meter())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        got.append(mean)
    assert sum(got[-10:]) / 10 > sum(got[:10]) / 10 + 0.15


def filled(model, seeds=(1, 2, 3)):
    """A pool in which every expert says something, each more loudly."""
    state = model.start()
    for slot, number in enumerate(seeds, 1):
        state = model.allocate(state, 1, slot)
        for site in model.own[1]:
            b = state[f"level1/b/{site.name}"].clone()
            b[slot] = torch.randn(b[slot].shape, generator=seeded(number)) * 0.05 * slot
            state[f"level1/b/{site.name}"] = b
    return state


def test_a_full_pool_refuses_prunes_or_merges(two):
    model = two()
    state = filled(model)
    dreams = sample(Teacher(model, state), starts(model, 4), 8, seeded())
    with pytest.raises(pool.PoolFull, match="level 1"):
        pool.activate(model, state, 1, "refuse", dreams)
    use = pool.usefulness(model, state, 1, dreams)
    assert min(use, key=use.get) == 1 and all(x > 0 for x in use.values())
    pruned, slot, told = pool.activate(model, state, 1, "prune", dreams)
    assert slot == 1 and "pruned" in told[0]
    torch.testing.assert_close(logits(model, pruned), logits(model, model.free(state, 1, 1)), rtol=1e-4, atol=1e-4)
    merged, slot, told = pool.activate(model, state, 1, "merge", dreams)
    assert pool.experts(model, merged, 1) == [1, 2, 3] and "merged" in told[0]
    near = [float(divergence(logits(model, state), logits(model, s))) for s in (merged, pruned)]
    assert 0 < near[0] < near[1]


def test_two_experts_of_half_the_rank_merge_exactly(two):
    model = two(rank=4)
    state = filled(model)
    for name in [n for n in state if n.startswith("level1/b/")]:
        state[name][1:3, :, 2:] = 0  # the first two are of rank 2 each
    merged, lost = pool.merged(model, state, 1, 1, 2)
    assert lost < 1e-6 and pool.experts(model, merged, 1) == [1, 3]
    torch.testing.assert_close(logits(model, merged), logits(model, state), rtol=1e-4, atol=1e-4)


def test_a_full_pool_with_gates_is_not_merged(two):
    model = two(gate=["always", "router"], slots=[1, 3])
    state = filled(model, seeds=(1, 2))
    assert pool.experts(model, state, 1) == [1, 2]
    with pytest.raises(pool.PoolFull, match="with gate='router' they cannot be merged"):
        pool.activate(model, state, 1, "merge", None)
    dreams = text(40, 9).view(4, 10)
    use = pool.usefulness(model, state, 1, dreams)
    pruned, slot, _ = pool.activate(model, state, 1, "prune", dreams)
    assert slot == min(use, key=use.get)
    for name in [n for n in pruned if n.startswith("level1/gate/")]:
        other = 3 - slot
        assert not pruned[name][slot].any() and torch.equal(pruned[name][other], state[name][other])
    assert pool.sizes(model, state)["parameters"] == sum(
        x.numel() for n, x in state.items() if n.split("/")[1] in ("delta", "a", "b", "gate")
    )


def test_the_last_level_takes_experts_over_exactly(tiny):
    model = tiny(periods=(8, 16, 32), capacity=["full", "lowrank", "full"], rank=3, slots=[1, 4, 1])
    state = filled(model)
    done, slot, told = pool.activate(model, state, 1, "merge", None)
    assert slot == 1 and pool.experts(model, done, 1) == [1] and "into level 2" in told[0]
    torch.testing.assert_close(logits(model, done), logits(model, state), rtol=1e-4, atol=1e-4)
    assert sum(x.numel() for x in done.values()) == sum(x.numel() for x in state.values())


def test_freeing_is_an_exact_no_op(two):
    model = two()
    state = learned(model)
    used = model.allocate(state, 1, 2)
    for site in model.own[1]:
        used[f"level1/b/{site.name}"][2] = 1.0
    assert not torch.equal(logits(model, used), logits(model, state))
    assert torch.equal(logits(model, pool.freed(model, used, 1, "experts")), logits(model, state))
    assert pool.freed(model, used, 0, "nothing") is used


def test_a_stopped_seeding_goes_on_with_the_same_bits(two):
    model = two()
    before = learned(model)
    how = Seeding(**SHORT | dict(steps=6))
    whole, _ = consolidate(model, before, before, 0, 1, how, [], seeded(), Meter(), {})
    held, count = {}, iter(range(100))
    with pytest.raises(BaseException):  # noqa: B017
        consolidate(model, before, before, 0, 1, how, [], seeded(), Meter(stop=lambda: next(count) == 3), held)
    assert held["at"] == 3 and len(held["curve"]) == 3
    parts, told = consolidate(model, before, before, 0, 1, how, [], seeded(), Meter(), held)
    same(whole, parts)
    assert told["steps"] == 6 and held == {}


def test_errors_name_what_is_wrong(two, tiny):
    model = two()
    state = model.start()
    with pytest.raises(ValueError, match="sender=1, receiver=0"):
        consolidate(model, state, state, 1, 0, Seeding(), [], seeded(), Meter(), {})
    single = tiny(periods=(8, 16))
    with pytest.raises(ValueError, match="slots=6"):
        consolidate(single, single.start(), single.start(), 0, 1, Seeding(**SHORT), [], seeded(), Meter(), {})
    with pytest.raises(ValueError, match="sources: 'books'"):
        Seeding(sources=("books",))
