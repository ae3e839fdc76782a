"""What must hold for every family."""

import pytest
import torch

from tests.models.retrofit.conftest import FAMILIES, text

every_family = pytest.mark.parametrize("family", FAMILIES)


def weights(model):
    return {name: p.detach().clone() for name, p in model.base.state_dict().items()}


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_bits_of_the_base_until_something_was_learned(tiny, family, dtype):
    model, ids = tiny(family, dtype=dtype, rate=[0.3, 0.3, 0.3]), text(40)[None]
    before = weights(model)
    plain = model.base(ids).logits
    still = tiny(family, dtype=dtype, rate=0.0, optimizer="adamw")
    _, at_zero = still.learn(ids, still.start())
    assert int(at_zero["level0/steps"]) == 10
    _, state = model.learn(ids, model.start())
    with torch.no_grad():
        assert torch.equal(model(ids, state=model.start()).logits, plain)
        assert torch.equal(still(ids, state=at_zero).logits, plain)
        assert not torch.equal(model(ids, state=state).logits, plain)  # and something is read once it is there
        assert torch.equal(model(ids).logits, plain)  # nothing is left on
    for name, value in model.base.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.base.parameters())


@every_family
def test_every_mlp_matrix_is_found_and_no_other(tiny, family):
    model = tiny(family)
    kinds = {name.rpartition(".")[2] for name in model.sites}
    expected = {
        "phi3": {"gate_up_proj", "down_proj"},
        "gpt2": {"c_fc", "c_proj"},
        "gpt_neox": {"dense_h_to_4h", "dense_4h_to_h"},
        "circadia": {"up", "out"},
    }
    assert kinds == expected.get(family, {"gate_proj", "up_proj", "down_proj"})
    assert len(model.sites) == 3 * len(kinds)
    assert not any("attn" in name or "attention" in name or "mixer" in name for name in model.sites)


@every_family
def test_the_gradient_reaches_the_assigned_memories_and_nothing_else(tiny, family):
    # Layer 0 frozen, layer 1 on the slow level, layer 2 on the fast one.
    model = tiny(family, periods=[8, 16], assign={1: 1, 2: 0}, decay=0.0)
    _, state = model.learn(text(8), model.start())
    layers = {name: next(n for n in name.split(".") if n.isdigit()) for name in model.sites}
    assert set(layers.values()) == {"1", "2"}
    for name, layer in layers.items():
        if layer == "2":
            assert state[f"level0/delta/{name}"].any(), name
            assert f"level1/delta/{name}" not in state
        else:
            assert not state[f"level1/delta/{name}"].any(), name  # its period is not over
            assert state[f"level1/grad/delta/{name}"].any(), name  # but it has listened
            assert f"level0/delta/{name}" not in state
    _, state = model.learn(text(8, seed=1), state)
    assert all(state[f"level1/delta/{name}"].any() for name, layer in layers.items() if layer == "1")


@every_family
def test_repeated_text_becomes_less_surprising(tiny, family):
    model, ids = tiny(family, periods=[8], context=0, optimizer="adamw", rate=0.03, decay=0.001), text(240, period=16)
    report, state = model.learn(ids, model.start())
    frozen = model.score(ids)
    late = [sum(c.surprise for c in r.chunks[-8:]) / 8 for r in (report, frozen)]
    assert late[0] < late[1] - 0.5
    # What was learned is in the state, and not in the way it was read.
    assert model.score(ids[:64], model.fresh(state)).surprise < frozen.surprise - 0.5


@every_family
def test_generation_with_a_memory(tiny, family):
    model, ids = tiny(family, rate=3.0, clip=None), text(12)[None]
    _, state = model.learn(text(64, seed=2), model.start())
    plain = model.generate(ids, max_new_tokens=6, do_sample=False)
    worn = model.generate(ids, max_new_tokens=6, do_sample=False, state=state)
    # Greedy by hand, the whole text anew for every token.
    by_hand = ids
    with torch.no_grad():
        for _ in range(6):
            best = model(by_hand, state=state).logits[:, -1].argmax(-1, keepdim=True)
            by_hand = torch.cat((by_hand, best), 1)
            if best.item() == 2:
                break
    assert torch.equal(worn[:, : by_hand.shape[1]], by_hand)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), plain)
