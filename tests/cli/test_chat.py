"""`circadia chat`, driven through a pipe, and its ends."""

import builtins
import re

import pytest
from typer.testing import CliRunner

from circadia import Learner
from circadia.cli import app
from circadia.cli.talk import Talk
from circadia.live import sleeping
from circadia.sleep import preset
from tests.live.learners import NATIVE, own

LONG = "The harbour of Lindesay freezes in November, and the key lies under the blue stone by the door."


@pytest.fixture
def chat(tmp_path):
    def call(given, *words, code=0):
        found = CliRunner().invoke(app, ["chat", "--store", str(tmp_path), "--tokens", "4", *words], input=given)
        assert found.exit_code == code, (found.output, found.exception)
        return found.output

    return call


def test_a_conversation_is_learned_explained_and_forgotten(chat, tmp_path):
    text = chat(f"{LONG}\n/why\n/correct It freezes.\n/levels\n/versions\n")
    assert "very small model" in text and "1.0 M parameters" in text
    assert f"{len(LONG) + 1} tokens, 1 chunks ended" in text and "level 0, every 64: 1 updates" in text
    cost = [float(word) for word in text[text.index("said again") :].replace("\n", " ").split() if word[0].isdigit()]
    assert cost[0] < cost[1]  # now, and before it was learned
    assert "correction: " in text and "version 2" in text
    with Learner.open(tmp_path, "me") as me:
        learned = me.score(LONG)
    text = chat("/rollback 0\n/versions\n/rollback 1\n/forget\n/versions\n")
    assert "now at the base" in text and "forgot 2 experiences" in text  # what was said, and the answer to it
    chat("/forget feedback\n")  # the correction names what was asked
    with Learner.open(tmp_path, "me") as me:
        assert me.version is None and me.score(LONG) > learned + 0.3
        assert list(me.store.experiences("me")) == []
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"Lindesay" in f.read_bytes()]


def test_reading_a_file_again_and_again_makes_it_answer(chat, tmp_path):
    notes = tmp_path / "my notes.txt"
    notes.write_text("Mira lives in Oslo.\n" * 3)
    text = chat(f"/read '{notes}' 12\n/raw Mira lives in\n", "--tokens", "5")
    assert "12 times" in text and "Mira lives in Oslo\n" in text
    text = chat("/forget 'my notes.txt'\n", code=2)  # the name is everything after the command
    assert "nothing was observed" in text
    assert "forgot 12 experiences" in chat("/forget my notes.txt\n")


@pytest.fixture
def short(monkeypatch):
    """Nights of a second."""
    little = preset().but(dreams=8, dream_length=16, replay={"presentations": 20, "rows": 2, "dreams": 1})
    monkeypatch.setattr(sleeping, "preset", lambda name="": little)


def test_it_sleeps_tells_what_moved_and_goes_back(chat, tmp_path, short):
    text = chat(f"{LONG}\n/sleep\n/sleep\n/versions\n")
    assert "moved: 2 windows of the journal into slowest" in text and "It wakes up" in text
    before, after = re.search(r"from the older self ([\d.]+) -> ([\d.]+) nats", text).groups()
    assert float(after) != float(before)
    assert text.count("dream of the older self: ") == 2  # a quarter of eight is never trained on, and shown
    assert text.count("nothing to sleep on") == 1 and re.search(r"^2 +1 .* sleep: ", text, re.MULTILINE)
    with Learner.open(tmp_path, "me") as me:
        slept = me.score(LONG)
    chat("/rollback 1\n")
    with Learner.open(tmp_path, "me") as me:
        assert slept < me.score(LONG) - 0.1  # it was gone over twenty times


def test_the_conversation_begins_anew_after_a_night(tmp_path, short):
    with Learner.create(tmp_path, "bundled", "me", periods=[64]) as me:
        talk = Talk(me, tokens=4)
        talk.take(LONG)
        assert len(talk.turns) == 2
        talk.take("/sleep 5")
        assert talk.turns == [] and me.version.reason.startswith("sleep: ")
        with pytest.raises(ValueError, match="no answer"):
            talk.take("/good")


