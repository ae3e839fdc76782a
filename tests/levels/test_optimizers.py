"""Optimizers as levels: order, sizes against the real state, groups, and what is frozen."""

import math

import pytest
import torch
from torch import nn

import circadia


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))


def step(model, *optimizers):
    model(torch.randn(3, 4)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def names(view):
    return [level.name for level in view.levels]


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "muon": lambda p: torch.optim.Muon(p),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
    "rmsprop-all": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_predicted_size_is_the_real_one(make):
    model = mlp()
    optimizer = make(model.parameters())
    predicted = circadia.levels(model, optimizer).levels
    step(model, optimizer)
    measured = circadia.levels(model, optimizer).levels
    real = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))
    assert predicted[0].state_bytes == measured[0].state_bytes == real > 0
    assert "predicted" not in measured[0].note
    # What the weights need at a step is the faster level (Def. 2), so the memory of gradients comes first.
    assert [level.parameters for level in measured] == [0, 48]
    assert measured[0].learns_from == measured[1].learns_from == "gradients"
    assert measured[1].rule.startswith(type(optimizer).__name__)


def test_sgd_without_momentum_is_one_level():
    model = mlp()
    assert names(circadia.levels(model, torch.optim.SGD(model.parameters(), lr=0.1))) == ["weights trained by SGD"]


def test_looking_leaves_the_optimizer_as_it_was():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    circadia.levels(model, optimizer)
    assert len(optimizer.state) == 0


def test_groups_with_different_rates_are_different_levels():
    model = mlp()
    groups = [
        {"params": model[0].parameters(), "lr": 1e-3},
        {"params": model[2].parameters(), "lr": torch.tensor(0.5)},
    ]
    view = circadia.levels(model, torch.optim.AdamW(groups))
    assert names(view) == ["AdamW moments", *2 * ["weights trained by AdamW"]]
    assert [(level.parameters, level.rule[:14]) for level in view.levels[1:]] == [
        (32, "AdamW (lr 0.00"),
        (16, "AdamW (lr 0.5,"),
    ]
    assert [level.members[0].pattern for level in view.levels[1:]] == ["0", "2"]
    assert view.levels[0].state_bytes == 2 * 48 * 4 + 2 * 4


def test_two_optimizers_in_a_list():
    model = mlp()
    pair = [torch.optim.Muon([model[0].weight]), torch.optim.AdamW([model[2].weight])]
    view = circadia.levels(model, pair, tokens_per_step=100)
    assert names(view) == [
        "Muon momentum",
        "weights trained by Muon",
        "AdamW moments",
        "weights trained by AdamW",
    ]
    assert [level.parameters for level in view.levels] == [0, 32, 0, 16]
    assert view.levels[0].state_bytes == 32 * 4
    assert "14 gradients" in view.levels[0].note  # 1 - 0.95^14 is the first above one half
    assert "7 and 693 gradients" in view.levels[2].note


def test_frozen_outside_and_zero_rate():
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4)))
    model[0].requires_grad_(False)
    groups = [{"params": model[1].parameters()}, {"params": model[2].parameters(), "lr": 0.0}]
    levels = {level.name: level for level in circadia.levels(model, torch.optim.SGD(groups, lr=0.1)).levels}
    assert {name: (level.period, level.members[0].pattern) for name, level in levels.items()} == {
        "weights trained by SGD": (1, "1"),
        "frozen weights": (math.inf, "0"),
        "weights held at lr 0": (math.inf, "2"),
        "weights outside the optimizer": (math.inf, "3"),
    }
    assert sum(level.parameters for level in levels.values()) == 64


def test_unknown_optimizer_is_measured():
    class Lionish(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["m"] = torch.zeros_like(p, dtype=torch.int8)

    model = mlp()
    optimizer = Lionish(model.parameters())
    assert "not known" in circadia.levels(model, optimizer).levels[0].note
    optimizer.step()
    memory = circadia.levels(model, optimizer).levels[0]
    assert (memory.name, memory.state_bytes, memory.note) == ("Lionish state", 48, "")


def test_an_optimizer_describes_itself():
    class Slow(torch.optim.SGD):
        def levels_entry(self):
            return [{"name": "fast", "period": 1}, {"name": "slow", "period": 100, "state_bytes": 7}]

    model = mlp()
    view = circadia.levels(model, Slow(model.parameters(), lr=0.1), tokens_per_step=10)
    assert [(level.name, level.period, level.unit) for level in view.levels] == [
        ("fast", 1, "step"),
        ("weights trained by Slow", 1, "step"),
        ("slow", 100, "step"),
    ]
    assert view.levels[2].period_text(10) == "100 optimizer steps (1,000 tokens)"


def test_a_wrapped_optimizer_is_unwrapped():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = mlp()
    assert names(circadia.levels(model, Wrapper(torch.optim.Adam(model.parameters()))))[0] == "Adam moments"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: (model.state_dict(), None), "module must be a torch.nn.Module, got OrderedDict"),
        (
            lambda model: (model, "adamw"),
            "optimizer must be a torch.optim.Optimizer or a list of them, got str",
        ),
        (
            lambda model: (model, torch.optim.SGD([*mlp().parameters(), model[0].weight], lr=0.1)),
            "holds 2 of 3 parameters that are not in module; build it from",
        ),
        (
            lambda model: (model, [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]),
            "holds 2 parameters that another one in the list holds too; give every parameter",
        ),
        (lambda model: (nn.LazyLinear(3), None), "run the module once"),
    ],
    ids=["module", "optimizer", "strangers", "twice", "lazy"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError) as error:
        circadia.levels(*make(mlp()))
    assert message in str(error.value)


@pytest.mark.parametrize("wrong", [0, -1.5, float("inf"), float("nan")])
def test_tokens_per_step_must_be_positive(wrong):
    with pytest.raises(ValueError, match=f"tokens_per_step must be above 0 and finite, got {wrong}"):
        circadia.levels(mlp(), tokens_per_step=wrong)
