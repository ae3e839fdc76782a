"""What every optimizer must do, whatever its rule."""

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import circadia
from tests.optim.cases import CASES, Matrix, Net, same, states, train, values

every = pytest.mark.parametrize("name", CASES)


def descend(name: str, lr: float, steps: int, start: torch.Tensor, loss) -> float:
    """The loss after training under a cosine, relative to that at the start."""
    model = Matrix(start)
    optimizer = CASES[name].make(model, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    first = loss(model.w).item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model.w).backward()
        optimizer.step()
        schedule.step()
    return loss(model.w).item() / first


@every
def test_quadratic(name: str) -> None:
    target = torch.randn(4, 6)
    scale = torch.linspace(0.3, 1.0, 6)
    got = descend(name, CASES[name].lr, 300, torch.zeros(4, 6), lambda w: (scale * (w - target).square()).sum())
    assert got < CASES[name].reaches[0], got


@every
def test_rosenbrock(name: str) -> None:
    """A valley in every column of a 2 x 3 matrix."""

    def valley(w: torch.Tensor) -> torch.Tensor:
        return (100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2).sum()

    start = torch.tensor([[-1.2, -1.0, 0.0], [1.0, 1.2, 0.5]])
    got = descend(name, CASES[name].rosenbrock, 600, start, valley)
    assert got < CASES[name].reaches[1], got


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_types(name: str, dtype: torch.dtype) -> None:
    """Parameters keep their type; what is remembered is never below float32."""
    net = Net(dtype)
    start, optimizer = values(net), CASES[name].make(net, lr=0.01)
    train(net, optimizer, 0, 5)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert not any(torch.equal(a, b) for a, b in zip(start, values(net)))
    kept = [x for x in states(optimizer) if x.ndim]
    assert {x.dtype for x in kept} <= {torch.float64 if dtype == torch.float64 else torch.float32}


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_is_uninterrupted(name: str, dtype: torch.dtype) -> None:
    """At every one of seven steps, so between the periods too: saved to a file, loaded into a fresh optimizer."""
    whole = Net(dtype)
    train(whole, CASES[name].make(whole, lr=0.01), 0, 9)
    for stop in range(1, 8):
        net = Net(dtype)
        optimizer = CASES[name].make(net, lr=0.01)
        train(net, optimizer, 0, stop)
        file = io.BytesIO()
        torch.save((net.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        other = Net(dtype)
        other.load_state_dict(weights)
        resumed = CASES[name].make(other, lr=0.5)
        resumed.load_state_dict(state)
        assert same(states(resumed), states(optimizer))
        train(net, optimizer, stop, stop + 1)  # the first one's further life must not touch the second
        train(other, resumed, stop, 9)
        assert same(values(other), values(whole)), stop


@every
def test_loading_shares_nothing(name: str) -> None:
    """Two optimizers from one state dict in memory go their own ways."""
    net, other = Net(), Net()
    optimizer, loaded = CASES[name].make(net, lr=0.01), CASES[name].make(other, lr=0.01)
    train(net, optimizer, 0, 2)
    loaded.load_state_dict(optimizer.state_dict())
    kept = [x.clone() for x in states(loaded)]
    train(net, optimizer, 2, 4)
    assert same(kept, states(loaded))


@every
def test_missing_gradients(name: str) -> None:
    """A parameter without a gradient stands still; the others do not mind, and it joins in later."""
    net = Net()
    optimizer = CASES[name].make(net, lr=0.01)
    before = net.b.weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        net.loss(step).backward()
        net.b.weight.grad = None
        optimizer.step()
    assert torch.equal(before, net.b.weight)
    assert set(optimizer.state.get(net.b.weight, {})) <= {"cms_weight"}
    train(net, optimizer, 3, 6)
    assert not torch.equal(before, net.b.weight)
    empty = CASES[name].make(Net(), lr=0.01)
    empty.step()  # no gradient anywhere


@every
def test_rate_zero_changes_nothing(name: str) -> None:
    """From the start, and after some steps, where what is remembered would still move the weights."""
    net = Net()
    optimizer = CASES[name].make(net, lr=0.0)
    start = values(net)
    train(net, optimizer, 0, 5)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    assert same(start, values(net))
    train(net, optimizer, 5, 10)
    held = values(net)
    assert not same(start, held)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(net, optimizer, 10, 15)
    assert same(held, values(net))


@every
def test_gradients_are_only_read(name: str) -> None:
    net = Net()
    optimizer = CASES[name].make(net, lr=0.01)
    for step in range(5):
        optimizer.zero_grad()
        net.loss(step).backward()
        before = [p.grad.clone() for p in net.parameters()]
        optimizer.step()
        assert same(before, [p.grad for p in net.parameters()])


@every
def test_closure(name: str) -> None:
    one, two = Net(), Net()
    train(one, CASES[name].make(one, lr=0.01), 0, 4)
    optimizer = CASES[name].make(two, lr=0.01)
    for step in range(4):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = two.loss(step)  # noqa: B023
            loss.backward()
            return loss

        assert torch.is_tensor(optimizer.step(closure))
    assert same(values(one), values(two))


@every
def test_added_groups(name: str) -> None:
    """Two groups are one group; a late parameter starts its own count."""
    one, two = Net(), Net()
    first, second = CASES[name].make(one, lr=0.01), CASES[name].make(two, lr=0.01)
    extra = [nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))]
    for step in range(6):
        for net, optimizer, p in zip((one, two), (first, second), extra):
            if step == 2:
                optimizer.add_param_group({"params": [p], "lr": 0.02})
            optimizer.zero_grad()
            (net.loss(step) + (p * p).sum()).backward()
            optimizer.step()
    assert same(values(one), values(two)) and torch.equal(*extra)
    assert not torch.equal(extra[0], torch.ones(3, 3))


