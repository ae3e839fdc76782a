"""The README and the docs: code blocks run, links resolve, names exist."""

import html
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from circadia.cli import app
from circadia.evals import SUITES
from circadia.memory import RULES
from circadia.optim import OPTIMIZERS

ROOT = Path(__file__).parent.parent
OUTSIDE = {".venv", "runs", "site", "build", "node_modules"}
PAGES = sorted(p for p in ROOT.rglob("*.md") if not OUTSIDE & set(p.relative_to(ROOT).parts[:-1]))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(.*?)\n(.*?)^```", re.M | re.S)
MATHS = runpy.run_path(str(ROOT / "docs" / "maths.py"))
EQUATION = re.compile(r"(?<![\w$\\])\$(?=[^\s$])([^$\n]*?[^\s$])\$(?![\w$])")
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
    assert kinds <= {"python", "console", "yaml", "json", "sh", "text", "math", ""}, kinds
    for kind, block in FENCE.findall(page.read_text()):
        assert kind in ("python", "py") or not re.search(r"^(import|from) \w+", block, re.M), block


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page: Path) -> None:
    """Whatever stands at the begin of a line or in backticks as `circadia COMMAND`."""
    known = {c.name or c.callback.__name__ for c in app.registered_commands} | {g.name for g in app.registered_groups}
    for name in re.findall(r"(?:^|`|\$ |-m )circadia ([a-z]+)\b", page.read_text(), re.M):
        assert name in known, name


def test_every_suite_is_named() -> None:
    for page in ("README.md", "docs/evaluate.md"):
        text = (ROOT / page).read_text()
        assert [name for name in SUITES if f"`{name}`" not in text] == [], page


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
    reference = (tmp_path / "api.html").read_text()
    assert "Made by" in reference
    code = [html.unescape(text) for text in re.findall(r"<code>([^<]*)</code>", reference)]
    assert not [text for text in code if re.search(r"^[A-Za-z]+(_\S+)? (=|<-|-=|\+=) .*(_[a-z{]|grad|lr|\^)", text)]
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        # What a browser fetches by itself; links (<a href>) are followed by people.
        asked = re.findall(r'<(?:script|img|link|iframe|object)\b[^>]*?(?:src|href|data)="(?:https?:)?//[^"]*"', text)
        assert not [tag for tag in asked if 'rel="canonical"' not in tag], page.name
        shown = re.sub(r"<(pre|code|script)\b.*?</\1>", "", text, flags=re.S)
        assert "$$" not in shown and not EQUATION.search(re.sub(r"<[^>]+>", "", shown)), page.name
    for name, least in (("rules", 30), ("optimizers", 15), ("concepts", 5), ("api", 25)):
        assert (tmp_path / f"{name}.html").read_text().count("<math") >= least, name


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_equations_are_known(page: Path) -> None:
    """All of them can be rendered, and as TeX: a forge would set a name without a backslash as a product of letters."""
    pieces = EQUATION.findall(re.sub(r"`[^`\n]+`", "", prose(page)))
    pieces += [line for kind, block in FENCE.findall(page.read_text()) if kind == "math" for line in block.splitlines()]
    for piece in pieces:
        assert MATHS["mathml"](piece).startswith("<math>")
        bare = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", re.sub(r"\\(?:mathrm|text)\{[^}]*\}", "", piece))
        assert bare is None, (piece, bare)


@pytest.mark.parametrize(("page", "table"), [("rules", RULES), ("optimizers", OPTIMIZERS)], ids=["rules", "optimizers"])
def test_tables_have_the_equations_of_the_code(page: str, table: dict) -> None:
    """Rendered, the TeX of the page and the line that the command line prints are the same."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| \$(.*?)\$ \|", text, re.M))
    assert list(rows) == list(table)
    for name, tex in rows.items():
        shown, printed = MATHS["mathml"](tex), MATHS["mathml"](table[name].equation.partition("  (")[0])
        assert re.sub(r"<mspace[^>]*>", "", shown) == printed, name


def test_what_an_equation_is() -> None:
    """Both ways to write one; code that is none; what is not known is said, not guessed."""
    mathml = MATHS["mathml"]
    written = "<msubsup><mi>k</mi><mi>t</mi><mo>⊤</mo></msubsup>"
    assert mathml(r"k_t^\top") == mathml("k_t^T") == f"<math>{written}</math>"
    half = "<mfrac><mn>1</mn><mrow><mi>n</mi><mo>−</mo><mn>2</mn></mrow></mfrac>"
    assert mathml(r"\frac{1}{n - 2}") == f"<math>{half}</math>"
    assert mathml("W -= lr g'") == (
        "<math><mrow><mi>W</mi><mo>−=</mo><mi>lr</mi><msup><mi>g</mi><mo>′</mo></msup></mrow></math>"
    )
    assert MATHS["equation"]("W_t = W_{t-1}") and MATHS["equation"]("m <- a m")
    assert not any(map(MATHS["equation"], ("state = model.start()", 'erase="key"', "circadia.levels", "W_t")))
    for wrong, said in ((r"\oops", "oops"), ("a_{b", "too early"), ("weight_i", "weight"), ("x }", "}"), ("&", "&")):
        with pytest.raises(ValueError, match=re.escape(said)):
            mathml(wrong)


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
