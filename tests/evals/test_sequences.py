"""What the synthetic suites share: parts that do not overlap, scores, training on what is asked."""

import pytest
import torch

from circadia.evals import fit, networks, sequences
from circadia.evals.sequences import NOTHING, Sequences
from circadia.evals.suite import Options
from circadia.models.presets import count


def words(part):
    return [tuple(row) for row in part.tokens.tolist()]


def bits(n, generator):
    tokens = torch.randint(2, (n, 4), generator=generator)
    return Sequences(tokens, tokens, tokens)


def test_no_sequence_is_in_two_parts() -> None:
    one, two = sequences.apart(bits, (10, 6), torch.Generator().manual_seed(0))
    assert len(one) == 10 and len(two) == 6
    assert len(set(words(one) + words(two))) == 16, "all of the 16 there are, once"
    with pytest.raises(ValueError, match="different sequences"):
        sequences.apart(bits, (17,), torch.Generator().manual_seed(0))


def test_accuracy_over_answers_and_over_classes() -> None:
    wanted, said = torch.tensor([1, 1, 1, 2]), torch.tensor([1, 1, 0, 0])
    assert sequences.accuracy(wanted, said) == {"micro": 0.5, "macro": pytest.approx((2 / 3 + 0) / 2)}


def test_only_what_is_asked_is_scored() -> None:
    """A net that says the number of its token is right exactly where that is asked."""

    class Echo:
        def model(self, tokens, use_cache):
            hidden = torch.nn.functional.one_hot(tokens, 8).float()
            return type("Out", (), {"last_hidden_state": hidden})

        def lm_head(self, x):
            return x

    tokens = torch.tensor([[3, 4, 5], [6, 7, 1]])
    asked = torch.tensor([[3, NOTHING, 0], [NOTHING, 7, 1]])
    part = Sequences(tokens, asked, asked)
    said = sequences.answers(Echo(), part, "cpu", 1)
    assert said.tolist() == [3, 5, 7, 1]
    assert sequences.accuracy(sequences.wanted(part), said)["micro"] == 0.75
    assert sequences.following(tokens).tolist() == [[4, 5, NOTHING], [7, 1, NOTHING]]


def test_a_model_learns_what_it_is_asked() -> None:
    def echo(n, generator):
        tokens = torch.randint(8, (n, 6), generator=generator)
        return Sequences(tokens, tokens, tokens)

    generator = fit.start(0, "cpu")
    train, test = sequences.apart(echo, (400, 20), generator)
    run = {"model": "linear", "steps": 60, "batch": 32, "rate": 0.01}
    shape = networks.Shape(8, width=16, layers=1, heads=2)
    scores = sequences.experiment(run, Options(), shape, train, test, {"x": test}, generator)
    assert scores["test"]["x"]["micro"] > 0.9 > scores["majority"]["x"] and not scores["diverged"]
    assert scores["parameters"] == sum(p.numel() for p in networks.build("linear", shape).parameters())


def test_models_have_equal_parameters() -> None:
    shape = networks.Shape(16, width=32, layers=2, heads=2)
    sizes = {name: count(networks.config(name, shape)) for name in networks.NAMES}
    base = sizes.pop("transformer++")
    step = 3 * 32 * 2 * 8  # of the width of the MLPs of two levels
    assert {name: n for name, n in sizes.items() if abs(n - base) > step and name != "titans-mac"} == {}
    with pytest.raises(ValueError, match="gpt"):
        networks.build("gpt", shape)


def test_variants_are_what_they_say() -> None:
    shape = networks.Shape(16, width=16, layers=1, heads=2)
    static = networks.build("hope-static", shape).model.layers[0].mixer
    assert static.rule.static == ("k", "v", "eta", "alpha")
    assert networks.build("hope", shape).model.layers[0].mixer.rule.static == ()
    assert networks.build("deltanet-positive", shape).model.layers[0].mixer.writing.top_rate == 1.0
    assert networks.build("self-modifying", shape).config.periods == [0]


def test_training_stops_when_it_has_diverged() -> None:
    net = torch.nn.Linear(1, 1)
    before = net.weight.clone()
    found = fit.fit(net, lambda step: net(torch.ones(1, 1)).sum() * float("nan"), fit.Recipe(100, 0.1))
    assert found["diverged"] and found["steps"] == found["skipped"] == fit.LOST and found["loss"] is None
    assert torch.equal(net.weight, before)
    recipe = fit.Recipe(100, 1.0, warm=10)
    assert recipe.at(5) < recipe.at(10) and recipe.at(100) == pytest.approx(0.05)
