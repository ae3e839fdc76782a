"""The one-way import arrows between packages, and what stays lazy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# memory <- levels <- optim <- models <- {train, sleep} <- live <- {evals, serve, demo} <- cli
RANKS = [
    {"memory"},
    {"levels"},
    {"optim"},
    {"models"},  # after optim: the levels of a retrofit are written by its rules
    {"train", "sleep"},
    {"live"},
    {"evals", "serve", "demo"},
    {"cli"},
]
RANK = {package: rank for rank, packages in enumerate(RANKS) for package in packages}
TORCH_ALONE = {"memory", "levels", "optim"}  # so that a researcher can lift a file out
FILES = sorted((ROOT / "circadia").glob("*/**/*.py"))


def imported(source, package):
    """Absolute names of everything that the source of a module in `package` imports, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            # `from circadia import levels` imports a package, so the names count too.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def faults(source, own, package):
    """What a file of the top-level package `own` may not import."""
    for name in imported(source, package):
        parts = name.split(".")
        if parts[0] == "circadia":
            other = parts[1] if len(parts) > 1 else None
            if other in RANK and other != own and RANK[other] >= RANK[own]:
                yield name
        elif own in TORCH_ALONE and parts[0] != "torch" and parts[0] not in sys.stdlib_module_names:
            yield name


@pytest.mark.parametrize("path", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_imports_run_one_way(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert parts[1] in RANK, f"{parts[1]} has no place in the order of packages; add it to RANKS"
    assert list(faults(path.read_text(encoding="utf-8"), parts[1], ".".join(parts[:-1]))) == []


def test_the_check_finds_what_it_should():
    source = "import numpy\nfrom circadia import cli\nfrom ..memory import x\ndef f():\n    import circadia.live\n"
    assert list(faults(source, "levels", "circadia.levels")) == ["numpy", "circadia.cli", "circadia.live"]
    assert list(faults("from circadia.models import x", "optim", "circadia.optim")) == ["circadia.models.x"]
    assert list(faults("import transformers\nfrom circadia.memory import x", "models", "circadia.models")) == []


@pytest.mark.parametrize(
    "code",
    [
        "import circadia; dir(circadia)",
        "from typer.testing import CliRunner; from circadia.cli import app\n"
        "assert 'doctor' in CliRunner().invoke(app, ['--help']).output",
    ],
    ids=["import", "help"],
)
def test_torch_is_not_imported(code):
    code += "\nimport sys; heavy = {'torch', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)"
    code += "\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
