"""One list of demands, every rule of the table and every setting through it."""

from itertools import pairwise

import pytest
import torch

from circadia.memory import RULES, state_bytes
from circadia.memory.state import MOMENTUM, POS, START, rows, weights_only
from tests.memory.cases import ALL, GRID, VARIANTS, Inputs, gap, objective, same_state

every_rule = pytest.mark.parametrize("name", ALL)
EXACT = 1e-9


def check_equal_to_reference(name: str, tokens: int, **how) -> None:
    rule = ALL[name]
    inputs = Inputs(rule, tokens).require_grad()
    slow = rule.reference(*inputs.args(), surprise=True, **how)
    fast = rule(*inputs.args(), surprise=True, **how)
    assert gap(slow[0], fast[0]) < EXACT
    assert gap(slow[2], fast[2]) < EXACT
    same_state(slow[1], fast[1], EXACT)
    leaves = inputs.leaves()
    wanted = torch.autograd.grad(objective(*slow), list(leaves.values()), allow_unused=True)
    got = torch.autograd.grad(objective(*fast), list(leaves.values()), allow_unused=True)
    for leaf, a, b in zip(leaves, wanted, got):
        assert (a is None) == (b is None), leaf
        if a is not None and b is not None:
            assert gap(a, b) < EXACT, leaf


@pytest.mark.parametrize(("name", "tokens", "chunk"), GRID)
def test_fast_equals_reference(name: str, tokens: int, chunk: int) -> None:
    """Outputs, surprise, final state, and the gradients of every input and of the start."""
    check_equal_to_reference(name, tokens, chunk=chunk)


@every_rule
@pytest.mark.parametrize("read", ["previous", "chunk"])
def test_other_reads_equal_reference(name: str, read: str) -> None:
    check_equal_to_reference(name, 37, chunk=16, read=read)


@every_rule
def test_first_order_equals_reference(name: str) -> None:
    if name in ("deltanet", "gated_deltanet", "oja", "dgd_l2_online"):  # their gradient sees the running state
        with pytest.raises(ValueError, match=f"order='first' cannot be had from {name}"):
            ALL[name](*Inputs(ALL[name], 5).args(), order="first")
        return
    check_equal_to_reference(name, 37, chunk=16, order="first")


@every_rule
def test_packed_and_padded_equal_reference(name: str) -> None:
    """Ragged documents and padding in every row, going on from an open chunk, against the loop."""
    rule = ALL[name]
    inputs = Inputs(rule, 50).require_grad()
    g = torch.Generator().manual_seed(3)
    mask = torch.rand(2, 50, generator=g) < 0.8
    reset = (torch.rand(2, 50, generator=g) < 0.1) & mask
    initial = {n: x.detach() * 0.5 for n, x in inputs.state.items()}
    with torch.no_grad():
        open_state = rule(*Inputs(rule, 5, seed=9).args()[:4], inputs.state, chunk=8)[1]
    args, how = (*inputs.args()[:4], open_state), {"chunk": 8, "mask": mask, "reset": reset, "initial": initial}
    slow = rule.reference(*args, surprise=True, **how)
    fast = rule(*args, surprise=True, **how)
    assert gap(slow[0], fast[0]) < EXACT and gap(slow[2], fast[2]) < EXACT
    same_state(slow[1], fast[1], EXACT)
    leaves = inputs.leaves()
    wanted = torch.autograd.grad(objective(*slow), list(leaves.values()), allow_unused=True)
    got = torch.autograd.grad(objective(*fast), list(leaves.values()), allow_unused=True)
    for leaf, a, b in zip(leaves, wanted, got):
        if a is not None and b is not None:
            assert gap(a, b) < EXACT, leaf


@every_rule
@pytest.mark.parametrize("cuts", [(0, 1, 2, 40), (16, 32), (13, 29, 30), (31,)])
def test_any_split_is_one_pass(name: str, cuts: tuple[int, ...]) -> None:
    rule = ALL[name]
    inputs = Inputs(rule, 45)
    whole, end = rule(*inputs.args(), chunk=16)
    state, parts = inputs.state, []
    for a, b in zip((0, *cuts), (*cuts, 45)):
        y, state = rule(*inputs.cut(a, b), state, chunk=16)
        parts.append(y)
    assert gap(whole, torch.cat(parts, 2)) < EXACT
    same_state(end, {n: state[n] for n in end}, EXACT)


