"""Statistics on a clock that moves only when a contestant moves it."""

import json
from collections.abc import Callable

import pytest

from benchmarks.harness import Contest, Contestant, NotMeasured, human, machine, measure, result, write_json


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        """A call that takes these seconds, one after another, and then the last one again and again."""
        left = list(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_medians_and_ratios_are_taken_within_a_repetition() -> None:
    """A minute in which everything is ten times slower moves no ratio; warm-up is not counted."""
    clock = Clock()
    ours = Contestant("ours", clock.takes("ours", 99.0, 1.0, 10.0, 1.0))
    theirs = Contestant("theirs", clock.takes("theirs", 99.0, 2.0, 30.0, 2.0))
    contest = Contest({"task": "x"}, [ours, theirs], tokens=6)
    (timing,) = measure([contest], 3, clock=clock)
    found = result(contest, timing)
    assert found["task"] == "x" and found["ours"] == "ours"
    known = found["contestants"]["ours"]
    assert known["seconds"] == [1.0, 10.0, 1.0]
    assert (known["median"], known["min"], known["max"], known["tokens_per_second"]) == (1.0, 1.0, 10.0, 6.0)
    assert found["ratios"] == {"theirs": {"each": [2.0, 3.0, 2.0], "median": 2.0, "min": 2.0, "max": 3.0}}


def test_contests_are_interleaved_in_turns() -> None:
    clock = Clock()
    pair = Contest({}, [Contestant(name, clock.takes(name, 1.0)) for name in "ab"], tokens=1)
    slow = Contest({}, [Contestant("c", clock.takes("c", 1.0), warm=clock.takes("w", 1.0))], tokens=1, every=3)
    timings = measure([pair, slow], 4, clock=clock)
    assert "".join(clock.log) == "abw" + "abc" + "ba" + "ab" + "bac"
    assert [len(s) for t in timings for s in t.seconds.values()] == [4, 4, 2]


def test_waiting_for_the_device_is_part_of_the_time() -> None:
    clock = Clock()
    contest = Contest({}, [Contestant("a", clock.takes("a", 1.0))], tokens=1)
    (timing,) = measure([contest], 2, clock=clock, sync=clock.takes("sync", 5.0))
    assert timing.seconds["a"] == [6.0, 6.0]


@pytest.mark.parametrize("calls", [0, 2], ids=["warm-up", "a later repetition"])
def test_a_failure_leaves_the_others_in_the_race(calls: int) -> None:
    left = [None] * calls

    def breaks() -> None:
        if not left:
            raise RuntimeError("no such kernel\nand a long story")
        left.pop()

    clock = Clock()
    runs = [Contestant("ours", clock.takes("ours", 1.0)), Contestant("theirs", breaks)]
    contest = Contest({}, runs, tokens=1, absent={"other": "not installed"})
    (timing,) = measure([contest], 3, clock=clock)
    found = result(contest, timing)
    assert found["contestants"]["theirs"] == {"not_measured": "RuntimeError: no such kernel"}
    assert found["contestants"]["other"] == {"not_measured": "not installed"}
    assert found["contestants"]["ours"]["seconds"] == [1.0, 1.0, 1.0]
    assert found["ratios"] == {}


def test_ours_failing_leaves_no_ratio() -> None:
    def refuses() -> None:
        raise NotMeasured("it has no gradient")

    contest = Contest({}, [Contestant("ours", refuses), Contestant("theirs", Clock().takes("t", 1.0))], tokens=1)
    found = result(contest, *measure([contest], 1))
    assert found["contestants"]["ours"] == {"not_measured": "it has no gradient"}
    assert found["ratios"] == {}


def test_the_machine_is_described_and_can_be_written(tmp_path) -> None:
    found = machine("cpu", ["no-such-package"])
    assert found["cpu"] and found["threads"] >= 1 and found["versions"]["torch"]
    assert found["versions"]["no-such-package"] is None
    write_json(tmp_path / "m.json", found)
    assert json.loads((tmp_path / "m.json").read_text()) == found
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "m.json", {"x": float("nan")})


def test_numbers_for_people() -> None:
    assert [human(x) for x in (123456.0, 1234.5, 999.6, 12.345, 1.0, 0.012345)] == [
        "123k",
        "1234",
        "1000",
        "12.3",
        "1.00",
        "0.0123",
    ]
