"""Every example runs as its first lines say, and does what it claims."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_memory_layer_learns_to_recall(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("memory_layer").main(200) > 0.8
    shown = capsys.readouterr().out
    assert "dgd" in shown and "initial states trained by AdamW" in shown


def test_chat_memory_goes_on_in_a_new_process() -> None:
    """As a user starts it: this process is in deterministic mode, which its child would not be."""
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / "chat_memory.py"], capture_output=True, text=True, check=False, env=alone
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("equal: True\n")


def test_hf_trainer_learns_and_logs_every_level(tmp_path: Path) -> None:
    """As a user starts it; the loss of bytes is under 4 bits after 20 steps, of 8 at the start."""
    alone = os.environ | {"OMP_NUM_THREADS": "1", "CIRCADIA_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, EXAMPLES / "hf_trainer.py"], capture_output=True, text=True, check=False, env=alone
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("step 20: ") and float(last.split()[2]) < 4.0
    for level in ("self_modifying", "cms-16", "cms-32"):
        assert f"'{level}/update'" in last and f"'{level}/surprise'" in last


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
