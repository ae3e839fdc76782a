"""The comparison of optimizers: every run once, the same grid for all, and a report of what is there."""

import gzip
import json
import lzma

import pytest
import torch
from PIL import Image

from benchmarks import optim, optim_cost, optim_tasks
from circadia.optim import groups


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "RATES", (0.003, 0.03))
    monkeypatch.setattr(optim, "DECAYS", (0.0,))


def lines(out):
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


def test_a_run_is_made_once(tmp_path, small, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    made = []
    train = optim.train
    monkeypatch.setattr(optim, "train", lambda *a: made.append(a[1:]) or train(*a))
    command = ["--optimizers", "AdamW; M3", "--steps", "4", "--seeds", "2", "--out", str(tmp_path)]
    assert optim.main([*command, "--budget-minutes", "0.0000001"]) == 0
    assert not made, "there was no time"
    assert optim.main(command) == 0
    # For each optimizer two rates on the tuning seed, and two seeds at the better one.
    assert [run[0] for run in made] == ["AdamW"] * 4 + ["M3"] * 4
    rows = lines(tmp_path)
    assert [row["seed"] for row in rows] == [optim.TUNING_SEED] * 2 + [0, 1] + [optim.TUNING_SEED] * 2 + [0, 1]
    better = min(rows[:2], key=lambda row: row["measured"]["valid"])
    assert rows[2]["lr"] == rows[3]["lr"] == better["lr"]
    assert rows[2]["measured"] != rows[3]["measured"], "seeds differ"
    kept = (tmp_path / "runs.jsonl").read_text()
    (tmp_path / "runs.jsonl").write_text(kept + '{"format": 1, "task": "dig')  # stopped in mid-line
    capsys.readouterr()
    assert optim.main(command) == 0
    assert len(made) == 8, "nothing is made again"
    text = capsys.readouterr().out
    assert "| AdamW | " in text and "| M3 | " in text and "tuned on one other seed" in text
    assert (tmp_path / "optim-digits.png").stat().st_size > 10_000
    assert "test accuracy" in (tmp_path / "optim.md").read_text()


@pytest.fixture
def told(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    """What is said about runs with these validation losses, by (rate, decay), and so many reported ones."""
    monkeypatch.setattr(optim, "RATES", (0.01, 0.03, 0.1, 0.3))
    monkeypatch.setattr(optim, "DECAYS", (0.0, 0.1))

    def tell(grid: dict[tuple[float, float], float | None], seeds: int = 0, best=(0.0, 0.0), *more: str) -> str:
        fixed = {"format": 1, "task": "digits", "model": "vit", "optimizer": "Muon", "marks": [], "seconds": 1.0}
        made = [(*cell, optim.TUNING_SEED, loss) for cell, loss in grid.items()]
        made += [(*best, seed, 1.5) for seed in range(seeds)]
        with (tmp_path / "runs.jsonl").open("w") as file:
            for lr, decay, seed, loss in made:
                setting = {"lr": lr, "weight_decay": decay, "seed": seed, "steps": 4, "curve": [1.0]}
                found = dict.fromkeys(("train", "valid", "test", "accuracy"), loss) if loss else None
                file.write(json.dumps({**fixed, **setting, "measured": found}) + "\n")
        command = ["--optimizers", "Muon", "--steps", "4", "--seeds", "2", "--budget-minutes", "0.0000001", *more]
        assert optim.main([*command, "--out", str(tmp_path)]) == 0
        return capsys.readouterr().out

    return tell


def test_what_is_missing_and_what_is_at_the_edge_is_said(told) -> None:
    rates = {(0.01, 0.0): 3.0, (0.03, 0.0): 2.0, (0.1, 0.0): 2.5, (0.3, 0.0): None}
    first = told({cell: loss for cell, loss in rates.items() if cell[0] > 0.01})
    assert "| Muon | missing: 1 or more runs of its grid |" in first and "**Not complete.**" in first
    assert "missing: 3 or more runs" in told(rates), "the other decay at 0.01, 0.03 and 0.1"
    tuned = {**rates, (0.01, 0.1): 3.0, (0.03, 0.1): 1.9, (0.1, 0.1): 2.5}
    assert "| Muon | missing: 2 of 2 seeds |" in told(tuned)
    some = told(tuned, 1, (0.03, 0.1))
    assert "| 1 (not all) |" in some and "Missing: Muon (1 of 2 seeds)" in some
    whole = told(tuned, 2, (0.03, 0.1))
    assert "| 1.500 ± 0.000 |" in whole and "| 0.03 | 0.1 | 2 |" in whole
    assert not any(word in whole for word in ("complete", "issing", "edge"))
    edge = {**rates, (0.3, 0.0): 1.0, (0.1, 0.1): 2.5, (0.3, 0.1): 2.5}
    assert "0.3 (edge of the grid)" in told(edge, 2, (0.3, 0.0))
    assert "so a better one may lie beyond: Muon." in told(edge, 2, (0.3, 0.0))
    assert "no run converged" in told(dict.fromkeys(rates)), "a grid of which every run diverged is complete"


def test_the_full_grid_wants_every_decay(told) -> None:
    tuned = {(lr, decay): 1 + abs(lr - 0.03) for lr in (0.01, 0.03, 0.1) for decay in (0.0, 0.1)} | {(0.3, 0.0): 2.0}
    assert "| 0.03 | 0 | 2 |" in told(tuned, 2, (0.03, 0.0))
    assert "missing: 1 or more runs of its grid" in told(tuned, 2, (0.03, 0.0), "--full")


def test_a_seed_makes_the_run(small) -> None:
    task = optim_tasks.Digits(None)
    first, again, other = (optim.train(task, "Muon", 0.01, 0.0, seed, 3)["measured"] for seed in (0, 0, 1))
    assert first == again != other


def test_a_run_that_diverges_is_kept_as_such() -> None:
    found = optim.train(optim_tasks.Digits(None), "SGD", 1e12, 0.0, 0, 20)
    assert found["measured"] is None and json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_all_train_the_same_matrices(name: str) -> None:
    """Rate and decay are of the hidden matrices; all else has the same rate under every optimizer."""
    model = optim_tasks.ViT()
    optimizer = optim.make(model, name, 0.07, 0.05, 0.002, 100)
    own = {id(p) for p in groups(model).matrices.values()}
    assert len(own) == 13
    for group in optimizer.param_groups:
        mine = {id(p) for p in group["params"]} <= own
        assert (group["lr"], group["weight_decay"]) == ((0.07, 0.05) if mine else (0.002, 0.0))
    if name == "M3":
        assert optimizer.param_groups[0]["periods"] == (1, 5)


def test_any_folder_of_images(tmp_path, small, capsys) -> None:
    """Dark and bright ones in two folders: the labels are those of the folders, so that it learns which is which."""
    for i in range(30):
        pixels = torch.randint(i % 2 * 128, i % 2 * 128 + 128, (9, 12, 3), dtype=torch.uint8).numpy()
        file = tmp_path / "pictures" / ("bright" if i % 2 else "dark") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    task = optim_tasks.Images(tmp_path / "pictures")
    assert {name: len(images) for name, (images, _) in task.parts.items()} == {"train": 21, "valid": 3, "test": 6}
    for images, labels in task.parts.values():
        assert images.shape[1:] == (16, 16)
        assert torch.equal((images.mean((1, 2)) < 0).long(), labels)
    command = ["--tasks", "images", "--optimizers", "AdamW", "--steps", "6", "--seeds", "1", "--out", str(tmp_path)]
    assert optim.main([*command, "--data", str(tmp_path / "pictures")]) == 0
    assert "## images: vit, pictures, 6 steps" in capsys.readouterr().out
    assert {row["model"] for row in lines(tmp_path)} == {"vit, pictures"}
    assert any(row["measured"]["accuracy"] == 1.0 for row in lines(tmp_path))
    file.write_bytes(b"no image")
    for folder, message in (("pictures", "29.png cannot be read as an image"), ("none", "there are no two folders")):
        with pytest.raises(SystemExit):
            optim.main([*command, "--data", str(tmp_path / folder)])
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.fixture
def data(tmp_path):
    (tmp_path / "novels").mkdir()
    with lzma.open(tmp_path / "novels" / "some.jsonl.xz", "wt") as file:
        for i in range(10):
            file.write(json.dumps({"text": chr(97 + i) * 400}) + "\n")
    (tmp_path / "domains").mkdir()
    for i, name in enumerate(("code_a", "law", "maths", "verse")):
        with gzip.open(tmp_path / "domains" / f"{name}.jsonl.gz", "wt") as file:
            file.write(json.dumps({"question": chr(97 + i) * 3000, "n": 3}) + "\n")
    return tmp_path


def test_books_are_held_out(data) -> None:
    text = optim_tasks.Novels(data).text
    assert set(text.valid.flatten().tolist()) == {ord("d")} and set(text.test.flatten().tolist()) == {ord("h")}
    assert not {ord("d"), ord("h")} & set(text.train.tolist()) and len(set(text.train.tolist())) == 8
    with pytest.raises(ValueError, match=r"there is no novels\*"):
        optim_tasks.Novels(data / "domains")


def test_domains_come_one_after_another(data, monkeypatch: pytest.MonkeyPatch) -> None:
    task = optim_tasks.Continual(data)
    assert list(task.domains) == ["code", "law", "maths", "verse"]
    seen = []
    monkeypatch.setattr(optim_tasks, "next_byte", lambda model, rows: seen.append(rows[0, 0].item()) or torch.zeros(()))
    for step in range(8):
        task.loss(None, step, 8, torch.Generator().manual_seed(0))
    assert seen == [97, 97, 98, 98, 99, 99, 100, 100] and task.marks(8) == [2, 4, 6]


def test_a_language_model_on_the_stream(data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim_tasks, "WINDOW", 16)
    monkeypatch.setattr(optim_tasks, "VALID_ROWS", 2)
    found = optim.train(optim_tasks.Continual(data), "M3", 0.003, 0.0, 0, 4)
    assert len(found["marks"]) == 3 and set(found["measured"]["test_domains"]) == {"code", "law", "maths", "verse"}
    assert found["measured"]["first"] == found["measured"]["test_domains"]["code"] < 5.7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--tasks", "digit"], "--tasks 'digit' is unknown: use any of digits,images,novels"),
        (["--optimizers", "Adam"], "--optimizers 'Adam' is unknown"),
        (["--tasks", "novels"], "--data None: there is no novels"),
        (["--steps", "0"], "is not a positive number"),
    ],
)
def test_wrong_options(tmp_path, wrong: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        optim.main([*wrong, "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_the_cost_of_a_step(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(optim_cost, "BLOCK", [(4, 4), (8, 4), (4, 8)])
    monkeypatch.setattr(optim_cost, "SMALL", [(4, 4)] * 3)
    monkeypatch.setattr(optim_cost, "PERIOD", 2)
    assert optim_cost.main(["--quick", "--reps", "1", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "optim_cost.json").read_text())
    held = found["bytes_per_parameter"]
    assert (held["torch Muon"], held["Muon"], held["AdaMuon"], held["AdamW"]) == (4, 4, 8, 8)
    assert held["M3"] == 20, "V, the fast momentum, and of the slow one its momentum, sum and orthogonal matrix"
    for result in found["results"]:
        assert result["ratios"] and not any("not_measured" in x for x in result["contestants"].values())
    assert "aim 1.1" in capsys.readouterr().out
