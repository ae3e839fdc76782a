"""Scores by hand."""

import pytest

from circadia.evals.metrics import bits, macro, majority, mean, percent, spread


def test_means_and_spreads() -> None:
    assert mean([1.0, 0.0]) == 0.5 and spread([1.0]) is None
    assert spread([1.0, 0.0]) == pytest.approx(0.5**0.5)
    assert percent([0.5, 0.7]) == "60.0 ±14.1" and percent([0.123]) == "12.3" and percent([]) == "-"


def test_baselines_and_classes() -> None:
    assert majority("aab") == pytest.approx(2 / 3)
    assert macro({"a": 1}, {"a": 1, "b": 3}) == 0.5, "every class counts the same"
    assert bits(2.0, 4.0) == pytest.approx(0.7213, abs=1e-4)
