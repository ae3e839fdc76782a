"""The measures of hand-made matrices, by hand."""

import pytest

from circadia.evals import continual
from circadia.evals.arms import Arm, Example
from circadia.evals.continual import Measure, flipped, in_turn, measures

R = [[0.8, 0.1, 0.2], [0.9, 0.6, 0.4], [0.5, 0.3, 0.7]]


def values(found):
    return {name: one.value for name, one in found.items()}


def test_measures_of_a_matrix():
    found = values(measures(R, [0.2, 0.2, 0.1], [[0.0, 1.0, 1.0], [0.2, 0.4, 0.6]]))
    assert found == pytest.approx(
        {
            "ACC": (0.5 + 0.3 + 0.7) / 3,
            "AIA": (0.8 + (0.9 + 0.6) / 2 + 0.5) / 3,
            "BWT": ((0.5 - 0.8) + (0.3 - 0.6)) / 2,
            "forgetting": ((0.9 - 0.5) + (0.6 - 0.3)) / 2,  # the best of the past, which was not right after learning
            "FWT": ((0.1 - 0.2) + (0.4 - 0.1)) / 2,
            "speed": ((0.25 + 0.5) + (0.3 + 0.5) / 2) / 2,
        }
    )


def test_of_nats_the_sign_is_turned():
    nats = [[1.0, 3.0], [2.0, 1.5]]
    found = values(measures(flipped(nats), flipped([3.0, 3.0])))
    assert (found["ACC"], found["BWT"], found["forgetting"], found["FWT"]) == (-1.75, -1.0, 1.0, 0.0)
    # A task that later ones made better: what is forgotten is negative, since the last row is no past.
    assert measures([[0.5, 0.0], [0.9, 0.6]])["forgetting"].value == pytest.approx(-0.4)
    assert flipped([[None, 2.0]]) == [[None, -2.0]]


def test_what_is_not_defined_says_why():
    above = [[0.8, None, None], [0.9, 0.6, None], [0.5, 0.3, 0.7]]  # tasks ahead are not scored
    found = measures(above, [None] * 3)
    assert found["forgetting"].value == pytest.approx(0.35) and found["FWT"] == Measure(None, "a score was not taken")
    assert found["speed"].value is None
    joint = measures([[0.5, 0.7]], [0.1, 0.1])
    assert joint["ACC"].value == 0.6 and "one after another" in joint["BWT"].why == joint["FWT"].why
    assert measures([[0.5]], [0.1])["BWT"].why == "there is one task alone"
    for wrong in ([[1.0], [1.0, 2.0]], []):
        with pytest.raises(ValueError, match="matrix"):
            measures(wrong)
    with pytest.raises(ValueError, match="start has 1"):
        measures([[0.5, 0.7]], [0.1])


class Diary(Arm):
    """Writes down what is done with it."""

    def __init__(self, at_once=False):
        self.lines, self.at_once = [], at_once

    def learn(self, examples):
        self.lines.append("".join(one.after for one in examples))

    def finish(self):
        self.lines.append("|")


TASKS = [[Example("", x) for x in "abcd"], [Example("", x) for x in "xyz"]]


def test_tasks_in_turn_are_scored_before_within_and_after():
    arm, asked = Diary(), []

    def score(i, j):
        asked.append((i, j))
        return {"n": float(len("".join(arm.lines).replace("|", ""))), "m": 0.0}

    found = in_turn(arm, TASKS, score, parts=2)
    assert arm.lines == ["ab", "cd", "|", "x", "yz", "|"]
    assert found["n"] == {"start": [0, 0], "matrix": [[4, 4], [7, 7]], "curves": [[0, 2, 4], [4, 5, 7]]}
    assert asked == [(-1, 0), (-1, 1), (0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (1, 1)] and set(found) == {"n", "m"}


def test_an_arm_that_learns_all_at_once_has_one_row():
    arm = Diary(at_once=True)
    found = in_turn(arm, TASKS, lambda i, j: {"n": float(10 * i + j)})
    assert arm.lines == ["abcdxyz"] and found["n"] == {"start": [-10, -9], "matrix": [[10, 11]], "curves": []}


def test_a_matrix_is_shown_with_its_gaps():
    assert continual.shown([[0.123, None]], 1, 100.0) == [("12.3", "-")]
