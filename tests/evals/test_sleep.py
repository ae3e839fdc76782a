"""Days, how they are asked about, and a short life with its tables."""

import pytest
import torch

from circadia.evals import sleep, sleep_days
from circadia.evals.bases import Base
from circadia.evals.suite import Options, Record
from circadia.models.retrofit import retrofit
from circadia.sleep import PRESETS
from tests.models.retrofit.conftest import base_of


def test_a_day_tells_each_fact_so_often(base):
    told = sleep_days.facts(6, seed=1)
    assert len({fact.name for fact in told}) == 6 and {fact.kind for fact in told} == {0, 1}
    chunks = sleep_days.day(base, told, 3, 2, "abcdefghij klmnop qrstuvwxyz. " * 900, 256, seed=0)
    assert len(chunks) == 3 * 6 * 3 and {len(chunk) for chunk in chunks} == {256}
    texts = [bytes(chunk.tolist()).decode() for chunk in chunks]
    for fact in told:
        sentences = [fact.say(wording) for wording in sleep_days.WORDINGS[fact.kind]]
        assert sum(any(said in text for said in sentences) for text in texts) == 3
        assert not any(fact.say(sleep_days.UNHEARD[fact.kind]) in text for text in texts)
    assert sum(any(fact.name in text for fact in told) for text in texts) == 18
    again = sleep_days.day(base, told, 3, 2, "abcdefghij klmnop qrstuvwxyz. " * 900, 256, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(chunks, again))


def test_the_rank_is_that_of_the_whole_answer(base):
    config = {"vocab_size": 256, "num_hidden_layers": 1, "initializer_range": 0.6}
    model = retrofit(base_of("llama", **config), [8])
    told = sleep_days.facts(3, seed=1)
    ranks = []
    for fact in told:
        costs = []
        for choice in sleep_days.CHOICES[fact.kind]:
            cue = f"{fact.name} {('was born in', 'worked as a')[fact.kind]}"
            ids = torch.tensor(list(f"{cue} {choice}.".encode()))
            with torch.no_grad():
                logits = model.base(ids[None]).logits[0].double()
            own = slice(len(cue) - 1, -1)
            costs.append(float(torch.nn.functional.cross_entropy(logits[own], ids[len(cue) :], reduction="sum")))
        ranks.append(1 + sum(cost < costs[fact.answer] for cost in costs))
    bytes_ = Base(model.base, base.tokenizer)
    found = sleep_days.asked(bytes_, model.base, told, sleep_days.ASKED["verbatim"])
    assert found == {"right": ranks.count(1) / 3, "rank": sum(ranks) / 3}


@pytest.fixture
def life(data, folder):
    sleep._texts.cache_clear()
    options = Options(depth="quick", data=data, bases=(folder,))

    def made(arm, **settings):
        sizes = {"mode": "arms", "days": 2, "facts": 2, "repeats": 1, "other": 1, "reading": 600, "memory": "full"}
        run = {"base": "small", "seed": 0, "arm": arm, **sizes, **settings}
        return Record(run, sleep.run(run, options), 0.0)

    yield made
    sleep._texts.cache_clear()


