"""Starts, rates and decays learned through the inner updates."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from circadia.models.retrofit import load
from tests.models.retrofit.conftest import text

SETTINGS = {
    "stacked": {"periods": [4, 8]},
    "one level": {"periods": 4, "clip": None, "rate": 1.0},
    "clipped": {"periods": [4, 8], "clip": 0.3, "rate": 1.0},
    "unstacked": {"periods": [4, 8], "assign": "fast-last", "anchor": "base"},
    "ngd": {"periods": 4, "optimizer": "ngd", "rate": 0.1},
    "sum, listening to the end": {"periods": [4, 8], "reduction": "sum", "rate": 0.1, "listen": 4},
}
every_setting = pytest.mark.parametrize("name", SETTINGS)
BASE = {"num_hidden_layers": 2}


def rows(count, length):
    return torch.stack([text(length, seed=i) for i in range(count)])


@every_setting
@pytest.mark.parametrize("family", ["circadia", "gpt2"])
def test_every_row_reads_as_a_stream_of_its_own(tiny, name, family):
    model, ids = (
        tiny(family, dtype=torch.float64, config={"n_layer": 2} if family == "gpt2" else BASE, **SETTINGS[name]),
        rows(3, 27),
    )
    with torch.no_grad():
        loss = model.adapt_loss(ids[:, :24])
    streams = [model.learn(row[:24], model.start())[0].surprise for row in ids]
    torch.testing.assert_close(float(loss), sum(streams) / 3, rtol=1e-9, atol=0)


@pytest.mark.parametrize("positions", [16, 20, 24])
def test_a_whole_last_chunk_fits_into_the_positions(tiny, positions):
    """The row's last token is one more than a stream reads with the chunk; what it predicts has a place, too."""
    model, ids = tiny("gpt2", [16], torch.float64, config={"n_layer": 2, "n_positions": positions}), rows(2, 48)
    with torch.no_grad():
        loss = model.adapt_loss(ids)
        ends = model.adapting()(ids).logits
        model.learned.close(model)
    streams = [model.learn(row, model.start()) for row in ids]
    torch.testing.assert_close(float(loss), sum(read.surprise for read, _ in streams) / 2, rtol=1e-9, atol=0)
    for row, end, (_, state) in zip(ids, ends, (model.learn(row[:32], model.start()) for row in ids)):
        *_, last = model.reads(row, state)
        torch.testing.assert_close(end[-1], last[-1], rtol=1e-9, atol=0)


def unrolled(model, ids, weights, rates, decays):
    """One row, by hand: W + delta handed to the base, every gradient by autograd with a graph."""
    settings, names = model.settings, list(model.sites)
    deltas = [{n: torch.zeros(model.sites[n].shape, dtype=torch.float64) for n in names} for _ in settings.levels]
    sums = [dict.fromkeys(names, 0.0) for _ in settings.levels]
    counts, total = [0] * len(deltas), 0.0
    for at in range(0, len(ids), settings.chunk):
        end = at + settings.chunk
        nudge = {n: torch.zeros(model.sites[n].shape, dtype=torch.float64, requires_grad=True) for n in names}
        whole = dict(weights)
        for n in names:
            whole[f"{n}.weight"] = weights[f"{n}.weight"] + sum(own[n] for own in deltas) + nudge[n]
        window = ids[max(0, at - settings.context) : end]
        count = settings.chunk if at else settings.chunk - 1
        logits = functional_call(model.base, whole, (window[None, :-1],), {"use_cache": False}).logits[0, -count:]
        loss = F.cross_entropy(logits, window[-count:], reduction="sum")
        total = total + loss
        found = torch.autograd.grad(loss, list(nudge.values()), create_graph=True)
        for i, level in enumerate(settings.levels):
            sums[i] = {n: sums[i][n] + g for n, g in zip(names, found)}
            counts[i] += count
            if end % level.period == 0:
                mean = {n: g / counts[i] for n, g in sums[i].items()}
                size = torch.stack([g.square().sum() for g in mean.values()]).sum().sqrt()
                factor = torch.clamp(level.clip / size, max=1.0)
                for n in names:
                    moved = deltas[i][n] - rates[i] * factor * mean[n]
                    deltas[i][n] = moved - decays[i] * moved
                sums[i], counts[i] = dict.fromkeys(names, 0.0), 0
    return total / (len(ids) - 1)


