"""Every mixer, and a hybrid of them, as a language model: one list of demands."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from circadia.models import HopeCache, HopeConfig, HopeForCausalLM
from circadia.models.mixers.table import MIXERS

KINDS = {name: [name] for name in MIXERS} | {
    "hybrid": ["gated_deltanet", "sliding_attention", "self_modifying", "attention"]
}
every_kind = pytest.mark.parametrize("kind", KINDS)
EXACT = 1e-10


def make(kind: str, **settings) -> HopeForCausalLM:
    torch.manual_seed(0)
    given = dict(mixers=KINDS[kind], hidden_size=32, num_hidden_layers=len(KINDS[kind]) + 1, num_attention_heads=4)
    given |= dict(num_key_value_heads=2, chunk=8, sliding_window=12, segment=10, vocab_size=64, pad_token_id=0)
    model = HopeForCausalLM(HopeConfig(**(given | settings))).double().eval()
    # Larger than at initialisation, so that what a mixer remembers shows in the logits.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("into.weight", "q.weight", "kv.weight", "out.weight", "rates.weight")):
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


@every_kind
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


@every_kind
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


@every_kind
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
    config = HopeConfig(mixers=KINDS[kind], hidden_size=32, num_hidden_layers=4, num_attention_heads=2, chunk=8)
    model = HopeForCausalLM(config)
    x = torch.randint(0, 256, (2, 40))
    loss = model(x, labels=x).loss
    loss.backward()
    assert abs(loss.item() / torch.tensor(256.0).log().item() - 1) < 0.03
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name
    with torch.no_grad():
        assert torch.equal(model.train()(x).logits, model.eval()(x).logits)


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
    first = model.generate(x, max_new_tokens=5, do_sample=False, past_key_values=cache)
    turn = torch.cat((first, tokens(1, 4, seed=8)), 1)
    second = model.generate(turn, max_new_tokens=5, do_sample=False, past_key_values=cache)
    assert torch.equal(second, model.generate(turn, max_new_tokens=5, do_sample=False))


@every_kind
def test_saved_and_loaded(kind: str, tmp_path) -> None:
    model, x = make(kind).float(), tokens(2, 20)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is HopeForCausalLM and AutoConfig.from_pretrained(tmp_path).mixers == KINDS[kind]
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    with torch.no_grad():
        assert torch.equal(model(x).logits, again.eval()(x).logits)


@every_kind
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    model, x = make(kind).train(), tokens(2, 20)
    model(x, labels=x, use_cache=False).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(x, labels=x, use_cache=False).loss.backward()
    for n, p in model.named_parameters():
        assert gap(plain[n], p.grad) < 1e-9, n


BAD = {
    "mixer": (dict(mixers=["deltanett"]), "'deltanett' is unknown; use attention"),
    "no mixer": (dict(mixers=[]), "mixers=\\[\\] is empty"),
    "pattern": (dict(mixers=["linear"] * 5), "mixers has 5 entries for num_hidden_layers=4"),
    "heads": (dict(num_attention_heads=3), "hidden_size=128 is not divisible by num_attention_heads=3"),
    "kv heads": (dict(num_key_value_heads=3), "num_attention_heads=4 is not divisible by num_key_value_heads=3"),
    "chunk": (dict(chunk=0), "chunk=0: must be at least 1"),
    "segment": (dict(segment=0), "segment=0: must be at least 1"),
    "persistent tokens": (dict(persistent_tokens=-1), "persistent_tokens=-1: must be at least 0"),
    "odd width": (dict(hidden_size=12, mixers=["attention"]), "head_dim=3 is odd"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_configs_fail_at_construction(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(Exception, match=message):
        HopeConfig(**settings)


def test_wrong_calls() -> None:
    model, x = make("linear"), tokens(2, 8)
    from transformers import DynamicCache

    for arguments, message in [
        (dict(), "exactly one of input_ids and inputs_embeds"),
        (dict(input_ids=x, attention_mask=torch.ones(2, 5)), "attention_mask covers 5 tokens, the input has 8"),
        (dict(input_ids=x, past_key_values=DynamicCache()), "past_key_values is a DynamicCache: pass circadia.models"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**arguments)
