"""Worked examples by hand."""

import math

import pytest
import torch

from circadia.sleep import losses

P, Q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
ln2 = math.log(2)


def logits(*rows):
    return torch.tensor([rows], dtype=torch.float64).log()


def test_divergences_by_hand():
    # KL(P||Q) = 0.5 ln 2 + 0 - 0.25 ln 2, and the same the other way round by symmetry.
    assert float(losses.divergence(logits(P), logits(Q))) == pytest.approx(0.25 * ln2)
    a, b = [0.5, 0.5], [0.75, 0.25]
    forward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    reverse = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(losses.divergence(logits(a), logits(b), "forward")) == pytest.approx(forward)
    assert float(losses.divergence(logits(a), logits(b), "reverse")) == pytest.approx(reverse)
    # beta 0.25: M = 0.25 a + 0.75 b = [0.6875, 0.3125], weighted 0.25 on the teacher's side.
    m = [0.6875, 0.3125]
    left = sum(x * math.log(x / y) for x, y in zip(a, m))
    right = sum(x * math.log(x / y) for x, y in zip(b, m))
    assert float(losses.divergence(logits(a), logits(b), "jsd", 0.25)) == pytest.approx(0.25 * left + 0.75 * right)


def test_the_ends_of_jsd_are_the_two_kl():
    a, b = logits(P), logits([0.1, 0.2, 0.7])
    for end, kind in ((0.0, "forward"), (1.0, "reverse")):
        assert float(losses.divergence(a, b, "jsd", end)) == pytest.approx(float(losses.divergence(a, b, kind)))
    small = float(losses.divergence(a, b, "jsd", 1e-7)) / 1e-7
    assert small == pytest.approx(float(losses.divergence(a, b, "forward")), rel=1e-4)


def test_a_temperature_flattens_both():
    a, b = logits([0.8, 0.2]), logits([0.2, 0.8])
    # At T = 2 probabilities are as their square roots: 2/3 and 1/3.
    assert float(losses.divergence(a, b, temperature=2.0)) == pytest.approx((2 / 3 - 1 / 3) * ln2)


def test_what_the_teacher_excludes_costs_nothing_but_is_finite():
    a, b = logits([1.0, 0.0]), logits([0.5, 0.5])
    assert float(losses.divergence(a, b)) == pytest.approx(ln2)


def test_tokens_are_averaged_inside_sequences_first():
    each = torch.tensor([[1.0, 3.0], [10.0, 99.0], [7.0, 7.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert float(losses.over_sequences(each, mask)) == pytest.approx((2 + 10) / 2)


def test_levenshtein_and_z_0_inclusive():
    assert losses.levenshtein([1, 2, 3], [1, 3]) == 1
    assert losses.levenshtein(list(map(ord, "kitten")), list(map(ord, "sitting"))) == 3
    assert losses.levenshtein([], [4, 4]) == 2
    kitten, sitting = list(map(ord, "kitten")), list(map(ord, "sitting"))
    assert losses.similarity(kitten, sitting, z_0=3) == pytest.approx(1 - 3 / 7)
    assert losses.similarity(kitten, sitting, z_0=2) == 0.0
    assert losses.similarity([], [], z_0=0) == 1.0


def test_reward_by_hand():
    assert losses.reward([1, 2], [1, 3], same=True, gamma=0.5, z_0=1) == pytest.approx(0.5 + 0.5 * 0.5)
    assert losses.reward([1, 2], [1, 3], same=False, gamma=0.25, z_0=0) == 0.0


def test_advantages_and_the_sign_of_the_policy_gradient():
    a = losses.advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [5.0, 5.0, 5.0, 5.0]]), eps=0.0 + 1e-12)
    torch.testing.assert_close(a, torch.tensor([[1.0, -1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    log_p = torch.tensor([-1.0, -2.0], requires_grad=True)
    losses.policy_gradient(log_p, torch.tensor([2.0, -1.0])).backward()
    # Descent raises the first, which was rewarded: -A / n.
    torch.testing.assert_close(log_p.grad, torch.tensor([-1.0, 0.5]))


def test_the_objective_is_minus_the_papers():
    # J = (1 - alpha) r - alpha F; with r = 0.5, F = 2, alpha = 0.25: J = -0.125, and the loss is its negative.
    loss = losses.objective(torch.tensor(2.0), -torch.tensor(0.5), alpha=0.25)
    assert float(loss) == pytest.approx(0.25 * 2.0 - 0.75 * 0.5)
    assert float(losses.objective(torch.tensor(2.0), None, alpha=0.25)) == 2.0


@pytest.mark.parametrize("wrong", [dict(kind="kl"), dict(kind="jsd", beta=2.0), dict(temperature=0.0)])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(name for name in wrong if name != "kind" or len(wrong) == 1))):
        losses.divergence(logits(P), logits(Q), **wrong)
