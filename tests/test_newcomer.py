"""A newcomer's path: a clone in a folder with spaces, a home folder that cannot be written, no network.

What the README shows and what is short of it runs there as it is typed, one command after another in one process (the
imports are the larger part of a command's time), with `bundled` for `PATH_OR_HUB_ID` and small sizes.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATH = """
doctor
models
rules
optimizers
levels bundled --optimizer adamw --picture "my levels.svg"
retrofit bundled "my retrofit" --periods 64,512 --dry-run
retrofit bundled "my retrofit" --periods 64,512
train configs/smoke.yaml train.tokens=4_096 train.eval_every=2 train.save_every=2 model.config.hidden_size=16
train configs/smoke.yaml train.tokens=4_096 train.eval_every=2 train.save_every=2 model.config.hidden_size=16 --resume
train --preset hope/tiny --data README.md out="my run" --dry-run
tokenizer train README.md --out "my words" --size 300
learner new ana --base "my retrofit"
learner observe ana "my notes.txt"
learner ask ana "Where does Mira live?" --tokens 4
learner feedback ana {answer} --correction "Mira lives in Oslo."
learner status ana
learner sleep ana --set dreams=4 --set dream_length=16 --set replay.presentations=2
learner versions ana
learner rollback ana 1
learner forget ana --source "my notes.txt"
learner verify ana
chat
eval list
"""
TYPED = "Mira lives in Oslo.\n/why\n/levels\n/versions\n/forget\n"
DRIVER = """
import io, json, re, sys
from circadia.cli import app
lines, typed = json.load(sys.stdin)
answer = None
for line in lines:
    sys.stdin, shown, sys.stdout = io.StringIO(typed), sys.stdout, io.StringIO()
    code = app([word.replace("{answer}", str(answer)) for word in line], standalone_mode=False)
    said, sys.stdout = sys.stdout.getvalue(), shown
    found = re.search(r"\\[answer (\\d+),", said)
    answer = found[1] if found else answer
    print(json.dumps([line, code, said]), flush=True)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a command needs of a clone; compiled files too, so that they are not compiled again."""
    folder = tmp_path_factory.mktemp("a newcomer") / "circadia with spaces"
    for name in ("circadia", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "README.md", folder)
    (folder / "my notes.txt").write_text("Mira lives in Oslo, in the old house by the harbour. " * 12)
    return folder


def surroundings(clone: Path) -> dict[str, str]:
    """Nothing can be made below a file, not even by root; nobody listens at port 9."""
    home = clone.parent / "home"
    home.write_text("")
    set_here = ("CIRCADIA_", "HF_", "XDG_", "MPL", "TORCH", "TRITON", "PYTEST", "PYTHON")
    env = {name: text for name, text in os.environ.items() if not name.startswith(set_here)}
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        env |= {name: "http://127.0.0.1:9", name.upper(): "http://127.0.0.1:9"}
    (clone.parent / "temporary").mkdir(exist_ok=True)
    return env | {
        "HOME": str(home),
        "TMPDIR": str(clone.parent / "temporary"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(clone),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }


def test_a_newcomers_path(clone: Path) -> None:
    lines = [shlex.split(line) for line in PATH.strip().splitlines()]
    command, given = [sys.executable, "-c", DRIVER], json.dumps([lines, TYPED])
    done = subprocess.run(
        command, input=given, cwd=clone, env=surroundings(clone), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(" ".join(line), code) for line, code, _ in steps if code] == [], done.stderr[-3000:]
    said: dict[str, str] = {}
    for line, _, text in steps:
        name = " ".join(line[:2]) if line[0] in ("learner", "eval") else line[0]
        said[name] = said.get(name, "") + text
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    assert "set HF_HUB_CACHE to a folder that can be written" in said["doctor"]
    assert "memory 0 (full delta)  64 tokens" in said["retrofit"]
    assert re.search(r"my notes\.txt: \d+ tokens .* version 1", said["learner observe"], re.S)
    assert "learned" in said["learner sleep"] and "<- main" in said["learner versions"]
    assert "forgot" in said["learner forget"] and ": 0 faults" in said["learner verify"]
    assert "Mira" not in said["learner verify"] and "formal" in said["eval list"]
    assert "said again, it would cost" in said["chat"] and "forgot" in said["chat"]
    for name in ("my levels.svg", "my retrofit/retrofit.json", "my words/tokenizer.json", "store/store.db"):
        assert (clone / name).is_file(), name
    report = (clone / "runs" / "smoke" / "report.md").read_text()
    assert "loss.png" in report and (clone / "runs" / "smoke" / "loss.png").is_file()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train configs/smoke.yaml out=../home/run", r"out=\S+/home/run: .* choose a folder"),
        ("learner new ana --store ../home/store", r"home/store"),
        ("levels nobody/nothing", r"nobody/nothing"),
        ("learner ask nobody hello --store 'no store'", r"no store"),
    ],
)
def test_what_cannot_be_is_one_line(clone: Path, line: str, said: str, monkeypatch, capsys) -> None:
    """Where nothing can be written, where there is nothing, and where the network would be needed."""
    from typer.testing import CliRunner

    from circadia.cli import app

    for name, text in surroundings(clone).items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(clone)
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1 and re.search(said, result.stderr), result.stderr


def test_the_path_is_the_readmes() -> None:
    """Every command of the README but those that take longer, or need a second program."""
    first = r"((?:learner |eval |tokenizer )?[a-z]+)"
    named = set(re.findall(rf"(?:^|`)circadia {first}", (ROOT / "README.md").read_text(), re.M))
    walked = set(re.findall(rf"^{first}", PATH, re.M))
    groups = {name.split()[0] for name in walked if " " in name}
    elsewhere = {
        "demo",
        "serve",
        "key",
        *(name for name in named if name.startswith("eval ")),
    }
    assert len(named) > 15 and named - walked - groups <= elsewhere
