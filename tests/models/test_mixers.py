"""What single mixers compute, against their papers' equations written out one token after another."""

import math

import pytest
import torch
import torch.nn.functional as F

import circadia
from circadia.models import HopeConfig, HopeForCausalLM
from circadia.models.context import Context
from circadia.models.mixers.conv import ShortConv

PLAIN = Context()


def mixer(kind: str, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    given = dict(mixers=[kind], hidden_size=16, num_hidden_layers=1, num_attention_heads=2, chunk=4, segment=6)
    model = HopeForCausalLM(HopeConfig(**(given | dict(sliding_window=5, persistent_tokens=3) | settings)))
    with torch.no_grad():  # away from the special values of initialisation
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.model.layers[0].mixer.double()


def same(a, b) -> bool:
    return a.shape == b.shape and (a - b).abs().max().item() < 1e-10


def test_the_lstm_is_its_equations() -> None:
    """The kernel and the loop that padding takes, in outputs, state and gradients."""
    lstm, x = mixer("lstm"), torch.randn(2, 9, 16, dtype=torch.float64)
    h, c = (lstm.start[n].expand(2, -1) for n in ("h", "c"))
    ys = []
    for t in range(9):
        z = x[:, t] @ lstm.inputs.weight.T + h @ lstm.recurrent.T + lstm.bias
        i, f, g, o = z[:, :16], z[:, 16:32], z[:, 32:48], z[:, 48:]
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        ys.append(h @ lstm.out.weight.T)
    truth = torch.stack(ys, 1)
    wanted = torch.autograd.grad(truth.square().sum(), list(lstm.parameters()))
    no_border = Context.of(None, torch.zeros(2, 9, dtype=torch.bool))
    for ctx in (PLAIN, no_border):
        y, state = lstm(x, {}, ctx)
        assert same(y, truth) and same(state["h"], h) and same(state["c"], c)
        for a, b in zip(torch.autograd.grad(y.square().sum(), list(lstm.parameters())), wanted):
            assert same(a, b)


def test_the_srwm_is_its_equations() -> None:
    """Four matrices per head, each with its own rate, written as the paper has them."""
    srwm, x = mixer("srwm"), torch.randn(1, 7, 16, dtype=torch.float64)
    y, state = srwm(x, {}, PLAIN)
    heads = []
    for head, part in enumerate(x[0].view(7, 2, 8).unbind(1)):
        w = dict(zip("ykqb", srwm.start[head].split((8, 8, 8, 4))))
        ys = []
        for x_t in part:
            phi = x_t.softmax(0)
            y_t, k, q, beta = (w[n] @ phi for n in "ykqb")
            k, q = k.softmax(0), q.softmax(0)
            w = {n: m + torch.sigmoid(beta[i]) * torch.outer(m @ q - m @ k, k) for i, (n, m) in enumerate(w.items())}
            ys.append(y_t)
        heads.append(torch.stack(ys))
        assert same(state["W"][0, head], torch.cat(list(w.values())))
    assert same(y[0], torch.cat(heads, 1) @ srwm.out.weight.T)


def test_an_srwm_stays_bounded() -> None:
    """As printed these weights explode within 1,000 tokens: keys and queries point the same way, queries sharper."""
    srwm = mixer("srwm")
    with torch.no_grad():
        srwm.start.copy_(torch.randn_like(srwm.start) * 3)
        srwm.start[:, 8:16] = 0.3 * srwm.start[:, 16:24]
        _, state = srwm(torch.randn(1, 1000, 16, dtype=torch.float64), {}, PLAIN)
    assert state["W"].norm(dim=-1).max() <= 4 * math.sqrt(8) * (1 + 1e-9)


def test_memory_as_context_is_its_equations() -> None:
    """Eq. 21-25 with one segment after another, every sum over what a token may see written out."""
    mac, x = mixer("titans_mac", num_key_value_heads=1), torch.randn(1, 15, 16, dtype=torch.float64)
    y, _ = mac(x, {}, PLAIN)
    att, mem = mac.attention, mac.memory
    weights, state, out = mem.beginning(x), {}, []
    for begin in range(0, 15, 6):
        s = x[:, begin : begin + 6]
        q = F.normalize(F.silu(mac.query(s)).view(1, -1, 2, 8), dim=-1)
        inner = torch.einsum("bthd,bhnd->bthn", q, weights["w0"])
        h = q + torch.einsum("bthn,bhdn->bthd", F.gelu(inner), weights["w1"])  # M_0(q), a residual MLP
        h = mac.norm_context(h.reshape(1, -1, 16))
        place = torch.arange(s.shape[1])[None]
        q = att.queries(s, place)
        sources = [att.pairs(att.persistent[None], None), att.pairs(h, place), att.pairs(s, place)]
        looked = []
        for i in range(s.shape[1]):
            k = torch.cat([sources[0][0], sources[1][0][:, : i + 1], sources[2][0][:, : i + 1]], 1)[0, :, 0]
            v = torch.cat([sources[0][1], sources[1][1][:, : i + 1], sources[2][1][:, : i + 1]], 1)[0, :, 0]
            looked.append((q[0, i] @ k.T / math.sqrt(8)).softmax(-1) @ v)
        a = mac.norm_attention(torch.stack(looked).view(1, -1, 16))
        m, state = mem(a, state, PLAIN)
        weights = {n: state[f"memory.{n}"] for n in weights}
        out.append(mac.out(a * F.silu(mac.norm_memory(m))))
    assert same(y, torch.cat(out, 1))


@pytest.mark.parametrize("kind", ["titans_mag", "titans_mal"])
def test_gate_and_layer_are_their_parts(kind: str) -> None:
    """With the persistent tokens of the attention seen from beyond the window."""
    mix, x = mixer(kind, num_key_value_heads=2), torch.randn(1, 14, 16, dtype=torch.float64)
    y, _ = mix(x, {}, PLAIN)
    att = mix.attention
    m, _ = mix.memory(x, {}, PLAIN)
    z = x if kind == "titans_mag" else mix.norm(m)
    place = torch.arange(14)[None]
    q, (k, v), (pk, pv) = att.queries(z, place), att.pairs(z, place), att.pairs(att.persistent[None], None)
    rows = []
    for t in range(14):
        some = slice(max(0, t - 4), t + 1)
        keys, values = torch.cat((pk, k[:, some]), 1)[0], torch.cat((pv, v[:, some]), 1)[0]
        score = torch.einsum("hd,shd->hs", q[0, t], keys) / math.sqrt(8)
        rows.append(torch.einsum("hs,shd->hd", score.softmax(-1), values).flatten())
    a = torch.stack(rows)[None]
    if kind == "titans_mag":
        a = mix.norm_attention(a) * F.silu(mix.norm_memory(m))
    assert same(y, mix.out(a) if kind == "titans_mag" else att.out(a))


def test_recall_for_a_segment_is_from_before_it() -> None:
    """A token changes what is recalled in the next segment, and nothing that is recalled in its own."""
    mac, x = mixer("titans_mac"), torch.randn(1, 12, 16, dtype=torch.float64)
    other = x.clone()
    other[0, 2] += 1.0
    asked = torch.randn(1, 1, 16, dtype=torch.float64)
    recalled = []
    for text in (x, other):
        for n in (5, 7):
            _, state = mac(text[:, :n], {}, PLAIN)
            before = {n.removeprefix("before."): w for n, w in state.items() if n.startswith("before.")}
            recalled.append(mac._recall(asked, before))
    assert same(recalled[0], recalled[2]) and not same(recalled[1], recalled[3])


def test_no_persistent_tokens() -> None:
    for kind in ("titans_mac", "titans_mag", "titans_mal"):
        mix, x = mixer(kind, persistent_tokens=0), torch.randn(1, 9, 16, dtype=torch.float64)
        y, state = mix(x[:, :5], {}, PLAIN)
        assert same(torch.cat((y, mix(x[:, 5:], state, PLAIN)[0]), 1), mix(x, {}, PLAIN)[0])


def test_states_are_float32_in_a_bfloat16_model() -> None:
    for kind, names in (("lstm", ("h", "c")), ("srwm", ("W",)), ("titans_mac", ("memory.w0", "before.w0"))):
        mix = mixer(kind).bfloat16()
        y, state = mix(torch.randn(1, 5, 16).bfloat16(), {}, PLAIN)
        assert y.dtype is torch.bfloat16 and y.isfinite().all()
        assert {state[n].dtype for n in names} == {torch.float32}


def test_levels_name_the_parts() -> None:
    config = HopeConfig(
        mixers=["titans_mac", "titans_mag", "titans_mal", "lstm", "srwm"], num_hidden_layers=5, chunk=16
    )
    view = circadia.levels(HopeForCausalLM(config))
    levels = {level.name: level for level in view.levels}
    size = 4 * config.hidden_size * config.head_dim * 2  # of a memory's two matrices
    assert levels["titans, as of before the segment"].period == config.segment
    assert levels["titans, as of before the segment"].state_bytes == size
    assert levels["titans"].period == 16 and levels["titans"].members[0].count == 3
    assert levels["titans"].state_bytes == 3 * size
    assert levels["LSTM"].state_bytes == 2 * 4 * config.hidden_size
    assert levels["self-referential weight matrix"].period == 1
    segment = levels["attention in segments of 128 tokens, beside what the memory recalls"]
    assert segment.window == 128 and segment.state_bytes == 128 * segment.bytes_per_token
    assert levels["attention over 512 tokens"].members[0].count == 2
    starts = levels["initial states, no optimizer"].parameters
    assert starts == 3 * size // 4 + 2 * config.hidden_size + 4 * (3 * 32 + 4) * 32


def test_the_convolution_by_hand_has_its_true_derivatives() -> None:
    """Outputs against torch's convolution; first and second derivatives against differences."""
    conv = ShortConv(5, 4).double()
    conv.init_weights()
    x, past = torch.randn(2, 7, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)

    def run(x: torch.Tensor, past: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x, past, Context()))[0]

    leaves = [z.detach().requires_grad_() for z in (x, past, conv.weight)]
    taps = conv.weight.flip(0).mT[:, None]
    plain = torch.nn.functional.conv1d(torch.cat((past, x), 1).mT, taps, groups=5).mT
    assert (run(*leaves) - plain).abs().max() < 1e-13
    assert torch.autograd.gradcheck(run, leaves) and torch.autograd.gradgradcheck(run, leaves)
