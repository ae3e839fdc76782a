"""What the papers and our own derivations say of the rules, on examples small enough to follow."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from circadia.memory import RULES, SelfModifying, custom, get, proximal_rate
from circadia.memory.state import START
from tests.memory.cases import ALL, Inputs, gap


def one_pair(times: int, *, d: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same pair again and again: key e_0, value (1, 2, 3, 4)."""
    k = torch.zeros(1, 1, times, d, dtype=torch.float64)
    k[..., 0] = 1.0
    v = torch.arange(1.0, d + 1, dtype=torch.float64).expand(1, 1, times, d)
    return k, k, v


def rate(value: float, times: int) -> torch.Tensor:
    return torch.full((1, 1, times), value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "chunk", "share"),
    [("dgd", 16, 1.0), ("dgd_dot_literal", 16, -1.0), ("dgd_l2_online", 16, 0.5), ("dgd_l2", 1, 0.5)],
)
def test_what_a_repeated_pair_settles_at(name: str, chunk: int, share: float) -> None:
    """Descent on the dot product stores v, the printed sign of eq. 92 stores -v, L2 on top of the decay v / 2 (A10)."""
    q, k, v = one_pair(200)
    rule = get(name)
    _, state = rule(q, k, v, {"eta": rate(0.3, 200)}, rule.init(1, 1, 4, dtype=torch.float64), chunk=chunk)
    assert torch.allclose(state["w"][0, 0, :, 0], share * v[0, 0, 0], atol=1e-9)
    assert not state["w"][0, 0, :, 1:].any()


def test_a_rate_of_two_flips_the_sign() -> None:
    """Eigenvalue -1: with nothing written, each token turns what is stored under its key around. Parity needs this."""
    rule = get("dgd")
    start = {"w": torch.eye(4, dtype=torch.float64).expand(1, 1, 4, 4)}
    q, k, v = one_pair(5)
    y, state = rule(q, k, 0 * v, {"eta": rate(2.0, 5)}, start, chunk=16)
    assert torch.equal(y[0, 0, :, 0], torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64))
    assert torch.equal(state["w"][0, 0].diagonal(), torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))


def test_the_proximal_step_is_dgd() -> None:
    """W+ = argmin 1/2 |W x - u|^2 + 1/(2 eta) |W - W_t|^2 (eq. 56), solved directly, for an x of any length."""
    g = torch.Generator().manual_seed(0)
    w, x, u = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((3, 5), (5,), (3,)))
    eta = torch.tensor(0.7, dtype=torch.float64)
    exact = (torch.outer(u, x) + w / eta) @ torch.linalg.inv(
        torch.outer(x, x) + torch.eye(5, dtype=torch.float64) / eta
    )
    rule = get("dgd")
    args = (x.view(1, 1, 1, 5), x.view(1, 1, 1, 5), u.view(1, 1, 1, 3))
    _, state = rule(*args, {"eta": proximal_rate(eta, x).view(1, 1, 1)}, {"w": w.view(1, 1, 3, 5)})
    assert torch.allclose(state["w"][0, 0], exact, atol=1e-12)


def test_online_l2_is_the_gated_delta_rule() -> None:
    """With beta = 2 eta / alpha and value alpha v / 2: one kernel serves both."""
    x = Inputs(RULES["dgd_l2_online"], 100)
    alpha, eta = x.gates["alpha"], 0.9 * x.gates["eta"] * x.gates["alpha"]
    x.gates["eta"] = eta
    y, state = get("dgd_l2_online")(*x.args(), chunk=16)
    mapped = {"alpha": alpha, "eta": 2 * eta / alpha}
    z, same = get("gated_deltanet")(x.q, x.k, alpha[..., None] / 2 * x.v, mapped, x.state, chunk=16)
    assert gap(y, z) < 1e-12 and gap(state["w"], same["w"]) < 1e-12


def test_retnet_decays_as_published() -> None:
    """1 - 2^-5 for the first head, one power of two longer for each further one."""
    rule = get("retnet")
    k = torch.zeros(1, 3, 8, 2, dtype=torch.float64)
    _, state = rule(k, k, k, {}, {"w": torch.ones(1, 3, 2, 2, dtype=torch.float64)})
    expected = torch.tensor([1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128], dtype=torch.float64) ** 8
    assert torch.allclose(state["w"][0, :, 0, 0], expected, rtol=1e-12)


