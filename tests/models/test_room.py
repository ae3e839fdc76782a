"""A model that does not fit is refused before anything is allocated."""

import resource
from pathlib import Path

import pytest
import torch

from circadia import machine
from circadia.models import HopeConfig, HopeForCausalLM, HopeModel, preset, room
from circadia.models.presets import ARCHITECTURES

HUGE = dict(hidden_size=1 << 17, num_hidden_layers=1000, num_attention_heads=1 << 10, vocab_size=1 << 20)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("tie", [True, False])
def test_what_is_needed_is_what_a_model_has(name: str, tie: bool) -> None:
    config = preset(name, "tiny")
    config.tie_word_embeddings = tie
    for cls, head in ((HopeForCausalLM, True), (HopeModel, False)):
        assert room.need(config, head) == sum(p.nbytes for p in cls(config).parameters())


def test_refused_one_byte_below() -> None:
    config = HopeConfig(mixers=["titans", "attention"])
    needed = room.need(config)
    room.check(config, available=needed)
    with pytest.raises(MemoryError) as error:
        room.check(config, available=needed - 1)
    message = str(error.value)
    assert f"needs {needed:,} bytes" in message and f"{needed // 4:,} parameters" in message
    assert f"cpu has {needed - 1:,} bytes" in message and "hidden_size=128" in message
    torch.set_default_dtype(torch.float16)
    try:
        room.check(config, available=needed // 2)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(machine.memory()[1] is None, reason="this system does not tell its memory")
@pytest.mark.parametrize("mixers", [["attention"], ["gated_deltanet", "sliding_attention"], ["self_modifying"]])
def test_hundreds_of_trillions_of_parameters(mixers: list[str]) -> None:
    """On this machine: refused in a moment, and nothing was allocated; the meta device takes it."""
    config = HopeConfig(**HUGE, mixers=mixers)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for cls in (HopeForCausalLM, HopeModel):
        with pytest.raises(
            MemoryError, match=r"this model needs [0-9,]{19,} bytes .* for [0-9,]{18,} parameters, but cpu"
        ):
            cls(config)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    with torch.device("meta"):
        HopeForCausalLM(HopeConfig(**HUGE | {"num_hidden_layers": 2}, mixers=mixers))


def fake(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal:       64000 kB\nMemAvailable:   50000 kB\n"


def test_available_memory_without_groups(tmp_path: Path) -> None:
    assert machine.memory(fake(tmp_path, {"proc/meminfo": MEMINFO}))[1] == 50000 * 1024
    assert machine.memory(tmp_path / "nowhere")[1] is None


def test_available_memory_in_groups_of_version_2(tmp_path: Path) -> None:
    """The tightest group counts; page cache that can be dropped is not in use; "max" is no limit."""
    top = "sys/fs/cgroup/"
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n", top + "a/b/memory.max": "max\n"}
    files |= {top + "a/memory.max": "30000000\n", top + "a/memory.current": "20000000\n"}
    files |= {top + "a/memory.stat": "anon 5\ninactive_file 4000000\n", top + "a/b/memory.current": "1\n"}
    assert machine.memory(fake(tmp_path, files)) == (30000000, 14000000)


@pytest.mark.parametrize("seen", ["/", "/docker/abc"], ids=["own namespace", "path of the host"])
def test_available_memory_in_groups_of_version_1(tmp_path: Path, seen: str) -> None:
    top = "sys/fs/cgroup/memory/"
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": f"5:cpu,cpuacct:/x\n4:memory:{seen}\n0::/\n"}
    files |= {top + "memory.limit_in_bytes": "9000000", top + "memory.usage_in_bytes": "8000000"}
    files |= {top + "memory.stat": "inactive_file 1\ntotal_inactive_file 500000\n"}
    assert machine.memory(fake(tmp_path, files)) == (9000000, 1500000)
