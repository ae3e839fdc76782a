"""`circadia eval` from the command line, with the smallest real run."""

import json

from typer.testing import CliRunner

from circadia.cli import app
from circadia.evals import SUITES, formal


def run(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_quick_then_the_page(tmp_path, monkeypatch) -> None:
    for name, strings in (("TRAINING", 300), ("VALID", 16)):
        monkeypatch.setattr(formal, name, strings)
    formal.data.cache_clear()
    small = ("formal", "--quick", "--models", "linear,lstm", "--steps", 2, "--device", "cpu", "--out", tmp_path / "a")
    result = run(*small)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "a" / "formal.json").read_text())
    assert {one["run"]["model"] for one in found["runs"]} == {"linear", "lstm"} and found["left"] == 0
    assert {one["run"]["steps"] for one in found["runs"]} == {2}
    lines = (tmp_path / "a" / "runs.jsonl").read_text()
    assert run(*small).exit_code == 2, "there are runs in it already"
    assert run(*small, "--resume").exit_code == 0
    assert (tmp_path / "a" / "runs.jsonl").read_text() == lines, "nothing was left to do"
    page = tmp_path / "docs" / "results.md"
    result = run("report", "--results", tmp_path / "docs" / "results", "--to", page, "--add", tmp_path / "a")
    assert result.exit_code == 0, result.output
    row = next(one for one in found["runs"] if one["run"]["stage"] == "test" and one["run"]["model"] == "lstm")
    assert f"{100 * row['scores']['test']['Bin1']['answers']:.1f}" in page.read_text()


def test_the_list_shows_every_suite() -> None:
    result = run("list")
    assert result.exit_code == 0
    assert [name for name in SUITES if name not in result.output] == []
    one = run("list", "read")
    assert one.exit_code == 0 and "2 levels slow one keeps" in one.output and "domains" in one.output
    assert "2 levels slow one keeps" not in result.output and "default: " in one.output


def test_mistakes_are_one_line(tmp_path) -> None:
    for arguments, said in [
        (("nonsense",), "nonsense"),
        (("list", "nonsense"), "nonsense"),
        (("read", "--base", "bundled"), "give --data DIR"),
        (("formal", "--models", "gpt"), "gpt"),
        (("formal", "--quick", "--full"), "--quick"),
        (("formal", "--device", "toaster"), "toaster"),
        (("formal", "--threads", "0"), "--threads"),
        (("report", "--results", tmp_path), "no result"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.stderr