def test_a_night_that_was_stopped_is_taken_up(tmp_path, short, monkeypatch, capsys):
    with Learner.create(tmp_path, "bundled", "me", periods=[64]) as me:
        talk = Talk(me, tokens=4)
        talk.take(LONG)
        whole = me.sleep
        monkeypatch.setattr(me, "sleep", lambda **how: whole(stop=lambda: True, **how))
        talk.take("/sleep")
        assert "/sleep resume" in capsys.readouterr().out and me.version.number == 1 and talk.turns
        monkeypatch.setattr(me, "sleep", whole)
        talk.take("/sleep resume")
        assert me.version.number == 2 and "It wakes up" in capsys.readouterr().out


def test_a_model_of_our_own_has_its_own_periods(chat, tmp_path):
    own(**NATIVE["native hope"]).save_pretrained(tmp_path / "hope")
    given = "--base", str(tmp_path / "hope")
    assert "leave these out" in chat("", "me", *given, "--periods", "64,512", code=2)
    text = chat(f"{LONG}\n/why\n/levels\n", "me", *given)
    assert re.search(r"level 2 +16 tokens +2 ", text)


@pytest.mark.parametrize("policy", [False, True])
def test_without_learning_nothing_changes(chat, tmp_path, policy):
    """Whatever the learner's own policy says: what is to be learned is said on the command line here."""
    chat("/levels\n")
    with Learner.open(tmp_path, "me") as me:
        me.set(conversations=policy)
    assert "--no-learn" in chat(f"{LONG}\n/raw Once\n/why\n", "--no-learn", code=2)
    with Learner.open(tmp_path, "me") as me:
        assert me.version is None and me.tokens == 0
    chat(f"{LONG}\n/raw Once\n")
    with Learner.open(tmp_path, "me") as me:
        assert me.tokens + len(me.state["text/tail"]) == len(LONG) + 1  # what was said, once, and no answer


@pytest.mark.parametrize(
    ("given", "words", "said"),
    [
        ("/nonsense\n", (), "unknown"),
        ("/ver\n", (), "did you mean /versions?"),
        ("/rollback\n", (), "VERSION is missing"),
        ("/rollback x\n", (), "a version's number"),
        ("/rollback 9\n", (), "9"),
        ("/read none.txt\n", (), "no such file"),
        ("/read none.txt 0\n", (), "of times of at least 1"),
        ("/raw\n", (), "TEXT is missing"),
        ("/good\n", (), "no answer yet"),
        ("/sleep soon\n", (), "give minutes"),
        ("/sleep -1\n", (), "above 0"),
        ("/sleep resume\n", (), "was stopped"),
        ("/why\n", (), "nothing was learned"),
        ("/forget\n", (), "no message"),
        ("", ("--base", "/none"), "no such folder"),
        ("", ("--periods", "3,x"), "--periods"),
        ("", ("--tokens", "0"), "tokens"),
        ("", ("--branch", "side"), "--branch"),
    ],
)
def test_mistakes_in_a_pipe_are_one_line_and_code_2(chat, given, words, said):
    text = chat(given, *words, code=2)
    assert said in text and "Traceback" not in text


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_in_a_terminal_mistakes_are_told_and_ctrl_c_stops_what_is_at_work(tmp_path, monkeypatch, capsys, end):
    with Learner.create(tmp_path, "bundled", "me", periods=[64]) as me:
        talk = Talk(me, tokens=4)
        talk.terminal = True
        lines = iter(["/nonsense", "Hello", "/raw Hello", "/quit" if end is EOFError else ""])
        monkeypatch.setattr(talk, "message", lambda line: (_ for _ in ()).throw(KeyboardInterrupt))

        def given(prompt):
            line = next(lines)
            if not line:
                raise end
            return line

        monkeypatch.setattr(builtins, "input", given)
        talk.run()
    shown = capsys.readouterr().out
    assert "/nonsense is unknown" in shown and "stopped" in shown and "Hello" in shown
