"""CMS: a parameter group learns when its period is over, on the gradients of the whole period."""

import copy

import pytest
import torch
from torch import nn

import circadia
from circadia.optim import CMS, DGD, M3, periods
from tests.optim.cases import Net, same, train, values

MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "m3": lambda p: M3(p, lr=0.01, periods=(1, 2)),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_period_one_is_the_plain_optimizer(name: str, reduction: str) -> None:
    one, two = Net(), Net()
    train(one, MAKERS[name](one.parameters()), 0, 6)
    train(two, CMS(MAKERS[name](two.parameters()), reduction=reduction), 0, 6)
    assert same(values(one), values(two))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_period_is_one_step_on_its_gradients(name: str, reduction: str) -> None:
    """Eq. 71: weights stand still for C steps, then move by what was accumulated there."""
    one, two = Net(), Net()
    plain = MAKERS[name](one.parameters())
    optimizer = CMS(MAKERS[name]([{"params": two.parameters(), "period": 4}]), reduction=reduction)
    for chunk in range(3):
        plain.zero_grad()
        for step in range(4 * chunk, 4 * chunk + 4):
            one.loss(step).backward()
            before = values(two)
            optimizer.zero_grad()
            two.loss(step).backward()
            optimizer.step()
            assert same(before, values(two)) == (step % 4 != 3)
        if reduction == "mean":
            for p in one.parameters():
                p.grad /= 4
        plain.step()
        for a, b in zip(values(one), values(two)):
            assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_tokens(reduction: str) -> None:
    """Batches of unequal length count by their tokens; what is over a period counts for the next one."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = CMS(torch.optim.SGD([{"params": [p], "period": 10}], lr=1.0), unit="token", reduction=reduction)
    path = []
    for size, g in ((4, 1.0), (4, 2.0), (4, 3.0), (4, 4.0), (3, 5.0), (1, 6.0), (25, 7.0), (5, 8.0)):
        p.grad = torch.full_like(p, g)
        optimizer.step(tokens=size)
        path.append(p.item())
    steps = -torch.tensor([0.0, *path]).diff()
    # 12 tokens, of which 2 are over; 2 + 8 more; 25, of which 5 are over; 5 + 5 more.
    sums = torch.tensor([0, 0, 4 * 1 + 4 * 2 + 4 * 3, 0, 0, 4 * 4 + 3 * 5 + 1 * 6, 25 * 7, 5 * 8])
    assert torch.allclose(steps, sums / (1 if reduction == "sum" else torch.tensor([1, 1, 12, 1, 1, 8, 25, 5])))


def test_each_group_at_its_own_period() -> None:
    net = Net()
    groups = periods(net, {"a.*": 1, "[bc].*": 2, "*": 5}, weight_decay=0.1)
    optimizer = CMS(torch.optim.AdamW(groups, lr=0.01))
    seen: dict[str, list[int]] = {}
    for step in range(10):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        train(net, optimizer, step, step + 1)
        for name, p in net.named_parameters():
            if not torch.equal(before[name], p):
                seen.setdefault(name[0], []).append(step + 1)
    assert seen == {"a": list(range(1, 11)), "b": [2, 4, 6, 8, 10], "c": [2, 4, 6, 8, 10], "d": [5, 10]}
    found = circadia.levels(net, optimizer).levels
    assert sorted(level.period for level in found if level.name == "AdamW moments") == [1, 2, 5]
    view = {level.period: level for level in found if level.parameters}
    assert {period: (level.unit, level.parameters) for period, level in view.items()} == {
        1: ("step", 24),
        2: ("step", 48),
        5: ("step", 18),
    }


def test_gradients_that_come_and_go() -> None:
    """The mean is over the steps that had a gradient; without any, nothing happens."""
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = CMS(torch.optim.SGD([{"params": [p, q], "period": 3}], lr=1.0))
    for g in (1.0, None, 3.0):
        p.grad = None if g is None else torch.full((2,), g)
        optimizer.step()
    assert torch.equal(p, torch.full((2,), -2.0)) and torch.equal(q, torch.zeros(2))


def test_a_layers_inputs_of_a_whole_period() -> None:
    """DGD inside: the inputs of all steps of a period, as those of one large batch."""
    one, two = Net(torch.float64), Net(torch.float64)
    plain = DGD(one, lr=0.1)
    inner = DGD(two, lr=0.1)
    inner.param_groups[0]["period"] = 2
    optimizer = CMS(inner)
    (one.loss(0) / 2).backward()
    (one.loss(1) / 2).backward()
    plain.step()
    train(two, optimizer, 0, 2)
    for a, b in zip(values(one), values(two)):
        assert torch.allclose(a, b)


def test_open_periods_of_bf16_are_kept_in_float32() -> None:
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = CMS(torch.optim.SGD([{"params": [p], "period": 400}], lr=1.0), reduction="sum")
    for i in range(400):  # in bfloat16 the sum would stop at 256
        p.grad = torch.ones(1, dtype=torch.bfloat16)
        if i == 300:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = CMS(torch.optim.SGD([{"params": [p], "period": 400}], lr=1.0), reduction="sum")
            optimizer.load_state_dict(state)
        optimizer.step()
    assert p.item() == -400 and "cms_sum" not in optimizer.state[p], "what is not open is not kept"


@pytest.mark.parametrize("name", MAKERS)
def test_saved_before_the_first_update(name: str) -> None:
    """What stands for a state that is not there yet is not taken for one; and to save changes nothing."""

    def made(net: Net) -> CMS:
        return CMS(MAKERS[name]([{"params": [net.a.weight], "period": 1}, {"params": [net.d.weight], "period": 3}]))

    whole, net, other = Net(), Net(), Net()
    train(whole, made(whole), 0, 9)
    optimizer, resumed = made(net), made(other)
    train(net, optimizer, 0, 2)
    grads, before = [p.grad.clone() for p in net.parameters()], values(net)
    saved = optimizer.state_dict()
    assert same(before, values(net)) and same(grads, [p.grad for p in net.parameters()])
    assert net.d.weight not in optimizer.inner.state and optimizer.param_groups[0]["lr"] > 0
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(saved)
    assert net.d.weight not in optimizer.inner.state and not resumed.inner.state.get(other.d.weight)
    train(other, resumed, 2, 9)
    train(net, optimizer, 2, 9)
    assert same(values(other), values(whole)) and same(values(net), values(whole))
    assert [set(state) for state in saved["state"].values()] == [
        set(state) | ({"cms_sum"} if i else set()) for i, state in enumerate(optimizer.state_dict()["state"].values())
    ], "the same entries at any time"


def test_a_refused_gradient_leaves_all_as_it_was() -> None:
    p, table = nn.Parameter(torch.zeros(2)), nn.Embedding(3, 2, sparse=True)
    optimizer = CMS(torch.optim.SGD([{"params": [p], "period": 2}, {"params": table.parameters()}], lr=1.0))
    (table(torch.tensor([1])).sum() + p.sum()).backward()
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step()
    assert p.grad is not None and optimizer.param_groups[0]["waited"] == 0
    assert not any("cms_sum" in state for state in optimizer.state.values())


def test_wrong_arguments() -> None:
    net = Net()
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    for wrong, message in (
        (lambda: CMS(net), "optimizer must be a torch.optim.Optimizer, got Net"),
        (lambda: CMS(inner, unit="tokens"), "unit='tokens' is unknown: use one of 'step', 'token'"),
        (lambda: CMS(inner, reduction="max"), "reduction='max' is unknown: use one of 'mean', 'sum'"),
        (lambda: CMS(inner, unit="token").step(), "tokens=None is not a whole number"),
        (lambda: CMS(torch.optim.SGD([{"params": net.parameters(), "period": 0}], lr=0.1)), "period=0 is not"),
        (lambda: periods(net, {"a.*": 1}), r"no pattern of \['a.\*'\] fits the parameter 'b.weight'"),
        (lambda: periods(net, {"*": 1, "a.*": 2}), r"patterns \['a.\*'\] fit no trainable parameter"),
        (lambda: periods(net, {"*": 1.5}), r"periods\['\*'\]=1.5 is not a whole number"),
        (lambda: CMS(inner).load_state_dict(inner.state_dict()), "state_dict has no 'cms_known'"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
