"""Prompts of RULER's form, read back; greedy answers scored by hand."""

import random
from types import SimpleNamespace

import pytest
import torch

from circadia.evals import needles, niah
from circadia.evals.needles import TASKS
from circadia.evals.suite import Options, Record


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "books"
    folder.mkdir(parents=True)
    for i in range(5):
        words = random.Random(i).choices([f"{'abcde'[i]}{c}" for c in "fghijklmn"], k=3000)
        (folder / f"{i}.txt").write_text(" ".join(words))
    needles.books.cache_clear()
    return tmp_path / "data"


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_stands_in_the_text(name, data) -> None:
    task = TASKS[name]
    hay = needles.books(data / "books", 100)
    names = {i: word for word, i in hay.number.items()}
    for seed in range(20):
        prompt = hay.draw(task, 150, 2, random.Random(seed), test=True)
        assert len(prompt.tokens) + len(prompt.answer) == 150
        assert len(prompt.values) == max(task.values, task.queries)
        words = [names[x] for x in prompt.tokens]
        question = len(words) - 1 - words[::-1].index("What")
        asked = [w for w in words[question:] if "-" in w][: task.queries]
        table: dict[str, list[tuple[int, ...]]] = {}
        for t in range(question):
            if words[t : t + 5] == ["One", "of", "the", "special", "magic"] and words[t + 6] == "for":
                end = words.index(".", t)
                table.setdefault(words[t + 7], []).append(tuple(prompt.tokens[t + 10 : end]))
        assert len(table) == task.keys and len(set(asked)) == task.queries
        assert [value for key in asked for value in table[key]] == prompt.values
        assert len(prompt.values[0]) == (9 if task.uuids else 2)
        assert needles.UNKNOWN not in words[question:], "the question is in the vocabulary"


def test_books_of_training_are_not_in_tests(data) -> None:
    hay = needles.books(data / "books", 100)
    names = {i: word for word, i in hay.number.items()}
    assert {names[x][0] for x in hay.train} == set("abcd")
    assert {names[x] for x in hay.test} == {needles.UNKNOWN}, "words of the test book are unknown"
    one, two = (hay.draw(TASKS["S-NIAH-2"], 60, 2, random.Random(s), test=True) for s in (1, 1))
    assert one == two != hay.draw(TASKS["S-NIAH-2"], 60, 2, random.Random(2), test=True)


def test_shares_of_values_in_an_output() -> None:
    assert needles.found([5, 1, 2, 9], [(1, 2), (2, 1)]) == 0.5
    assert needles.found([1, 2], [(1, 2)]) == 1.0 and needles.found([1], [(1, 2)]) == 0.0


def test_too_short_and_too_long_are_refused(data) -> None:
    hay = needles.books(data / "books", 100)
    least = niah.shortest(hay, TASKS["MK-NIAH-1"], 2)
    hay.draw(TASKS["MK-NIAH-1"], least, 2, random.Random(0), test=False)
    with pytest.raises(ValueError, match=f"take {least} or more"):
        hay.draw(TASKS["MK-NIAH-1"], least - 1, 2, random.Random(0), test=False)
    with pytest.raises(ValueError, match="3,000 words"):
        hay.draw(TASKS["S-NIAH-2"], 5000, 2, random.Random(0), test=True)
    (data / "books" / "0.txt").rename(data / "books" / "0")
    for i in range(1, 4):
        (data / "books" / f"{i}.txt").unlink()
    needles.books.cache_clear()
    with pytest.raises(ValueError, match="two books"):
        needles.books(data / "books", 100)
    with pytest.raises(ValueError, match="--data"):
        niah.runs(Options(data=data / "books"), [])


def test_decoding_is_greedy_and_goes_on_from_its_own_tokens() -> None:
    """A net that says the last token plus one: from 3 it says 4, 5, 6."""

    def net(now, past_key_values, use_cache, logits_to_keep):
        return SimpleNamespace(
            logits=torch.nn.functional.one_hot(now[:, -1:] + 1, 20).float(), past_key_values=past_key_values
        )

    prompts = [needles.Prompt([9, 3], [(4, 5, 6)]), needles.Prompt([9, 9], [(4, 5, 6)])]
    assert niah.score(net, prompts, "cpu", 1) == niah.score(net, prompts, "cpu", 2) == 0.5
    assert niah.chance(TASKS["S-NIAH-1"], 2) == pytest.approx(0.01)
    assert niah.chance(TASKS["MV-NIAH"], 1) == pytest.approx(1 - 0.9**4), "any of four places"


def test_a_run_and_its_table(data, tmp_path) -> None:
    run = {"model": "linear", "steps": 2, "batch": 2, "length": 96, "digits": 1, "strings": 2, "words": 20,
           "width": 16, "layers": 1, "seed": 0, "rate": 0.01, "stage": "test"}  # fmt: skip
    scores = niah.run(run, Options(data=data))
    assert set(scores["test"]) == set(TASKS) and set(scores["test"]["MV-NIAH"]) == {"1", "2", "4", "8"}
    scores["test"]["MV-NIAH"]["8"] = 0.123
    (table,) = niah.table([Record(run, scores, 1.0)])
    row = next(r for r in table.rows if r[1] == "MV-NIAH")
    assert row[table.columns.index("8x, %")] == "12.3"
    niah.plot([Record(run, scores, 1.0)], tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