@every_rule
def test_a_state_is_the_same_in_any_order(name: str) -> None:
    """Files give the entries back in an order of their own, positions before weights."""
    rule = ALL[name]
    inputs = Inputs(rule, 20)
    _, state = rule(*inputs.cut(0, 7), inputs.state, chunk=16)
    turned = dict(sorted(state.items(), key=lambda entry: entry[1].is_floating_point()))
    for run in (rule, rule.reference):
        a, b = (run(*inputs.cut(7, 20), kept, chunk=16) for kept in (state, turned))
        assert torch.equal(a[0], b[0])
    assert torch.equal(*(rule.step(*inputs.at(7), kept, chunk=16)[0] for kept in (state, turned)))


@every_rule
def test_token_by_token_is_one_pass(name: str) -> None:
    rule = ALL[name]
    inputs = Inputs(rule, 37)
    whole, end, loss = rule(*inputs.args(), chunk=8, surprise=True)
    state = inputs.state
    for t in range(37):
        y, state, one = rule.step(*inputs.at(t), state, chunk=8, surprise=True)
        assert gap(whole[:, :, t], y) < EXACT, t
        assert gap(loss[:, :, t], one) < EXACT, t
    same_state(end, {n: state[n] for n in end}, EXACT)


@every_rule
def test_rows_are_independent(name: str) -> None:
    rule = ALL[name]
    inputs = Inputs(rule, 33, batch=3)
    y, state = rule(*inputs.args(), chunk=8)
    for b in range(3):
        alone, end = rule(*inputs.row(b), chunk=8)
        assert gap(alone, y[b : b + 1]) < EXACT
        same_state(end, rows(state, slice(b, b + 1)), EXACT)


@every_rule
@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_padding_writes_nothing(name: str, chunk: int) -> None:
    """Left padding of another length in every row: each row as if alone, in passes and in steps."""
    rule = ALL[name]
    tokens, pads = 40, (0, 3, 17)
    inputs = Inputs(rule, tokens, batch=3)
    mask = torch.stack([torch.arange(tokens) >= p for p in pads])
    y, state = rule(*inputs.args(), chunk=chunk, mask=mask)
    state, stepped = inputs.state, []
    halves = rule(*inputs.cut(0, 20), inputs.state, chunk=chunk, mask=mask[:, :20])
    second = rule(*inputs.cut(20, 40), halves[1], chunk=chunk, mask=mask[:, 20:])
    for t in range(tokens):
        one, state = rule.step(*inputs.at(t), state, chunk=chunk, mask=mask[:, t])
        stepped.append(one)
    for b, p in enumerate(pads):
        alone, end = rule(*inputs.row(b, p), chunk=chunk)
        for got in (y, torch.stack(stepped, 2), torch.cat((halves[0], second[0]), 2)):
            assert gap(alone, got[b : b + 1, :, p:]) < EXACT
            assert not got[b, :, :p].any()
        for whole in (state, second[1]):
            same_state(end, {n: whole[n][b : b + 1] for n in end}, EXACT)


@every_rule
@pytest.mark.parametrize("chunk", [1, 16])
def test_packed_documents_are_documents_alone(name: str, chunk: int) -> None:
    rule = ALL[name]
    inputs = Inputs(rule, 50)
    borders = [(0, 11, 50), (0, 30, 37, 50)]
    reset = torch.zeros(2, 50, dtype=torch.bool)
    for b, ends in enumerate(borders):
        reset[b, list(ends[:-1])] = True
    stale = rule(*Inputs(rule, 9, seed=4).args()[:4], inputs.state, chunk=chunk)[1]
    y, state = rule(*inputs.args()[:4], stale, chunk=chunk, reset=reset, initial=inputs.state)
    for b, ends in enumerate(borders):
        for a, e in pairwise(ends):
            alone, end = rule(*inputs.row(b, a, e), chunk=chunk)
            assert gap(alone, y[b : b + 1, :, a:e]) < EXACT
        same_state(end, {n: state[n][b : b + 1] for n in end}, EXACT)


