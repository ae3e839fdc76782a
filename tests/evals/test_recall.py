"""In-context recall: the texts that a model reads, which answers count, and the table."""

import gzip
import json

import pytest

from circadia.evals import recall
from circadia.evals.suite import Options, Record


@pytest.fixture
def data(tmp_path):
    docs = [{"title": "T", "context": f"Passage {i} of the river Po.",
             "questions": [{"question": f"Which {i}?", "answer": "the Po"}, {"question": "What?", "answer": f"P{i}"}]}
            for i in range(4)]  # fmt: skip
    (tmp_path / "squad").mkdir()
    with gzip.open(tmp_path / "squad" / "part.json.gz", "wt") as file:
        json.dump(docs, file)
    (tmp_path / "recall").mkdir()
    rows = [{"text": f"name: x{i}; price: ", "value": f"{i}0 dollars"} for i in range(3)]
    (tmp_path / "recall" / "swde.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_answers_that_contain_the_gold_string_are_right(data, folder, monkeypatch, tmp_path):
    asked = []

    def written(base, module, text, tokens):
        asked.append((text, tokens))
        return "it is THE PO, I think" if "Which" in text else "20 DOLLARS a piece" if "x2" in text else "no"

    monkeypatch.setattr(recall, "written", written)
    options = Options(bases=(folder,), data=data)
    plan = recall.runs(options, [])
    assert [run["set"] for run in plan] == ["squad", "swde"] and plan[0]["limit"] == 300
    recall._base.cache_clear()
    records = [Record(run, recall.run(run, options), 1.0) for run in plan]
    assert asked[0] == ("Passage 0 of the river Po.\nQuestion: Which 0?\nAnswer:", 48) and len(asked) == 8 + 3
    assert asked[8] == ("name: x0; price:", 48)
    squad, swde = (one.scores for one in records)
    assert (squad["contains"], squad["majority"], swde["contains"]) == (0.5, 0.5, pytest.approx(1 / 3))
    assert squad["whole text read"] == 1.0
    (table,) = recall.table(records)
    rows = {row[0]: row for row in table.rows}
    assert rows["small"][2:] == ("300", "50.0", "33.3") and rows["Table 3: Hope"][3:] == ("33", "65.9")
    assert rows["(majority)"][3] == "50.0" and {len(row) for row in table.rows} == {len(table.columns)}
    recall.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


def test_a_model_writes(data, folder):
    recall._base.cache_clear()
    scores = recall.run(
        {"model": "small", "weights": "", "set": "swde", "limit": 2}, Options(bases=(folder,), data=data)
    )
    assert scores["questions"] == 2 and scores["contains"] == 0.0  # it has learned nothing


def test_mistakes(data, folder):
    with pytest.raises(ValueError, match="--base"):
        recall.runs(Options(data=data), [])
    (data / "recall" / "swde.jsonl").write_text('{"text": 1}')
    with pytest.raises(ValueError, match="line 1"):
        recall.cloze(data, "swde")
    (data / "squad" / "part.json.gz").unlink()
    with pytest.raises(ValueError, match="squad"):
        recall.squad(data)
