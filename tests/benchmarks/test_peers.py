"""The adapters' own arithmetic; the packages themselves are optional."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness import NotMeasured
from benchmarks.inputs import Shape, draw
from benchmarks.peers import FLA, PEERS, Peer, gated_delta_rule, load
from circadia.memory import RULES


def recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float) -> Tensor:
    """What the kernel computes, token by token: S [B, H, K, V], o_t = scale q_t S_t."""
    s = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1])
    out = []
    for t in range(q.shape[1]):
        s = s * g[:, t, :, None, None].exp()
        write = beta[:, t, :, None] * (v[:, t] - (s * k[:, t, ..., None]).sum(-2))
        s = s + k[:, t, ..., None] * write[..., None, :]
        out.append(scale * (s * q[:, t, ..., None]).sum(-2))
    return torch.stack(out, 1)


@pytest.mark.parametrize("name", FLA)
def test_the_kernel_is_given_the_same_rule(name: str) -> None:
    inputs = draw(RULES[name], Shape(2, 3, 40, 5, torch.float64))
    want = RULES[name](inputs.q, inputs.k, inputs.v, inputs.gates, None, chunk=16)[0]
    got = recurrence(**gated_delta_rule(name, inputs)).transpose(1, 2)
    assert ((want - got).abs().max() / want.abs().max()).item() < 1e-6  # the memory is float32


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.package)
def test_our_layer_learns_everything(peer: Peer) -> None:
    layer: nn.Module = peer.ours(Shape(2, 2, 24, 4), 8)
    x = torch.randn(2, 24, 8)
    y = layer(x)
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    # A memory without heads of its own still has a start: nothing may be left out of the backward pass.
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.package)
def test_their_layer(peer: Peer) -> None:
    shape = Shape(2, 2, 16, 4)
    if importlib.util.find_spec(peer.package.replace("-", "_")) is None:
        with pytest.raises(NotMeasured, match=f"pip install {peer.package}"):
            peer.theirs(shape, 8)
        return
    for layer in peer.theirs(shape, 8).values():
        assert layer(torch.randn(2, 16, 8)).shape == (2, 16, 8)


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "broken_peer.py").write_text("import no_such_dependency")
    (tmp_path / "raising_peer.py").write_text("raise OSError('wrong library')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotMeasured, match="cannot be imported"):
        load("broken_peer", "broken-peer")
    with pytest.raises(NotMeasured, match="OSError: wrong library"):
        load("raising_peer", "raising-peer")