@every_rule
def test_float32_keeps_up_with_float64(name: str) -> None:
    """4,096 tokens whose keys point nearly the same way: the hard case for the triangular solve."""
    rule = ALL[name]
    exact = Inputs(rule, 4096, batch=1, heads=1, d=8, correlated=True)
    short = Inputs(rule, 4096, batch=1, heads=1, d=8, correlated=True, dtype=torch.float32)
    want, got = rule(*exact.args(), chunk=64)[0], rule(*short.args(), chunk=64)[0]
    assert torch.isfinite(got).all()
    assert ((want - got).norm() / want.norm()).item() < 1e-4


def adversary(name: str, tokens: int) -> Inputs:
    """Repeated keys, zero keys, huge values, gates at and between their bounds, in stretches of 100 tokens."""
    rule = ALL[name]
    x = Inputs(rule, tokens, batch=1, heads=1, d=8, dtype=torch.float32)
    g = torch.Generator().manual_seed(7)
    top = 1.0 if "online" in name else 2.0
    for a in range(0, tokens, 100):
        s, kind = slice(a, a + 100), int(torch.randint(6, (), generator=g))
        if kind == 0:
            x.k[:, :, s] = x.k[:, :, a : a + 1].clone()
        elif kind == 1:
            x.k[:, :, s] = 0.0
        elif kind == 2:
            x.v[:, :, s] *= 1.0 if name.startswith("oja") else 1e4  # Oja's values are its keys: they must be short
        elif kind == 3:
            x.v[:, :, s] = 0.0
        for gate, values in x.gates.items():
            if rule.family == "self-modifying":
                extreme = {"x": 1e3, "eta": 50.0, "alpha": 50.0, "beta": 50.0}[gate]
                values[:, :, s] = values[:, :, s].sign() * extreme if kind % 2 else values[:, :, s]
            elif kind >= 4 and gate != "x":
                high = top if gate == "eta" else 1.0
                values[:, :, s] = high if kind == 4 else high * (values[:, :, s] > values[:, :, s].median())
    return x


@every_rule
def test_adversarial_stream(name: str) -> None:
    """No NaN and a bounded state over 20,000 steps."""
    rule, tokens = ALL[name], 20_000
    x = adversary(name, tokens)
    with torch.no_grad():
        y, state = rule(*x.args(), chunk=64)
    assert torch.isfinite(y).all()
    for key, w in state.items():
        assert torch.isfinite(w).all(), key
    if rule.max_norm is None:
        if rule.family != "custom":
            # Nothing but the writes themselves can make it grow: transitions are contractions.
            writes = (x.gates.get("eta", torch.ones(())) * x.v.norm(dim=-1) * x.k.norm(dim=-1)).sum()
            assert state["w"].norm() <= 1.001 * (writes + x.state["w"].norm())
        return
    for key, w in state.items():
        if key.startswith(START):
            assert w.square().sum((-2, -1)).sqrt().max() <= rule.max_norm * min(w.shape[-2:]) ** 0.5 * 1.001, key
        elif not key.startswith((MOMENTUM, "ln.")) and key != POS:
            # In the open chunk at most 64 clipped writes of rate 2 come on top.
            assert w.norm() <= 1e7, key


@every_rule
def test_gradients_survive_the_adversary(name: str) -> None:
    rule = ALL[name]
    x = adversary(name, 600).require_grad()
    y, state, loss = rule(*x.args(), chunk=16, surprise=True)
    scale = 1e-4  # huge values make huge numbers; what counts is that none is undefined
    grads = torch.autograd.grad(
        objective(y * scale, {n: s * scale for n, s in state.items()}, loss * 0), x.leaves().values(), allow_unused=True
    )
    for leaf, grad in zip(x.leaves(), grads):
        assert grad is None or not grad.isnan().any(), leaf


