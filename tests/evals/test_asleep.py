"""Arms that sleep: what a night goes over, what it changes, what it costs, and that it knows of no tasks."""

import json

import pytest
import torch
from rich.console import Console

from circadia.evals import arms, facts, incorporate, runner
from circadia.evals.arms import Example, asleep
from circadia.evals.bases import Base, answers
from circadia.evals.suite import Options
from circadia.sleep import preset

A = [Example("", f"The baker of town {i} is called name{i}.\n") for i in range(6)]
B = [Example("", f"It rained on day {i}, and then the sun shone.\n") for i in range(6)]
QUICK = {"presentations": 16.0, "rows": 8, "dreams": 1, "every": 200, "rate": 0.05, "guard": 0.1}
SHORT = preset().but(dreams=4, dream_length=8, replay=QUICK)  # two steps for each window of a night


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Nights of a few steps."""
    monkeypatch.setattr(asleep, "preset", lambda: SHORT)


def made(folder, name="sleep", seed=0):
    return arms.make(name, Base.load(folder), 0.1, seed)


def nats(arm, examples):
    with arm.reading() as module:
        pairs = [(one.text[:12], one.text[12:]) for one in examples]
        return sum(one.nats for one in answers(arm.base, module, pairs))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def test_a_night_binds_what_a_day_has_read(folder):
    awake, arm = made(folder, "MLPs + decay"), made(folder)
    base = [p.clone() for p in arm.base.model.parameters()]
    for one in (awake, arm):
        one.learn(A)
    assert equal(awake.state, arm.state), "by day it reads as its waking twin does"
    evening = nats(arm, A)
    awake.finish()
    arm.finish()
    assert nats(awake, A) == evening and nats(arm, A) < 0.95 * evening
    assert all(torch.equal(a, b) for a, b in zip(base, arm.base.model.parameters()))
    morning = arm.state
    arm.finish()
    assert arm.state is morning and len(arm.nights) == 1, "nothing was read: no night"


def test_only_the_journal_since_the_last_night_is_gone_over(folder, monkeypatch):
    seen, real = [], asleep.sleep

    def sleep(model, state, entries, settings, **given):
        seen.append(([bytes(one.tokens.tolist()).decode() for one in entries], given["slept"]))
        assert not any(name.startswith("awake/") for name in state)
        return real(model, state, entries, settings, **given)

    monkeypatch.setattr(asleep, "sleep", sleep)
    arm = made(folder)
    arm.learn(A[:4])
    arm.learn(A[4:])
    arm.finish()
    first = arm.slept
    arm.learn(B[:2] + B[:2])
    arm.finish()
    assert [text.strip() for text in seen[0][0]] == [one.text.strip() for one in A] and seen[0][1] is None
    assert seen[1] == ([one.text for one in B[:2] * 2], first), "twice as often, what was read twice"


def test_windows_of_earlier_nights_are_gone_over_beside_the_day(folder, monkeypatch):
    """And kept beside it: the night after binds them, while the one of a day alone loses them."""
    given, real = [], asleep.sleep

    def sleep(*args, earlier, **more):
        given.append([[bytes(one.tokens.tolist()).decode() for one in night] for night in earlier])
        return real(*args, earlier=earlier, **more)

    monkeypatch.setattr(asleep, "sleep", sleep)
    arm, alone = made(folder), made(folder, "sleep over the day alone")
    for one in (arm, alone):
        one.learn(A)
        one.finish()
        one.learn(B)
        one.finish()
        one.learn(B[:1])
        one.finish()
    texts = [[one.text for one in day] for day in (A, B)]
    assert given[:3] == [[], texts[:1], texts]
    assert [night["earlier"] for night in arm.nights] == [0, 6, 12]
    assert nats(arm, A) < nats(alone, A) and arm.nights[0] == alone.nights[0]
    assert arm.nights[1]["learned"] > alone.nights[1]["learned"] > 0.4 * arm.nights[1]["learned"]


def test_a_long_day_has_a_night_of_bounded_length(folder, monkeypatch):
    monkeypatch.setattr(asleep, "WINDOWS", 4)
    arm = made(folder)
    arm.learn(A)
    arm.finish()
    assert arm.nights[0]["windows"] == 4 and arm.nights[0]["learned"] <= 8 * (8 * 56 + 8)
    assert arm.nights[0]["read"] > sum(len(one.text) for one in A), "choosing them is paid for"


def test_rehearsal_begins_after_the_first_night_and_is_paid_for(folder):
    plain, arm = made(folder), made(folder, "sleep + rehearsal")
    for one in (plain, arm):
        one.learn(A)
        one.finish()
    memory = {name: x for name, x in arm.state.items() if not name.startswith("awake/")}
    assert equal(memory, plain.state) and arm.cost()["rehearsed"] == 0
    rows = [bytes(row[row >= 0].tolist()).decode() for row in arm.state["awake/windows"]]
    assert rows == [one.text for one in A]
    for one in (plain, arm):
        one.learn(B * 4)
    assert nats(arm, A) < nats(plain, A) and arm.cost()["rehearsed"] > 0
    awake = sum(len(one.text) for one in A + B * 4)
    for one in (plain, arm):
        found = one.cost()
        (night,) = found["nights"]
        learned = awake + night["learned"] + found["rehearsed"]
        assert found["tokens"] == learned
        assert found["flops"] == one.base.parameters * (6 * learned + 2 * (night["read"] + night["made"]))
    states = sum(x.numel() * x.element_size() for held in (plain.state, plain.slept) for x in held.values())
    held = sum(len(one.text) for one in B * 4 + A)
    assert plain.bytes == states + 4 * held, "the journal is the longest so far; and windows of the night"


def test_two_lives_alike_and_another_seed(folder):
    def life(seed):
        arm = made(folder, "sleep + rehearsal", seed)
        for task in (A, B):
            arm.learn(task)
            arm.finish()
        return arm.state

    first = life(0)
    assert equal(first, life(0)), "nothing is left of one run in the next"
    assert not equal(first, life(1))


def test_facts_are_asked_in_the_evening_and_in_the_morning(folder, tmp_path):
    (tmp_path / "books").mkdir()
    text = " ".join(f"This is the sentence of the number {i} of a book." for i in range(40))
    (tmp_path / "books" / "a.txt").write_text(text)
    facts._sentences.cache_clear()
    options = Options(bases=(folder,), data=tmp_path)
    run = {"base": "small", "people": 1, "changed": 0, "said": 4, "after": [0, 5], "seed": 0, "rate": 0.1}
    awake, found = (facts.run({**run, "arm": arm}, options) for arm in ("MLPs + decay", "sleep"))
    assert "evening" not in awake and found["evening"] == awake["waits"][0], "the same day"
    assert len(found["cost"]["nights"]) == 2
    evening, morning = found["evening"]["verbatim"]["nats"], found["waits"][0]["verbatim"]["nats"]
    assert morning < evening - 1
    records = [facts.Record({**run, "arm": arm, "stage": "test"}, x, 1.0)
               for arm, x in (("MLPs + decay", awake), ("sleep", found))]  # fmt: skip
    rows = [dict(zip(facts.table(records)[0].columns, row)) for row in facts.table(records)[0].rows]
    assert [row["evening: rank"] for row in rows] == [f"{awake['waits'][0]['verbatim']['rank']:.1f}"] * 2
    assert rows[0]["after 0: rank"] == rows[0]["evening: rank"] != rows[1]["after 0: rank"]


def test_passages_have_a_night_each_and_a_resumed_suite_the_same_numbers(folder, tmp_path, monkeypatch):
    (tmp_path / "squad").mkdir()
    docs = [
        {"title": f"Town {i}", "context": f"The mayor of town {i} is called name{i}.",
         "questions": [{"question": f"Who is the mayor of town {i}?", "answer": f"name{i}"}]}
        for i in range(12)
    ]  # fmt: skip
    (tmp_path / "squad" / "squad_val.json").write_text(json.dumps(docs))
    monkeypatch.setattr(incorporate, "written", lambda *given: "")
    options = Options(depth="quick", data=tmp_path, bases=(folder,), models=("MLPs + decay", "sleep"))
    real = incorporate.SUITE

    def runs(options, done):
        return [{**run, "passages": 3} for run in real.runs(options, done)]

    def evaluate(out, resume=False):
        suite = incorporate.Suite(**{**real.__dict__, "runs": runs})
        found = runner.evaluate(suite, options, tmp_path / out, resume=resume, console=Console(quiet=True))
        return {(one.run["mode"], one.run["arm"]): one.scores for one in found.records}

    whole = evaluate("whole")
    nights = {cell: len(scores["cost"].get("nights", [])) for cell, scores in whole.items()}
    assert nights["single", "sleep"] == 1 and nights["sequence", "sleep"] == 3 and len(whole) == 4
    assert whole["single", "sleep"]["after"]["nats"] < whole["single", "MLPs + decay"]["after"]["nats"] - 0.05
    path = tmp_path / "whole" / runner.RUNS
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])  # killed while it wrote
    again = evaluate("whole", resume=True)
    for cell, scores in whole.items():
        for part in (scores, again[cell]):
            part["cost"].pop("seconds")
        assert again[cell] == scores, cell


def test_implications_are_the_selfs_own_words_and_are_learned_beside_the_text(folder, monkeypatch):
    arm = made(folder, "implications")
    read, real = [], arm.read
    monkeypatch.setattr(
        arm, "read", lambda tokens: (read.append(bytes(tokens).decode("utf-8", "replace")), real(tokens))
    )
    passage = Example("", "Town 7\n" + "The mayor of it is called Ada. " * 10 + "\n\n")
    arm.learn([passage] * 2)
    said = arm.said[passage.text]
    assert len(said) == 4 and len(set(said)) == 4 and all(text.startswith("Town 7\n") for text in said)
    assert read == [passage.text + "".join(said)] * 2, "written once, learned at every reading"
    learned = 2 * len("".join([passage.text, *said]).encode())
    passed = 4 * (len(passage.text) + len("Implications:\n") + 96)
    assert arm.cost()["tokens"] == learned == arm.learned
    assert arm.cost()["flops"] == arm.base.parameters * (6 * learned + 2 * passed)
    # Of another self other words, of the same the same.
    twin, wiser = made(folder, "implications"), made(folder, "implications")
    assert twin.written(passage.text) == said
    wiser.read(list(b"x" * 256 * 10))
    assert wiser.written(passage.text) != said
