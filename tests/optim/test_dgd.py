"""Delta gradient descent: the closed form of its own objective, layer by layer in a real network."""

import copy
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from circadia.optim import DGD, Combined
from circadia.optim.general import dgd
from tests.optim.cases import Net

D = torch.float64


def proximal(w: Tensor, x: Tensor, delta: Tensor, eta: float) -> Tensor:
    """Argmin over W of the mean of 1/2 |W x + delta|^2, plus 1/(2 eta) |W - W_t|^2, from its normal equations."""
    n = len(x)
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    return torch.linalg.solve(x.mT @ x / n + eye / eta, w / eta - delta.mT @ x / n, left=False)


@pytest.mark.parametrize("length", [1.0, 0.3, 4.0])
def test_one_sample_is_the_proximal_step(length: float) -> None:
    """Eq. 56-57: at the exact rate for an input of any length, at the printed one for |x| = 1."""
    w, x, delta = torch.randn(4, 6, dtype=D), torch.randn(6, dtype=D), torch.randn(4, dtype=D)
    x = x / x.norm() * length
    want = proximal(w, x[None], delta[None], 0.7)
    for rate in ("exact", "printed", "proximal"):
        got = dgd(w, torch.outer(delta, x), torch.outer(x, x), 0.7, rate=rate)
        assert torch.allclose(got, want) == (rate != "printed" or length == 1.0), rate


def test_a_batch() -> None:
    w, x, delta = torch.randn(4, 6, dtype=D), torch.randn(9, 6, dtype=D), torch.randn(9, 4, dtype=D)
    gram, g = x.mT @ x / 9, delta.mT @ x / 9
    assert torch.allclose(dgd(w, g, gram, 0.7, rate="proximal"), proximal(w, x, delta, 0.7))
    step = 0.7 / (1 + 0.7 * x.square().sum(-1).mean())
    eye = torch.eye(6, dtype=D)
    assert torch.allclose(dgd(w, g, gram, 0.7), w @ (eye - step * gram) - step * g)


