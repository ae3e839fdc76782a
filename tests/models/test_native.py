"""Models of our own over a stream: what they read anyway, chunk by chunk, and what a weight leaves of it."""

import math

import pytest
import torch
import torch.nn.functional as F

from circadia.levels import levels
from circadia.models import HopeCache
from circadia.models.native import NativeModel, Settings, able, native
from circadia.models.retrofit import retrofit
from tests.live.learners import NATIVE, differing, own

KINDS = {
    **NATIVE,
    "nested": {"mixers": ["gated_deltanet"], "periods": [4, 16], "cms_variant": "nested"},
    "loss": {"mixers": ["gated_deltanet"], "periods": [8, 16], "cms_signal": "loss"},
    "attention": {"mixers": ["attention"], "periods": [8, 16]},
    "mac": {"mixers": ["titans_mac"], "segment": 16},
    "mag": {"mixers": ["titans_mag"], "sliding_window": 12},
    "ttt": {"mixers": ["ttt"]},
    "lstm": {"mixers": ["lstm"]},
    "srwm": {"mixers": ["srwm"]},
    "small chunks": {"mixers": ["titans"], "chunk": 32},
}
IDS = torch.randint(0, 256, (64,), generator=torch.Generator().manual_seed(1))


def made(kind):
    return native(own(**KINDS[kind]), chunk=8 if kind == "small chunks" else None)


def plain(base, ids):
    """What the base holds after reading in one call."""
    cache = HopeCache(base.config.num_hidden_layers)
    with torch.no_grad():
        logits = base(ids[None], past_key_values=cache, use_cache=True).logits[0]
    return cache.states, logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_what_the_model_reads_anyway(kind):
    model = made(kind)
    report, state = model.learn(IDS, model.start())
    held, logits = plain(model.base, IDS)
    assert report.surprise == pytest.approx(float(F.cross_entropy(logits[:-1], IDS[1:])), rel=1e-5)
    later, _ = plain(model.base, torch.cat((IDS, IDS[:1])))  # a period's update comes before the next token
    start, moved = model.start(), set()
    for name in [n for n in state if "/memory/" in n]:
        block, _, entry = name.rpartition("/")[2].partition(".")
        theirs = (later if entry.startswith("levels.") else held)[int(block)][entry]
        assert torch.allclose(state[name], theirs, atol=2e-5), name
        moved |= set() if torch.equal(state[name], start[name]) else {name.partition("/")[0]}
    assert moved == {f"level{i}" for i in range(len(report.levels))}
    other = model.start()
    for at in range(0, 64, 13):
        _, other = model.learn(IDS[at : at + 13], other)
    assert differing(other, state) == []


@pytest.mark.parametrize("kind", KINDS)
def test_weight_0_keeps_every_memory_as_it_was(kind):
    model = made(kind)
    _, before = model.learn(IDS[:32], model.start())
    frozen = {n: x.clone() for n, x in before.items()}
    _, after = model.learn(IDS[32:], before, lambda chunk: 0.0)
    assert differing(before, frozen) == []
    kept = [n for n in before if "/memory/" in n or n.endswith("/steps") or "momentum" in n or ".start." in n]
    assert kept and all(torch.equal(after[n], before[n]) for n in kept)
    assert int(after["clock/tokens"]) == 64 and not torch.equal(after["stream/hidden"], before["stream/hidden"])


@pytest.mark.parametrize("kind", ["native hope", "native titans", "native hybrid", "nested", "mac"])
def test_worn_it_reads_a_text_with_the_memory_and_nothing_else_of_the_stream(kind):
    model = made(kind)
    _, state = model.learn(IDS[:60], model.start())  # in the middle of a chunk, a period and a segment
    cache = HopeCache(model.config.num_hidden_layers)
    for at, layer in enumerate(cache.layers):
        mine = {
            n.rpartition("/")[2]: x for n, x in state.items() if "/memory/" in n or "momentum" in n or ".home." in n
        }
        layer.write({n.partition(".")[2]: x for n, x in mine.items() if n.startswith(f"{at}.")}, 0)
    text = IDS.flip(0)[None, :20]
    with torch.no_grad():
        want = model.base(text, past_key_values=cache, use_cache=True).logits
    frozen = {n: x.clone() for n, x in state.items()}
    assert torch.allclose(model(text, state=state).logits, want, atol=1e-6)
    assert not torch.allclose(model(text, state=model.start()).logits, want, atol=1e-3)
    read = torch.cat(list(model.reads(text[0], state)))
    assert torch.allclose(read, want[0, :-1], atol=1e-5)
    surprise = model.score(text, model.fresh(state)).surprise
    assert surprise == pytest.approx(float(F.cross_entropy(want[0, :-1], text[0, 1:])), rel=1e-5)
    both = model(text.expand(2, -1), state=state).logits
    assert torch.allclose(both, want.expand(2, -1, -1), atol=1e-5) and differing(state, frozen) == []


@pytest.mark.parametrize("kind", ["native titans", "native hybrid", "srwm", "small chunks"])
def test_a_weight_is_the_share_of_the_way(kind):
    model = made(kind)
    _, before = model.learn(IDS[:16], model.start())
    size = model.settings.chunk
    whole, full = model.learn(IDS[16 : 16 + size], before)
    part, some = model.learn(IDS[16 : 16 + size], before, lambda chunk: 0.25)
    for name in [n for n in before if "/memory/" in n]:
        assert torch.allclose(some[name] - before[name], 0.25 * (full[name] - before[name]), atol=1e-6), name
    assert part.levels[0].moved == pytest.approx(0.25 * whole.levels[0].moved, rel=1e-4)
    with pytest.raises(ValueError, match="from 0 to 1"):
        model.learn(IDS[:size], before, lambda chunk: 1.5)


