"""Runs that stop and go on, what is written, and the page made of it."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from rich.console import Console

from circadia.evals import SUITES, load, report, runner, tuning
from circadia.evals import suite as suites
from circadia.evals.record import Lines
from circadia.evals.suite import Needs, Options, Record, Suite, Table, key
from circadia.evals.tuning import TUNING_SEED, group, tuned

ROOT = Path(__file__).parents[2]
SILENT = Console(quiet=True)


class Toy:
    """A suite of three runs; what it does is written down, and it can be interrupted."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.done: list[int] = []
        self.stop_at = stop_at

    def run(self, run, options):
        if run["seed"] == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        self.done.append(run["seed"])
        return {"score": run["seed"] / 10}

    @property
    def suite(self) -> Suite:
        return Suite(
            "formal", "A toy.", Needs((), {}, ("a",)),
            runs=lambda options, done: [{"model": "a", "seed": i} for i in range(options.seeds or 3)],
            run=self.run,
            table=lambda records: [Table("T", ("n",), [(str(len(records)),)])],
            plot=lambda records, path: path.write_bytes(b"png"),
        )  # fmt: skip


@pytest.fixture(autouse=True)
def toy_is_loaded(monkeypatch):
    monkeypatch.setattr(report, "load", lambda name: Toy().suite)


def test_an_interrupt_keeps_what_is_done_and_resume_does_the_rest(tmp_path) -> None:
    first = Toy(stop_at=1)
    outcome = runner.evaluate(first.suite, Options(), tmp_path, console=SILENT)
    assert (first.done, outcome.left, outcome.stopped) == ([0], 2, signal.SIGINT)
    assert "2 runs are still to be done" in (tmp_path / "formal.md").read_text()
    with pytest.raises(ValueError, match="--resume"):
        runner.evaluate(Toy().suite, Options(), tmp_path, console=SILENT)
    second = Toy()
    outcome = runner.evaluate(second.suite, Options(), tmp_path, resume=True, console=SILENT)
    assert (second.done, outcome.left, outcome.stopped) == ([1, 2], 0, None)
    assert [one.scores["score"] for one in outcome.records] == [0.0, 0.1, 0.2]
    third = Toy()  # another number of seeds: the runs that are there count
    runner.evaluate(third.suite, Options(seeds=4), tmp_path, resume=True, console=SILENT)
    assert third.done == [3]


def test_half_a_line_of_a_killed_process_does_not_count(tmp_path) -> None:
    lines = Lines(tmp_path / "runs.jsonl")
    lines.add(Record({"seed": 0}, {"x": 1}, 0.5))
    with open(lines.path, "a") as file:
        file.write('{"run": {"seed"')
    assert [one.run for one in lines.read()] == [{"seed": 0}]
    lines.add(Record({"seed": 1}, {"x": 2}, 0.5))
    assert [one.scores["x"] for one in lines.read()] == [1, 2]
    lines.path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1"):
        lines.read()


def test_a_result_read_back_is_the_result(tmp_path) -> None:
    outcome = runner.evaluate(Toy().suite, Options(depth="quick"), tmp_path, console=SILENT)
    found, records = report.read(tmp_path / "formal.json")
    assert records == outcome.records and found["depth"] == "quick" and len(found["places"]) == 1
    assert {"circadia", "torch", "python"} <= records[0].where["versions"].keys()
    assert records[0].where["machine"]["threads"] == 1 and records[0].seconds >= 0


def test_the_page_is_made_of_the_results(tmp_path) -> None:
    base = tmp_path / "my base"
    base.mkdir()
    (base / "config.json").touch()
    asked = Options(models=("lstm", "2 levels"), seeds=3, bases=(base,))
    runner.evaluate(Toy().suite, asked, tmp_path / "run", console=SILENT)
    with pytest.raises(ValueError, match="no result of a suite"):
        report.rebuild(tmp_path / "docs" / "results", tmp_path / "docs" / "results.md")
    report.add(tmp_path / "docs" / "results", [tmp_path / "run"])
    assert report.rebuild(tmp_path / "docs" / "results", tmp_path / "docs" / "results.md") == 1
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| 3 |" in page and "](results/formal.png)" in page and str(tmp_path) not in page
    assert '`circadia eval formal --models "lstm,2 levels" --base "my base" --seeds 3`' in page
    (tmp_path / "docs" / "results" / "formal.json").write_text("{}")
    with pytest.raises(ValueError, match=r"formal\.json"):
        report.rebuild(tmp_path / "docs" / "results", tmp_path / "docs" / "results.md")


def test_the_committed_page_is_what_the_committed_results_make(tmp_path, monkeypatch) -> None:
    monkeypatch.undo()
    page, results = ROOT / "docs" / "results.md", ROOT / "docs" / "results"
    assert page.exists() == any(results.glob("*.json"))
    if page.exists():
        report.rebuild(results, tmp_path / "results.md")
        made = re.sub(r"\]\([^)]*/results/", "](results/", (tmp_path / "results.md").read_text())
        assert made == page.read_text()


def test_rates_are_tuned_on_a_seed_of_their_own() -> None:
    cell = {"model": "a"}

    def goal(scores):
        return scores["valid"]

    def record(rate, valid):
        return Record({**cell, "seed": TUNING_SEED, "rate": rate, "stage": "tune"}, {"valid": valid}, 0.0)

    runs = tuned([cell], 2, (0.1, 0.2, 0.3), [], goal)
    assert [(run["rate"], run["seed"]) for run in runs] == [(0.1, TUNING_SEED)]
    done = [record(0.1, 0.5), record(0.2, 0.9), record(0.3, 0.7)]
    assert len(tuned([cell], 2, (0.1, 0.2, 0.3), done[:2], goal)) == 3
    runs = tuned([cell], 2, (0.1, 0.2, 0.3), done, goal)
    assert [(run["rate"], run["seed"]) for run in runs[3:]] == [(0.2, 0), (0.2, 1)]
    # Nothing is better than perfect: the rest of the grid is left out.
    runs = tuned([cell], 1, (0.1, 0.2, 0.3), [record(0.1, 1.0)], goal)
    assert [(run["rate"], run["stage"]) for run in runs] == [(0.1, "tune"), (0.1, "test")]
    assert [run["stage"] for run in tuned([cell], 1, (0.1,), [], goal)] == ["test"]
    assert tuning.tested([*done, Record({**cell, "seed": 0, "stage": "test"}, {}, 0.0)])[0].run["seed"] == 0
    assert [len(own) for own in group(done, "model").values()] == [3]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_that_was_stopped_while_tuning_has_tables(name, tmp_path) -> None:
    own = load(name)
    assert own.name == name and set(own.needs.time) == set(suites.DEPTHS)
    for table in own.table([]):
        assert {len(row) for row in table.rows} <= {len(table.columns)}
    own.plot([], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists(), "nothing is drawn of nothing"


def test_options_and_tables() -> None:
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    for wrong in ({"depth": "deep"}, {"seeds": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options(**wrong)
    with pytest.raises(ValueError, match="--models b: this suite offers a"):
        Options(models=("b",)).chosen(("a",), ("a",))
    with pytest.raises(ValueError, match="--data"):
        Options().folder("books")
    assert Table("T", ("x",), [("a|b",)], ("note",)).markdown().splitlines()[4:] == ["| a\\|b |", "", "note"]
    assert json.loads(key({"x": 1.5})) == {"x": 1.5} and suites.DEPTHS[0] == "quick"
