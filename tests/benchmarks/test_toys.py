"""The toys: what must hold of simple cases, and that the picture is drawn."""

import json
import math

import pytest
import torch

from benchmarks import toys


def test_the_valley_and_its_slope() -> None:
    w = torch.randn(5, 2, dtype=torch.float64).requires_grad_()
    k, a, omega = (torch.rand(5, dtype=torch.float64) + 0.5 for _ in range(3))
    value, slope = toys.psi(w, k, a, omega)
    assert torch.allclose(torch.autograd.grad(value.sum(), w)[0], slope)
    at_zero, _ = toys.psi(torch.zeros(5, 2, dtype=torch.float64), k, a, omega)
    assert at_zero.abs().max() == 0
    r, theta = toys.START
    one = torch.ones(1)
    assert toys.psi(torch.tensor([toys.START]), one, one, one)[0].item() == pytest.approx(
        r**2 + (r - theta + math.sin(r)) ** 2, rel=1e-5
    )


def test_when_a_path_has_arrived() -> None:
    low, high = toys.REACHED / 2, toys.REACHED * 2
    values = torch.tensor([[high, low, high, low, low], [high] * 5, [low] * 5, [low, low, math.nan, low, high]])
    assert toys.reached(values).tolist() == [3, math.inf, 0, math.inf]
    shares = toys.compare(torch.tensor([3.0, 5.0, math.inf, 4.0]), torch.tensor([2.0, 6.0, math.inf, 4.0]))
    assert shares == {"delta first": 0.25, "together": 0.25, "momentum first": 0.25, "neither": 0.25}


def test_how_far_momentum_remembers() -> None:
    """The paper says 6 and 43 steps for a half and 99 % at 0.9; the sum of 0.9^i says 7 and 44."""
    found = toys.lags(120, 1)
    momentum = found["optimizers"]["momentum 0.9"]
    assert (momentum["steps_to_50%"], momentum["steps_to_99%"]) == (7, 44)
    for age in (0, 5, 20):
        assert momentum["weights"][age] == pytest.approx(0.1 * 0.9**age, rel=1e-3)
    slow = found["optimizers"]["M3"]["weights"]
    assert slow[10] > 0 and slow[40] > 2 * momentum["weights"][40], "M3's slow level still holds what the fast one lost"


def test_nothing_is_forgotten_without_a_memory_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "TASK_RATES", (0.1, 1.0, 100.0))
    monkeypatch.setattr(toys, "LEARNERS", {name: toys.LEARNERS[name] for name in ("SGD", "momentum", "DGD, erase 0")})
    found = toys.tasks(30, 1)["optimizers"]
    assert found["SGD"]["lr"] == 1.0, "of these the middle one is best"
    for name in ("SGD", "DGD, erase 0"):
        assert abs(found[name]["forgotten"]) < 1e-5
        assert found[name]["final"] < 0.2
    first = found["SGD"]["first_task"]
    assert first[0] == pytest.approx(1.0, abs=0.5) and first[30] < 0.1 and abs(first[-1] - first[30]) < 1e-5
    assert abs(found["momentum"]["forgotten"]) > 1e-4, "what it still holds moves the old task"


def test_the_command(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(toys, "SWEEP", {"k": (1.0,), "a": (1.0,), "w": (2.0,), "lr": (0.01, 0.03), "decay": (0.5, 0.9)})
    monkeypatch.setattr(toys, "LEARNERS", {"SGD": toys.LEARNERS["SGD"]})
    monkeypatch.setattr(toys, "MOMENTA", {"momentum 0.9": toys.MOMENTA["momentum 0.9"]})
    assert toys.main(["--quick", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "toys.json").read_text())
    assert found["valley"]["settings"] == 4
    assert sum(found["valley"]["delta"]["same"].values()) == pytest.approx(1)
    assert (tmp_path / "toys.png").stat().st_size > 10_000
    assert "of 4 settings" in capsys.readouterr().out
