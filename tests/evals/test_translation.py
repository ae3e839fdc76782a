"""Two languages: what is learned and tested, and what is recovered, by hand."""

import json
import random
import zipfile

import pytest

from circadia.evals import pairs, translation
from circadia.evals.suite import Options, Record
from circadia.evals.tuning import TUNING_SEED

WORDS = ["sea", "ship", "old", "night", "king", "land", "water", "stone"]


@pytest.fixture
def data(tmp_path):
    """Two languages that spell English otherwise, Matthew and Jonah; and a zip as Kalamang's."""
    chance = random.Random(0)
    (tmp_path / "bible_pairs").mkdir()
    english = {f"{book}.{c}.{v}": " ".join(chance.choices(WORDS, k=4)) + f" {book} {c} {v}"
               for book, count in (("MAT", 28), ("JON", 4)) for c in range(1, count + 1) for v in (1, 2)}  # fmt: skip
    for name, turn in (("Manx-PART", str.upper), ("Potawatomi-PART", lambda text: text[::-1])):
        lines = [f"{verse}\t{text}\t{turn(text)}\n" for verse, text in english.items()]
        (tmp_path / "bible_pairs" / f"{name}.eng.tsv").write_text("".join(lines))
    rows = [{"kgv": f"kon {i}", "eng": f"fish {i}", "split": "test" if i % 5 == 0 else "train"} for i in range(60)]
    rows += [{"kgv": "kon 1", "eng": "again", "split": "train"}, {"kgv": "x", "eng": "fish 0", "split": "train"}]
    (tmp_path / "kalamang").mkdir()
    with zipfile.ZipFile(tmp_path / "kalamang" / "kalamang.zip", "w") as packed:
        packed.writestr("parallel.jsonl", "\n".join(map(json.dumps, rows)))
    return tmp_path


def test_no_english_of_a_test_is_learned(data):
    manx, pot = pairs.load(data, "Manx"), pairs.load(data, "Potawatomi")
    assert [len(part) for part in (manx.train, manx.valid, manx.test)] == [2 * 20, 2 * 4, 2 * 8]
    learned = {english for one in (manx, pot) for _, english in one.train + one.valid}
    assert not learned & {english for one in (manx, pot) for _, english in one.test}
    assert all("MAT 2" in english for _, english in manx.test) and manx.test[0][0] == manx.test[0][1].upper()
    kalamang = pairs.load(data, "Kalamang")
    learned = kalamang.train + kalamang.valid
    assert len(kalamang.test) == 12 and len(learned) == 48 and kalamang.valid
    assert not {english for _, english in learned} & {english for _, english in kalamang.test}
    with pytest.raises(ValueError, match="it has Manx, Potawatomi"):
        pairs.load(data, "Cherokee")
    (data / "bible_pairs" / "Cherokee-NT.eng.tsv").write_text("ACT.1.1\ta\tb\n")
    with pytest.raises(ValueError, match="Cherokee has no pairs to valid"):
        pairs.load(data, "Cherokee")


def cell(learned="both", seed=0, arm="MLPs", course="Manx Potawatomi"):
    return {"base": "small", "course": course, "learned": learned, "arm": arm, "train": 20, "test": 6, "written": 1,
            "epochs": 1, "seed": seed, "rate": 0.3, "stage": "test"}  # fmt: skip


def test_alone_is_the_beginning_of_both(data, folder, tmp_path):
    options = Options(bases=(folder,), data=data)
    records = [Record(run, translation.run(run, options), 1.0)
               for run in (cell(), cell("Manx"), cell("Potawatomi"), cell("both", arm="frozen"))]  # fmt: skip
    both, manx, pot, frozen = (one.scores["metrics"]["bits"] for one in records)
    assert manx["matrix"][0][0] == both["matrix"][0][0] != both["matrix"][1][0]
    assert manx["start"][0] == both["start"][0] == frozen["matrix"][1][0] and pot["start"][0] == both["start"][1]
    assert both["matrix"][1][1] < both["start"][1] - 0.2, "it has learned something"
    # Recovered, by hand.
    start, end, alone = both["start"][1], both["matrix"][1][1], pot["matrix"][0][0]
    assert translation.recovered(records[:3], "bits", "Potawatomi") == [pytest.approx((start - end) / (start - alone))]
    assert translation.recovered(records[:1], "bits", "Manx") == []
    tables = translation.table(records)
    row = dict(zip(tables[0].columns, tables[0].rows[0]))
    assert row["Potawatomi recovered, %"] == f"{100 * (start - end) / (start - alone):.1f}"
    assert (row["Manx alone"], row["Manx after both"]) == (f"{manx['matrix'][0][0]:.3f}", f"{both['matrix'][1][0]:.3f}")
    for one in tables:
        assert {len(row) for row in one.rows} == {len(one.columns)}
    assert len(tables[-1].rows) == 6  # before and after each language, of two arms
    translation.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


def test_rates_are_chosen_on_other_sentences_in_another_order(data, folder, monkeypatch):
    seen = {"asked": [], "learned": []}
    monkeypatch.setattr(translation, "scored", lambda arm, base, asked, n: seen["asked"].extend(asked) or {"bits": 1.0})
    monkeypatch.setattr(translation.arms, "make", lambda *given: arm)

    class Arm(translation.Arm):
        def __init__(self):
            self.learned, self.at_once = 0, False

        def learn(self, examples):
            seen["learned"].append(examples)

        def cost(self):
            return {}

    arm, options = Arm(), Options(bases=(folder,), data=data)
    for seed, first, chapters in ((TUNING_SEED, "Potawatomi", range(17, 21)), (0, "Manx", range(21, 29))):
        seen["asked"].clear(), seen["learned"].clear()
        scores = translation.run({**cell(seed=seed), "train": None}, options)
        asked = {int(one.after.split()[-2]) for one in seen["asked"]}
        learned = {int(one.after.split()[-2]) for one in seen["learned"][0] if "MAT" in one.after}
        assert scores["tasks"][0] == first and seen["learned"][0][0].before.startswith(first)
        assert asked <= set(chapters) and not asked & learned and max(learned) == (16 if seed else 20)


def test_the_plan_takes_the_rate_of_both_for_each_alone(data, folder):
    options = Options(bases=(folder,), data=data, models=("frozen", "MLPs"), seeds=1)
    plan = translation.runs(options, [])
    rates = (0.03, 0.1, 0.3)
    fields = [run for run in plan if run["stage"] == "tune" and run["course"] == "Kalamang Manx"]
    assert [run["rate"] for run in fields] == [0.03]
    done = [
        Record({**fields[0], "rate": rate}, {"metrics": {"bits": {"matrix": [[9.0, 9.0], [value, value]]}}}, 1.0)
        for rate, value in zip(rates, (3.0, 2.0, 2.5))
    ]
    plan = [run for run in translation.runs(options, done) if run["stage"] == "test" and run["arm"] == "MLPs"]
    assert [(run["learned"], run["rate"]) for run in plan] == [("both", 0.1), ("Kalamang", 0.1), ("Manx", 0.1)]


def test_chrf_is_sacrebleus() -> None:
    assert translation.chrf(["the sea"], ["the sea"]) == 1.0
    from sacrebleu import corpus_chrf

    assert translation.chrf(["the old sea", "a"], ["the sea", "b c"]) == pytest.approx(
        corpus_chrf(["the old sea", "a"], [["the sea", "b c"]]).score / 100
    )
