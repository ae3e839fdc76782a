"""What is said of the levels is what they did, and looking changes nothing."""

import pytest
import torch
import torch.nn.functional as F

from circadia.models import HopeCache, HopeConfig, HopeForCausalLM
from circadia.models.levels import Level, Levels
from circadia.models.mixers.memory import MemoryMixer
from circadia.models.watch import flat, learns, watch
from tests.models.test_models import KINDS, make, tokens


@pytest.mark.parametrize("kind", [*KINDS])
def test_looking_changes_nothing(kind):
    model, x = make(kind).train(), tokens(2, 21)
    before, plain = dict(vars(model.model.layers[0].levels)), model(x).logits
    found = watch(model, x)
    assert torch.equal(model(x).logits, plain) and model.training
    assert vars(model.model.layers[0].levels) == before
    assert bool(found) == learns(model) == any(isinstance(p, MemoryMixer) for p in model.modules()) or "cms-4" in found
    assert all(torch.isfinite(torch.tensor(value)) for value in flat(found).values())


@pytest.mark.parametrize("mixer", ["gated_deltanet", "titans", "self_modifying"])
def test_update_and_surprise_of_a_memory_are_those_of_its_reference(mixer, monkeypatch):
    model, x = make(mixer), tokens(2, 21)
    found = watch(model, x)[model.model.layers[0].mixer.rule.name]
    expected = []
    kind = type(model.model.layers[0].mixer.rule)
    plain = kind.__call__

    def slow(self, q, k, v, gates, state, *, chunk, mask, reset, initial, surprise=False):
        _, new, loss = self.reference(q, k, v, gates, state, chunk=chunk, surprise=True)
        far = sum((new[name] - w).square().flatten(1).sum(1) for name, w in state.items()).sqrt().mean()
        expected.append((far.item(), loss.mean().item()))
        return plain(self, q, k, v, gates, state, chunk=chunk, mask=mask, reset=reset, initial=initial)

    monkeypatch.setattr(kind, "__call__", slow)
    with torch.no_grad():
        model(x)
    assert len(expected) == len(model.model.layers) and expected[0] != expected[1]
    for i, what in enumerate(("update", "surprise")):
        mean = sum(pair[i] for pair in expected) / len(expected)
        assert found[what] == pytest.approx(mean, rel=1e-5) and abs(mean) > 1e-3


def test_a_level_is_surprised_before_it_learns():
    model, x = make("levels"), tokens(2, 21)
    found = watch(model, x)
    assert set(found) == {"self_modifying", "cms-4", "cms-8"}  # the last one never learns
    heard = []

    def note(level: Level, y, target):
        heard.append((level.period, 0.5 * (y[:, :-1] - target[:, 1:]).square().sum(-1).mean().item()))

    for part in model.modules():
        if isinstance(part, Levels):
            part.watch = note
    cache = HopeCache(model.config.num_hidden_layers)
    with torch.no_grad():
        model(x, past_key_values=cache, use_cache=True)
    for i, period in enumerate((4, 8)):
        each = [loss for p, loss in heard if p == period]
        assert found[f"cms-{period}"]["surprise"] == pytest.approx(sum(each) / len(each), rel=1e-5)
        far = [(s[f"levels.{i}.up"].square().sum((1, 2)) + s[f"levels.{i}.out"].square().sum((1, 2))).sqrt().mean()
               for s in cache.states]  # fmt: skip
        assert found[f"cms-{period}"]["update"] == pytest.approx(sum(map(float, far)) / len(far), rel=1e-5)
        assert found[f"cms-{period}"]["update"] > 0


def test_levels_that_learn_from_the_loss_are_surprised_by_it():
    model, x = make("loss"), tokens(2, 21)
    found = watch(model, x)
    loss = F.cross_entropy(model(x).logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).item()
    assert found["cms-4"]["surprise"] == found["cms-8"]["surprise"] == pytest.approx(loss, rel=1e-5)
    assert found["cms-4"]["update"] > 0 and found["self_modifying"]["surprise"] != pytest.approx(loss)


@pytest.mark.parametrize(("kind", "memory"), [("levels", "self_modifying"), ("titans_mac", "titans")])
def test_borders_of_documents_surprise_nobody(kind, memory):
    """A row of two documents is as surprised as the two alone."""
    model, x = make(kind), tokens(1, 24)
    reset = torch.zeros(1, 24, dtype=torch.bool)
    reset[0, 8] = True
    both, first, second = watch(model, x, reset), watch(model, x[:, :8]), watch(model, x[:, 8:])
    for level in ("cms-4", "cms-8") if kind == "levels" else ():
        mean = (7 * first[level]["surprise"] + 15 * second[level]["surprise"]) / 22
        assert both[level]["surprise"] == pytest.approx(mean, rel=1e-4)
        assert both[level]["update"] == pytest.approx(second[level]["update"], rel=1e-4)
    mean = (8 * first[memory]["surprise"] + 16 * second[memory]["surprise"]) / 24
    assert both[memory]["surprise"] == pytest.approx(mean, rel=1e-4)


def test_nothing_is_compiled_anew_for_it(monkeypatch):
    model, x = make("gated_deltanet"), tokens(1, 9)
    called = []
    for block in model.model.layers:
        block._compiled_call_impl = lambda *args, block=block: called.append(1) or block._call_impl(*args)
    plain = watch(model, x)
    assert not called
    model(x)
    assert len(called) == 2
    assert watch(make("gated_deltanet"), x) == plain
    assert not learns(HopeForCausalLM(HopeConfig(hidden_size=16, mixers=["attention"])))
