"""Learning from a stream: pieces, chunks, clocks."""

import math

import pytest
import torch

from circadia.models.retrofit import reference, retrofit
from circadia.models.retrofit.settings import CAPACITIES, OPTIMIZERS
from tests.models.retrofit.conftest import same, text

SETTINGS = {
    "gd": {},
    "one level": {"periods": 8},
    "blind chunks": {"context": 0},
    "chunks of half a period": {"chunk": 2},
    "fast-last": {"assign": "fast-last", "decay": 0.1, "follow": 0.3},
    "interleaved, to the base": {"assign": "interleaved", "anchor": "base"},
    "no retention": {"anchor": None},
    "sum": {"reduction": "sum", "rate": 0.02},
    "ngd": {"optimizer": "ngd", "rate": 0.05},
    "momentum": {"optimizer": "momentum", "options": {"decay": 0.8}},
    "dgd": {"optimizer": "dgd"},
    "adamw": {"optimizer": "adamw", "rate": 0.01},
    "m3": {"optimizer": "m3", "rate": 0.01},
    "bound": {"rate": 3.0, "bound": 0.02, "clip": None},
    "listens to the end": {"listen": [4, 4, 8]},
    "fed by the faster level": {"feed": ["gradient", "faster", "faster"], "transfer": 0.4},
    "low rank": {"capacity": "lowrank", "rank": 2, "rate": 1.0},
    "low rank, unstacked": {"capacity": "lowrank", "rank": 2, "rate": 1.0, "assign": "fast-first", "decay": 0.1},
    "low rank over full": {"capacity": ["lowrank", "full", "full"], "rank": 3, "slots": 2},
    "gated": {"capacity": "lowrank", "rank": 2, "slots": 2, "gate": "router", "rate": 1.0},
    "gated, unstacked": {
        "capacity": "lowrank",
        "gate": "router",
        "optimizer": "adamw",
        "rate": 0.05,
        "assign": "fast-first",
        "decay": 0.1,
        "follow": 0.5,
    },
    "gated over full": {"capacity": ["lowrank", "full", "full"], "gate": ["router", "always", "always"], "rank": 3},
    "every parameter": {"target": "all", "periods": [8, 16]},
}
every_setting = pytest.mark.parametrize("name", SETTINGS)


@every_setting
def test_learning_equals_the_plain_loop(tiny, name):
    family = "gpt2" if name in ("gd", "dgd", "low rank") else "llama"
    model = tiny(family, dtype=torch.float64, **SETTINGS[name])
    ids = text(38, seed=3)
    report, state = model.learn(ids, model.start())
    surprises, memory = reference.learn(model, ids.tolist())
    torch.testing.assert_close([c.surprise for c in report.chunks], surprises, rtol=1e-9, atol=1e-9)
    moved = 0.0
    for i, own in enumerate(memory):
        for entry, x in own.items():
            torch.testing.assert_close(state[f"level{i}/{entry}"], x, rtol=1e-9, atol=1e-11)
            moved += float(x.abs().sum())
    assert moved > 0


@every_setting
def test_any_split_leaves_the_same_bits(tiny, name):
    model, ids = (
        tiny(**SETTINGS[name], config={"num_hidden_layers": 3 if "assign" in SETTINGS[name] else 1}),
        text(37, 4),
    )
    report, whole = model.learn(ids, model.start())
    for cuts in ([1, 7, 8], [16, 17, 30], list(range(1, 37)) if name in ("gd", "low rank over full") else [36]):
        state, parts = model.start(), []
        for piece in torch.tensor_split(ids, cuts):
            given = {n: x.clone() for n, x in state.items()}
            part, after = model.learn(piece, state)
            same(state, given)  # what came in is not written
            state = after
            parts += part.chunks
        same(state, whole)
        assert parts == report.chunks
    assert whole["stream/pending"].numel() == 37 % model.settings.chunk
    assert int(whole["clock/tokens"]) == 37 - 37 % model.settings.chunk


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_rate_that_nobody_gave_suits_the_optimizer(optimizer, capacity):
    """On the bundled base: a text told again is learned, and one with nothing in it to learn is not ruined."""
    if (optimizer, capacity) == ("dgd", "lowrank"):
        pytest.skip("refused")
    model = retrofit("bundled", periods=[64], context=0, anchor="base", optimizer=optimizer, capacity=capacity)
    again = torch.tensor(list(b"The last ferry to Skarn leaves at eight. " * 20))
    noise = torch.randint(32, 127, (512,), generator=torch.Generator().manual_seed(0))
    gain = 0.02 if optimizer == "dgd" else 0.3  # it takes away what it writes over: little at any rate
    for tokens, least in ((again, gain), (noise, 0.0)):
        frozen = mean(model.score(tokens, model.start()))
        learned = mean(model.learn(tokens, model.start())[0])
        assert learned < frozen - least


def mean(report):
    return sum(chunk.surprise * chunk.tokens for chunk in report.chunks) / sum(c.tokens for c in report.chunks)


