"""Modules that describe themselves with `levels_entry()`, and the view as a value: text, JSON, picture."""

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch
from torch import nn

import circadia
from circadia.levels import Level, LevelsView, Member
from circadia.levels.level import bytes_text, count_text, summarise
from circadia.levels.picture import draw, tick_times
from circadia.memory import RULES, state_bytes


class Titans(nn.Module):
    """A memory that starts from a meta-learned parameter, and slow weights written every 512 tokens."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(4, 4))
        self.slow = nn.Linear(4, 4, bias=False)
        self.to_k = nn.Linear(4, 4, bias=False)

    def levels_entry(self):
        return [
            {
                "name": "titans memory",
                "period": 16,
                "learns_from": "tokens",
                "objective": "‖M(k) - v‖²",
                "rule": "gradient descent with momentum",
                "state_bytes": 64,
                "starts_from": ["start"],
            },
            {"name": "CMS level", "period": 512, "learns_from": "next-token loss", "owns": ["slow.weight"]},
        ]


def model():
    return nn.ModuleDict({"blocks": nn.ModuleList(nn.Sequential(Titans(), nn.Linear(4, 4)) for _ in range(2))})


def test_entries_become_levels_and_parameters_count_once():
    net = model()
    view = circadia.levels(net, torch.optim.SGD(net.parameters(), lr=0.1), tokens_per_step=256)
    rows = [(level.name, level.period, level.unit, level.parameters, level.state_bytes) for level in view.levels]
    assert rows == [
        ("titans memory", 16, "token", 0, 2 * 64),
        ("initial states trained by SGD", 1, "step", 2 * 16, 0),
        ("weights trained by SGD", 1, "step", 2 * (16 + 16 + 4), 0),
        ("CMS level", 512, "token", 2 * 16, 0),  # slower than a step of 256 tokens
    ]
    assert view.parameters == sum(p.numel() for p in net.parameters()) == sum(row[3] for row in rows)
    members = [[member.pattern for member in level.members] for level in view.levels]
    assert members == [
        ["blocks.{0..1}.0"],
        ["blocks.{0..1}.0.start"],
        ["blocks.{0..1}.0.to_k", "blocks.{0..1}.1"],
        ["blocks.{0..1}.0.slow"],
    ]
    assert "eq. 28" in view.levels[1].leaves


def test_steps_of_unknown_length_are_slower_than_tokens():
    net = model()
    view = circadia.levels(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert [level.name for level in view.levels][:2] == ["titans memory", "CMS level"]


def test_children_of_a_module_that_describes_itself_are_seen():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.GRU(2, 2)

        def levels_entry(self):
            return {"name": "outer", "period": math.inf}

    assert circadia.levels(Outer()).levels[0].name == "GRU state"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x"}, "lacks ['period']"),
        ({"name": "x", "period": -1}, "period must be a number >= 0 (math.inf for never), got -1"),
        ({"name": "x", "period": math.nan}, "period must be a number"),
        ({"name": "x", "period": 1, "speed": 2}, "unknown keys ['speed']"),
        ({"name": "x", "period": 1, "unit": "hour"}, "unit must be 'token' or 'step', got 'hour'"),
        ({"name": "x", "period": 1, "owns": ["w"]}, "owns names ['w'], which are not parameters"),
        (
            {"name": "x", "period": 1, "state_bytes": "4"},
            "state_bytes must be a whole number of bytes, got '4'",
        ),
        ({"name": "x", "period": 1, "rule": ["a"]}, "rule must be text, got ['a']"),
        (["name"], "must return a mapping or several, got str"),
    ],
)
def test_bad_entries_are_named(entry, message):
    class Toy(nn.Module):
        def levels_entry(self):
            return entry

    with pytest.raises(ValueError) as error:
        circadia.levels(Toy())
    assert str(error.value).startswith("Toy.levels_entry()") and message in str(error.value)


def test_json_is_strict_and_complete():
    data = json.loads(circadia.levels(model()).to_json(), parse_constant=pytest.fail)
    assert data["parameters"] == 136 and data["tokens_per_step"] is None
    assert [level["period"] for level in data["levels"]] == [16, 512, None, None]
    assert data["levels"][0]["members"] == [{"pattern": "blocks.{0..1}.0", "count": 2}]


def test_text_has_a_row_for_every_level():
    lines = str(circadia.levels(model(), tokens_per_step=8)).splitlines()
    assert lines[0] == "ModuleDict: 136 parameters on 4 levels, fastest first"
    assert lines[4].split("  ")[0] == "titans memory" and "128 B per sequence" in lines[4]
    assert len(lines) == 8


def test_patterns():
    names = ["h.0.a", "h.1.a", "h.2.a", "h.5.a", "top", "e.0.x.0", "e.0.x.1", "e.1.x.0"]
    assert summarise(names) == (
        Member("h.{0..2,5}.a", 4),
        Member("top", 1),
        Member("e.0.x.{0..1}", 2),
        Member("e.1.x.0", 1),
    )
    counts = {999: "999", 1_000: "1 k", 999_499: "999 k", 999_600: "999 k", 1_234_567: "1.23 M", 10**12: "1 T"}
    assert {count: count_text(count) for count in counts} == counts
    assert (bytes_text(1023), bytes_text(1536)) == ("1,023 B", "1.5 KiB")


def test_frequency_and_period_in_words():
    texts = {period: Level(name="x", period=period).period_text() for period in (0, 1, 4096, math.inf)}
    assert texts == {0: "0 (solved at every token)", 1: "1 token", 4096: "4,096 tokens", math.inf: "never"}
    assert [Level(name="x", period=p).frequency for p in (0, 4, math.inf)] == [math.inf, 0.25, 0]
    assert Level(name="x", period=1, unit="step").period_text(512) == "1 optimizer step (512 tokens)"


def test_ticks_stand_at_the_period():
    times = tick_times(16, 4)
    assert times == [16 * i for i in range(1, len(times) + 1)] and len(times) > 5
    assert tick_times(10**4, 4) == [10**4]
    assert tick_times(10**5, 4) == []


def test_picture_is_valid_escaped_and_ticks_where_it_should():
    rows = (
        Level(name="attention", period=0, learns_from="tokens"),
        Level(name='<fast> & "small"', period=16, learns_from="tokens"),
        Level(name="moments", period=1, unit="step", learns_from="gradients"),
        Level(name="weights", period=1, unit="step", learns_from="gradients", parameters=1),
        Level(name="frozen", period=math.inf, learns_from="nothing", parameters=1),
    )
    root = ElementTree.fromstring(draw(LevelsView("A<B>", rows, 2, tokens_per_step=1000)))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert '<fast> & "small"' in texts and "A<B>: when each level is written" in texts
    by_class = [element.get("class") for element in root.iter()]
    decades = 5  # one and a bit behind the slowest period of 1,000 tokens
    assert by_class.count("tick") == len(tick_times(16, decades)) + 2 * len(tick_times(1000, decades))
    assert by_class.count("never") == 1
    assert by_class.count("arrow") == 1  # from the moments to the weights
    assert by_class.count("band") == 4
    first = next(element for element in root.iter(f"{space}line") if element.get("class") == "tick")
    labels = {element.text: float(element.get("x")) for element in root.iter(f"{space}text")}
    assert labels["10"] < float(first.get("x1")) < labels["100"]


def test_picture_says_when_the_step_is_only_a_sketch():
    net = nn.Linear(2, 2)
    assert "only a sketch" in circadia.levels(net, torch.optim.Adam(net.parameters())).svg()
    assert "only a sketch" not in circadia.levels(net).svg()


@pytest.mark.parametrize("name", RULES)
def test_every_memory_rule_describes_its_levels(name: str) -> None:
    """A module that runs a rule of ours shows that rule's periods, and the bytes of its state."""
    rule = RULES[name]

    class Layer(nn.Module):
        def levels_entry(self):
            return rule.levels_entry(rule.init(1, 2, 8), chunk=16)

    (level,) = circadia.levels(Layer()).levels
    assert (level.name, level.period) == (name, 16 if rule.anchored else 1)
    assert level.state_bytes == state_bytes(rule.init(3, 2, 8, dtype=torch.float32)) - (128 if name == "ttt" else 0)


def test_two_chunk_sizes_are_two_levels() -> None:
    rule = replace(RULES["self_modifying"], projection_chunk=64)
    entries = rule.levels_entry(rule.init(1, 1, 8), chunk=16)
    assert {entry["name"]: entry["period"] for entry in entries} == {
        "self_modifying, k and v and eta and alpha": 64,
        "self_modifying, memory": 16,
    }
