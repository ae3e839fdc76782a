"""The small benchmarks run from end to end, and their tables hold what they measured."""

import json

from benchmarks import cms_level, kv_recall, model_peers
from benchmarks.harness import NotMeasured


def test_cms_level(tmp_path, capsys) -> None:
    sizes = ["--widths", "8", "--periods", "4", "8", "--tokens", "32", "--batch", "1", "--reps", "2"]
    cms_level.main([*sizes, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "cms_level.json").read_text())["rows"]
    assert [(row["kind"], row["period"]) for row in rows] == [("gelu", 4), ("gelu", 8), ("swiglu", 4), ("swiglu", 8)]
    table = capsys.readouterr().out
    for row in rows:
        assert f"| {row['kind']} | 8 | {row['period']} | {row['ratios']['level']['median']:.2f} (" in table


def test_kv_recall(tmp_path) -> None:
    kv_recall.main(["--models", "hope", "--seeds", "1", "--steps", "2", "--sequences", "16", "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "kv_recall.json").read_text())
    assert 0 <= row["1500"] <= 1 and f"{row['1500']:.1%}" in (tmp_path / "kv_recall.md").read_text()
    tokens, wanted = kv_recall.sample(5, 30, kv_recall.torch.Generator().manual_seed(0), kv_recall.ASKED)
    assert tokens.shape == (5, 8 + 30 + 32)
    for row, asked in zip(tokens.tolist(), wanted.tolist()):  # what is asked for is what was written
        table = dict(zip(row[:8:2], row[1:8:2]))
        assert [table[key] for key in row[38::2]] == row[39::2] == asked and len(table) == 4
        assert min(row[8:38]) >= 32 and len(set(row[38:46:2])) == 4


def test_model_peers(tmp_path, capsys, monkeypatch) -> None:
    """A package that is missing is said to be missing; one that is there is timed beside ours."""

    def there(ids):
        return lambda: (ids.float() @ ids.float().mT).sum(), 7

    def missing(ids):
        raise NotMeasured("nowhere is not installed")

    monkeypatch.setattr(model_peers, "PAIRS", [("linear", there), ("linear", missing)])
    model_peers.main(["--tokens", "64", "--reps", "2", "--out", str(tmp_path)])
    first, second = json.loads((tmp_path / "model_peers.json").read_text())["rows"]
    assert first["their_parameters"] == 7 and first["ratios"]["there"]["median"] > 0
    assert second["ratios"] == {} and "not measured: nowhere is not installed" in capsys.readouterr().out