@pytest.mark.parametrize("clip", [100.0, 0.3], ids=["free", "clipped"])
def test_second_order_equals_the_unrolled_graph_and_finite_differences(tiny, clip):
    # Our own model, because those of transformers have norms in float32 inside.
    model = tiny("circadia", dtype=torch.float64, config=BASE, periods=[4, 8], clip=clip, rate=0.5, decay=0.1)
    ids = rows(1, 16)
    model.adapting()
    model.learned.to(torch.float64)
    model.adapt_loss(ids).backward()
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.base.named_parameters()}
    rates = [torch.tensor(0.5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    decays = [torch.tensor(0.1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    with sdpa_kernel(SDPBackend.MATH):
        loss = unrolled(model, ids[0], weights, rates, decays)
    loss.backward()
    torch.testing.assert_close(model.adapt_loss(ids), loss, rtol=1e-10, atol=0)
    for n, p in model.base.named_parameters():
        torch.testing.assert_close(p.grad, weights[n].grad, rtol=1e-8, atol=1e-11)
    for i in range(2):  # d rate / d r = 15 rate; d decay / d d = 15 decay (1 - decay)
        learned = model.learned.log_rate[i].grad.sum(), model.learned.decay[i].grad.sum()
        by_hand = 15 * 0.5 * rates[i].grad, 15 * 0.09 * decays[i].grad
        torch.testing.assert_close(learned, by_hand, rtol=1e-8, atol=1e-12)
    matrix = next(iter(model.sites.values())).matrix
    for p in (matrix.weight, model.base.model.embed_tokens.weight, model.learned.decay[0]):
        flat, at, step = p.data.view(-1), int(p.grad.abs().view(-1).argmax()), 1e-5
        found = []
        for sign in (1, -1):
            flat[at] += sign * step
            with torch.no_grad():
                found.append(float(model.adapt_loss(ids)))
            flat[at] -= sign * step
        assert (found[0] - found[1]) / (2 * step) == pytest.approx(float(p.grad.view(-1)[at]), rel=1e-5)


def test_first_order_takes_the_inner_gradients_as_constants(tiny):
    model, ids = tiny(config=BASE, periods=[4, 8], rate=1.0), rows(2, 24)
    model.adapting(first_order=True)
    losses, grads = [], []
    for first_order in (True, False):
        model.zero_grad()
        loss = model.adapt_loss(ids, first_order=first_order)
        loss.backward()
        losses.append(float(loss.detach()))
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    apart = {n: float((grads[0][n] - grads[1][n]).norm() / grads[1][n].norm()) for n in grads[0]}
    assert apart["base.model.layers.0.mlp.up_proj.weight"] > 1e-3 and all(g.norm() > 0 for g in grads[0].values())


def test_every_parameter_has_a_gradient_and_adaptation_lowers_the_loss(tiny):
    model, ids = tiny(config=BASE, periods=[4, 8], rate=0.1).adapting(), rows(4, 25)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(6):
        loss = model.adapt_loss(ids)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    model.learned.close(model)
    rates, decays = model.learned.rates(model, 0)
    assert len({round(float(r), 6) for r in rates.values()}) > 1 and all(0 < float(d) < 1 for d in decays.values())


def test_what_was_learned_is_what_a_stream_uses(tiny, tmp_path):
    model, ids = tiny(config=BASE, periods=[4, 8]).adapting(), text(24)
    with torch.no_grad():
        for p in model.learned.parameters():
            p.add_(0.05 * torch.randn_like(p))
        wanted = float(model.adapt_loss(ids[None]))
    with pytest.raises(ValueError, match="is adapting"):
        model.learn(ids, model.start())
    model.learned.close(model)
    report, state = model.learn(ids, model.start())
    assert report.surprise == pytest.approx(wanted, rel=1e-5)
    assert not any(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path / "out", state=state)
    again = load(tmp_path / "out")
    assert again.learn(ids, again.start())[0].surprise == report.surprise
    again.load_state(tmp_path / "out" / "memory.safetensors")


def test_logits_are_those_before_learning(tiny):
    """A training loop sees them as any model's: the loss on shifted labels is the adaptation's."""
    model, ids = tiny(config=BASE, periods=[4, 8]).adapting(), rows(2, 23)
    logits = model(ids, use_cache=False).logits
    assert logits.shape == (2, 23, 48)
    torch.testing.assert_close(
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()), model.adapt_loss(ids)
    )
    with torch.no_grad():
        assert not model(ids).logits.requires_grad
        torch.testing.assert_close(model(ids).logits, logits.detach())


def test_bad_input(tiny):
    wrong = [
        ({"capacity": "lowrank"}, "capacity='lowrank' cannot be differentiated"),
        ({"optimizer": "adamw"}, "optimizer='adamw' cannot"),
        ({"target": "all"}, "target='all' cannot"),
        ({"assign": "fast-last"}, "use anchor='base'"),
    ]
    for settings, said in wrong:
        with pytest.raises(ValueError, match=said):
            tiny(**settings).adapting()
    model = tiny()
    for short in (rows(1, 4), rows(1, 20)[0]):
        with pytest.raises(ValueError, match="longer than one chunk"):
            model.adapt_loss(short)
    with pytest.raises(ValueError, match="train='some'"):
        model.adapting(train="some")
    model.adapting(train="mlp")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.startswith("base.")} == {f"base.{n}.weight" for n in model.sites}
    with pytest.raises(ValueError, match="got attention_mask"):
        model(rows(1, 9), attention_mask=torch.ones(1, 9))
