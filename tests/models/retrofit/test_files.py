"""What is written: folders, memories, LoRAs, deltas, merged models."""

import json
import math

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import circadia
from circadia.evals import read
from circadia.models.retrofit import load
from tests.models.retrofit.conftest import FAMILIES, base_of, same, text

every_family = pytest.mark.parametrize("family", FAMILIES)
foreign_warnings = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
LOW = {"capacity": "lowrank", "rank": 2, "slots": 2, "rate": 2.0}


def logits(net, ids, **given):
    with torch.no_grad():
        return net(ids, **given).logits


@every_family
def test_a_folder_gives_back_model_and_memory(tiny, tmp_path, family):
    ids = text(30)[None]
    source = tmp_path / "source"
    base_of(family).save_pretrained(source)
    model = circadia.retrofit(str(source), [4, 8], assign={0: 0, 2: [0, 1]}, anchor="base")
    _, state = model.learn(ids, model.start())
    for how in ("reference", "copy"):
        model.save_pretrained(tmp_path / how, state=state, base=how)
        again = load(tmp_path / how)
        loaded = again.load_state(tmp_path / how / "memory.safetensors")
        same(loaded, state)
        assert torch.equal(logits(again, ids, state=loaded), logits(model, ids, state=state))
        assert again.settings == model.settings and again.layers == model.layers
    assert not (tmp_path / "reference" / "base").exists()
    assert circadia.retrofit(str(tmp_path / "copy")).settings == model.settings


@foreign_warnings
@every_family
def test_peft_reads_a_low_rank_memory(tiny, tmp_path, family):
    ids = text(30)[None]
    model = tiny(family, periods=[4, 8], **LOW)
    _, state = model.learn(text(60, seed=1), model.allocate(model.start(), 1, 1))
    model.export_peft(state, tmp_path / "lora")
    with_lora = peft.PeftModel.from_pretrained(base_of(family), tmp_path / "lora").eval()
    found, plain = logits(with_lora, ids), logits(model, ids)
    torch.testing.assert_close(found, logits(model, ids, state=state), rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 1e-2


@every_family
@pytest.mark.parametrize("settings", [{}, LOW, {"target": "all"}], ids=["full", "low rank", "every parameter"])
def test_a_merged_model_computes_the_same(tiny, tmp_path, family, settings):
    ids = text(30)[None]
    model = tiny(family, periods=[4, 8], **settings)
    before = logits(model, ids)
    _, state = model.learn(text(60, seed=1), model.start())
    merged = model.merge(state)
    wanted = logits(model, ids, state=state)
    torch.testing.assert_close(logits(merged, ids), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.equal(wanted, before) and torch.equal(logits(model, ids), before)
    assert not any("forward" in m.__dict__ for m in merged.modules())
    model.export_delta(state, tmp_path / "delta.safetensors")
    again = base_of(family)
    own = dict(again.named_parameters())
    with torch.no_grad():
        for name, x in load_file(tmp_path / "delta.safetensors").items():
            own[name] += x
    torch.testing.assert_close(logits(again, ids), wanted, rtol=1e-4, atol=1e-4)


def test_a_merged_model_is_saved_and_loaded_by_transformers(tiny, tmp_path):
    model, ids = tiny(), text(30)[None]
    _, state = model.learn(text(60), model.start())
    model.merge(state).save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again, ids), logits(model, ids, state=state), rtol=1e-5, atol=1e-5)


def test_a_memory_of_another_base_is_refused(tiny, tmp_path):
    model = tiny()
    _, state = model.learn(text(40), model.start())
    path = tmp_path / "memory.safetensors"
    model.save_state(state, path)
    with pytest.raises(ValueError, match="belongs to the base"):
        tiny(seed=1).load_state(path)
    other = tiny(config={"rms_norm_eps": 1e-5})  # the same weights, another arithmetic
    with pytest.raises(ValueError, match="belongs to the base"):
        other.load_state(path)
    with pytest.raises(ValueError, match=r"periods=\[4, 8, 16\]"):
        tiny(periods=[4, 8], chunk=4, context=4).load_state(path)
    with pytest.raises(ValueError, match="must have shape"):
        tiny(layers="last:1").learn(text(8), state | {next(n for n in state if "layers.2" in n): torch.zeros(2, 2)})
    with torch.no_grad():
        next(iter(model.base.parameters())).add_(1.0)
    with pytest.raises(ValueError, match="belongs to the base"):  # the fingerprint is not a stale one
        model.load_state(path)


