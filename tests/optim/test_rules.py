"""The equations: pure rules against torch, against loops written from the papers, and against their own objectives."""

import math

import pytest
import torch
from torch import Tensor, nn

from circadia.optim import M3, AdaMuon, DeltaMomentum, Muon, PreconditionedMomentum, newton_schulz, orthogonal, rules
from circadia.optim.dmgd import DeepMomentum
from circadia.optim.general import ggd, gm, learn_preconditioner
from circadia.optim.orthogonal import NS
from circadia.optim.orthogonalize import CUBIC, QUINTIC, gram_newton_schulz, inner_step, orthogonalize
from circadia.optim.preconditioner import Learned
from tests.optim.cases import Net, train

D = torch.float64


def run(rule: rules.Rule, start: Tensor, grads: Tensor) -> Tensor:
    """Every weight of a rule along given gradients."""
    w, state, path = start, rule.init(start), []
    for step, g in enumerate(grads, 1):
        w, state = rule(w, g, state, step)
        path.append(w)
    return torch.stack(path)


def follow(make, start: Tensor, grads: Tensor) -> Tensor:
    """The same for a torch optimizer."""
    p = nn.Parameter(start.clone())
    optimizer, path = make([p]), []
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
        path.append(p.detach().clone())
    return torch.stack(path)


