"""Levels and how slow they are: the models that are compared, and both tasks from end to end."""

import random

import pytest

from circadia.evals import babi, levels, needles, networks
from circadia.evals.suite import Options, Record


@pytest.fixture
def data(tmp_path):
    for name in ("babi/en", "books"):
        (tmp_path / name).mkdir(parents=True)
    for part, names in (("train", ("Mary", "John", "Sandra", "Daniel")), ("test", ("Mary",))):
        found = "went" if part == "test" else "moved"
        lines = [
            f"1 {name} {found} to the {room}.\n2 Where is {name}?\t{room}\t1\n" for name in names for room in babi.ROOMS
        ]
        (tmp_path / f"babi/en/qa1_x_{part}.txt").write_text("".join(lines))
    for i in range(3):
        words = random.Random(i).choices([f"w{k}" for k in range(30)], k=4000)
        text = ". ".join(" ".join(words[at : at + 12]) for at in range(0, 4000, 12))
        (tmp_path / "books" / f"{i}.txt").write_text(text + ".")
    babi.load.cache_clear()
    needles.books.cache_clear()
    yield tmp_path
    babi.load.cache_clear()
    needles.books.cache_clear()


def test_what_is_compared(data):
    plan = levels.runs(Options(data=data), [])
    shapes = {(run["levels"], run["slowest"]): run["periods"] for run in plan}
    assert len(shapes) == 1 + 4 * 3 and {run["of"] for run in plan} == {levels.NEEDLE, levels.QA}
    assert shapes[0, 0] == [0] and shapes[1, 512] == [512] and shapes[4, 128] == [16, 32, 64, 128]
    assert len(plan) == 13 * 2 * 3 and {run["seed"] for run in plan} == {0, 1, 2}
    sizes = []
    for run in plan:
        shape = networks.Shape(500, width=run["width"], layers=run["layers"], **networks.levels(run))
        net = networks.build(run["model"], shape)
        assert list(net.config.periods) == run["periods"]
        sizes.append(networks.size("hope", shape, 64)["parameters"])
    assert max(sizes) < 1.02 * min(sizes)
    assert [run["levels"] for run in levels.runs(Options(data=data, depth="quick", models=("none",)), [])] == [0, 0]
    with pytest.raises(ValueError, match="--models hope: this suite offers none"):
        levels.runs(Options(data=data, models=("hope",)), [])


def test_from_end_to_end(data, tmp_path):
    options = Options(data=data, depth="quick", steps=4, models=("none", "2 levels"))
    plan = levels.runs(options, [])
    small = {"batch": 2, "strings": 4, "samples": 4, "words": 40, "length": 80, "trained": 64}
    plan = [{**run, **{key: value for key, value in small.items() if key in run}} for run in plan]
    assert [(run["of"], run["levels"]) for run in plan] == [
        (levels.NEEDLE, 0), (levels.NEEDLE, 2), (levels.QA, 0), (levels.QA, 2)
    ]  # fmt: skip
    records = [Record(run, levels.run(run, options), 0.0) for run in plan]
    assert all(list(one.scores["valid"]) == [levels.NEEDLE] for one in records[:2])
    # Four keys: a guess of one digit is right one time in ten.
    assert records[0].scores["chance"] == {levels.NEEDLE: pytest.approx(0.1)}
    needle, qa = levels.table(records)
    assert [row[:3] for row in needle.rows] == [("0", "-", "-"), ("2", "32", "16 32")]
    assert needle.columns[5:] == ("1x, %", "2x, %", "4x, %", "8x, %") and qa.columns[5:] == ("1.5x, %", "3x, %")
    for table, own in ((needle, records[:2]), (qa, records[2:])):
        for row, one in zip(table.rows, own):
            assert row[5:] == tuple(f"{100 * share:.1f}" for share in levels._shares(one).values())
    levels.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5_000
    assert levels.goal(records[0].scores) == records[0].scores["valid"][levels.NEEDLE]
    assert levels.goal(records[2].scores) == records[2].scores["valid"]