def test_damage_and_foreign_files_are_refused(tiny, tmp_path):
    model = tiny()
    path = tmp_path / "memory.safetensors"
    model.save_state(model.start(), path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        model.load_state(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no memory"):
        model.load_state(path)


def test_a_memory_of_other_settings_is_refused(tiny, tmp_path):
    path = tmp_path / "memory.safetensors"
    for theirs, ours, said in (
        ({}, {"optimizer": "adamw"}, "has no level0/opt/mean/delta/.*made with optimizer='gd', here optimizer='adamw'"),
        ({}, {"optimizer": "dgd"}, "has no level0/gram/"),
        ({"assign": "fast-first", "anchor": "base"}, {"assign": "fast-first"}, "anchor='base', here anchor='slower'"),
    ):
        model = tiny(**theirs)
        model.save_state(model.learn(text(40), model.start())[1], path)
        with pytest.raises(ValueError, match=said):
            tiny(**ours).load_state(path)
        same(model.load_state(path), model.learn(text(40), model.start())[1])


@pytest.mark.parametrize(
    "given", [{"layers": range(2)}, {"assign": (range(1), (1,), range(2, 3))}, {"assign": {0: (0, 1), 1: 2}}]
)
def test_layers_may_be_any_sequence(tiny, tmp_path, given):
    model = tiny(**given)
    model.save_pretrained(tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.layers == model.layers and again.settings == model.settings


def test_a_base_that_has_changed_is_refused(tmp_path):
    base_of("llama").save_pretrained(tmp_path / "source")
    circadia.retrofit(tmp_path / "source", [8]).save_pretrained(tmp_path / "out")
    base_of("llama", seed=1).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="is not the one that was retrofitted"):
        load(tmp_path / "out")


def test_a_freed_expert_is_as_if_it_had_never_been(tiny):
    ids = text(30)[None]
    model = tiny(periods=[8], **LOW)
    one = model.start()
    two = model.allocate(one, 0, 1)
    assert torch.equal(logits(model, ids, state=two), logits(model, ids))
    _, learned = model.learn(text(64), two)
    name = next(iter(model.sites))
    assert learned[f"level0/b/{name}"][0].any() and learned[f"level0/b/{name}"][1].any()
    freed = model.free(learned, 0, 1)
    only = {**learned, "level0/mask": torch.tensor([True, False])}
    assert torch.equal(logits(model, ids, state=freed), logits(model, ids, state=only))
    assert not torch.equal(logits(model, ids, state=freed), logits(model, ids, state=learned))
    assert torch.equal(logits(model, ids, state=model.free(freed, 0, 0)), logits(model, ids))
    assert learned[f"level0/b/{name}"][1].any()  # the old state is a value
    _, after = model.learn(text(32, seed=1), freed)
    assert not after[f"level0/b/{name}"][1].any() and after[f"level0/b/{name}"][0].any()
    with pytest.raises(ValueError, match="slot=2"):
        model.free(learned, 0, 2)


def test_a_slot_that_is_taken_into_use_decays_to_its_own_start(tiny):
    model = tiny(periods=[8, 16], assign="fast-first", decay=0.5, **LOW | {"rate": 1e-9})
    state = model.allocate(model.start(), 0, 1)
    _, after = model.learn(text(64), state)
    for site in model.own[0]:
        torch.testing.assert_close(after[f"level0/a/{site.name}"], state[f"level0/a/{site.name}"])


def test_what_cannot_be_exported_says_so(tiny, tmp_path):
    model = tiny()
    with pytest.raises(ValueError, match="capacity='full', which is no LoRA"):
        model.export_peft(model.start(), tmp_path / "lora")
    low = tiny(periods=[8], **LOW)
    with pytest.raises(ValueError, match="no slot in use"):
        low.export_peft(low.free(low.start(), 0, 0), tmp_path / "lora")
    with pytest.raises(ValueError, match="base='copy'"):
        model.save_pretrained(tmp_path / "out", base="reference")


def test_the_levels_view(tiny, tmp_path):
    model = tiny(periods=[4, 16], assign=[[2], [0, 1]], capacity=["full", "lowrank"], rank=2)
    view = circadia.levels(model)
    rows = {level.name: level for level in view.levels}
    fast, slow = rows["memory 0 (full delta)"], rows["memory 1 (low-rank 2)"]
    assert (fast.period, slow.period) == (4, 16)
    assert [m.pattern for m in fast.members] == ["base.model.layers.2.mlp"]
    assert [m.pattern for m in slow.members] == ["base.model.layers.{0..1}.mlp"]
    # Delta and slow copy; pairs and their sums of gradients.
    assert fast.state_bytes == 3 * 16 * 24 * 4 * 2
    assert slow.state_bytes == 2 * 3 * 2 * (16 + 24) * 4 * 2
    state = model.start()
    for i, level in enumerate((fast, slow)):
        held = sum(x.numel() * 4 for n, x in state.items() if n.startswith(f"level{i}/") and x.is_floating_point())
        assert held == level.state_bytes
    for settings in ({"optimizer": "dgd"}, {"assign": {0: 0, 1: [0, 1], 2: 1}}, {"feed": ["gradient", "faster"]}):
        model = tiny(periods=[4, 16], **settings)
        state, sizes = model.start(), [entry["state_bytes"] for entry in model.levels_entry()]
        assert sizes == [
            sum(x.nbytes for n, x in state.items() if n.startswith(f"level{i}/") and n.count("/") > 1) for i in (0, 1)
        ]
    assert "slow copy" in fast.leaves and "the base" in slow.leaves and math.isinf(rows["frozen weights"].period)
    assert view.parameters == sum(p.numel() for p in model.base.parameters())
    json.loads(view.to_json())


def test_without_periods_it_is_the_arrangement_that_was_measured():
    """The arm of `circadia eval read` that is the default; what is given is taken in its place."""
    base = base_of("llama", max_position_embeddings=512)
    arm = read.ARMS["2 levels slow one keeps"]
    measured = circadia.retrofit(base, **arm.at(arm.rates[0]))
    plain = circadia.retrofit(base)
    ids = text(2100)
    ours, theirs = (model.learn(ids, model.start()) for model in (plain, measured))
    assert [one.surprise for one in ours[0].chunks] == [one.surprise for one in theirs[0].chunks]
    assert [(level.period, level.updates) for level in ours[0].levels] == [(256, 8), (1024, 2)]
    same(ours[1], theirs[1])
    given = circadia.retrofit(base, rate=0.1, clip=None)
    assert [(one.period, one.rate, one.clip, one.decay) for one in given.settings.levels] == [
        (256, 0.1, None, 0.02),
        (1024, 0.1, None, 0.002),
    ]
    other = circadia.retrofit(base, optimizer="adamw")
    assert [(one.rate, one.decay) for one in other.settings.levels] == [(3e-4, 0.02), (3e-4, 0.002)]