TORCH = {
    "gd": (rules.GD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (rules.Momentum(lr=0.1, decay=0.8), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)),
    "adam": (rules.Adam(lr=0.1, betas=(0.8, 0.95)), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95))),
    "adamw": (
        rules.Adam(lr=0.1, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
    ),
    "adagrad": (rules.AdaGrad(lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    "rmsprop": (rules.RMSProp(lr=0.1, alpha=0.9), lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.9)),
}


@pytest.mark.parametrize("name", TORCH)
def test_rules_are_torchs(name: str) -> None:
    rule, make = TORCH[name]
    start, grads = torch.randn(3, 5, dtype=D), torch.randn(20, 3, 5, dtype=D)
    assert (run(rule, start, grads) - follow(make, start, grads)).abs().max() < 1e-12


def test_gradient_descent_with_decoupled_decay() -> None:
    w, g = torch.randn(3, 5, dtype=D), torch.randn(3, 5, dtype=D)
    assert torch.allclose(rules.GD(lr=0.1, weight_decay=0.2)(w, g, {})[0], w * 0.98 - 0.1 * g)


def test_orthogonal_up_to_the_band_of_the_quintic() -> None:
    """The cubic converges to U V^T; the quintic's singular values end in a band around 1."""
    x = torch.randn(2, 3, 5, 8, dtype=D)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    assert (newton_schulz(x, 40, CUBIC) - u @ vh).abs().max() < 1e-10
    values = torch.linalg.svdvals(newton_schulz(x, 5, QUINTIC))
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.equal(newton_schulz(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("batch_bytes", [2**15, 0], ids=["batches", "one by one"])
def test_batches_and_tall_matrices(batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circadia.optim.orthogonalize.CPU_BATCH_BYTES", batch_bytes)
    shapes = [(3, 5), (5, 3), (2, 3, 5), (4, 4), (3, 5), (2, 2, 7, 3), (3, 1)]
    matrices = [torch.randn(*shape, dtype=D) for shape in shapes]
    for x, got in zip(matrices, orthogonalize(matrices)):
        assert got.is_contiguous(), "a weight that it is added to is"
        flat = x.reshape(-1, *x.shape[-2:])
        alone = torch.stack([newton_schulz(one) for one in flat]).reshape(x.shape)
        assert (got - alone).abs().max() < 1e-12
        assert (newton_schulz(x.mT) - alone.mT).abs().max() < 1e-12


@pytest.mark.parametrize("coefficients", [QUINTIC, CUBIC])
@pytest.mark.parametrize("rank", [2, 16])
def test_the_form_on_gram_matrices(coefficients: tuple[float, float, float], rank: int) -> None:
    """It is the plain form, for matrices of low rank too; in float32 up to what its rounding leaves."""
    x = torch.randn(3, 16, rank, dtype=D) @ torch.randn(3, rank, 40, dtype=D)
    for dtype, bound in ((D, 1e-12), (torch.float32, 1e-4)):
        for given in (x, x.mT):
            want = newton_schulz(given, 5, coefficients)
            got = gram_newton_schulz(given.to(dtype), 5, coefficients)
            assert (got - want).abs().max() < bound
    assert torch.equal(gram_newton_schulz(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_the_inner_optimization_of_muon() -> None:
    """Eq. 43-44: from O = g a quarter step is the cubic map; the objective it descends has the term 1/2 |O - g|^2."""
    g = torch.randn(4, 6, dtype=D) * 0.3
    assert torch.allclose(inner_step(g, g, 0.25), 1.5 * g - 0.5 * g @ g.mT @ g)
    unit = g / g.norm()
    assert torch.allclose(inner_step(unit, unit, 0.25), newton_schulz(g, 1, CUBIC))
    o = torch.randn(4, 6, dtype=D, requires_grad=True)
    loss = 0.5 * (o - g).square().sum() + 0.5 * (o.mT @ o - torch.eye(6, dtype=D)).square().sum()
    (slope,) = torch.autograd.grad(loss, o)
    assert torch.allclose(inner_step(o, g, 0.1), o - 0.1 * slope)


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs(monkeypatch: pytest.MonkeyPatch, scale: str, nesterov: bool) -> None:
    """With torch's own Newton-Schulz precision (bfloat16) closely; with exact products on both sides exactly."""
    settings = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "nesterov": nesterov}
    for shape in ((6, 9), (9, 6), (5, 5)):
        start, grads = torch.randn(shape), torch.randn(12, *shape)
        theirs = follow(lambda p: torch.optim.Muon(p, adjust_lr_fn=scale, **settings), start, grads)
        ours = follow(lambda p: Muon(p, scale=scale, ns_dtype=torch.bfloat16, **settings), start, grads)
        steps = (theirs.diff(dim=0) - ours.diff(dim=0)).norm() / theirs.diff(dim=0).norm()
        assert steps < 0.02, steps
    monkeypatch.setattr(
        "torch.optim._muon._zeropower_via_newtonschulz",
        lambda g, abc, steps, eps: newton_schulz(g, steps, abc, eps=eps),
    )
    start, grads = torch.randn(6, 9, dtype=D), torch.randn(12, 6, 9, dtype=D)
    theirs = follow(lambda p: torch.optim.Muon(p, adjust_lr_fn=scale, **settings), start, grads)
    ours = follow(lambda p: Muon(p, scale=scale, **settings), start, grads)
    assert (theirs - ours).abs().max() < 1e-12


PURE = {
    "muon": (
        orthogonal.Muon(lr=0.1, weight_decay=0.1, momentum=0.8),
        lambda p: Muon(p, lr=0.1, weight_decay=0.1, momentum=0.8),
    ),
    "adamuon": (orthogonal.AdaMuon(lr=0.1, weight_decay=0.1), lambda p: AdaMuon(p, lr=0.1, weight_decay=0.1)),
    "m3": (
        orthogonal.M3(lr=0.1, periods=(1, 3), weight_decay=0.1),
        lambda p: M3(p, lr=0.1, periods=(1, 3), weight_decay=0.1),
    ),
    "m3/literal": (
        orthogonal.M3(lr=0.1, mode="literal", periods=(2, 3), scale="none"),
        lambda p: M3(p, lr=0.1, mode="literal", periods=(2, 3)),
    ),
    "m3/no V": (
        orthogonal.M3(
            lr=0.1, periods=(1, 2, 4), betas=(0.9, 0.8, 0.7), weights=(1, 2, 3), beta_v=None, scale="original"
        ),
        lambda p: M3(
            p, lr=0.1, periods=(1, 2, 4), betas=(0.9, 0.8, 0.7), weights=(1, 2, 3), beta_v=None, scale="original"
        ),
    ),
    "delta": (rules.Momentum(lr=0.1, erase=1.0), lambda p: DeltaMomentum(p, lr=0.1)),
    "preconditioned": (rules.Preconditioned(lr=0.1), lambda p: PreconditionedMomentum(p, lr=0.1)),
}


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_classes_are_their_rules(name: str, tensor_rate: bool) -> None:
    rule, make = PURE[name]
    start, grads = torch.randn(4, 6, dtype=D), torch.randn(13, 4, 6, dtype=D)

    def with_rate(p):
        optimizer = make(p)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=D) if tensor_rate else group["lr"]
        return optimizer

    assert (run(rule, start, grads) - follow(with_rate, start, grads)).abs().max() < 1e-11


@pytest.mark.parametrize("name", [*PURE, "dmgd", "adam"])
def test_rules_run_under_vmap(name: str) -> None:
    """A fast weight for each sequence, written by any rule: an inner optimizer."""
    rule = {"dmgd": DeepMomentum(lr=0.1), "adam": rules.Adam(lr=0.1)}.get(name) or PURE[name][0]
    start, grads = torch.randn(3, 4, 6, dtype=D), torch.randn(3, 7, 4, 6, dtype=D)
    together = torch.vmap(lambda w, g: run(rule, w, g))(start, grads)
    for i in range(3):
        assert (together[i] - run(rule, start[i], grads[i])).abs().max() < 1e-10


def test_an_outer_gradient_flows_through_an_inner_rule() -> None:
    grads = torch.randn(3, 4, 6, dtype=D)
    start = torch.randn(4, 6, dtype=D, requires_grad=True)
    rule = orthogonal.Muon(lr=0.1, weight_decay=0.5)
    (slope,) = torch.autograd.grad(run(rule, start, grads)[-1].sum(), start)
    assert torch.allclose(slope, torch.full_like(slope, 0.95**3))


def test_m3_literal_is_algorithm_1() -> None:
    """Line by line from the paper, with 1-based steps; the slow sum of line 3 is over the chunk before."""
    lr, f, b1, b2, b3, alpha, eps = 0.1, 3, 0.9, 0.99, 0.8, 0.4, 1e-8
    start, g = torch.randn(4, 6, dtype=D), torch.randn(11, 4, 6, dtype=D)
    theta, m1, m2, v, path = start, torch.zeros_like(start), torch.zeros_like(start), torch.zeros_like(start), []
    for k in range(4):
        for i in range((k - 1) * f, k * f):
            if i >= 0:
                m2 = m2 + b3 * g[i]
        o2 = newton_schulz(m2)
        for t in range(k * f, min((k + 1) * f, len(g))):
            m1 = m1 + b1 * g[t]
            v = v + b2 * g[t] ** 2
            theta = theta - lr * (newton_schulz(m1) + alpha * o2) / (v + eps).sqrt()
            path.append(theta)
    make = {"mode": "literal", "periods": (1, f), "betas": (b1, b3), "weights": (1.0, alpha), "beta_v": b2, "eps": eps}
    assert (torch.stack(path) - follow(lambda p: M3(p, lr=lr, **make), start, g)).abs().max() < 1e-11


def test_m3_with_one_level_is_orthogonal_momentum() -> None:
    start, grads = torch.randn(4, 6, dtype=D), torch.randn(9, 4, 6, dtype=D)
    one = follow(
        lambda p: M3(p, lr=0.1, periods=(1,), betas=(0.9,), weights=(1.0,), beta_v=None, scale="original"), start, grads
    )
    muon = follow(lambda p: Muon(p, lr=0.1, weight_decay=0.0, momentum=0.9, nesterov=False), start, grads)
    assert (one - muon).abs().max() < 1e-12


def test_m3_rests_its_slow_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton-Schulz runs once a step, and once more at the end of a period."""
    calls = []
    for form in (newton_schulz, gram_newton_schulz):
        monkeypatch.setattr(
            f"circadia.optim.orthogonalize.{form.__name__}",
            lambda x, *a, form=form, **k: calls.append(len(x) if x.ndim == 3 else 1) or form(x, *a, **k),
        )
    net = Net()
    train(net, M3(net.parameters(), lr=0.01, periods=(1, 4)), 0, 8)
    # Two batches a step: three matrices of one shape (one lies), and one of another.
    assert calls == [3, 1, 3, 1, 3, 1, 3, 1, 3, 1] * 2


@pytest.mark.parametrize("make", [Muon, AdaMuon, lambda p: M3(p, periods=(1, 2))], ids=["muon", "adamuon", "m3"])
def test_pieces_are_the_whole(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a few matrices at a time, in order and none twice; what comes out does not depend on it."""
    one, two = Net(D), Net(D)
    train(one, make(one.parameters()), 0, 5)
    monkeypatch.setattr("circadia.optim.muon.CPU_PIECE", 30)
    optimizer = make(two.parameters())
    assert optimizer.pieces(list(two.parameters())) == [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)]
    assert optimizer.pieces([*two.parameters()][2:]) == [slice(0, 1), slice(1, 2)]
    monkeypatch.setattr("circadia.optim.muon.CPU_PIECE", 48)
    assert optimizer.pieces(list(two.parameters())) == [slice(0, 2), slice(2, 4)]
    train(two, optimizer, 0, 5)
    for a, b in zip(one.parameters(), two.parameters()):
        assert (a - b).abs().max() < 1e-12


def test_step_of_a_set_length() -> None:
    start = torch.zeros(4, 6)
    for make in (lambda p: M3(p, lr=1.0), lambda p: AdaMuon(p, lr=1.0, weight_decay=0.0)):
        path = follow(make, start, torch.randn(3, 4, 6) * 1e-4)
        assert torch.allclose(path[0].square().mean().sqrt(), torch.tensor(0.2), rtol=1e-4)


def test_delta_momentum_by_its_objective() -> None:
    """Gradient descent at rate eta on 1/2 |m g^T - P|^2 is erase = eta, decay = 1 for a unit gradient (eq. 48)."""
    eta, g, m = 0.3, torch.randn(4, 6, dtype=D), torch.randn(4, 6, dtype=D, requires_grad=True)
    g = g / g.norm()
    eye = torch.eye(4, dtype=D)
    (slope,) = torch.autograd.grad(0.5 * (m @ g.mT - eye).square().sum(), m)
    rule = rules.Momentum(lr=1.0, decay=1.0, erase=eta)
    # The rule keeps the rate outside: its m is the paper's divided by -eta, and P = I puts in g.
    _, state = rule(torch.zeros(4, 6, dtype=D), g, {"momentum": m.detach() / eta}, 1)
    assert torch.allclose(eta * state["momentum"], m.detach() - eta * slope)


@pytest.mark.parametrize("side", ["row", "column"])
def test_delta_momentum_as_printed(side: str) -> None:
    """W += m with the rate inside (eq. 49): m (alpha - g^T g) - eta g; the camera-ready multiplies from the left."""
    eta, start, grads = 0.2, torch.randn(4, 6, dtype=D), torch.randn(8, 4, 6, dtype=D)
    w, m, path = start, torch.zeros_like(start), []
    for g in grads:
        n = g / g.norm()
        erased = m @ (0.9 * torch.eye(6, dtype=D) - n.mT @ n) if side == "row" else None
        if erased is None:
            erased = (0.9 * torch.eye(4, dtype=D) - n @ n.mT) @ m
        m = erased - eta * g
        w = w + m
        path.append(w)
    assert (torch.stack(path) - run(rules.Momentum(lr=eta, erase=1.0, side=side), start, grads)).abs().max() < 1e-12


def test_what_delta_momentum_forgets() -> None:
    """A repeated gradient is held once and not 1 / (1 - alpha) times; one at a right angle is kept."""
    east = torch.tensor([[1.0, 0.0]], dtype=D)
    north = torch.tensor([[0.0, 1.0]], dtype=D)
    rule = rules.Momentum(lr=0.0, decay=1.0, erase=1.0)
    state = rule.init(east)
    for g in (north, *[east] * 50):
        _, state = rule(east, g, state, 1)
    assert torch.allclose(state["momentum"], east + north)


def test_features_preconditioner_and_output() -> None:
    """Eq. 46-47, 51, 52: phi, P and sigma where they belong; with Newton-Schulz at the end it is Muon (eq. 42)."""
    start, grads = torch.randn(4, 6, dtype=D), torch.randn(5, 4, 6, dtype=D)
    rule = rules.Momentum(
        lr=0.1, feature=torch.tanh, precondition=lambda g: 2 * g, output=lambda m: newton_schulz(m, 3, CUBIC)
    )
    w, m = start, torch.zeros_like(start)
    for g in grads:
        m = 0.9 * m + 2 * torch.tanh(g)
        w = w - 0.1 * newton_schulz(m, 3, CUBIC)
    assert torch.allclose(run(rule, start, grads)[-1], w)
    muon = orthogonal.Muon(lr=0.1, momentum=0.9, nesterov=False, scale="none")
    assert (
        run(rules.Momentum(lr=0.1, output=newton_schulz), start, grads) - run(muon, start, grads)
    ).abs().max() < 1e-9


def test_preconditioned_momentum_as_printed() -> None:
    start, grads = torch.randn(4, 6, dtype=D), torch.randn(6, 4, 6, dtype=D)
    w, m, v = start, torch.zeros_like(start), torch.zeros_like(start)
    for t, g in enumerate(grads, 1):
        v = 0.99 * v + 0.01 * g**2
        m = 0.9 * m + g / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
        w = w - 0.1 * m
    assert torch.allclose(run(rules.Preconditioned(lr=0.1, beta=0.99), start, grads)[-1], w)


def test_general_forms() -> None:
    """GM with <m x, delta> is momentum (eq. 33-37), GGD with L2 twice DGD (56-60), and P descends its loss (39-41)."""
    m, x, delta = torch.randn(4, 6, dtype=D), torch.randn(6, dtype=D), torch.randn(4, dtype=D)
    got = gm(m, lambda memory: (memory @ x) @ delta, 0.1, 0.9)
    assert torch.allclose(got, 0.9 * m - 0.1 * torch.outer(delta, x))
    w, eta = torch.randn(4, 6, dtype=D), 0.3
    solved = ggd(
        w,
        lambda new: 0.5 * (new @ x + delta).square().sum(),
        lambda new: (new - w).square().sum() / (2 * eta),
        rate=0.05,
        steps=2000,
    )
    step = eta / (1 + eta * x @ x)
    assert torch.allclose(solved, w - step * (w @ torch.outer(x, x) + torch.outer(delta, x)))
    p = torch.randn(4, 4, dtype=D, requires_grad=True)
    ghat, g = torch.randn(4, 6, dtype=D), torch.randn(4, 6, dtype=D)
    (slope,) = torch.autograd.grad(0.5 * (p @ ghat - g).square().sum(), p)
    assert torch.allclose(learn_preconditioner(p, ghat, g, 0.2), p - 0.2 * slope)


def test_how_long_a_momentum_remembers() -> None:
    """What the last 6, 7, 43, 44 gradients hold at alpha = 0.9; the paper says 50 % and 99 % for 6 and 43 (A16)."""
    state = {"momentum": torch.zeros(400, dtype=D)}
    for i in range(400):  # gradient i is the i-th unit vector, so what is held of it can be read off
        _, state = rules.Momentum(lr=0.0)(torch.zeros(()), torch.eye(400, dtype=D)[i], state, i + 1)
    held = state["momentum"].flip(0) / state["momentum"].sum()
    for count, percent in ((6, 46.9), (7, 52.2), (43, 98.92), (44, 99.03)):
        assert math.isclose(100 * held[:count].sum(), percent, abs_tol=0.05 if percent < 90 else 0.005)


def test_deep_momentum() -> None:
    """Eq. 50: the first step by hand; a gradient that keeps coming is answered ever better; "ones" does not descend."""
    g = torch.randn(3, 5, dtype=D)
    rule = DeepMomentum(lr=1.0, momentum=1.0, inner_lr=0.2, hidden=8)
    start = rule.init(g)
    keys = g / g.square().sum(-1).mean().sqrt()
    leaves = {name: x.clone().requires_grad_() for name, x in start.items()}
    answer = torch.nn.functional.gelu(keys @ leaves["layer_0"].mT) @ leaves["layer_1"].mT
    slopes = torch.autograd.grad(0.5 * (answer + keys).square().sum(-1).mean(), list(leaves.values()))
    new = {name: x - 0.2 * s for (name, x), s in zip(start.items(), slopes)}
    want = (g.square().sum(-1).mean().sqrt()) * (torch.nn.functional.gelu(keys @ new["layer_0"].mT) @ new["layer_1"].mT)
    got, state = rule(torch.zeros_like(g), g, start, 1)
    assert torch.allclose(got, want) and all(torch.allclose(state[name], new[name]) for name in new)
    for _ in range(300):
        got, state = rule(torch.zeros_like(g), g, state, 1)
    assert (got + g).norm() < 0.05 * g.norm()
    literal = DeepMomentum(lr=1.0, objective="ones", depth=1)
    moved = {sign: literal(torch.zeros_like(g), sign * g, literal.init(g), 1)[0] for sign in (1, -1)}
    assert torch.allclose(moved[1], moved[-1]), "the sign of the gradient makes no difference"


def test_a_preconditioner_learns_the_root_of_the_gradients() -> None:
    """P descends its own objective, and P^-1 g is the orthogonal matrix that it was to map to g."""
    rule = Learned(lr=1.0, zeta=0.3, momentum=0.0, ridge=0.0, scale="none", ns=NS(steps=30, coefficients=CUBIC))
    for shape in ((3, 5), (5, 3)):
        g = torch.randn(shape, dtype=torch.float64)
        wide = g if shape[0] < shape[1] else g.mT
        u, s, vt = torch.linalg.svd(wide, full_matrices=False)
        want = u @ vt if shape[0] < shape[1] else (u @ vt).mT
        first, state = rule.direction(g, rule.init(g), 1)
        torch.testing.assert_close(first, want)
        for step in range(2, 4):
            p = state["preconditioner"].clone().requires_grad_()
            (slope,) = torch.autograd.grad(0.5 * (p @ (u @ vt) - wide).square().sum(), p)
            _, state = rule.direction(g, state, step)
            torch.testing.assert_close(state["preconditioner"], (p - 0.3 * slope).detach())
        for step in range(4, 60):
            _, state = rule.direction(g, state, step)
        torch.testing.assert_close(state["preconditioner"], u @ s.diag() @ u.mT)
