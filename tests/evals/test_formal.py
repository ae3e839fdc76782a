"""Formal languages: labels by hand, no string in two places, scores of strings that are partly wrong."""

import itertools
import random

import pytest
import torch

from circadia.evals import formal, languages
from circadia.evals.languages import LANGUAGES
from circadia.evals.suite import Options, Record


def sets(*members):
    return [frozenset(one) for one in members]


@pytest.mark.parametrize(
    ("name", "word", "answers"),
    [
        ("parity", (1, 0, 1, 1), [1, 1, 0, 1]),
        ("(aa)*", (0, 0, 0), [0, 1, 0]),
        ("(abab)*", (0, 1, 0, 1, 0), [0, 0, 0, 1, 0]),
        ("a^n b^n", (0, 0, 1, 1), sets((0, 1), (0, 1), (1,), (2,))),
        ("a^n b^n c^n", (0, 0, 1, 1, 2, 2), sets((0, 1), (0, 1), (1,), (2,), (2,), (3,))),
        # ( [ ) ]: either may open at any time.
        ("shuffle-2", (0, 2, 1, 3), sets((0, 1, 2), (0, 1, 2, 3), (0, 2, 3), (0, 2, 4))),
        ("even pairs", (0, 1, 1, 0), [-100, -100, -100, 1]),
        ("parity check", (1, 1, 1), [-100, -100, 1]),
        ("cycle navigation", (1, 1, 2, 2, 2, 0), [-100] * 5 + [4]),
        ("modular arithmetic", (2, 5, 3, 7, 4, 6, 1), [-100] * 6 + [(2 + 3 * 4 - 1) % 5]),
        ("modular arithmetic", (3,), [3]),
    ],
)
def test_labels(name, word, answers) -> None:
    assert LANGUAGES[name].label(word) == answers


@pytest.mark.parametrize(("name", "points"), [("S3", 3), ("A5", 5)])
def test_word_problems_multiply_permutations(name, points) -> None:
    elements = list(itertools.permutations(range(points)))
    if name == "A5":
        elements = [p for p in elements if sum(a > b for a, b in itertools.combinations(p, 2)) % 2 == 0]
    assert LANGUAGES[name].symbols == len(elements) == {"S3": 6, "A5": 60}[name]
    word = tuple(random.Random(0).choices(range(len(elements)), k=20))
    state = tuple(range(points))
    for x, answer in zip(word, LANGUAGES[name].label(word)):
        state = tuple(state[i] for i in elements[x])
        assert elements[answer] == state


@pytest.mark.parametrize("name", LANGUAGES)
def test_strings_are_seeded_and_in_one_place_only(name, monkeypatch) -> None:
    monkeypatch.setattr(formal, "TRAINING", 300)
    monkeypatch.setattr(formal, "VALID", 40)
    language = LANGUAGES[name]
    formal.data.cache_clear()
    train, valid, test = formal.data(name, 0, 40, 100)
    formal.data.cache_clear()
    again = formal.data(name, 0, 40, 100)[2]
    assert torch.equal(test["Bin0"].tokens, again["Bin0"].tokens), "the same seed gives the same strings"

    def words(part):
        return {tuple(row[: int(asked.nonzero().max()) + 1].tolist()) for row, asked in zip(part.tokens, part.asked)}

    bins = {"Bin0": words(test["Bin0"]), "Bin1": words(test["Bin1"])}
    short = formal.TRAINED_LAST if language.last else formal.TRAINED
    assert all(short[0] <= len(w) <= short[1] for w in words(train) | bins["Bin0"])
    assert all(short[1] < len(w) <= 100 for w in bins["Bin1"])
    if language.few:
        assert bins["Bin0"] == words(train)
    else:
        assert not words(train) & bins["Bin0"] and not words(valid["Bin1"]) & bins["Bin1"]
        assert not words(valid["Bin0"]) & (words(train) | bins["Bin0"]), "validation is neither"
        other = formal.data(name, 1, 40, 100)[2]
        assert words(other["Bin0"]) != bins["Bin0"]


def test_shuffle_2_is_two_words_of_brackets() -> None:
    for word in languages.strings(LANGUAGES["shuffle-2"], 50, 2, 50, 3):
        for kind in (0, 2):
            depths = list(itertools.accumulate({kind: 1, kind + 1: -1}.get(x, 0) for x in word))
            assert min(depths) >= 0 and depths[-1] == 0


def test_one_mistake_makes_a_string_wrong() -> None:
    part = languages.pool(LANGUAGES["parity"], [(1, 0, 1, 1), (1, 1)])
    given = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]])  # what stands after the end does not count
    assert formal.shares(part, given) == pytest.approx({"strings": 0.5, "answers": 5 / 6})
    part = languages.pool(LANGUAGES["a^n b^n"], [(0, 1)])
    given = part.answers.clone()
    assert formal.shares(part, given)["strings"] == 1.0
    given[0, 0, 2] = 1.0  # one symbol too many in a set
    assert formal.shares(part, given) == {"strings": 0.0, "answers": 0.5}


def test_what_knows_nothing_gets() -> None:
    train = languages.pool(LANGUAGES["(aa)*"], [(0,) * 3])
    part = languages.pool(LANGUAGES["(aa)*"], [(0,), (0, 0)])
    assert formal.constant(train, part) == pytest.approx({"strings": 0.5, "answers": 2 / 3})
    assert formal.chance(LANGUAGES["(aa)*"], part) == pytest.approx({"strings": (0.5 + 0.25) / 2, "answers": 0.5})


def test_a_model_learns_and_the_table_shows_it(tmp_path, monkeypatch) -> None:
    """deltanet, with eigenvalues down to -1, learns (aa)* in a hundred steps."""
    monkeypatch.setattr(formal, "VALID", 16)
    common = {"model": "deltanet", "task": "(aa)*", "batch": 32, "strings": 16, "longest": 100}
    run = {**common, "steps": 120, "seed": 0, "rate": 0.01, "stage": "test"}
    scores = formal.run(run, Options())
    assert scores["test"]["Bin0"]["answers"] > 0.8 > scores["majority"]["Bin0"]["answers"]
    short = {**run, "steps": 3}
    one, two = formal.run(short, Options()), formal.run(short, Options())
    assert one == {**two, "train_seconds": one["train_seconds"]}, "a run is its settings"
    record = Record(run, scores, 1.0)
    (table,) = formal.table([record])
    row = dict(zip(table.columns, table.rows[0]))
    assert row["Bin0, strings %"] == f"{100 * scores['test']['Bin0']['strings']:.1f}"
    assert [row[1] for row in table.rows] == ["deltanet", "(majority)", "(chance)"]
    formal.plot([record], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