@pytest.mark.parametrize("rate", ["exact", "printed", "proximal"])
def test_every_layer_with_its_own_inputs(rate: str) -> None:
    """A layer that is used twice counts both; biases and what is no linear layer follow the plain gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 4)).to(D)
    x, y = torch.randn(2, 3, 5, dtype=D), torch.randn(2, 3, 4, dtype=D)
    optimizer = DGD(model, lr=0.2, rate=rate)
    with torch.no_grad():
        model(torch.randn(7, 5, dtype=D))  # an evaluation leaves no trace
    model(torch.randn(7, 5, dtype=D))  # nor does a forward pass without a backward one
    hidden = model[:3](x)
    out = model[3](model[3](hidden).tanh())
    ((out - y).square().sum() / 6).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    inputs = {"0": x.reshape(-1, 5), "3": torch.cat([hidden, model[3](hidden).tanh()]).reshape(-1, 4)}
    want = {name: p.detach() - 0.2 * p.grad for name, p in model.named_parameters()}
    for layer, seen in inputs.items():
        gram = seen.mT @ seen / len(seen)
        name = f"{layer}.weight"
        want[name] = dgd(before[name], model.get_parameter(name).grad, gram.detach(), 0.2, rate=rate)
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, want[name]), name
    assert not optimizer.seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("overwritten", [True, False])
@pytest.mark.parametrize("shape", [(12, 3), (3, 12)])
def test_outputs_stand_in_for_inputs(shape: tuple[int, int], overwritten: bool, bias: bool) -> None:
    """Whether W C is made from x x^T or from W x, which a later layer may overwrite: the same step, decayed or not."""
    m, n = shape
    torch.manual_seed(0)
    layer = nn.Linear(n, m, bias=bias, dtype=D)
    optimizer = DGD(layer, lr=0.3, weight_decay=0.2)
    for x in (torch.randn(40, n, dtype=D), torch.randn(40, n, dtype=D)):
        optimizer.zero_grad()
        y = layer(x)
        (y.mul_(2.0) if overwritten else 2.0 * y).tanh().sum().mul(1 / 40).backward()
        seen = set(optimizer.seen[layer])
        assert seen == ({"gram", "size", "count"} if overwritten or m > n else {"held", "size", "count"})
        w = layer.weight.detach() * (1 - 0.3 * 0.2)
        want = dgd(w, layer.weight.grad, x.mT @ x / 40, 0.3)
        optimizer.step()
        assert torch.allclose(layer.weight, want)


def test_a_later_group_at_the_proximal_rate() -> None:
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 2, bias=False))
    optimizer = DGD(model, params=[model[0].weight], lr=0.1)
    optimizer.add_param_group({"params": [model[1].weight], "rate": "proximal"})
    model(torch.randn(5, 6)).square().mean().backward()
    optimizer.step()
    assert not optimizer.seen


def test_accumulated_batches_and_padding() -> None:
    """Two halves are one batch; samples whose error is 0 are not counted."""
    torch.manual_seed(0)
    models = [nn.Linear(5, 4, bias=False, dtype=D) for _ in range(3)]
    for other in models[1:]:
        other.load_state_dict(models[0].state_dict())
    x, y = torch.randn(8, 5, dtype=D), torch.randn(8, 4, dtype=D)
    whole, halves, padded = (DGD(m, lr=0.3) for m in models)
    ((models[0](x) - y).square().sum() / 8).backward()
    for part in (slice(0, 4), slice(4, 8)):
        ((models[1](x[part]) - y[part]).square().sum() / 8).backward()
    long = torch.cat([x, 9 * torch.ones(5, 5, dtype=D)])
    ((models[2](long)[:8] - y).square().sum() / 8).backward()
    for optimizer in (whole, halves, padded):
        optimizer.step()
    assert torch.allclose(models[0].weight, models[1].weight)
    assert torch.allclose(models[0].weight, models[2].weight)


@pytest.mark.parametrize("combined", [False, True])
def test_a_step_that_is_not_taken_leaves_nothing(combined: bool) -> None:
    """Gradients that are thrown away take their samples with them: those of a bad batch would spoil the weights."""
    torch.manual_seed(0)
    models = [nn.Linear(5, 4, dtype=D) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(8, 5, dtype=D)
    for model, bad in zip(models, (False, True)):
        optimizer: torch.optim.Optimizer = DGD(model, params=[model.weight], lr=0.3)
        if combined:
            optimizer = Combined([optimizer, torch.optim.SGD([model.bias], lr=0.3)])
        if bad:
            model(x * torch.nan).sum().backward()
            optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(models[0].weight, models[1].weight)


@pytest.mark.parametrize(("erase", "share"), [(1.0, 0.5), (0.0, 1.0)])
def test_where_a_regression_settles(erase: float, share: float) -> None:
    """Half-way to the target with the paper's rule, which takes out W x twice (A10); at the target without it."""
    target = torch.randn(4, 6, dtype=D)
    model = nn.Linear(6, 4, bias=False, dtype=D)
    optimizer = DGD(model, lr=1.0, erase=erase)
    for _ in range(400):
        x = torch.randn(32, 6, dtype=D)
        optimizer.zero_grad()
        (0.5 * (model(x) - x @ target.mT).square().sum(-1).mean()).backward()
        optimizer.step()
    assert torch.allclose(model.weight, share * target, atol=0.02)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own look
@pytest.mark.parametrize("how", ["model", "layers"])
def test_a_compiled_model(how: str) -> None:
    """Compiled as a whole or layer by layer, as training does: the hooks see every sample all the same."""
    nets = [nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 4)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [DGD(net, lr=0.3) for net in nets]
    torch._dynamo.reset()
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for module in nets[1] if how == "layers" else [nets[1]]:
        module.compile(backend=frames)
    for _ in range(3):
        x = torch.randn(8, 5)
        for net, optimizer in zip(nets, optimizers):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            assert all(seen["count"] == 8 for seen in optimizer.seen.values()) and len(optimizer.seen) == 2
            optimizer.step()
    torch._dynamo.reset()
    assert frames.frame_count
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_hooks_can_be_taken_off() -> None:
    net = Net()
    optimizer = DGD(net, lr=0.1)
    optimizer.remove()
    net.loss(0).backward()
    assert not optimizer.seen


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_watches_its_own_model(how: str) -> None:
    net = Net()
    pair = (net, DGD(net, lr=0.1))
    other, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    other.loss(0).backward()
    assert len(copied.seen) == 4 and not pair[1].seen
    assert all(layer in copied.seen for layer in other.children())


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"rate='fast' is unknown: use one of 'exact', 'printed', 'proximal'"):
        DGD(Net(), lr=0.1, rate="fast")
    with pytest.raises(ValueError, match=r"model must be a torch.nn.Module, got list"):
        DGD([], lr=0.1)
    with pytest.raises(ValueError, match=r"erase=-1 is not a finite number"):
        DGD(Net(), lr=0.1, erase=-1)
