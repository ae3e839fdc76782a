"""`circadia learner` from new to forget, in another process's terms: text, JSON, exit codes."""

import json

import pytest
from typer.testing import CliRunner

from circadia.cli import app
from tests.live.learners import NATIVE, A, B, model, own


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    model().base.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path):
    def call(*words, code=0, given=None):
        found = CliRunner().invoke(app, ["learner", *map(str, words), "--store", str(tmp_path / "s")], input=given)
        assert found.exit_code == code, (found.output, found.exception)
        return json.loads(found.stdout) if "--json" in words and code == 0 else found.output

    return call


def test_a_model_of_our_own(run, tmp_path):
    """Its folder is all that is said; what it has no settings for is named."""
    own(**NATIVE["native titans"]).save_pretrained(tmp_path / "titans")
    base = str(tmp_path / "titans")
    made = run("new", "ana", "--base", base, "--json")
    assert [(x["period"], x["updates"]) for x in made["levels"]] == [(8, 0)]
    assert "titans, every 8" in run("observe", "ana", "--text", A)
    said = run("ask", "ana", "The", "--raw", "--tokens", 3, "--json")
    assert "correction: " in run("feedback", "ana", said["id"], "--correction", " fox")
    assert run("diff", "ana", 1, 2, "--json")["groups"]["level0"]["moved"] > 0
    run("observe", "ana", "--text", B, "--source", "web")
    run("forget", "ana", "--source", "web")
    assert run("verify", "ana", "--json")["faults"] == [] and run("status", "ana", "--json")["levels"][0]["norm"] > 0
    assert "context=8" in run("new", "bea", "--base", base, "--context", 8, code=2)


def test_a_life_from_new_to_forget(run, base, tmp_path):
    made = run("new", "ana", "--base", base, "--periods", "8,16", "--context", 8, "--no-gate", "--json")
    assert [x["period"] for x in made["levels"]] == [8, 16] and made["version"] is None
    (tmp_path / "notes.txt").write_text(A)
    assert "version 1" in run("observe", "ana", tmp_path / "notes.txt")
    done = run("observe", "ana", "--text", B, "--source", "web", "--trust", 0.5, "--json")
    assert done["versions"] == [2] and done["tokens"] == len(B) and done["surprise"] > 0
    run("observe", "ana", "-", "--source", "pipe", given=A)
    said = run("ask", "ana", "Who?", "--tokens", 5, "--json")
    assert said["version"] == 3 and said["id"] == 4
    assert run("chat", "ana", "--tokens", 3, given="Hi\nYou\n\n").count("[answer") == 2
    assert run("feedback", "ana", said["id"], "--correction", "The fox.", "--json")["version"] == 4
    assert run("ask", "ana", "The", "--raw", "--tokens", 4, "--no-keep").strip()
    status = run("status", "ana", "--json", "--picture", tmp_path / "life.svg")
    assert status["version"] == 4 and set(status["sources"]) >= {"notes.txt", "web", "pipe"}
    assert (tmp_path / "life.svg").read_text().startswith("<svg")
    assert "level 1" in run("status", "ana")
    assert [v["number"] for v in run("versions", "ana", "--json")] == [4, 3, 2, 1]
    assert "<- main" in run("versions", "ana")
    assert run("diff", "ana", 1, 2, "--json")["groups"]["level0"]["moved"] > 0 and "level0" in run("diff", "ana", 1, 2)
    assert run("branch", "ana", "side", "--version", 1, "--json")["branches"]["side"] == 1
    run("observe", "ana", "--text", B, "--branch", "side", "--quiet")
    assert run("rollback", "ana", 3, "--json")["version"] == 3
    run("export", "ana", tmp_path / "ana.circadia")
    assert run("import", tmp_path / "ana.circadia", "--name", "eva", "--json")["name"] == "eva"
    assert "exported before: ana.circadia" in run("forget", "ana", "--source", "web")
    assert "2 learners" in run("verify") and run("verify", "ana", "--json")["faults"] == []
    assert run("gc", "ana", "--keep", 1, "--json")["versions"]
    forgotten = run("forget", "ana", "--all", "--json")
    assert forgotten["erased"]["versions"] and run("status", "ana", "--json")["tokens"] == 0


def test_a_policy_for_conversations(run, base):
    given = ("ana", "--tokens", 3)
    run("new", "ana", "--base", base, "--periods", "8,16", "--context", 8, "--no-gate", "--conversations")
    assert "journal on, conversations teach it" in run("status", "ana")
    counted = []
    for words, text in (
        (("ask", "ana", "Who?", "--tokens", 3), None),
        (("ask", "ana", "Who?", "--tokens", 3, "--no-learn"), None),
        (("chat", *given), "Hi\n\n"),
        (("chat", *given, "--no-learn"), "Hi\n\n"),
        (("set", "ana", "--no-conversations"), None),
        (("ask", "ana", "Who?", "--tokens", 3), None),
        (("chat", *given), "Hi\n\n"),
        (("chat", *given, "--learn"), "Hi\n\n"),
    ):
        run(*words, given=text)
        counted.append(len(run("versions", "ana", "--json")))
    assert counted == [1, 1, 2, 2, 2, 2, 2, 3] and "conversations teach" not in run("status", "ana")
    assert run("set", "ana", "--conversations", "--json") == {"name": "ana", "conversations": True}
    assert run("status", "ana", "--json")["conversations"] and run("verify", "--json")["faults"] == []


@pytest.mark.parametrize(
    "words",
    [
        ("set", "ana"),
        ("set", "nobody", "--conversations"),
        ("observe", "nobody", "--text", "x"),
        ("observe", "ana", "no-such-file"),
        ("observe", "ana", "--text", "x", "--trust", "2"),
        ("observe", "ana", "--text", "x", "--source", ""),
        ("export", "ana", "none/ana.circadia"),
        ("new", "ana", "--base", "BASE"),
        ("new", "a b", "--base", "BASE"),
        ("new", "eva", "--base", "BASE", "--periods", "8,x"),
        ("new", "eva", "--base", "BASE", "--probes", "none.yaml"),
        ("forget", "ana"),
        ("forget", "ana", "--source", "nobody"),
        ("rollback", "ana", "9"),
        ("feedback", "ana", "9", "--good"),
        ("feedback", "ana", "1", "--good", "--bad"),
        ("diff", "ana", "1", "2"),
        ("import", "none.circadia"),
        ("branch", "ana", "main"),
    ],
    ids=lambda words: " ".join(words),
)
def test_errors_are_one_line_and_code_2(run, base, words):
    run("new", "ana", "--base", base, "--periods", "8")
    text = run(*[base if word == "BASE" else word for word in words], code=2)
    assert len(text.strip().splitlines()) == 1 and text.startswith("circadia: "), text


def test_a_number_of_versions_is_above_0(run, base):
    run("new", "ana", "--base", base, "--periods", "8")
    said = run("versions", "ana", "--limit", -1, code=2)
    assert "--limit" in said and "equal to 1" in said


def test_a_folder_that_is_no_store(tmp_path):
    found = CliRunner().invoke(app, ["learner", "versions", "ana", "--store", str(tmp_path / "none")])
    assert found.exit_code == 2 and "no store" in found.output and not (tmp_path / "none").exists()