def test_a_life_of_two_days(life, monkeypatch, tmp_path):
    short = {name: settings.but(dreams=8, dream_length=12) for name, settings in PRESETS.items()}
    quick = {"presentations": 6.0, "probes": 4, "rows": 4, "earlier": 1, "dreams": 1}
    short["journal-replay"] = short["journal-replay"].but(replay=quick)
    monkeypatch.setattr(sleep, "preset", lambda name: short[name])
    night, mornings = sleep.sleep, []

    def slept(*given, **named):
        mornings.append((named["slept"], found := night(*given, **named)))
        return found

    monkeypatch.setattr(sleep, "sleep", slept)
    awake, replay, rehearsed = (life(arm) for arm in ("no-sleep", "journal-replay", "journal-replay, rehearsed"))
    for one in (awake, replay, rehearsed):
        scores = one.scores
        assert [len(x["verbatim"]) for x in scores["mornings"]] == [1, 2] and len(scores["after"]["unheard"]) == 2
        # 2 facts, once each, and a chunk without one beside each, on two days.
        assert scores["awake"] == 8 * 256 and len(scores["nights"]) == 2
    # A night without sleep changes nothing, and costs next to nothing.
    assert awake.scores["mornings"][0] == awake.scores["evenings"][0]
    assert awake.scores["before"]["own"] != awake.scores["evenings"][0]["own"]
    assert replay.scores["evenings"][0] == awake.scores["evenings"][0]
    assert replay.scores["mornings"][0] != replay.scores["evenings"][0] and replay.scores["nights"][0]["learned"] > 1000
    for first, second in zip(mornings[::2], mornings[1::2]):
        assert first[0] is None and second[0] is first[1][0], "the self of the last morning"
    # On the first day there is nothing to rehearse yet; on the second there is.
    assert rehearsed.scores["mornings"][0] == replay.scores["mornings"][0]
    assert rehearsed.scores["evenings"][1] != replay.scores["evenings"][1]
    cost = life("journal-replay", mode="cost", presentations=2.0, days=1)
    assert 0 < cost.scores["nights"][0]["learned"] < replay.scores["nights"][0]["learned"]
    budgets = [life("journal-replay", mode="cost", budget=1.2, how=h, days=1) for h in sleep.HOW]
    for one in budgets:
        assert one.scores["nights"][0]["learned"] > 0 and 0.6 < sleep._cost(one) < 1.6
    assert budgets[0].scores["nights"] != budgets[1].scores["nights"]
    small = life("no-sleep", memory="rank 4", days=1)
    assert small.scores["numbers"] < replay.scores["numbers"]
    arms, costs, matrix = sleep.table([awake, replay, rehearsed, cost, *budgets])
    assert [row[1] for row in arms.rows] == ["no-sleep", "journal-replay", "journal-replay, rehearsed"]
    assert [row[1].partition(", ")[2] for row in costs.rows] == [
        "2 presentations",
        "cut to 1.2 days",
        "fitted to 1.2 days",
    ]
    assert [float(row[-2]) for row in costs.rows[1:]] == [round(sleep._cost(one), 1) for one in budgets]
    assert len(matrix.rows) == 6
    assert matrix.rows[0][-1] == "-" and float(arms.rows[0][-2]) < float(arms.rows[1][-2])
    work = sum(3 * n["learned"] + n["read"] + n["made"] for n in replay.scores["nights"])
    assert arms.rows[1][-2] == f"{work / (3 * replay.scores['awake']):.1f}"
    wanted = replay.scores["mornings"][0]["own"] - replay.scores["before"]["own"]
    assert arms.rows[1][6] == f"{wanted:+.2f}"
    shown = {}
    monkeypatch.setattr(sleep.plots, "lines", lambda panels, *_, **__: shown.update(panels))
    sleep.plot([awake, replay, cost, *budgets], tmp_path / "x.png")
    curves = shown["a fact after a night of this cost, verbatim, %"]
    assert {how: list(curve) for how, curve in curves.items()} == {
        "fewer presentations": [sleep._cost(cost)],
        "cut": [sleep._cost(budgets[0])],
        "fitted": [sleep._cost(budgets[1])],
    }
    right = budgets[1].scores["mornings"][0]["verbatim"][0]["right"]
    assert curves["fitted"][sleep._cost(budgets[1])] == [100 * right] and "facts of the first day, %" in shown
    monkeypatch.undo()
    sleep.plot([awake, replay, *budgets], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5_000


def test_what_is_run(data, folder):
    options = Options(data=data, bases=(folder,))
    plan = sleep.runs(options, [])
    assert {run["arm"] for run in plan} == set(sleep.SHOWN) and set(sleep.SHOWN) <= set(sleep.ARMS)
    assert len(plan) == 5 * (len(sleep.SHOWN) + len(sleep.PRESENTATIONS) + 6 + 2)
    with pytest.raises(ValueError, match="--models nap: this suite offers no-sleep"):
        sleep.runs(Options(data=data, bases=(folder,), models=("nap",)), [])