def test_unbounded_self_modifying_memories_diverge_and_the_cure_holds() -> None:
    """Targets that a memory makes itself grow with it; unit targets, clipped errors and a norm bound stop that."""
    wild = SelfModifying(
        name="wild", family="self-modifying", equation="", summary="", objective="l2", projection_rate=1.0,
        output_scale=1.0, max_target=None, clip=None, bound=None,
    )  # fmt: skip
    x = Inputs(get("self_modifying"), 640, batch=1, heads=1, d=8, dtype=torch.float32)
    tame = replace(wild, max_target=1.0, clip=1.0, bound=4.0)
    _, state = wild(*x.args(), chunk=16)
    largest = max(w.abs().max() for name, w in state.items() if name.startswith(START))
    assert not torch.isfinite(largest) or largest > 1e6
    for rule in (tame, get("self_modifying")):
        y, state = rule(*x.args(), chunk=16)
        assert torch.isfinite(y).all()
        assert max(w.abs().max() for name, w in state.items() if name.startswith(START)) < 40


def test_a_self_modifying_memory_lasts() -> None:
    """At initialisation, over 1,000 tokens without content, at least half of every memory is left."""
    rule = get("self_modifying")
    start = rule.init(1, 2, 8, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(1, 2, 1000, 8)
    _, state = rule(nothing, nothing, nothing, {"x": nothing}, start, chunk=64)
    for name, w in start.items():
        assert state[name].norm() > 0.5 * w.norm(), name


@pytest.mark.parametrize("name", ["deltanet", "gd", "titans", "dgd_mlp"])
def test_surprise_falls_with_repetition(name: str) -> None:
    rule = get(name)
    x = Inputs(rule, 8, batch=1, heads=1, d=8)
    gates = {
        n: torch.full_like(g, {"eta": 0.2, "alpha": 1.0, "beta": 0.0}[n]).repeat(1, 1, 20) for n, g in x.gates.items()
    }
    q, k, v = (z.repeat(1, 1, 20, 1) for z in (x.q, x.k, x.v))
    _, _, surprise = rule(q, k, v, gates, rule.init(1, 1, 8, dtype=torch.float64), chunk=4, surprise=True)
    rounds = surprise.view(20, 8).mean(1)
    assert rounds[-1] < rounds[0] - 0.1 * rounds[0].abs()


@pytest.mark.parametrize("name", ALL)
def test_no_token_sees_the_future(name: str) -> None:
    """A change at token 20 changes no earlier answer; with "previous" not its own; with "chunk" not its chunk's."""
    rule = ALL[name]
    x, other = Inputs(rule, 48), Inputs(rule, 48)
    other.k[:, :, 20] = other.k[:, :, 20].flip(-1)
    other.v[:, :, 20] = other.v[:, :, 20].flip(-1) * 0.9
    first_seen = {"running": 20, "previous": 21, "chunk": 32}
    for read, t in first_seen.items():
        a, b = (rule(*z.args(), chunk=16, read=read)[0] for z in (x, other))
        changed = ((a - b).abs().amax((0, 1, 3)) > 1e-12).nonzero().flatten()
        assert changed.min() == t, (read, changed.min())


def test_static_memories_keep_their_start() -> None:
    rule = ALL["self_modifying/static"]
    x = Inputs(rule, 40)
    _, state = rule(*x.args(), chunk=8)
    for name, w in x.state.items():
        assert torch.equal(state[name], w) == (name.split(".")[0] in ("k", "eta")), name


def test_without_decay_everything_is_kept() -> None:
    """Outputs, states and gradients are those of a retention of 1, in both forms."""
    rule, x = get("self_modifying"), Inputs(get("self_modifying"), 40).require_grad()
    gates = {**x.gates, "alpha": torch.full_like(x.gates["alpha"], 60.0)}
    keeps = replace(rule, decays=False)
    assert "alpha" not in keeps.takes
    rest = {name: gate for name, gate in x.gates.items() if name != "alpha"}
    wanted = rule(x.q, x.k, x.v, gates, x.state, chunk=8)
    plain = rule(x.q, x.k, x.v, x.gates, x.state, chunk=8)
    assert gap(wanted[0], plain[0]) > 1e-6
    for form in (keeps, keeps.reference):
        y, state = form(x.q, x.k, x.v, rest, x.state, chunk=8)
        assert gap(y, wanted[0]) < 1e-10
        for name, w in wanted[1].items():
            if name.split(".")[0] != "alpha":
                assert gap(state[name], w) < 1e-10, name
        for leaf in (x.k, x.v, x.state["memory.w0"], x.state["eta.skip"]):
            a, b = (torch.autograd.grad(z.square().sum(), leaf, retain_graph=True)[0] for z in (y, wanted[0]))
            assert gap(a, b) < 1e-9


def dot(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return -(y * v).sum()


def square(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return 0.5 * (y - v).square().sum()


def erased_dot(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return 0.5 * y.square().sum() - (y * v).sum()


def layer_norm_mlp(w: dict, x: torch.Tensor) -> torch.Tensor:
    z = w["w1"] @ F.gelu(w["w0"] @ x)
    return x + F.layer_norm(z, z.shape, eps=1e-5) * w["ln.weight"] + w["ln.bias"]


def mlp(w: dict, x: torch.Tensor) -> torch.Tensor:
    return x + w["w1"] @ F.gelu(w["w0"] @ x)


def deep_mlp(w: dict, x: torch.Tensor) -> torch.Tensor:
    return x + w["w2"] @ F.gelu(w["w1"] @ F.gelu(w["w0"] @ x))


def line(w: dict, x: torch.Tensor) -> torch.Tensor:
    return w["w"] @ x


# rule, its settings, memory, objective, and the chunk (1 where the rule's gradient is at the running state)
TWINS = [
    ("linear", {}, line, dot, 16),
    ("mamba2", {}, line, dot, 16),
    ("deltanet", {}, line, square, 1),
    ("dgd", {}, line, erased_dot, 1),
    ("dgd_dot_literal", {}, line, lambda y, v: erased_dot(y, -v), 1),
    ("dgd_l2_online", {}, line, lambda y, v: y.square().sum() - (y * v).sum(), 1),
    ("dgd_l2", {}, line, lambda y, v: y.square().sum() - (y * v).sum(), 1),
    ("gd", {"clip": None, "bound": None}, mlp, square, 16),
    ("gd", {"clip": None, "bound": None, "depth": 3}, deep_mlp, square, 16),
    ("dla", {"clip": None, "bound": None}, mlp, dot, 16),
    ("dgd_mlp_decay", {"clip": None, "bound": None, "output_scale": 1.0, "max_target": None}, mlp, dot, 16),
]


@pytest.mark.parametrize(("name", "settings", "memory", "objective", "chunk"), TWINS)
def test_a_twin_made_with_torch_func_is_equal(name, settings, memory, objective, chunk) -> None:
    """The rule again from two plain functions; nothing of its derivation is shared."""
    rule = replace(get(name), **settings)
    x = Inputs(rule, 50, d=8)
    start = {n: w[0, 0] for n, w in x.state.items()}
    twin = custom("twin", memory=memory, objective=objective, start=lambda d_k, d_v: start)
    gates = {"eta": torch.ones_like(x.k[..., 0])} | x.gates
    y, state = rule(*x.args(), chunk=chunk)
    z, same = twin(x.q, x.k, x.v, gates, x.state, chunk=chunk)
    assert gap(y, z) < 1e-9
    for n in start:
        assert gap(state[n], same[n]) < 1e-9, n


def test_ttt_twin() -> None:
    """TTT's layer norm is not written, so its twin takes it as given."""
    rule = replace(get("ttt"), clip=None, bound=None)
    x = Inputs(rule, 50, batch=1, heads=1, d=8)
    fixed = {n: x.state[n][0, 0] for n in ("ln.weight", "ln.bias")}
    twin = custom(
        "twin",
        memory=lambda w, key: layer_norm_mlp({**w, **fixed}, key),
        objective=square,
        start=lambda d_k, d_v: {n: x.state[n][0, 0] for n in ("w0", "w1")},
    )
    y, state = rule(*x.args(), chunk=16)
    z, same = twin(x.q, x.k, x.v, x.gates, {n: x.state[n] for n in ("w0", "w1")}, chunk=16)
    assert gap(y, z) < 1e-9
    assert gap(state["w0"], same["w0"]) < 1e-9 and gap(state["w1"], same["w1"]) < 1e-9
