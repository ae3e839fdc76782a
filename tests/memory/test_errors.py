"""Bad input: one ValueError that names the argument, the value and what to do."""

from dataclasses import replace

import pytest
import torch

from circadia.memory import RULES, custom, get
from circadia.memory.deep import Deep
from tests.memory.cases import ALL, Inputs

RULE = get("gated_deltanet")


def inputs() -> Inputs:
    return Inputs(RULE, 8)


def call(rule=RULE, *, chunk=4, state=..., gates=None, q=None, k=None, v=None, **how):
    x = Inputs(rule, 8)
    given = (x.q if q is None else q, x.k if k is None else k, x.v if v is None else v)
    return rule(*given, x.gates if gates is None else gates, x.state if state is ... else state, chunk=chunk, **how)


def gate(name: str, value: float) -> dict:
    gates = dict(inputs().gates)
    gates[name] = gates[name].clone()
    gates[name][0, 1, 2] = value
    return gates


X = inputs()
nan_k = X.k.clone()
nan_k[1, 0, 3, 2] = float("nan")
ONE = {"w": torch.ones(1)}
MASK = torch.ones(2, 8, dtype=torch.bool)
RESET = torch.zeros(2, 8, dtype=torch.bool)

BAD = {
    "chunk 0": (dict(chunk=0), r"chunk=0 is not a positive number of tokens"),
    "chunk 2.5": (dict(chunk=2.5), r"chunk=2.5"),
    "read": (dict(read="start"), r"read='start' is unknown: use one of 'running', 'previous', 'chunk'"),
    "order": (dict(order="third"), r"order='third' is unknown"),
    "q of 3 axes": (dict(q=X.q[0]), r"q is \(2, 8, 6\): gated_deltanet needs a tensor \[batch, heads, tokens, width\]"),
    "q no tensor": (dict(q=[1.0]), r"q is list"),
    "q and k": (dict(q=X.q[:, :, :7]), r"q is \(2, 2, 7, 6\) but k is \(2, 2, 8, 6\)"),
    "v tokens": (dict(v=X.v[:, :, :7]), r"v is \(2, 2, 7, 6\) but k is"),
    "whole numbers": (dict(q=X.q.long(), k=X.k.long()), r"q has dtype torch.int64: use a floating-point type"),
    "types": (dict(v=X.v.float()), r"v has dtype torch.float32 but q has torch.float64"),
    "device": (dict(v=X.v.to("meta")), r"v is on meta but q is on cpu: move them to one device"),
    "no gate": (dict(gates={"eta": X.gates["eta"]}), r"gates has no 'alpha': gated_deltanet needs gates 'alpha'"),
    "odd gate": (dict(gates={**X.gates, "beta": X.gates["eta"]}), r"gates\['beta'\] is not used by gated_deltanet"),
    "gate shape": (dict(gates={**X.gates, "eta": X.gates["eta"][:, :1]}), r"gates\['eta'\] is \(2, 1, 8\)"),
    "alpha above 1": (dict(gates=gate("alpha", 1.5)), r"gates\['alpha'\] is 1.5, outside \[0, 1\]"),
    "negative rate": (dict(gates=gate("eta", -0.5)), r"gates\['eta'\] is -0.5, outside \[0, inf\]"),
    "rate above 2": (dict(gates=gate("eta", 2.5)), r"gates\['eta'\] \* \|k\|\^2 is 2.5, outside \[0, 2"),
    "NaN in k": (dict(k=nan_k), r"k is nan at \[1, 0, 3, 2\] \(1 such values\): nothing was written"),
    "infinite rate": (dict(gates=gate("eta", float("inf"))), r"gates\['eta'\] is inf at \[0, 1, 2\]"),
    "state missing": (dict(state={"m": X.state["w"]}), r"state has no 'w': make one with gated_deltanet.init"),
    "state batch": (dict(state={"w": X.state["w"][:1]}), r"state\['w'\] is \[1, 2, 6, 6\]: .* needs \[2, 2, 6, 6\]"),
    "state NaN": (dict(state={"w": X.state["w"] * float("nan")}), r"state\['w'\] is nan at \[0, 0, 0, 0\]"),
    "state half": (dict(state={"w": X.state["w"].half()}), r"state\['w'\] has dtype torch.float16: memories are kept"),
    "state device": (dict(state={"w": X.state["w"].to("meta")}), r"state\['w'\] is on meta but k is on cpu"),
    "mask shape": (dict(mask=MASK[:, :7]), r"mask is torch.bool \(2, 7\): it must be torch.bool \(2, 8\)"),
    "mask type": (dict(mask=MASK.long()), r"mask is torch.int64"),
    "reset alone": (dict(reset=RESET), r"reset is given without initial"),
    "initial alone": (dict(initial=X.state), r"initial is given without reset"),
    "initial shape": (dict(reset=RESET, initial={"w": X.state["w"][:, :1]}), r"state\['w'\] is .*, initial"),
    "reset in padding": (dict(reset=~RESET, mask=RESET, initial=X.state), r"reset is set where mask is False"),
    "width": (dict(rule=get("gd"), v=X.v[..., :5]), r"v is 5 wide but k is 6: gd has a residual"),
    "order of online": (dict(rule=get("deltanet"), order="first"), r"order='first' cannot be had from deltanet"),
    "deep state": (dict(rule=get("gd"), state={"w0": X.state["w"]}), r"state has no 'w1'"),
    "two chunks": (
        dict(rule=ALL["self_modifying/two chunks"], chunk=24),
        r"chunk=24 and projection_chunk=64: one must divide the other, for example projection_chunk=72",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(**settings)


def test_the_reference_and_a_step_refuse_the_same() -> None:
    x = inputs()
    with pytest.raises(ValueError, match="outside"):
        RULE.reference(x.q, x.k, x.v, gate("alpha", 1.5), x.state)
    with pytest.raises(ValueError, match="outside"):
        RULE.step(
            *x.at(0)[:3],
            {"alpha": torch.full((2, 2), 1.5, dtype=torch.float64), "eta": x.gates["eta"][:, :, 0]},
            x.state,
        )


BAD_RULES = {
    "depth": (lambda: replace(get("gd"), depth=5), r"depth=5 is unknown: use one of 1, 2, 3, 4"),
    "erase": (lambda: replace(get("gd"), erase="all"), r"erase='all' is unknown"),
    "objective": (lambda: replace(get("dgd"), objective="l1"), r"objective='l1' is unknown"),
    "sign": (lambda: replace(get("dgd_l2"), literal_sign=True), r"literal_sign=True belongs to objective='dot'"),
    "clip": (lambda: replace(get("dgd_l2_online"), clip=1.0), r"clip needs gradient='chunk'"),
    "static": (lambda: replace(get("self_modifying"), static=("w",)), r"static='w' is unknown"),
    "all static": (lambda: replace(get("self_modifying"), static=("memory",)), r"would write nothing"),
    "chunk": (lambda: replace(get("self_modifying"), projection_chunk=0), r"projection_chunk=0"),
    "name": (lambda: get("deltanett"), r"rule 'deltanett' is unknown: use one of linear,"),
    "start": (
        lambda: custom("c", memory=lambda w, x: x, objective=lambda y, v: y.sum(), start=lambda a, b: {}),
        r"start of c returned dict: it must return a non-empty dict of tensors",
    ),
    "failing start": (
        lambda: custom("c", memory=lambda w, x: x, objective=lambda y, v: y.sum(), start=lambda a: {}),
        r"start\(8, 8\) of c failed",
    ),
    "memory": (
        lambda: custom("c", memory=lambda w, x: x.sum(), objective=lambda y, v: y, start=lambda a, b: ONE),
        r"memory of c answers \(\)",
    ),
    "loss": (
        lambda: custom("c", memory=lambda w, x: x, objective=lambda y, v: y - v, start=lambda a, b: ONE),
        r"objective of c returns \(8,\): it must return one number; add .sum\(\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RULES)
def test_bad_rules(case: str) -> None:
    make, message = BAD_RULES[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refused_write_leaves_the_state_alone() -> None:
    x = inputs()
    before = x.state["w"].clone()
    with pytest.raises(ValueError, match="nan"):
        call(k=nan_k, state=x.state)
    assert torch.equal(x.state["w"], before)


def test_rates_up_to_two_are_not_refused() -> None:
    """Rounding in a unit key must not turn the bound of state tracking into an error."""
    for name in ("deltanet", "gated_deltanet", "dgd", "dgd_l2", "dgd_mlp"):
        x = Inputs(RULES[name], 200, dtype=torch.float32)
        gates = {n: torch.full_like(g, 2.0 if n == "eta" else 1.0) for n, g in x.gates.items()}
        y, _ = RULES[name](x.q, x.k, x.v, gates, x.state)
        assert torch.isfinite(y).all()


def test_no_tokens_change_nothing() -> None:
    x = inputs()
    y, state = RULE(*x.cut(3, 3), x.state)
    assert y.shape == (2, 2, 0, 6)
    assert torch.equal(state["w"], x.state["w"])


def test_a_depth_of_one_has_no_hidden_layer() -> None:
    rule = Deep(name="one", family="deep", equation="", summary="", depth=1)
    assert rule.weights(6, 6) == {"w0": (6, 6)}