@every_rule
def test_everything_learns(name: str) -> None:
    """Each entry of the start and each input gets a gradient from the outputs alone."""
    rule = ALL[name]
    inputs = Inputs(rule, 40).require_grad()
    y, _ = rule(*inputs.args(), chunk=8)
    leaves = inputs.leaves()
    for leaf, grad in zip(leaves, torch.autograd.grad(y.square().sum(), list(leaves.values()), allow_unused=True)):
        assert grad is not None and torch.isfinite(grad).all() and grad.abs().max() > 0, leaf


@every_rule
def test_dtype_and_width(name: str) -> None:
    """Half-precision tokens over a float32 memory: the memory stays float32, the answer comes as asked."""
    rule = ALL[name]
    inputs = Inputs(rule, 20, dtype=torch.float32)
    want, _ = rule(*inputs.args(), chunk=8)
    half = [x.bfloat16() * 0.99 if i == 1 else x.bfloat16() for i, x in enumerate((inputs.q, inputs.k, inputs.v))]
    gates = {n: x.bfloat16() for n, x in inputs.gates.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = rule(*half, gates, inputs.state, chunk=8)
    assert y.dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for n, x in state.items() if n != POS)
    assert ((y.float() - want).norm() / want.norm()).item() < 0.1


@every_rule
def test_checkpointing_changes_nothing_but_memory(name: str) -> None:
    rule = ALL[name]
    inputs = Inputs(rule, 70).require_grad()
    if rule.family == "custom":
        with pytest.raises(ValueError, match="checkpoint=True"):
            rule(*inputs.args(), checkpoint=True)
        return
    leaves = list(inputs.leaves().values())
    mask = torch.ones(2, 70, dtype=torch.bool)
    mask[1, 20:33] = False
    for how in ({}, {"mask": mask}):
        outs = [rule(*inputs.args(), chunk=4, surprise=True, checkpoint=on, **how) for on in (False, True)]
        plain, saved = (torch.autograd.grad(objective(*out), leaves, allow_unused=True) for out in outs)
        for leaf, a, b in zip(inputs.leaves(), plain, saved):
            assert (a is None) == (b is None), leaf
            if a is not None and b is not None:
                assert gap(a, b) < 1e-12, leaf


def saved_bytes(rule, inputs: Inputs, **how) -> int:
    """What the backward pass of one call keeps, beside its inputs."""
    known = {x.untyped_storage().data_ptr() for x in inputs.leaves().values()}
    seen: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in known:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = rule(*inputs.args(), **how)
    total = sum(seen.values())
    del out
    return total


@every_rule
def test_checkpointed_memory_grows_by_the_states_alone(name: str) -> None:
    rule = ALL[name]
    if rule.family == "custom":
        pytest.skip("forms every W_t of a tile, and says so")
    sizes = {}
    for tiles in (32, 96):
        inputs = Inputs(rule, 16 * tiles, batch=1, heads=1, d=16, dtype=torch.float32).require_grad()
        sizes[tiles] = saved_bytes(rule, inputs, chunk=16, checkpoint=True)
        full = saved_bytes(rule, inputs, chunk=16)
    state = state_bytes(rule(*inputs.cut(0, 1), inputs.state, chunk=16)[1])
    groups = (96 - 32) // rule.group
    assert sizes[96] - sizes[32] <= groups * state * 1.5 + 64 * 16 * 16 * 8, "more than states between tiles is kept"
    assert sizes[96] < full


@every_rule
def test_a_bare_state_is_the_start_of_a_chunk(name: str) -> None:
    rule = ALL[name]
    inputs = Inputs(rule, 20)
    _, end = rule(*inputs.args(), chunk=8)
    bare = weights_only(end)
    assert set(bare) == set(inputs.state)
    assert not any(key.startswith((START, MOMENTUM)) or key == POS for key in bare)


def test_the_table_is_what_it_says() -> None:
    assert all(name == rule.name for name, rule in RULES.items())
    assert {rule.family for rule in RULES.values()} == {"Hebbian", "delta", "DGD", "deep", "self-modifying"}
    assert not set(VARIANTS) & set(RULES)
