"""Passages learned into weights: what is read, what is asked, how answers are counted."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from circadia.evals import incorporate
from circadia.evals.suite import Options, Record


@pytest.fixture
def data(tmp_path):
    (tmp_path / "squad").mkdir()
    docs = [
        {
            "title": f"Town {i}",
            "context": f"The mayor of town {i} is called name{i}. Its river is water{i}.",
            "questions": [
                {"question": f"Who is the mayor of town {i}?", "answer": f"name{i}"},
                {"question": f"Which river is in town {i}?", "answer": f"water{i}"},
            ],
        }
        for i in range(10, 22)
    ]
    (tmp_path / "squad" / "squad_val.json").write_text(json.dumps(docs))
    return tmp_path


def test_passages_and_wrong_answers(data):
    found = incorporate.passages(data, 8, 1, seed=3)
    assert found == incorporate.passages(data, 8, 1, 3) and found != incorporate.passages(data, 8, 1, 1000)
    assert len({one.text for one in found}) == 8 and all(len(one.asked) == 1 for one in found)
    for one in incorporate.passages(data, 8, None, 0):
        assert len(one.asked) == 2
        for _, gold, others in one.asked:
            assert gold in one.text and len({gold, *others}) == 10
            assert not any(other in one.text for other in others)
    with pytest.raises(ValueError, match="12 passages, and 13"):
        incorporate.passages(data, 13, 1, 0)
    path = data / "squad" / "squad_val.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:5]))  # eight wrong answers, nine are needed
    with pytest.raises(ValueError, match="8 answers that do not stand in the passage"):
        incorporate.passages(data, 2, 1, 0)


class Remembers(incorporate.Arm):
    """The last three passages; answers are judged by `judged` below."""

    kept: list[str]

    def __init__(self, base, seed=0):
        super().__init__(base, seed)
        self.kept, self.lessons = [], []

    def learn(self, examples):
        self.lessons.append([one.text for one in examples])
        self.kept = [*self.kept, examples[0].text][-3:]

    @contextmanager
    def reading(self):
        yield SimpleNamespace(kept=self.kept)


def test_how_answers_are_counted(data, folder, monkeypatch, tmp_path):
    made = []

    def make(name, base, rate, seed):
        made.append(Remembers(base, seed))
        return made[-1]

    def judged(base, module, pairs):
        # Four nats for an answer of the same town that stands in what is kept, eight for others; of two tokens each.
        towns = [before.split("town ")[1][:2] for before, _ in pairs]
        stand = [any(after.strip() in text for text in module.kept) for _, after in pairs]
        known = [yes and town in after for yes, town, (_, after) in zip(stand, towns, pairs)]
        assert all(before.startswith("Question: W") and before.endswith("?\nAnswer:") for before, _ in pairs)
        return [SimpleNamespace(nats=4.0 if yes else 8.0, tokens=2) for yes in known]

    monkeypatch.setattr(incorporate.arms, "make", make)
    monkeypatch.setattr(incorporate, "answers", judged)
    monkeypatch.setattr(incorporate, "written", lambda base, module, prompt, longest: " ".join(module.kept))
    options = Options(depth="default", data=data, bases=(folder,), models=("MLPs",))
    cell = {"base": "small", "arm": "MLPs", "questions": None, "epochs": 3, "rate": 0.1, "seed": 0, "stage": "test"}
    records = []
    for mode, count in (("single", 6), ("sequence", 6), ("matrix", 4)):
        one = {**cell, "mode": mode, "passages": count}
        records.append(Record(one, incorporate.run(one, options), 0.0))
    single, sequence, matrix = (one.scores for one in records)
    assert single["before"] == {"nats": 4.0, "right": 0.0, "contains": 0.0} and single["asked"] == 12
    assert single["after"] == {"nats": 2.0, "right": 1.0, "contains": 1.0}
    assert len(made) == 1 + 6 + 1 + 1 and all(len(arm.lessons) == 1 for arm in made[1:7])
    assert made[1].lessons[0] == [made[1].kept[0]] * 3  # read three times
    # Three of six passages are left at the end.
    assert sequence["after"] == {"nats": 3.0, "right": 0.5, "contains": 0.5} and len(made[7].lessons) == 6
    right = matrix["metrics"]["right"]["matrix"]
    assert [row[0] for row in right] == [1.0, 1.0, 1.0, 0.0] and right[3] == [0.0, 1.0, 1.0, 1.0]
    assert incorporate.goal(single) == -2.0 and incorporate.goal(matrix) == -(4.0 + 3 * 2.0) / 4
    tables = incorporate.table(records)
    assert [one.title for one in tables] == [
        "Incorporation, single", "Incorporation, sequence", "Incorporation, eight passages",
        "Incorporation, eight passages: the matrix R of the first seed",
    ]  # fmt: skip
    assert tables[0].rows[0][4:9] == ("4.000", "2.000", "0.0", "100.0", "100.0")
    assert tables[1].rows[-1][1:] == (
        "Sleep without dreaming",
        "-",
        "-",
        "-",
        "-",
        "-",
        "36.2 judged",
        "-",
        "-",
        "-",
        "-",
    )
    incorporate.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 3_000


def test_a_base_learns_a_passage(data, folder):
    """The real arms: what was read often is likelier after it."""
    options = Options(depth="quick", data=data, bases=(folder,), models=("frozen", "full"))
    plan = [run for run in incorporate.runs(options, []) if run["mode"] == "single"]
    assert [run["arm"] for run in plan] == ["frozen", "full"]
    frozen, full = (incorporate.run({**run, "passages": 2, "epochs": 30}, options) for run in plan)
    assert frozen["after"]["nats"] == pytest.approx(frozen["before"]["nats"])
    assert full["before"] == frozen["before"] and full["after"]["nats"] < frozen["after"]["nats"] - 0.1
