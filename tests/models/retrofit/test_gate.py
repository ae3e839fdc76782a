"""Experts with a gate of their own: the formula, no-ops, what is written and what is refused."""

import pytest
import torch

import circadia
from circadia.models.retrofit import load, retrofit
from circadia.models.retrofit.step import bounded
from circadia.models.retrofit.wear import opened
from tests.models.retrofit.conftest import base_of, same, text

GATED = {"periods": [8], "capacity": "lowrank", "rank": 2, "slots": 3, "gate": "router", "rate": 2.0}


def logits(model, state):
    with torch.no_grad():
        return model(text(20, 9)[None], state=state).logits


@pytest.fixture
def learned(tiny):
    """A model, and a state with two experts and gates that are neither open nor closed."""
    model = tiny(**GATED)
    state = model.learn(text(40, 3), model.allocate(model.start(), 0, 2))[1]
    return model, state


def test_the_formula(learned):
    model, state = learned
    name = next(iter(model.sites))
    matrix = model.sites[name].matrix.module
    x = torch.randn(2, 5, matrix.in_features, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.linear(x, matrix.weight, matrix.bias)
    for slot in (0, 2):
        a, b, gate = (state[f"level0/{part}/{name}"][slot] for part in ("a", "b", "gate"))
        for i in range(2):
            for t in range(5):
                g = 1 / (1 + torch.exp(-(gate[0, :-1] @ x[i, t] + gate[0, -1])))
                assert 0.01 < g < 0.99 and g != 0.5
                want[i, t] += g * (b @ (a @ x[i, t]))
    with torch.no_grad(), model.wearing(state):
        torch.testing.assert_close(matrix(x), want, rtol=1e-5, atol=1e-5)
    assert opened(x, torch.zeros(2, matrix.in_features + 1)).unique().tolist() == [0.5]


def test_closed_is_the_base_and_open_is_always(learned):
    model, state = learned
    gates = [n for n in state if "/gate/" in n]
    assert len(gates) == 9 and all(state[n].shape[:2] == (3, 1) for n in gates)

    def at(bias):
        return {n: torch.cat((torch.zeros_like(x[..., 1:]), torch.full_like(x[..., :1], bias)), -1) if n in gates else x
                for n, x in state.items()}  # fmt: skip

    assert torch.equal(logits(model, at(-torch.inf)), logits(model, None))
    always = retrofit(base_of("llama"), **{**GATED, "gate": "always"})
    plain = {n: x for n, x in state.items() if "/gate/" not in n}
    assert torch.equal(logits(model, at(torch.inf)), logits(always, plain))
    assert not torch.equal(logits(model, state), logits(always, plain))
    with pytest.raises(ValueError, match="its level 0 has gates"):
        always.check(state)
    with pytest.raises(ValueError, match=r"level0/gate/.* no such entry"):
        model.check(plain)


def test_a_fresh_and_a_freed_expert_change_nothing(learned):
    model, state = learned
    fresh = model.allocate(state, 0, 1)
    assert torch.equal(logits(model, model.allocate(model.start(), 0, 1)), logits(model, None))
    torch.testing.assert_close(logits(model, fresh), logits(model, state), rtol=1e-6, atol=1e-6)  # beside two others
    used = model.learn(text(16, 5), fresh)[1]
    assert all(used[n][1].any() for n in used if n.startswith("level0/gate/"))
    freed = model.free(used, 0, 1)
    assert not any(freed[n][1].any() for n in freed if n.startswith(("level0/gate/", "level0/b/")))
    only = {**used, "level0/mask": torch.tensor([True, False, True])}
    assert torch.equal(logits(model, freed), logits(model, only))


def test_it_is_saved_and_goes_on(learned, tmp_path):
    model, state = learned
    model.save_pretrained(tmp_path / "out", state=state)
    again = load(tmp_path / "out")
    assert again.settings == model.settings and again.settings.levels[0].gate == "router"
    loaded = again.load_state(tmp_path / "out" / "memory.safetensors")
    same(loaded, state)
    same(again.learn(text(20, 4), loaded)[1], model.learn(text(20, 4), state)[1])
    same(model.placed(state), state)


def test_what_only_the_gate_can_say_is_not_exported(learned, tmp_path):
    model, state = learned
    with pytest.raises(ValueError, match="level 0 has gate='router': a gated expert is no LoRA"):
        model.export_peft(state, tmp_path / "lora")
    for export in (lambda: model.merge(state), lambda: model.export_delta(state, tmp_path / "x.safetensors")):
        with pytest.raises(ValueError, match="a gated expert is no matrix"):
            export()
    assert not list(tmp_path.iterdir())
    weights = dict(model.base.named_parameters())
    assert all(torch.equal(p, weights[n]) for n, p in model.merge(model.start()).named_parameters()), (
        "nothing in it yet"
    )


def test_the_bound_and_the_view(learned):
    model, state = learned
    memory = {n.removeprefix("level0/"): x for n, x in state.items() if n.split("/")[1] in ("a", "b", "gate")}
    short = bounded(memory, dict.fromkeys(model.sites, 1e-3))
    for name, x in memory.items():
        assert torch.equal(short[name], x) == (not name.startswith("b/")), name
    (level,) = [level for level in circadia.levels(model).levels if level.name.startswith("memory")]
    assert level.name == "memory 0 (low-rank 2 x 3, gated)"
    assert level.state_bytes == sum(x.nbytes for n, x in state.items() if n.split("/")[1] in ("a", "b", "gate"))
