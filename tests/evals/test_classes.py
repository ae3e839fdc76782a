"""Classes in tasks: no text of a test is learned, no class is asked for before its task, and scores are right."""

import gzip
import json

import pytest

from circadia.evals import class_sets, classes
from circadia.evals.suite import Options, Record
from circadia.evals.tuning import TUNING_SEED


@pytest.fixture
def data(tmp_path):
    """Three domains of two intents; DBpedia and Banking77 of five classes."""
    names = ["pay_bill", "balance", "play_song", "next_song", "cook_rice", "recipe"]
    full = {part: [[f"{part} {name} {i}", name] for name in names for i in range(count)]
            for part, count in (("train", 6), ("val", 3), ("test", 3))}  # fmt: skip
    full["oos_test"] = [["what?", "oos"]]
    (tmp_path / "clinc150").mkdir()
    with gzip.open(tmp_path / "clinc150" / "data_full.json.gz", "wt") as file:
        json.dump(full, file)
    domains = {"bank": names[:2], "music": names[2:4], "food": [*names[4:], "not_there"]}
    (tmp_path / "clinc150" / "domains.json").write_text(json.dumps(domains))
    (tmp_path / "dbpedia").mkdir()
    labels = {str(i): name for i, name in enumerate(["Tower", "RouteOfTransportation", "Cleric", "Plant", "Bank"])}
    (tmp_path / "dbpedia" / "dbpedia70_labels.json").write_text(json.dumps({"level2": labels}))
    for part in ("val", "test"):
        rows = "".join(f'1,{i % 5},"a text, {part} {i}"\n' for i in range(200))
        (tmp_path / "dbpedia" / f"dbpedia70_{part}.csv").write_text(rows)
    (tmp_path / "banking77").mkdir()
    for part in ("train", "test"):
        rows = "".join(f"{part} {i},card_arrival_{i % 23}\n" for i in range(230))
        (tmp_path / "banking77" / f"{part}.csv").write_text("text,category\n" + rows)
    return tmp_path


def test_sets_keep_their_parts_apart(data):
    for name, groups in (("clinc150", 3), ("dbpedia", 1), ("banking77", 3)):
        found = class_sets.load(data, name)
        parts = [{text for text, _ in part} for part in (found.train, found.valid, found.test)]
        assert all(parts) and not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]
        orders = [found.tasks(seed) for seed in range(6)]
        assert len(orders[0]) == groups and orders[0] == found.tasks(0) and any(o != orders[0] for o in orders)
        assert {x for task in orders[3] for x in task} == {label for _, label in found.train}
    clinc = class_sets.load(data, "clinc150")
    assert {frozenset(task) for task in clinc.tasks(1)} == {
        frozenset({"pay bill", "balance"}), frozenset({"play song", "next song"}), frozenset({"cook rice", "recipe"})
    }  # fmt: skip
    banking = class_sets.load(data, "banking77")
    assert [len(task) for task in banking.tasks(0)] == [11, 11, 1] and len(banking.test) == 230
    dbpedia = class_sets.load(data, "dbpedia")
    assert "route of transportation" in dbpedia.tasks(0)[0] and len(dbpedia.train) > 8 * len(dbpedia.test) / 2
    for wrong in (lambda: class_sets.load(data, "other"), lambda: class_sets.load(data / "none", "clinc150")):
        with pytest.raises(ValueError, match=r"set=.other.|data_full"):
            wrong()


def cell(arm, seed=0, rate=0.1):
    return {"base": "small", "set": "clinc150", "arm": arm, "tasks": None, "train": 4, "test": 2, "epochs": 2,
            "characters": 50, "seed": seed, "rate": rate, "stage": "test"}  # fmt: skip


def test_what_is_learned_and_asked(data, folder, monkeypatch):
    """An arm that knows the answers of all it was taught, and guesses the first label otherwise."""
    seen = {"learned": [], "asked": []}

    class Knows(classes.Gaussians):
        def learn(self, examples):
            seen["learned"].append(examples)
            self.known = {one.after for own in seen["learned"] for one in own}

        def classify(self, texts, labels):
            seen["asked"].append((list(texts), list(labels)))
            # Knows the classes of the last task alone: the name stands in the text.
            last = {one.after for one in seen["learned"][-1]} if seen["learned"] else set()
            return [next((c for c in last if c.strip().replace(" ", "_") in text), labels[0]) for text in texts]

        def cost(self):
            return {"tokens": 0, "flops": 0, "bytes": 0}

    monkeypatch.setitem(classes.SORTERS, "Gaussians", Knows)
    options = Options(bases=(folder,), data=data)
    scores = classes.run(cell("Gaussians"), options)
    found = scores["metrics"]["accuracy"]["matrix"]
    assert [len(task) for task in seen["learned"]] == [16, 16, 16]  # 2 classes of 4, twice
    assert sorted(x.text for x in seen["learned"][0][:8]) == sorted(x.text for x in seen["learned"][0][8:])
    assert all("train" in one.text for task in seen["learned"] for one in task)
    assert all(" test " in f" {text}" for texts, _ in seen["asked"] for text in texts)
    assert {len(labels) for _, labels in seen["asked"]} == {2, 4, 6}
    assert [row[i] for i, row in enumerate(found)] == [1.0, 1.0, 1.0] and found[0][1:] == [None, None]
    # Of earlier tasks the label that stands first is right by chance: that of the first class of the first task.
    assert found[2][1] == 0.0 and found[1][0] == found[2][0] == 0.5
    assert scores["majority"] == scores["chance"] == pytest.approx(1 / 6)
    seen["learned"].clear(), seen["asked"].clear()
    classes.run(cell("Gaussians", seed=TUNING_SEED), options)
    assert all(" val " in f" {text}" for texts, _ in seen["asked"] for text in texts), "rates see no text of the test"


def test_the_suite_from_plan_to_table(data, folder, tmp_path):
    options = Options(depth="quick", bases=(folder,), data=data, models=("frozen", "MLPs", "joint"))
    plan = classes.runs(options, [])
    assert [(run["arm"], run["rate"]) for run in plan] == [("frozen", 0.0), ("MLPs", 0.1), ("joint", 0.1)]
    records = [Record(run, classes.run(run, options), 1.0) for run in plan]
    assert [len(one.scores["metrics"]["accuracy"]["matrix"]) for one in records] == [3, 3, 1]
    first, raw = classes.table(records)
    rows = {row[1]: dict(zip(first.columns, row)) for row in first.rows}
    last = records[1].scores["metrics"]["accuracy"]["matrix"][-1]
    assert rows["MLPs"]["ACC"] == f"{100 * sum(last) / 3:.1f}" and rows["joint"]["BWT"] == "-"
    assert rows["frozen"]["TFLOP"] == "0.000" and float(rows["MLPs"]["MiB kept"]) > 0
    assert len(raw.rows) == 4 + 4 + 2 and {len(row) for row in raw.rows} == {len(raw.columns)}
    classes.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
    whole = classes.runs(Options(bases=(folder,), data=data, models=("frozen", "full")), [])
    assert {run["set"] for run in whole} == {"clinc150", "dbpedia", "banking77"}
    tuning = [run for run in whole if run["arm"] == "full"]
    assert {run["stage"] for run in tuning} == {"tune"} and len(tuning) == 3
    with pytest.raises(ValueError, match="--models nothing"):
        classes.runs(Options(bases=(folder,), data=data, models=("nothing",)), [])
