"""`circadia learner sleep`, `nights`, `due` and `quarantine`: text, JSON, pages, exit codes."""

import json

import pytest

from tests.cli.test_learner import base, run  # noqa: F401
from tests.live.learners import A, B

SMALL = [
    *("--set", "replay.presentations=2", "--set", "replay.length=12", "--set", "replay.answer=3"),
    *("--set", "dreams=8", "--set", "dream_length=8", "--set", "replay.rows=4"),
]


@pytest.fixture
def ana(run, base, tmp_path):  # noqa: F811
    given = ("--base", base, "--periods", "8,16", "--context", 8, "--no-gate", "--rehearse", "--sleep", "tokens=60")
    run("new", "ana", *given)
    (tmp_path / "notes.txt").write_text(A)
    run("observe", "ana", tmp_path / "notes.txt")
    return run


def test_days_and_nights(ana, tmp_path):
    assert "no reason to sleep" in ana("due", "ana", code=1)
    ana("observe", "ana", "--text", "A stranger says so.", "--source", "web", "--trust", 0.1)
    found = ana("due", "ana", "--json")
    assert found["due"] and found["reasons"] == [f"{len(A) + 19} tokens read, 60 make a day"]
    text = ana("sleep", "ana", "--filter", *SMALL, "--page", tmp_path / "night.html")
    assert "journal-replay: 2 entries" in text and "held back: 2 (web): low trust" in text and "version 3" in text
    page = (tmp_path / "night.html").read_text()
    assert page.startswith("<!doctype html>") and "version 3 woke up" in page and "low trust" in page
    assert "nothing was changed" in ana("sleep", "ana")
    assert ana("quarantine", "list", "ana", "--json")[0]["status"] == "held"
    status = ana("status", "ana")
    assert "1 nights" in status and "1 experiences are in quarantine" in status
    assert "bound 0% -> 0%" in ana("versions", "ana") and ana("versions", "ana", "--json")[0]["night"]["version"] == 3
    assert "admitted" in ana("quarantine", "admit", "ana", 2) and "dropped" in ana("quarantine", "drop", "ana", 2)
    assert ana("quarantine", "admit", "ana", 2, "--json")[0]["decided"] > 2
    ana("observe", "ana", "--text", B)
    done = ana("sleep", "ana", "--compute", "1e6", "--seed", 3, *SMALL, "--json")
    assert (done["action"], done["report"]["seed"], done["report"]["entries"]) == ("accept", 3, 2)
    listed = ana("nights", "ana", "--json")
    assert [n["version"] for n in listed] == [done["version"], 3] and "low trust" not in ana("nights", "ana")
    assert "low trust" in ana("nights", "ana", "--night", listed[1]["number"])
    ana("nights", "ana", "--page", tmp_path / "last.md")
    assert f"version {done['version']} woke up" in (tmp_path / "last.md").read_text()
    assert ana("observe", "ana", "--text", A * 2, "--json")["nights"] == []  # the day is not long enough before it
    ana("observe", "ana", "--text", B)
    fitted = ana("sleep", "ana", "--fit", "0.4", *SMALL, "--json")["report"]
    assert fitted["windows"] == 0 < fitted["entries"], "reading the day once more is all that 0.4 days pay for"
    assert "0 faults" in ana("verify")


@pytest.mark.parametrize(
    "words",
    [
        ("sleep", "nobody"),
        ("sleep", "ana", "--preset", "nap"),
        ("sleep", "ana", "--minutes", "-1"),
        ("sleep", "ana", "--compute", "much"),
        ("sleep", "ana", "--compute", "0.5 weeks"),
        ("sleep", "ana", "--fit", "0"),
        ("sleep", "ana", "--fit", "2", "--preset", "inner-steps"),
        ("sleep", "ana", "--days", "-1"),
        ("sleep", "ana", "--set", "replay.presentations"),
        ("sleep", "ana", "--set", "replay.speed=2"),
        ("sleep", "ana", "--set", "replay.rows=many"),
        ("sleep", "ana", "--set", "speed=2"),
        ("sleep", "ana", "--preset", "full"),
        ("sleep", "ana", "--resume"),
        ("sleep", "ana", "--resume", "--seed", "3"),
        ("sleep", "ana", "--set", "replay=5", "--set", "replay.rows=2"),
        ("sleep", "ana", "--page", "night.pdf"),
        ("nights", "ana", "--night", "3"),
        ("nights", "nobody"),
        ("quarantine", "admit", "ana", "1"),
        ("new", "eva", "--base", "BASE", "--sleep", "soon"),
    ],
    ids=lambda words: " ".join(words),
)
def test_what_is_wrong_is_one_line(ana, base, words):  # noqa: F811
    from typer.testing import CliRunner

    from circadia.cli import app

    before = ana("versions", "ana", "--json")
    words = [base if word == "BASE" else word for word in words]
    found = CliRunner().invoke(app, ["learner", *words, "--store", str(_folder(ana))])
    assert found.exit_code == 2 and found.stderr.count("\n") == 1 and found.stderr.startswith("circadia: ")
    assert "Traceback" not in found.stderr and ana("versions", "ana", "--json") == before


def _folder(run):  # noqa: F811
    return run.__closure__[0].cell_contents / "s"


def test_a_night_that_is_taken_up_has_no_other_days(ana):
    assert "no other settings" in ana("sleep", "ana", "--resume", "--days", 3, code=2)


def test_the_json_of_a_night_is_its_report(ana):
    done = ana("sleep", "ana", *SMALL, "--json")
    assert json.loads(json.dumps(done)) == done and {"probes", "moved", "dropped", "dreams", "cost"} <= set(
        done["report"]
    )
