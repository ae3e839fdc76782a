"""The tasks of MAD, read back from what is drawn."""

from dataclasses import replace

import pytest
import torch

from circadia.evals import mad, mad_tasks
from circadia.evals.mad_tasks import BASE
from circadia.evals.sequences import NOTHING
from circadia.evals.suite import Options, Record


def drawn(task, n=20, test=True, **changes):
    setting = replace(BASE[task], **changes)
    part = mad_tasks.draw(setting, n, torch.Generator().manual_seed(3), test)
    assert part.tokens.shape == part.asked.shape == (n, setting.length)
    return zip(part.tokens.tolist(), part.asked.tolist())


@pytest.mark.parametrize(("task", "noise"), [("in-context-recall", 0.0), ("noisy", 0.6)])
def test_recall_asks_for_every_key_that_was_seen(task, noise) -> None:
    for tokens, asked in drawn(task, noise=noise):
        table: dict[int, int] = {}
        for t in range(0, len(tokens), 2):
            key, value = tokens[t : t + 2]
            if key >= 16:  # noise takes both places
                assert value >= 16 and asked[t] == NOTHING
                continue
            assert key < 8 <= value < 16 and asked[t + 1] == NOTHING
            assert asked[t] == table.get(key, NOTHING)
            assert table.setdefault(key, value) == value, "one value a key in a sequence"
        assert asked[-2] != NOTHING, "the last pair has been seen"
    first = [tokens[0] for tokens, _ in drawn("noisy", noise=0.6)]
    assert max(first) < 16


def test_fuzzy_motifs() -> None:
    for tokens, asked in drawn("fuzzy"):
        text = [t for t in tokens if t != 15]
        assert tokens[len(tokens) - len(text) :] == text, "padding stands on the left"
        answers = asked[len(asked) - len(text) :]
        table: dict[tuple, tuple] = {}
        t = 0
        while t < len(text):
            key = tuple(text[t : t + 3])
            assert len(set(key)) == 3 and max(key) < 7, "in tests keys have three tokens"
            end = t + 3
            while end < len(text) and text[end] >= 7:
                end += 1
            value = tuple(text[t + 3 : end])
            assert len(set(value)) == len(value) <= 3
            asks = answers[t + 2 : end - 1]
            assert asks == (list(value) if key in table else [NOTHING] * len(value))
            assert table.setdefault(key, value) == value
            t = end


def test_copying_compression_memorization() -> None:
    for tokens, asked in drawn("selective-copying"):
        data = [t for t in tokens if t < 14]
        assert len(data) == 16 and asked[-16:] == data and tokens[-17] == 15
        assert set(tokens[-16:]) == {14} and set(asked[:-16]) == {NOTHING}
    for tokens, asked in drawn("compression"):
        assert asked[:-1] == tokens[:-1] and tokens[-1] == 15 and asked[-1] == NOTHING
    table: dict[int, int] = {}
    for tokens, asked in drawn("memorization"):
        for key, mark, before, value in zip(tokens[::2], tokens[1::2], asked[::2], asked[1::2]):
            assert mark == 255 and before == NOTHING and 127 <= value < 255
            assert table.setdefault(key, value) == value, "the same table everywhere"


@pytest.mark.parametrize("task", BASE)
def test_training_and_test_do_not_overlap(task) -> None:
    setting = replace(BASE[task], train=200)
    test, valid, train = mad.data(setting, 50, torch.Generator().manual_seed(0))
    parts = [{tuple(row) for row in part.tokens.tolist()} for part in (test, valid, train)]
    assert [len(part) for part in parts] == [50, 128, len(train)] and len(train) >= 190
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_the_decoder_sees_only_the_last_state() -> None:
    decoder = mad.Decoder(8, 5, 4)
    last = torch.randn(2, 8)
    assert decoder(last).shape == (2, 4, 5)
    assert not torch.allclose(decoder(last)[:, 0], decoder(last)[:, 1]), "places differ"


@pytest.mark.parametrize("task", ["compression", "memorization"])
def test_a_run_and_its_table(task, tmp_path) -> None:
    run = {"model": "linear", "task": task, "setting": {"vocabulary": 16, "length": 8, "train": 300}, "steps": 80,
           "batch": 32, "width": 16, "strings": 20, "seed": 0, "rate": 0.01, "stage": "test"}  # fmt: skip
    scores = mad.run(run, Options())
    assert scores["test"]["test"]["micro"] > scores["majority"]["test"] + 0.05
    micro, macro = mad.table([Record(run, scores, 1.0)])
    column = micro.columns.index(task)
    assert micro.rows[0][column] == f"{100 * scores['test']['test']['micro']:.1f}"
    assert macro.rows[0][column] == f"{100 * scores['test']['test']['macro']:.1f}"
    assert [row[0] for row in micro.rows] == ["linear", "(majority)", "(chance)"]
    mad.plot([Record(run, scores, 1.0)], tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


def test_depths() -> None:
    full = [run["setting"] for run in mad.runs(Options(depth="full", models=("hope",)), [])]
    assert len(full) == 66, "the paper's settings"
    assert {"vocabulary": 8192} in full and {"noise": 0.8} in full
    quick = mad.runs(Options(depth="quick"), [])
    assert {run["task"] for run in quick} == set(BASE) and {run["stage"] for run in quick} == {"test"}