def test_a_saved_state_goes_on_as_if_nothing_had_happened(tiny, tmp_path):
    model = tiny(optimizer="adamw", rate=0.01)
    _, state = model.learn(text(45), model.start())
    model.save_state(state, tmp_path / "memory.safetensors")
    again = tiny(optimizer="adamw", rate=0.01)
    loaded = again.load_state(tmp_path / "memory.safetensors")
    same(loaded, state)
    one, two = model.learn(text(50, seed=5), state)[1], again.learn(text(50, seed=5), loaded)[1]
    same(one, two)


def test_every_token_is_scored_once_but_the_first(tiny):
    model, ids = tiny(periods=[8, 16], context=5), text(37)
    report, _ = model.learn(ids, model.start())
    assert [(c.start, c.tokens) for c in report.chunks] == [(0, 7), (8, 8), (16, 8), (24, 8)] and report.pending == 5
    frozen = model.score(ids)
    assert [(c.start, c.tokens) for c in frozen.chunks] == [(0, 7), (8, 8), (16, 8), (24, 8), (32, 5)]
    with torch.no_grad():
        window = ids[16 - 5 : 24]
        loss = torch.nn.functional.cross_entropy(model.base(window[None, :-1]).logits[0, -8:], window[-8:])
    assert math.isclose(frozen.chunks[2].surprise, float(loss), rel_tol=1e-6)
    assert report.chunks[0].surprise == pytest.approx(frozen.chunks[0].surprise, rel=1e-6)


def test_a_level_moves_at_its_period_and_not_before(tiny):
    model = tiny(periods=[4, 8, 16])
    state, steps = model.start(), []
    for piece in text(32).split(4):
        _, state = model.learn(piece, state)
        steps.append([int(state[f"level{i}/steps"]) for i in range(3)])
    assert steps == [[1, 0, 0], [2, 1, 0], [3, 1, 0], [4, 2, 1], [5, 2, 1], [6, 3, 1], [7, 3, 1], [8, 4, 2]]


def test_what_is_not_finite_is_refused(tiny):
    model = tiny(periods=[8, 16])
    _, good = model.learn(text(24), model.start())
    last = list(model.base.parameters())[-1]
    kept = last.detach().clone()
    last.data[0] = math.inf
    report, state = model.learn(text(16, seed=1), good)
    last.data.copy_(kept)
    assert all(chunk.refused for chunk in report.chunks) and len(report.chunks) == 2
    assert int(state["clock/tokens"]) == 40  # the stream has gone on
    for name, x in state.items():
        if "/delta/" in name and "/grad/" not in name and name.startswith("level0/"):
            assert torch.equal(x, good[name]), name
        assert torch.isfinite(x).all(), name
    report, state = model.learn(text(16, seed=1), state)
    assert not any(chunk.refused for chunk in report.chunks) and report.levels[0].updates == 2


def test_an_update_that_overflows_is_refused(tiny):
    model = tiny(periods=[8], rate=1e38, clip=None, reduction="sum")
    report, state = model.learn(text(8), model.start())
    assert report.levels[0].refused == 1 and report.levels[0].updates == 0
    assert not any(x.any() for name, x in state.items() if name.startswith("level0/delta"))


def test_a_long_stream_stays_finite(tiny):
    model = tiny(periods=[64, 256, 1024], config={"num_hidden_layers": 2}, rate=1.0, context=16)
    report, state = model.learn(text(4500, seed=6, period=700), model.start())
    assert all(math.isfinite(c.surprise) for c in report.chunks) and len(report.chunks) == 70
    assert all(torch.isfinite(x).all() for x in state.values())
    assert [level.updates for level in report.levels] == [70, 17, 4]


def graphs(model):
    """Which layers' outputs need a gradient, pass by pass."""
    seen = []
    for i, layer in enumerate(model.base.model.layers):

        def hook(module, given, out, i=i):
            seen.append((i, (out if torch.is_tensor(out) else out[0]).requires_grad))

        layer.register_forward_hook(hook)
    return seen


def test_lower_layers_need_no_graph(tiny):
    """Only the last layer learns: nothing before its MLP is kept for a backward pass."""
    model = tiny(periods=[8], layers="last:1")
    seen = graphs(model)
    model.learn(text(8), model.start())
    assert seen == [(0, False), (1, False), (2, True)]


def test_a_chunk_that_nobody_listens_to_is_only_read(tiny):
    model = tiny(periods=[32], chunk=8, listen=8)
    seen = graphs(model)
    model.learn(text(64), model.start())
    assert [needed for i, needed in seen if i == 2] == [False, False, False, True] * 2


def test_base_of_few_bits_learns_below_its_grain(tiny):
    """A delta too small for bfloat16 weights is kept and read."""
    model = tiny(dtype=torch.bfloat16, periods=[8], rate=1e-4)
    report, state = model.learn(text(64), model.start())
    delta = next(x for name, x in state.items() if "/delta/" in name)
    assert delta.dtype == torch.float32 and 0 < float(delta.abs().max()) < 2**-9 * 0.02
    with torch.no_grad():
        y = [m(text(9)[None], state=s).logits.float() for m, s in ((model, state), (model, None))]
    assert report.levels[0].updates == 8 and (y[0] - y[1]).abs().max() < 0.1
