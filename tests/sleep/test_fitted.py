"""A night cut to a price costs at most that, and not much less."""

import pytest
import torch

from circadia.sleep import Entry, Filter, Replay, Settings, Window, fitted, preset, sleep
from tests.models.retrofit.conftest import text

SMALL = {"length": 8, "rows": 4, "presentations": 6, "answer": 3, "every": 5, "dreams": 2, "enough": 2.0, "probes": 8}


@pytest.mark.parametrize(
    "days, changes, how",
    [
        (2.0, {}, None), (6.0, {}, None), (6.0, {"dreams": 0}, None), (9.0, {"distance": "ce"}, None),
        (6.0, {"earlier": 0}, None), (4.0, {}, Filter(wrong=1.0)),
    ],
)  # fmt: skip
def test_a_night_costs_what_it_was_fitted_to(tiny, days, changes, how):
    model = tiny(periods=(8,), config={"num_hidden_layers": 1})
    day = [Entry(text(64, seed=i), number=i) for i in range(8)]
    given = preset().but(dreams=64, dream_length=8, replay={**SMALL, **changes}, filter=how)
    settings = fitted(given, 512, days)
    assert settings.replay.presentations == 6 and 0 < settings.replay.windows < 56 and 8 <= settings.dreams <= 64
    before = [[Window(text(9, seed=50 + i), "", 1.0, 50 + i, 0, 1.0) for i in range(8)]]
    _, report = sleep(model, model.start(), day, settings, earlier=before)
    spent = report.cost["read"] + report.cost["made"] + 3 * report.cost["learned"]
    assert 0.75 * days * 3 * 512 < spent <= days * 3 * 512
    assert report.windows == settings.replay.windows
    _, whole = sleep(model, model.start(), day, given, earlier=before)
    assert whole.cost["learned"] > report.cost["learned"]


def test_a_price_that_pays_for_nothing_leaves_no_window(tiny):
    model = tiny(periods=(8,), config={"num_hidden_layers": 1})
    settings = fitted(preset().but(dream_length=8, replay=SMALL), 64, 0.4)
    assert settings.replay.windows == 0 and settings.dreams == 8
    state = model.start()
    new, report = sleep(model, state, [Entry(text(64))], settings)
    assert report.windows == 0 and report.cost["learned"] == 0 and all(torch.equal(new[n], x) for n, x in state.items())


def test_variations_are_paid_for_and_a_limit_stays():
    given = preset().but(dream_length=8, replay=SMALL)
    few = fitted(given.but(replay={"variations": 2}), 512, 6)
    assert 0 < few.replay.windows < fitted(given, 512, 6).replay.windows
    assert fitted(given.but(replay={"windows": 2}), 512, 6).replay.windows == 2


@pytest.mark.parametrize(
    "settings, tokens, days, said",
    [
        (preset("full"), 9, 1, "seeding="),
        (preset("inner-steps"), 9, 1, "inner=12"),
        (preset("no-sleep"), 9, 1, "replay=None"),
        (preset().but(filter={"trial": 5}), 9, 1, "filter.trial=5"),
        (Settings(replay=Replay(whole=True)), 9, 1, "replay="),
        (preset(), 9, 0, "days=0"),
        (preset(), 0, 1, "tokens=0"),
    ],
)
def test_errors(settings, tokens, days, said):
    with pytest.raises(ValueError, match=said):
        fitted(settings, tokens, days)
