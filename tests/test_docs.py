"""The README and the docs: code blocks run, links resolve, names exist."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from circadia.cli import app
from circadia.memory import RULES

ROOT = Path(__file__).parent.parent
OUTSIDE = {".venv", "runs", "site", "build", "node_modules"}
PAGES = sorted(p for p in ROOT.rglob("*.md") if not OUTSIDE & set(p.relative_to(ROOT).parts[:-1]))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(.*?)\n(.*?)^```", re.M | re.S)
BLOCKS = [(n, b) for n, page in zip(NAMES, PAGES) for kind, b in FENCE.findall(page.read_text()) if kind == "python"]


def prose(page: Path) -> str:
    """Without code blocks, where brackets are something else."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What a heading can be linked by."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(BLOCKS)])
def test_code_blocks_run(page: str, block: str, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {})
    shown = capsys.readouterr().out.strip()
    if page == "README.md":
        assert shown == "True" or float(shown) > 0.999


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_resolve(page: Path) -> None:
    """Without a network: files, pictures and headings. Other sites are named by https alone."""
    for target in re.findall(r"\]\(([^)\s]+)", prose(page)):
        file, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        found = page.parent / file if file else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_is_marked_by_what_it_is(page: Path) -> None:
    """Python is run above, or, as "py" where it needs a server, by tests/serve."""
    kinds = {kind for kind, _ in FENCE.findall(page.read_text())}
    kinds -= {"py"} if page.name == "serving.md" else set()
    assert kinds <= {"python", "console", "yaml", "json", "sh", "text", ""}, kinds
    for kind, block in FENCE.findall(page.read_text()):
        assert kind in ("python", "py") or not re.search(r"^(import|from) \w+", block, re.M), block


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page: Path) -> None:
    """Whatever stands at the begin of a line or in backticks as `circadia COMMAND`."""
    known = {c.name or c.callback.__name__ for c in app.registered_commands} | {g.name for g in app.registered_groups}
    for name in re.findall(r"(?:^|`|\$ |-m )circadia ([a-z]+)\b", page.read_text(), re.M):
        assert name in known, name


def test_the_site_holds_every_page() -> None:
    """Its pages are those of docs/, the README and the changelog; the pictures are what their script draws."""
    nav = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(nav) == sorted([*(p.name for p in (ROOT / "docs").glob("*.md")), "index.md", "changes.md"])
    drawn = runpy.run_path(str(ROOT / "docs" / "draw.py"))
    for name in ("levels", "rhythms", "sleep"):
        assert (ROOT / "docs" / f"concept-{name}.svg").read_text() == drawn[name]()


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a link that leads nowhere or a name that is not there ends it."""
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Made by" in (tmp_path / "api.html").read_text()
    asked = re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', (tmp_path / "index.html").read_text())
    assert not asked


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
