"""Every example runs as its first lines say, and does what it claims."""

import importlib.util
import os
import re
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


def test_learn_folder_reads_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("The key lies under the blue stone.\n" * 6)
    before, after = load("learn_folder").main(tmp_path, times=5)
    assert after < 0.5 * before and "The key lies under the blue stone" in capsys.readouterr().out
    assert (tmp_path / "learned.safetensors").stat().st_size > 1000


def test_learner_lives_and_forgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("learner").main(str(tmp_path))
    shown = capsys.readouterr().out
    assert shown.count("The vault opens with seven") == 1 and "under the blue stone" in shown


def test_a_night_binds_what_the_day_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("learner_sleep").main(str(tmp_path)) == (0, 2, 0)
    assert "6 windows of the journal into slowest" in capsys.readouterr().out


def test_m3_trains_in_the_trainer() -> None:
    losses = load("m3_trainer").main(20)
    assert losses[-1] < 2.0 < losses[0]


def test_a_custom_rule_withstands_wild_values() -> None:
    found = load("custom_rule").main()
    clean, wild = found["robust"]
    assert clean > 0.5 and wild > 0.9 * clean and found["deltanet"][1] < 0.5 * found["deltanet"][0]


def test_hope_from_scratch_copies() -> None:
    assert load("hope_from_scratch").main(60) > 0.5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft uses it still
def test_peft_reads_what_was_learned() -> None:
    assert load("export_peft").main() < 1e-4


def test_fsdp2_shards_over_two_processes() -> None:
    """By torchrun, as a user starts it; a byte costs 5.5 nats at the start."""
    alone = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, EXAMPLES / "fsdp2.py"], capture_output=True, text=True, check=False, env=alone, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(re.search(r"step 15: (\S+)", done.stdout)[1]) < 2.5
    held = [int(n.replace(",", "")) for n in re.findall(r"holds (\S+) of", done.stdout)]
    assert len(held) == 2 and all(0.4 * sum(held) < n < 0.6 * sum(held) for n in held)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
