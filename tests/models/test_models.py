"""Every mixer, and a hybrid of them, as a language model: one list of demands."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import circadia
from circadia.models import HopeCache, HopeConfig, HopeForCausalLM
from circadia.models.mixers.table import MIXERS

KINDS: dict[str, dict] = {name: dict(mixers=[name]) for name in MIXERS} | {
    "hybrid": dict(mixers=["gated_deltanet", "sliding_attention", "self_modifying", "attention"]),
    "levels": dict(mixers=["self_modifying", "attention"], periods=[4, 8, 0]),
    "nested": dict(mixers=["self_modifying"], periods=[3, 6, 18], cms_variant="nested"),
    "independent": dict(mixers=["linear"], periods=[5, 15], cms_variant="independent", mlp_kind="gelu"),
}
# Levels that learn from the next-token loss take rows in step only.
IN_STEP = {
    "loss": dict(mixers=["self_modifying", "attention"], periods=[4, 8, 0], cms_signal="loss"),
    "loss, nested": dict(mixers=["gated_deltanet"], periods=[5, 15], cms_signal="loss", cms_variant="nested"),
}
KINDS |= IN_STEP
every_kind = pytest.mark.parametrize("kind", KINDS)
every_row = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in IN_STEP])
EXACT = 1e-10


def make(kind: str, **settings) -> HopeForCausalLM:
    torch.manual_seed(0)
    given = dict(hidden_size=32, num_hidden_layers=len(KINDS[kind]["mixers"]) + 1, num_attention_heads=4, **KINDS[kind])
    given |= dict(num_key_value_heads=2, chunk=8, sliding_window=12, segment=10, vocab_size=64, pad_token_id=0)
    model = HopeForCausalLM(HopeConfig(**(given | settings))).double().eval()
    # Larger than at initialisation, so that what a mixer remembers shows in the logits.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("into.weight", "q.weight", "kv.weight", "out.weight", "rates.weight", "target.weight")):
                p.mul_(6.0)
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 64, shape, generator=torch.Generator().manual_seed(seed))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@every_kind
@pytest.mark.parametrize("cuts", [(13, 30, 31, 32), (8, 16), (1, 2, 44), (20, 21, 22, 23)])
def test_streaming_is_exact(kind: str, cuts: tuple[int, ...]) -> None:
    """One long pass == a prefill, then chunks of several tokens, then single ones."""
    model, x = make(kind), tokens(2, 45)
    with torch.no_grad():
        whole = model(x).logits
        cache, parts = HopeCache(model.config.num_hidden_layers), []
        for a, b in pairwise((0, *cuts, 45)):
            out = model(x[:, a:b], past_key_values=cache, use_cache=True)
            parts.append(out.logits)
    assert gap(whole, torch.cat(parts, 1)) < EXACT
    assert cache.get_seq_length() == 45


@every_row
def test_padded_rows_are_rows_alone(kind: str) -> None:
    """Left padding of any length, and padding again inside a later turn."""
    model, x = make(kind), tokens(3, 40)
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[1, :5] = 0
    mask[2, :17] = 0
    mask[2, 25:29] = 0
    with torch.no_grad():
        whole = model(x, attention_mask=mask).logits
        cache = HopeCache(model.config.num_hidden_layers)
        first = model(x[:, :26], attention_mask=mask[:, :26], past_key_values=cache, use_cache=True).logits
        second = model(x[:, 26:], attention_mask=mask, past_key_values=cache, use_cache=True).logits
        for b in range(3):
            real = mask[b].bool()
            alone = model(x[b : b + 1, real]).logits[0]
            assert gap(alone, whole[b, real]) < EXACT
            assert gap(alone, torch.cat((first, second), 1)[b, real]) < EXACT


@every_row
def test_padding_after_a_plain_turn(kind: str) -> None:
    """A cache that has seen no padding meets some."""
    model, x = make(kind), tokens(2, 30)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, 12:16] = 0
    with torch.no_grad():
        cache = HopeCache(model.config.num_hidden_layers)
        parts = [model(x[:, :12], past_key_values=cache, use_cache=True).logits]
        for a, b in ((12, 20), (20, 21), (21, 30)):
            parts.append(model(x[:, a:b], attention_mask=mask[:, :b], past_key_values=cache, use_cache=True).logits)
        for b in range(2):
            real = mask[b].bool()
            assert gap(model(x[b : b + 1, real]).logits[0], torch.cat(parts, 1)[b, real]) < EXACT


@every_row
def test_packed_documents_are_documents_alone(kind: str) -> None:
    model, x = make(kind), tokens(2, 40)
    borders = [(0, 9, 40), (0, 2, 17, 30, 39, 40)]  # the last one shorter than the window of the convolution
    reset = torch.zeros(2, 40, dtype=torch.bool)
    for b, ends in enumerate(borders):
        reset[b, list(ends[:-1])] = True
    with torch.no_grad():
        cache = HopeCache(model.config.num_hidden_layers)
        model(tokens(2, 11, seed=5), past_key_values=cache, use_cache=True)
        packed = model(x, past_key_values=cache, use_cache=True, reset=reset).logits
        more = model(tokens(2, 6, seed=6), past_key_values=cache, use_cache=True).logits
        for b, ends in enumerate(borders):
            for a, e in pairwise(ends):
                assert gap(model(x[b : b + 1, a:e]).logits[0], packed[b, a:e]) < EXACT
            last = torch.cat((x[b : b + 1, ends[-2] :], tokens(2, 6, seed=6)[b : b + 1]), 1)
            assert gap(model(last).logits[0, -6:], more[b]) < EXACT


@every_kind
def test_everything_learns(kind: str) -> None:
    """Each parameter gets a finite gradient from one next-token loss, and the first loss is that of a fair guess."""
    torch.manual_seed(0)
    config = HopeConfig(**KINDS[kind], hidden_size=32, num_hidden_layers=4, num_attention_heads=2, chunk=8)
    model = HopeForCausalLM(config)
    x = torch.randint(0, 256, (2, 40))
    loss = model(x, labels=x).loss
    loss.backward()
    assert abs(loss.item() / torch.tensor(256.0).log().item() - 1) < 0.03
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name
    with torch.no_grad():
        assert torch.equal(model.train()(x).logits, model.eval()(x).logits)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "periods" in KINDS[kind]])
def test_levels_learn_under_autocast(kind: str) -> None:
    """Products in bfloat16, a backward pass outside: the gradients are those of float32, up to rounding."""
    model, x = make(kind).float(), tokens(2, 40)
    found = []
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(x, labels=x).loss
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if ".levels." in n]))
    assert torch.isfinite(found[1]).all() and not torch.equal(*found)
    assert torch.cosine_similarity(*found, dim=0) > 0.99


@every_kind
def test_nothing_is_seen_before_it_comes(kind: str) -> None:
    """Another token changes the logits from its place on and none before, at the borders of chunks and segments too."""
    model, x = make(kind), tokens(1, 45)
    with torch.no_grad():
        whole = model(x).logits[0]
        for place in (1, 9, 10, 16, 27, 44):
            other = x.clone()
            other[0, place] = x[0, place] % 63 + 1
            changed = (model(other).logits[0] - whole).abs().amax(-1)
            assert changed[:place].eq(0).all() and changed[place] > 1e-6


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "sliding_attention"])
def test_it_sees_back(kind: str) -> None:
    """A token 2,000 positions earlier still matters."""
    model, x = make(kind, chunk=64).float(), tokens(1, 2001)
    other = x.clone()
    other[0, 0] = x[0, 0] % 63 + 1
    with torch.no_grad():
        a, b = (model(z, logits_to_keep=1).logits for z in (x, other))
    assert gap(a, b) > 1e-6


def test_a_window_ends() -> None:
    """Two layers of sliding attention see 2 (window - 1) tokens back, and the cache keeps no more than a window."""
    model, x = make("sliding_attention"), tokens(1, 60)
    other = x.clone()
    other[0, 10] = x[0, 10] % 63 + 1
    with torch.no_grad():
        changed = (model(x).logits - model(other).logits).abs().amax(-1)[0] > 1e-12
        cache = model(x, use_cache=True).past_key_values
    assert changed.nonzero().flatten().tolist() == list(range(10, 10 + 2 * 11 + 1))
    assert {s["k"].shape[1] for s in cache.states} == {11}


@every_kind
def test_generation(kind: str) -> None:
    """Greedy, by beams, several samples, and a second turn on the same cache, against passes without any cache."""
    model, x = make(kind), tokens(2, 11)
    mask = torch.ones_like(x)
    if kind not in IN_STEP:
        mask[1, :4] = 0
        x[1, :4] = 0
    greedy = model.generate(x, attention_mask=mask, max_new_tokens=9, do_sample=False)
    for b in range(2):
        row = x[b : b + 1, mask[b].bool()]
        for _ in range(9):
            row = torch.cat((row, model(row).logits[:, -1:].argmax(-1)), 1)
        assert torch.equal(row[0], torch.cat((x[b, mask[b].bool()], greedy[b, 11:])))
    beams = model.generate(x, attention_mask=mask, max_new_tokens=6, num_beams=3, do_sample=False)
    free = model.generate(x, attention_mask=mask, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=False)
    assert torch.equal(beams, free)
    torch.manual_seed(3)
    several = model.generate(x, attention_mask=mask, max_new_tokens=4, num_return_sequences=3, do_sample=True)
    torch.manual_seed(3)
    again = model.generate(
        x, attention_mask=mask, max_new_tokens=4, num_return_sequences=3, do_sample=True, use_cache=False
    )
    assert torch.equal(several, again)


@every_kind
def test_two_turns_share_a_cache(kind: str) -> None:
    model, x = make(kind), tokens(1, 9)
    cache = HopeCache(model.config.num_hidden_layers)
    how = dict(max_new_tokens=5, do_sample=False, suppress_tokens=[0])  # 0 in a prompt would be taken for padding
    first = model.generate(x, past_key_values=cache, **how)
    turn = torch.cat((first, tokens(1, 4, seed=8)), 1)
    second = model.generate(turn, past_key_values=cache, **how)
    assert torch.equal(second, model.generate(turn, **how))


@every_kind
def test_saved_and_loaded(kind: str, tmp_path) -> None:
    model, x = make(kind).float(), tokens(2, 20)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is HopeForCausalLM and AutoConfig.from_pretrained(tmp_path).mixers == KINDS[kind]["mixers"]
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    with torch.no_grad():
        assert torch.equal(model(x).logits, again.eval()(x).logits)


@every_row
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    model, x = make(kind).train(), tokens(2, 20)
    model(x, labels=x, use_cache=False).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(x, labels=x, use_cache=False).loss.backward()
    for n, p in model.named_parameters():
        assert gap(plain[n], p.grad) < 1e-9, n


def test_the_stream_steps_each_level_at_its_period() -> None:
    """With any optimizer: a level of period 40 stands still for four batches of 10 tokens, then takes their mean."""
    model = make("levels", mixers=["linear"], periods=[20, 40, 0], cms_regime="stream").train()
    groups = circadia.optim.periods(model, model.stream_periods())
    optimizer = circadia.optim.CMS(torch.optim.SGD(groups, lr=0.1), unit="token")
    levels = model.model.layers[0].levels.levels
    start, moved, grads = [level.up.weight.detach().clone() for level in levels], [], []
    for step in range(4):
        optimizer.zero_grad()
        x = tokens(1, 10, seed=step)
        model(x, labels=x).loss.backward()
        grads.append(levels[1].up.weight.grad.clone())
        optimizer.step(tokens=10)
        moved.append([not torch.equal(level.up.weight, w) for level, w in zip(levels, start)])
    assert moved == [[False, False, True], [True, False, True], [True, False, True], [True, True, True]]
    assert gap(levels[1].up.weight.detach(), start[1] - 0.1 * torch.stack(grads).mean(0)) < 1e-12


def test_the_loss_teaches_by_the_whole_gradient() -> None:
    """One step of a level against autograd over the plain network, and the outer gradient against differences."""
    model, x = make("loss", mixers=["attention"], periods=[8], cms_rates="fixed", cms_decay=0.0), tokens(2, 9)
    model.zero_grad()
    hidden = [w for n, w in model.named_parameters() if n.endswith(("up.weight", "levels.0.out.weight"))]
    with torch.no_grad():
        states = model(x, use_cache=True).past_key_values.states
    plain = make("loss", mixers=["attention"], periods=[0])
    plain.load_state_dict(model.state_dict())
    own = [w for n, w in plain.named_parameters() if n.endswith(("up.weight", "levels.0.out.weight"))]
    assert len(hidden) == len(own) == 6
    for row in range(2):
        logits = plain(x[row : row + 1, :8]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, x[row, 1:8], reduction="sum") / 8
        grads = torch.autograd.grad(nll, own)
        for at, pair in enumerate(zip(grads[::2], grads[1::2])):
            factor = min(1.0, 1.0 / torch.stack([g.norm() for g in pair]).norm().item())
            for n, g in zip(("up", "out"), pair):
                assert gap(states[at][f"levels.0.{n}"][row], -0.3 * factor * g) < 1e-10


@pytest.mark.parametrize("order", ["second", "first"])
def test_outer_gradients_flow_through_the_loss(order: str) -> None:
    """Finite differences along one direction: the second-order gradient is the true one, the first-order one is not."""
    model, x = make("loss", cms_order=order, chunk=4), tokens(1, 30)
    w = model.model.layers[0].levels.levels[0].out.weight
    direction = torch.randn(w.shape, generator=torch.Generator().manual_seed(0), dtype=w.dtype)

    def loss() -> torch.Tensor:  # in float64, unlike the loss that transformers forms
        return torch.nn.functional.cross_entropy(model(x).logits[0, :-1], x[0, 1:])

    loss().backward()
    slope, values, h = (w.grad * direction).sum().item(), [], 1e-5
    with torch.no_grad():
        for step in (h, -2 * h):
            w += step * direction
            values.append(loss().item())
    true = (values[0] - values[1]) / (2 * h)
    assert (abs(slope - true) < 1e-6 * (1 + abs(true))) == (order == "second")


def test_carried_over_documents() -> None:
    """On request the levels keep what they learned when a document ends; attention does not see over the border."""
    x, reset = tokens(1, 24), torch.zeros(1, 24, dtype=torch.bool)
    reset[0, [0, 12]] = True
    with torch.no_grad():
        carried, alone = (
            make("levels", mixers=["attention"], periods=[4, 0], cms_carry=carry)(x, reset=reset).logits
            for carry in (True, False)
        )
    assert gap(carried[:, :12], alone[:, :12]) < EXACT and (carried - alone)[:, 12:].abs().amax() > 1e-6


@pytest.mark.parametrize("kind", ["levels", "loss"])
def test_rate_zero_is_the_plain_network(kind: str) -> None:
    settings = dict(cms_rates="fixed", cms_rate=0.0)
    model, x = make(kind, **settings), tokens(2, 30)
    plain = make(kind, **settings, cms_regime="stream")
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        assert gap(model(x).logits, plain(x).logits) < EXACT


def test_wrong_calls() -> None:
    model, x = make("linear"), tokens(2, 8)
    from transformers import DynamicCache

    padded = torch.ones(2, 8)
    padded[0, :3] = 0
    with pytest.raises(ValueError, match="cms_signal='loss' learns from whole rows"):
        make("loss")(x, attention_mask=padded)

    for arguments, message in [
        (dict(), "exactly one of input_ids and inputs_embeds"),
        (dict(input_ids=x, attention_mask=torch.ones(2, 5)), "attention_mask covers 5 tokens, the input has 8"),
        (dict(input_ids=x, past_key_values=DynamicCache()), "past_key_values is a DynamicCache: pass circadia.models"),
        (dict(input_ids=x, past_key_values=HopeCache(1)), "past_key_values has 1 layers, this model 2: pass"),
        (dict(input_ids=x[:, :0]), "the input holds no token"),
        (dict(input_ids=x, reset=torch.ones(2, 5)), r"reset is \(2, 5\): it must be \(2, 8\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**arguments)
    first = torch.zeros(2, 8, dtype=torch.bool)
    first[0, 2] = True
    for kind in ("attention", "linear", "lstm"):
        with pytest.raises(ValueError, match="reset is set where"):
            make(kind, periods=[4])(x, attention_mask=padded, reset=first)
