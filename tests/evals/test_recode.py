"""The changing code, followed by hand."""

import pytest
import torch

from circadia.evals import recode
from circadia.evals.recode import FIRST, KEYS, SHIFTS, SYMBOLS, VALUES
from circadia.evals.sequences import NOTHING
from circadia.evals.suite import Options, Record


@pytest.mark.parametrize("task", recode.TASKS)
def test_answers_follow_from_what_came_before(task) -> None:
    """A reader that knows the rules, and nothing of the table, is right at every question."""
    part, changed = recode.draw(task, 60, 30, torch.Generator().manual_seed(1))
    assert part.tokens.max() < SYMBOLS
    questions = late = 0
    for tokens, asked, old in zip(part.tokens.tolist(), part.asked.tolist(), changed.tolist()):
        known: dict[object, int] = {}
        since: dict[object, int] = {}
        context, turn, changes, t = -1, 0, 0, 0
        while t < len(tokens) - 2:
            x = tokens[t]
            if x == SYMBOLS - 1:
                a, b = tokens[t + 1 : t + 3]
                for d in (known, since):
                    d[a], d[b] = d.get(b), d.get(a)
                changes, t = changes + 1, t + 3
                continue
            if x >= FIRST:
                step = SHIFTS[x - FIRST]
                if task == "shift-keys":  # what was written with k is now written with k + step
                    known = {(k + step) % KEYS: v for k, v in known.items()}
                    since = {(k + step) % KEYS: v for k, v in since.items()}
                elif task == "shift-values":
                    turn = (turn + step) % VALUES
                else:
                    context = x - FIRST
                changes, t = changes + 1, t + 1
                continue
            # The keys of the first context are there before it is named.
            slot = (max(context, 0), x) if task == "context" else x
            value = tokens[t + 1] - KEYS
            if known.get(slot) is None:
                assert asked[t] == NOTHING
            else:
                assert asked[t] - KEYS == value == (known[slot] + turn) % VALUES
                assert old[t] == (since[slot] < changes)
                questions, late = questions + 1, late + old[t]
            known[slot], since[slot] = (value - turn) % VALUES, changes
            t += 2
    assert questions > 100 and (late > 50 or task == "plain") and (late == 0 or task != "plain")


def test_parts_do_not_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [{tuple(r) for r in p.tokens.tolist()} for p in recode.data("swap", 12, (50, 200), generator)]
    assert [len(p) for p in parts] == [50, 200] and not parts[0] & parts[1]


def test_kinds_share_out_the_questions() -> None:
    part, changed = recode.draw("swap", 40, 10, torch.Generator().manual_seed(1))
    found = recode.kinds(part, changed)
    count = {name: int((one.asked != NOTHING).sum()) for name, one in found.items()}
    assert sum(count.values()) == int((part.asked != NOTHING).sum()) and min(count.values()) > 0


def test_a_run_and_its_tables(tmp_path) -> None:
    records = []
    for model in ("hope", "hope-static"):
        run = {"model": model, "task": "shift-keys", "steps": 2, "batch": 8, "train": 40, "strings": 10, "length": 24,
               "layers": 1, "seed": 0, "rate": 0.01, "stage": "test"}  # fmt: skip
        records.append(Record(run, recode.run(run, Options()), 1.0))
    shares = [one.scores["test"]["changed x2"]["micro"] for one in records]
    table, difference = recode.table(records)
    assert table.rows[0][-2] == f"{100 * shares[0]:.1f}"
    assert difference.rows[0][-2] == f"{100 * (shares[0] - shares[1]):.1f}"
    recode.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