@every
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_live_on(name: str, how: str) -> None:
    net = Net()
    optimizer = CASES[name].make(net, lr=0.01)
    train(net, optimizer, 0, 5)
    optimizer.zero_grad()
    pair = (net, optimizer)
    other, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    train(net, optimizer, 5, 9)
    train(other, copied, 5, 9)
    assert same(values(net), values(other)) and same(states(optimizer), states(copied))


@every
def test_sparse_gradients_are_refused(name: str) -> None:
    table = nn.Embedding(5, 4, sparse=True)
    optimizer = CASES[name].make(Net(), lr=0.01)
    optimizer.add_param_group({"params": table.parameters(), **({"part": 0} if name.startswith("build") else {})})
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step()


@every
def test_scaled_gradients(name: str) -> None:
    """With a gradient scaler (a power of two) the same as without; a step with an overflow is left out."""
    one, two = Net(), Net()
    train(one, CASES[name].make(one, lr=0.01), 0, 4)
    optimizer = CASES[name].make(two, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(two.loss(step)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(two.parameters(), 1e6)
        scaler.step(optimizer)
        scaler.update()
    assert same(values(one), values(two))
    before = values(two)
    optimizer.zero_grad()
    scaler.scale(two.loss(4)).backward()
    two.a.weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    assert same(before, values(two))


@every
def test_forward_in_autocast(name: str) -> None:
    """Half-precision products in the forward pass: whole weights, whole states, and it learns."""
    net = Net()
    optimizer = CASES[name].make(net, lr=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        first = net.loss(0).item()
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            assert net.a(torch.ones(1, 4)).dtype == torch.bfloat16, "there is something to cast"
            loss = net.loss(0)
        loss.backward()
        optimizer.step()
    assert {x.dtype for x in [*values(net), *states(optimizer)] if x.ndim} == {torch.float32}
    assert net.loss(0).item() < 0.95 * first


@every
def test_backward_and_step_in_autocast(name: str) -> None:
    """The region around everything changes the forward pass alone: bit for bit what one around that gives."""
    nets = Net(), Net()
    optimizers = [CASES[name].make(net, lr=0.01) for net in nets]
    for step in range(6):
        for wide, net, optimizer in zip((False, True), nets, optimizers):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = net.loss(step)
                if wide:
                    loss.backward()
                    optimizer.step()
            if not wide:
                loss.backward()
                optimizer.step()
    assert same(values(nets[0]), values(nets[1])) and same(*map(states, optimizers))


@every
def test_wrong_rate(name: str) -> None:
    for lr in (-0.1, float("nan"), "fast"):
        with pytest.raises((ValueError, TypeError), match=r"(?i)lr|learning rate|not supported"):
            CASES[name].make(Net(), lr=lr)


@every
def test_levels_view(name: str) -> None:
    """What is remembered is on the levels, with its size; every parameter is counted once."""
    net = Net()
    optimizer = CASES[name].make(net, lr=0.01)
    train(net, optimizer, 0, 2)
    view = circadia.levels(net, optimizer)
    live = [*optimizer.state.values(), *(optimizer.inner.state.values() if name == "cms" else ())]
    held = sum(x.numel() * x.element_size() for state in live for x in state.values() if x.ndim)
    assert sum(level.state_bytes for level in view.levels) == held
    assert str(view) and view.svg()


@pytest.mark.parametrize("name", ["muon", "m3", "adamuon", "delta_momentum", "dmgd"])
def test_compiled_is_eager(name: str) -> None:
    """A learning rate in a tensor changes without a new compilation."""
    one, two = Net(), Net()
    rates = [torch.tensor(0.01), torch.tensor(0.01)]
    eager, compiled = (CASES[name].make(net, lr=lr) for net, lr in zip((one, two), rates))
    torch._dynamo.reset()
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    step = torch.compile(compiled.step, backend=frames)
    counts = []
    for i in range(10):
        for net, optimizer, run in ((one, eager, eager.step), (two, compiled, step)):
            optimizer.zero_grad()
            net.loss(i).backward()
            run()
        for rate in rates:
            rate.mul_(0.9)
        counts.append(frames.frame_count)
    torch._dynamo.reset()
    assert counts[-1] > 0
    for a, b in zip(values(one), values(two)):
        assert (a - b).abs().max() < 1e-5
    assert counts[-1] == counts[5], counts
