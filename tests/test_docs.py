"""The README and the docs: code blocks run, links resolve, names exist."""

import re
from pathlib import Path

import pytest

from circadia.memory import RULES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(page.name, block) for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(BLOCKS)])
def test_code_blocks_run(page: str, block: str, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {})
    shown = capsys.readouterr().out.strip()
    if page == "README.md":
        assert shown == "True" or float(shown) > 0.999


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_named_tests_and_rules_exist() -> None:
    """docs/papers.md points to tests and rules by name."""
    text = (ROOT / "docs" / "papers.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in sources, name
    for name in re.findall(r"rules? `(\w+)`", text):
        assert name in RULES, name
    for name in RULES:
        family = name.split("_")[0]
        assert family in text or RULES[name].family == "self-modifying", name
