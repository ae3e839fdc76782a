"""Settings that no night can be slept with are refused when they are given, by name, value and fix."""

import json
import math

import pytest

from circadia.sleep import Settings, preset

WRONG = {
    "dreams": [64.5, "many", 3, True],
    "corrections": [1.5, 0],
    "inner": [True, -1],
    "latest": ["no", 0],
    "anchor": ["off"],
    "ask": [5, "In other words:", (-1,)],
    "pairs": [5, "both", ((0,),), ((0, 1.5),)],
    "replay": [5],
    "filter": [True],
    "replay.dreams": [2.5, -1],
    "replay.length": [1],
    "replay.windows": [-3, "3"],
    "replay.presentations": [math.nan, math.inf, "twenty"],
    "replay.rate": [0, -1.0, math.inf, "abc"],
    "replay.whole": ["no"],
    "filter.trial": [-1],
    "filter.trust": ["x", 2],
    "filter.gram": [2.5, 0],
    "seeding.steps": [1.5, 0],
    "seeding.temperature": [0],
    "seeding.warmth": [-1],
    "seeding.free": ["al"],
    "seeding.distance": ["foo"],
    "seeding.sources": ["nothing", ()],
    "dreaming.rank": [0],
    "dreaming.candidates": [12.5],
    "dreaming.length": [0],
    "dreaming.margin": ["x", math.nan],
    "dreaming.rounds": [0],
}


@pytest.mark.parametrize("path, value", [(path, value) for path, own in WRONG.items() for value in own])
def test_what_is_wrong_is_named(path, value):
    part, _, name = path.partition(".")
    change = {part: {name: value} if name else value}
    with pytest.raises(ValueError, match=name or part) as error:
        preset("full").but(**change)
    assert repr(value).strip("()") in str(error.value) or str(value) in str(error.value)
    if not isinstance(value, float) or math.isfinite(value):
        data = preset("full").to_dict()
        (data[part] if name else data)[name or part] = value
        with pytest.raises(ValueError, match=name or part):
            Settings.from_dict(json.loads(json.dumps(data)))


def test_what_is_right_goes_through_json():
    made = preset("full").but(
        pairs=((0, 1), (1, 2)), ask=(5, 6), latest=False, replay={"windows": 3, "presentations": 20},
        seeding={"z_0": 4, "sources": ("study",)}, dreaming={"margin": -0.5},
    )  # fmt: skip
    assert Settings.from_dict(json.loads(json.dumps(made.to_dict()))) == made
