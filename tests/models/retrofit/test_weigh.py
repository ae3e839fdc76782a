"""Chunks that are learned in part, and levels that are taught by another loss than that of the stream."""

import pytest
import torch
import torch.nn.functional as F

from circadia.models.retrofit.state import key
from tests.models.retrofit.conftest import same, text

ONE = {"periods": 8, "decay": 0.1}
SETTINGS = {
    "one level": ONE,
    "stacked": {"periods": [4, 8, 16]},
    "dgd": {"periods": [4, 8], "optimizer": "dgd"},
    "low rank": {"periods": [4, 8], "capacity": "lowrank", "rank": 2},
    "gated": {"periods": [4, 8], "capacity": "lowrank", "rank": 2, "gate": "router"},
    "every parameter": {"periods": 8, "target": "all"},
}
every_setting = pytest.mark.parametrize("name", SETTINGS)


def by_place(chunk):
    """Weights that differ, some of them 0."""
    return (0.0, 0.25, 1.0, 0.5)[chunk.start // 4 % 4]


@every_setting
def test_weight_one_is_what_learning_is(tiny, name):
    model, ids = tiny(**SETTINGS[name]), text(40, 1)
    same(model.learn(ids, model.start())[1], model.learn(ids, model.start(), lambda chunk: 1.0)[1])


@every_setting
def test_weight_zero_changes_no_memory(tiny, name):
    """Neither learned nor faded: only the stream goes on."""
    model = tiny(**SETTINGS[name])
    _, state = model.learn(text(32, 1), model.start())
    report, after = model.learn(text(32, 2), state, lambda chunk: 0.0)
    assert {chunk.weight for chunk in report.chunks} == {0.0}
    assert int(after["clock/tokens"]) == 64
    for name_, x in state.items():
        if not name_.startswith(("clock", "stream")):
            assert torch.equal(x, after[name_]), name_
    assert all(level.updates == 0 and level.refused == 0 for level in report.levels)


def test_half_a_weight_goes_half_the_way(tiny):
    model = tiny(**ONE)
    _, state = model.learn(text(16, 1), model.start())
    ids = text(8, 2)
    report, whole = model.learn(ids, state)
    half_report, half = model.learn(ids, state, lambda chunk: 0.5)
    assert half_report.chunks[0].surprise == report.chunks[0].surprise
    for site in model.own[0]:
        name = key(0, "delta", site.name)
        torch.testing.assert_close(half[name], (state[name] + whole[name]) / 2)
    assert half_report.levels[0].moved == pytest.approx(report.levels[0].moved / 2)


def test_a_period_is_taught_by_the_weighted_mean(tiny):
    """A chunk of weight 0 has no part in the gradient; the other is learned by half, as it is half of the tokens."""
    model = tiny(periods=8, chunk=4, anchor=None, context=0)
    begin = model.start()
    ids = torch.cat((text(1, 5), text(4, 6), text(4, 7)))
    _, begin = model.learn(ids[:1], begin)
    _, state = model.learn(ids[1:8], begin, lambda chunk: float(chunk.start > 0))
    only = tiny(periods=4, chunk=4, anchor=None, context=0)
    _, alone = only.learn(ids[4:8], {**only.start(), "stream/context": ids[3:4]})
    for site in model.own[0]:
        name = key(0, "delta", site.name)
        torch.testing.assert_close(state[name], alone[name] * 4 / 7, rtol=1e-4, atol=1e-7)


@every_setting
def test_weighed_streams_may_be_split_anywhere(tiny, name):
    model, ids = tiny(**SETTINGS[name]), text(37, 4)
    _, whole = model.learn(ids, model.start(), by_place)
    for cuts in ([1, 7, 8], [5, 6, 18, 30]):
        state = model.start()
        for a, b in zip([0, *cuts], [*cuts, 37]):
            _, state = model.learn(ids[a:b], state, by_place)
        same(state, whole)


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_a_weight_out_of_range_is_refused(tiny, weight):
    model = tiny(**ONE)
    with pytest.raises(ValueError, match="it must be from 0 to 1"):
        model.learn(text(16, 1), model.start(), lambda chunk: weight)


@pytest.mark.parametrize("level", [0, 1])
def test_a_level_is_taught_by_another_loss(tiny, level):
    model, ids = tiny(periods=[4, 8], rate=0.5), text(12, 3)[None]
    _, state = model.learn(text(18, 1), model.start())

    def loss(base):
        return F.cross_entropy(base(ids[:, :-1], use_cache=False).logits[0], ids[0, 1:])

    before, after = [], state
    for _ in range(6):
        nats, after = model.teach(loss, after, level)
        before.append(nats)
    assert before[-1] < before[0] - 0.1
    kept = [n for n in state if not n.startswith(f"level{level}/")] + [key(level, "count")]
    for name in kept:
        assert torch.equal(state[name], after[name]), name
    same(state, model.learn(text(18, 1), model.start())[1])  # what was given is as it was


@pytest.mark.parametrize("rate", ["exact", "printed", "proximal"])
def test_the_loss_of_a_chunk_teaches_dgd_what_reading_it_does(tiny, rate):
    model, ids = tiny(periods=8, optimizer="dgd", options={"rate": rate}, rate=0.5, context=0), text(8, 1)
    _, state = model.learn(text(8, 5), model.start())
    state = model.fresh(state)
    _, read = model.learn(ids, state)
    _, taught = model.teach(lambda base: F.cross_entropy(base(ids[None, :-1]).logits[0], ids[1:]), state)
    for site in model.own[0]:
        name = key(0, "delta", site.name)
        torch.testing.assert_close(taught[name], read[name], rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_teaches_nothing(tiny):
    model = tiny(**ONE)
    _, state = model.learn(text(16, 1), model.start())
    ids = text(8, 2)[None]
    _, after = model.teach(lambda base: base(ids).logits.sum() * float("inf"), state, 0)
    same(state, after)
