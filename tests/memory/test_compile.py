"""``torch.compile`` takes every fast form whole, and computes the same."""

import functools
from dataclasses import replace

import pytest
import torch

from circadia.memory import RULES
from tests.memory.cases import ALL, Inputs, gap, objective, same_state


def check_compiled_equals_eager(name: str, backend: str, tokens: int, chunk: int) -> None:
    rule = ALL[name]
    torch._dynamo.reset()

    def run(q, k, v, gates, state, mask):
        return rule(q, k, v, gates, state, chunk=chunk, mask=mask, surprise=True)

    fast = torch.compile(run, fullgraph=True, dynamic=False, backend=backend)
    inputs = Inputs(rule, tokens, batch=1, heads=2, d=8).require_grad()
    leaves = list(inputs.leaves().values())
    want, got = run(*inputs.args(), None), fast(*inputs.args(), None)
    assert gap(want[0], got[0]) < 1e-9 and gap(want[2], got[2]) < 1e-9
    same_state(want[1], got[1], 1e-9)
    grads = torch.autograd.grad(objective(*want), leaves, allow_unused=True)
    for leaf, a, b in zip(inputs.leaves(), grads, torch.autograd.grad(objective(*got), leaves, allow_unused=True)):
        if a is not None and b is not None:
            assert gap(a, b) < 1e-9, leaf


@pytest.mark.parametrize("name", [*RULES, "titans/erase=layer", "self_modifying/two chunks, momentum", "custom_mlp"])
def test_one_graph_forward_and_backward(name: str) -> None:
    """A whole chunk and an open one."""
    check_compiled_equals_eager(name, "aot_eager", 12, 8)


@pytest.mark.skipif(" " in torch.__file__, reason="torch's compiler cannot link from a path with spaces")
@pytest.mark.parametrize("name", ["mamba2", "gated_deltanet", "oja", "dgd_l2", "titans", "self_modifying"])
def test_the_code_generator_agrees(name: str) -> None:
    """One rule of each form through Inductor, C++ and all."""
    check_compiled_equals_eager(name, "inductor", 8, 8)


@pytest.mark.parametrize("name", ["gated_deltanet", "dgd_l2", "dgd_mlp"])
def test_open_chunks_and_padding_compile(name: str) -> None:
    """A resumed stream whose rows are not in step, without a look at the data."""
    rule = ALL[name]
    torch._dynamo.reset()

    def run(q, k, v, gates, state, mask):
        return rule(q, k, v, gates, state, chunk=8, mask=mask)

    inputs = Inputs(rule, 30)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, :5] = False
    _, state = run(*inputs.cut(0, 11), inputs.state, mask[:, :11])
    want, end = run(*inputs.cut(11, 30), state, mask[:, 11:])
    fast = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    got, reached = fast(*inputs.cut(11, 30), state, mask[:, 11:])
    assert gap(want, got) < 1e-9
    same_state(end, reached, 1e-9)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", ["titans", "self_modifying"])
def test_compiled_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for all whole tiles and every length; what is left of a chunk runs as it is."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    rule = replace(ALL[name], compiled=True)
    for tokens in (135, 260):
        inputs = Inputs(rule, tokens, batch=1).require_grad()
        leaves = list(inputs.leaves().values())
        want = ALL[name](*inputs.args(), chunk=64, surprise=True)
        got = rule(*inputs.args(), chunk=64, surprise=True)
        assert gap(want[0], got[0]) < 1e-9 and gap(want[2], got[2]) < 1e-9
        same_state(want[1], got[1], 1e-9)
        for a, b in zip(*(torch.autograd.grad(objective(*out), leaves) for out in (want, got))):
            assert gap(a, b) < 1e-9
        assert len(graphs) <= 2, "compiled again for another length"
    assert graphs
