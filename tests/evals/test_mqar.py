"""Multi-query recall, read back from what is drawn."""

import pytest
import torch

from circadia.evals import mqar
from circadia.evals.sequences import NOTHING
from circadia.evals.suite import Options, Record


@pytest.mark.parametrize("overwritten", [0, 3])
def test_every_question_has_the_last_value(overwritten) -> None:
    part = mqar.draw(32, 64, 6, overwritten, 50, torch.Generator().manual_seed(0))
    twice = 0
    for tokens, asked in zip(part.tokens.tolist(), part.asked.tolist()):
        table: dict[int, int] = {}
        opening = 2 * (6 + overwritten)
        for key, value in zip(tokens[:opening:2], tokens[1:opening:2]):
            assert 1 <= key < 16 <= value < 32
            twice += key in table
            table[key] = value
        assert len(table) == 6 and set(asked[:opening]) == {NOTHING}
        questions = {t: answer for t, answer in enumerate(asked) if answer != NOTHING}
        assert len(questions) == 6 and all(t % 2 == 0 for t in questions)
        assert {tokens[t]: answer for t, answer in questions.items()} == table
        assert all(x >= 16 for t, x in enumerate(tokens[opening:], opening) if t not in questions)
    assert twice == 50 * overwritten
    places = part.asked.ne(NOTHING).float().mean(0)
    assert places[2 * (6 + overwritten)] > places[-2] > 0, "short gaps are more frequent"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="length=16"):
        mqar.draw(32, 16, 6, 0, 1, torch.Generator())


def test_a_run_its_table_and_its_plot(tmp_path) -> None:
    run = {"model": "deltanet", "task": "overwritten", "width": 16, "pairs": 4, "steps": 2, "batch": 8, "train": 60,
           "strings": 10, "vocabulary": 32, "length": 32, "tests": [[32, 2], [48, 6]], "seed": 0, "rate": 0.01,
           "stage": "test"}  # fmt: skip
    scores = mqar.run(run, Options())
    assert scores["chance"] == 1 / 16 and scores == {
        **mqar.run(run, Options()),
        "train_seconds": scores["train_seconds"],
    }
    (table,) = mqar.table([Record(run, scores, 1.0)])
    assert table.columns[-2:] == ("32/2, %", "48/6, %")
    assert table.rows[0][-1] == f"{100 * scores['test']['48/6']['micro']:.1f}"
    assert table.rows[-1][-1] == "6.2" and "overwritten" in table.title
    mqar.plot([Record(run, scores, 1.0)], tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize("depth", ["quick", "default", "full"])
def test_all_sizes_can_be_drawn(depth) -> None:
    for run in mqar.runs(Options(depth=depth, models=("hope",)), []):
        for length, pairs in [*run["tests"], [run["length"], run["pairs"]]]:
            overwritten = pairs // 2 if run["task"] == "overwritten" else 0
            drawn = mqar.draw(run["vocabulary"], length, pairs, overwritten, 1, torch.Generator())
            assert drawn.tokens.shape == (1, length)
            assert int((drawn.asked != mqar.NOTHING).sum()) == pairs  # every key is asked for once
