"""bAbI in book text: questions read, streams put together, the official scoring."""

import random

import pytest
import torch

from circadia.evals import babi, babilong, networks
from circadia.evals.babi import Question
from circadia.evals.suite import Options, Record

STORY = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary moved to the office.
5 Where is Mary? \toffice\t4
1 Sandra went to the garden.
2 Where is Sandra?\tgarden\t1
"""


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    for name in ("babi/en", "books"):
        (folder / name).mkdir(parents=True)
    (folder / "babi/en/qa1_x_test.txt").write_text(STORY)
    rooms, train = babi.ROOMS, STORY
    for i in range(60):
        train += f"1 {'Daniel' if i % 2 else 'John'} went to the {rooms[i % 6]}.\n"
        train += f"2 Sandra moved to the {rooms[i // 6 % 6]}.\n"
        train += f"3 Where is Sandra?\t{rooms[i // 6 % 6]}\t2\n"
    (folder / "babi/en/qa1_x_train.txt").write_text(train)
    for i in range(3):
        rng = random.Random(i)
        sentences = (" ".join(f"{'abc'[i]}{rng.choice('xyz')}" for _ in range(rng.randint(5, 20))) for _ in range(40))
        (folder / "books" / f"{i}.txt").write_text(". ".join(sentences) + ".")
    babi.load.cache_clear()
    return folder


def book(data):
    return babi.load(data / "babi", data / "books", "qa1", 50)


def test_a_file_of_babi() -> None:
    first, second, third = babi.questions(STORY)
    assert first == Question((babi.words("Mary moved to the bathroom."), babi.words("John went to the hallway.")),
                             ("Where", "is", "Mary", "?"), "bathroom")  # fmt: skip
    assert len(second.facts) == 3 and second.answer == "office", "questions are no facts"
    assert len(third.facts) == 1, "1 begins a story"


@pytest.mark.parametrize(
    ("output", "right"),
    [("bathroom", True), ("The Bathroom. Not the office.", True), ("bathroom or office", False), ("office", False),
     ("", False), ("bathrooms", False)],
)  # fmt: skip
def test_the_official_scoring(output, right) -> None:
    assert babi.correct("qa1", Question((), ("Where", "is", "Mary", "?"), "bathroom"), output) == right


def test_labels_of_the_question_do_not_count() -> None:
    question = Question((), babi.words("What is the office north of?"), "garden")
    assert "office" not in babi.allowed("qa4", question)
    assert babi.correct("qa4", question, "the office is north of the garden")


def test_training_and_test_do_not_overlap(data) -> None:
    own = book(data)
    assert not set(own.train) & set(own.test) and len(own.test) == 3 and len(own.train) > 10
    names = [{own.words[x][0] for x in part.tokens.tolist()} for part in own.background]
    assert names[0] <= set("ab.") and "<" in names[1], "words of the test book were not counted"


@pytest.mark.parametrize("length", [0, 40, 300, 2000])
def test_facts_stand_in_order_between_sentences(data, length) -> None:
    own = book(data)
    question = own.test[1]
    facts = [tuple(own.number[w] for w in fact) for fact in question.facts]
    for seed in range(10):
        tokens = own.sample(question, length, random.Random(seed), test=False).tolist()
        assert len(tokens) == max(length, own.shortest(question))
        assert tokens[-4:] == [own.number[w] for w in question.question]
        at = 0
        for fact in facts:
            while tuple(tokens[at : at + len(fact)]) != fact:
                at += 1
            assert at == 0 or tokens[at - 1] == own.number["."], "after a sentence"
            at += len(fact)
        pieces = list(own.stream(question, length, 7, random.Random(seed), test=False))
        assert torch.cat(pieces).tolist() == tokens and {len(p) for p in pieces[:-1]} <= {7}
    kept = own.background[0]
    assert min(b - a for a, b in zip(kept.ends, kept.ends[1:])) >= babi.SHORTEST


def test_a_stream_is_read_at_constant_memory(data, monkeypatch) -> None:
    own = book(data)
    torch.manual_seed(0)
    net = networks.build("gated-deltanet", networks.Shape(len(own.words), width=16, layers=1, heads=2)).eval()
    monkeypatch.setattr(babilong, "PIECE", 32)
    found = [babilong.score(net, own, own.test, n, random.Random(0), "cpu", True) for n in (100, 1000)]
    assert found[0]["state_bytes"] == found[1]["state_bytes"] > 0 and found[1]["tokens"] == 3000
    # And pieces change nothing in what is said.
    tokens = own.sample(own.test[0], 100, random.Random(5), test=True)
    with torch.no_grad():
        whole = net(tokens[None], use_cache=False).logits[0, -1].argmax().item()
    right = babi.correct("qa1", own.test[0], own.words[whole])
    assert babilong.score(net, own, own.test[:1], 100, random.Random(5), "cpu", True)["accuracy"] == float(right)


def test_a_run_and_its_table(data, tmp_path) -> None:
    run = {"model": "linear", "task": "qa1", "steps": 3, "batch": 4, "trained": 40, "width": 16, "layers": 1,
           "words": 20, "lengths": [0, 100], "budget": 400, "samples": 3, "seed": 0, "rate": 0.01,
           "stage": "test"}  # fmt: skip
    scores = babilong.run(run, Options(data=data))
    assert scores["random"] == pytest.approx(1 / 6) and scores["majority"] == pytest.approx(1 / 3)
    (table,) = babilong.table([Record(run, scores, 1.0)])
    assert table.rows[0][-1] == f"{100 * scores['test']['100']['accuracy']:.1f}"
    assert [row[1] for row in table.rows] == ["linear", "(majority)", "(random)"]
    babilong.plot([Record(run, scores, 1.0)], tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
    with pytest.raises(ValueError, match="qa2"):
        babi.load(data / "babi", data / "books", "qa2", 50)
