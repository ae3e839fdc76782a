"""Presets have equal parameters, and their costs are what a real run shows."""

import json

import pytest
import torch
from typer.testing import CliRunner

import circadia
from circadia.cli import app
from circadia.models import HopeConfig, HopeForCausalLM, preset
from circadia.models.measure import activation_bytes, cost
from circadia.models.presets import ARCHITECTURES, SIZES, count


@pytest.mark.parametrize("size", ["tiny", "small", "340m"])
def test_equal_parameters(size: str) -> None:
    counts = {name: count(preset(name, size)) for name in ARCHITECTURES}
    assert max(counts.values()) < 1.03 * min(counts.values()), counts


def test_sizes_are_what_their_names_say() -> None:
    named = {"tiny": 1e6, "small": 10e6, "30m": 30e6, "100m": 100e6, "340m": 340e6, "760m": 760e6, "1.3b": 1.3e9}
    named["8b"] = 8e9
    for size, wanted in named.items():
        assert 0.85 * wanted < count(preset("transformer++", size)) < 1.15 * wanted, size
    assert set(named) == set(SIZES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_costs_are_those_of_a_real_run(name: str) -> None:
    """State bytes against the cache of a model that has read something; parameters against the model."""
    config = preset(name, "tiny")
    config.periods = [period // 64 for period in config.periods]
    model, measured = HopeForCausalLM(config), cost(config)
    assert sum(p.numel() for p in model.parameters()) == measured.parameters
    config.sliding_window = 512
    length = 600
    with torch.no_grad():
        cache = model(torch.zeros(1, length, dtype=torch.int64), use_cache=True).past_key_values
    held = sum(x.numel() * x.element_size() for state in cache.states for x in state.values())
    assert abs(held - (measured.state_bytes + length * measured.bytes_per_token)) <= 0.01 * held
    # Two operations a weight and token in the matrices, and what the memory costs on top.
    dense = 2 * sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "start" not in n)
    assert dense * 0.9 < measured.flops_per_token < 5 * dense


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_everything_learns(name: str) -> None:
    """Through the inner updates of every level: each parameter gets a finite gradient from one next-token loss."""
    torch.manual_seed(0)
    config = preset(name, "tiny")
    config.periods = [period // 64 for period in config.periods]  # the slowest one learns twice
    x = torch.randint(0, 256, (1, max(150, 2 * max(config.periods) + 20)))
    model = HopeForCausalLM(config)
    loss = model(x, labels=x, use_cache=False).loss
    loss.backward()
    assert abs(loss.item() / torch.tensor(256.0).log().item() - 1) < 0.03
    for n, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, n


def test_levels_are_seen() -> None:
    """The continuum memory system of Hope, each level with its period, and the weights that it starts from."""
    view = circadia.levels(HopeForCausalLM(preset("hope", "tiny")))
    found = {level.period: level for level in view.levels if level.name == "CMS level"}
    assert list(found) == [512, 2048, 8192]
    width = preset("hope", "tiny").level_widths[0]
    assert found[512].state_bytes == 5 * 2 * 4 * 3 * 128 * width  # blocks; weights and gradients; float32; up and out


def test_models_are_seen_as_levels() -> None:
    model = HopeForCausalLM(HopeConfig(mixers=["titans", "attention"], chunk=16))
    view = circadia.levels(model, torch.optim.AdamW(model.parameters()))
    periods = {level.name: level.period for level in view.levels}
    assert periods["titans"] == 16 and periods["attention"] == 0
    assert "initial states trained by AdamW" in periods
    assert [name for name in periods if "attention" in name] == ["attention"]


def test_a_preset_is_a_config() -> None:
    config = HopeConfig.preset("hope", "tiny")
    assert type(config) is HopeConfig and config.to_dict() == preset("hope", "tiny").to_dict()
    assert config.layer_mixers == ["self_modifying"] * 5 and config.periods == [512, 2048, 8192]


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"architecture 'hop' is unknown: use one of transformer\+\+"):
        preset("hop", "tiny")
    with pytest.raises(ValueError, match="size 'huge' is unknown: use one of tiny"):
        preset("linear", "huge")


def test_the_command_lists_them() -> None:
    result = CliRunner().invoke(app, ["models", "--json"])
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)["models"]) == set(ARCHITECTURES)
    assert CliRunner().invoke(app, ["models", "--size", "huge"]).exit_code == 2


@pytest.mark.parametrize("mixer", ["attention", "gated_deltanet", "self_modifying"])
def test_activations_are_those_that_autograd_holds(mixer: str) -> None:
    """Counted without allocating, against a real forward pass of the whole model."""
    config = HopeConfig(hidden_size=32, num_hidden_layers=2, mixers=[mixer], chunk=16, periods=[16, 32])
    net, held = HopeForCausalLM(config), {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if not any(x.untyped_storage().data_ptr() == p.untyped_storage().data_ptr() for p in net.parameters()):
            held[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits = net(torch.zeros(1, 128, dtype=torch.long), use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0], torch.zeros(128, dtype=torch.long))
    real = sum(x.untyped_storage().nbytes() for x in held.values())
    counted = activation_bytes(config, 128)
    assert 0.8 * real < counted < 1.5 * real
    assert activation_bytes(config, 128, recompute=True) < counted