@pytest.mark.parametrize("loud", [1.0, 1000.0])
def test_a_long_period_goes_the_share_that_its_chunks_weigh(loud):
    """Eq. 71 on the weighted mean, also where it is clipped."""
    base = own(mixers=["attention"], periods=[16], cms_rates="fixed", cms_rate=0.3)
    with torch.no_grad():
        base.model.layers[0].levels.target.weight.mul_(loud)
    model = native(base, chunk=8)
    weights = iter([1.0, 0.25])
    report, state = model.learn(IDS[:16], model.start(), lambda chunk: next(weights))
    first, all_ = (plain(base, IDS[:n])[0][0] for n in (8, 16))
    names = ("up", "out")
    mean = {n: (first["levels.0.sum." + n] + 0.25 * (all_["levels.0.sum." + n] - first["levels.0.sum." + n])) / 10
            for n in names}  # fmt: skip
    length = math.sqrt(sum(float(g.square().sum()) for g in mean.values()))
    assert (length > 1) == (loud > 1)
    for n in names:
        want = -10 / 16 * 0.3 * mean[n] / max(1.0, length)
        assert torch.allclose(state["level0/memory/0.levels.0." + n], want, atol=1e-6)
    assert report.levels[0].updates == 1 and report.levels[0].moved == pytest.approx(10 / 16 * 0.3 * min(1, length))
    assert not any(state[n].any() for n in state if "/open/0.levels.0.sum" in n or n.endswith("weight"))


@pytest.mark.parametrize("kind", ["native hope", "native hybrid", "attention", "mac", "loss"])
def test_the_state_does_not_grow(kind):
    model = native(own(**KINDS[kind]), **({"context": 12} if kind == "attention" else {}))
    _, early = model.learn(IDS, model.start())
    _, late = model.learn(IDS.repeat(3), early)
    assert {n: (x.shape, x.untyped_storage().nbytes()) for n, x in late.items()} == {
        n: (x.shape, x.untyped_storage().nbytes()) for n, x in early.items()
    }


def test_full_attention_sees_its_context():
    base = own(**KINDS["attention"])
    other = torch.cat((IDS[:40].flip(0), IDS[40:]))
    same = []
    for context in (8, 24):
        model = native(base, context=context)
        states = [model.learn(ids, model.start(), lambda chunk: 0.0)[1] for ids in (IDS, other)]
        same.append(torch.equal(states[0]["stream/hidden"], states[1]["stream/hidden"]))
    assert same == [True, False]


def test_what_is_not_finite_is_refused():
    base = own(mixers=["gated_deltanet"], periods=[8], tie_word_embeddings=False)
    model = native(base)
    _, before = model.learn(IDS[:16], model.start())
    with torch.no_grad():
        base.model.embed_tokens.weight[7] = math.nan
    asked = []
    report, after = model.learn([7, *range(20, 27)], before, lambda chunk: asked.append(chunk) or 1.0)
    assert "nan" in report.chunks[0].refused and asked == [] and report.levels[0].updates == 0
    assert all(torch.equal(after[n], before[n]) for n in before if "/memory/" in n or n == "stream/hidden")
    report, _ = model.learn(range(30, 38), after)
    assert math.isfinite(report.surprise) and report.levels[0].moved > 0


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_those_of_the_levels_view(kind):
    model = made(kind)
    shown = {(x.name, x.period) for x in levels(model.base).levels}
    assert {(x.name, x.period) for x in model.settings.levels} <= shown
    assert Settings.from_dict(model.settings.to_dict()) == model.settings
    assert [x.period for x in model.settings.levels] == sorted(x.period for x in model.settings.levels)


@pytest.mark.parametrize(
    ("config", "given", "match"),
    [
        ({"mixers": ["attention"]}, {}, r"mixers=\['attention'\].*retrofit"),
        ({"mixers": ["attention"], "periods": [8], "cms_regime": "stream"}, {}, r"periods=\[8\].*retrofit"),
        ({"mixers": ["titans"]}, {"context": 8}, "context=8.*leave it out"),
        ({"mixers": ["attention"], "periods": [8]}, {"context": -1}, "context=-1"),
        ({"mixers": ["titans"]}, {"chunk": 12}, r"chunk=12.*give 8"),
        ({"mixers": ["titans"]}, {"chunk": 0}, "chunk=0"),
        (KINDS["loss"], {"chunk": 16}, r"chunk=16.*periods\[0\]=8"),
    ],
)
def test_what_cannot_be_is_named(config, given, match):
    base = own(**config)
    with pytest.raises(ValueError, match=match):
        native(base, **given)


def test_misuse():
    titans, hope = made("native titans"), made("native hope")
    assert isinstance(titans, NativeModel) and able(titans.base) and not able(own(mixers=["attention"]))
    with pytest.raises(ValueError, match="no model of Circadia's own"):
        native(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="does not fit this model"):
        hope.learn(IDS, titans.start())
    with pytest.raises(ValueError, match="teach"):
        titans.teach(None, titans.start())
    with pytest.raises(ValueError, match="past_key_values"):
        titans(IDS[None], state=titans.start(), past_key_values=HopeCache(1))
    with pytest.raises(ValueError, match="state is a list"):
        titans.score(IDS, [])
    assert native(own(mixers=["titans"], periods=[12, 24])).settings.chunk == 4  # what divides 8, 12 and 24
    retrofit(own(mixers=["titans"]), [8], context=8)  # the other way, on the same kind of base
