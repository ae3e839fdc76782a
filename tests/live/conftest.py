"""Stores for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from circadia.live import Store


def state(seed: int, slow: int = 0) -> dict[str, torch.Tensor]:
    """Two levels; the slow one has a seed of its own."""
    fast, other = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1000 + slow)
    return {
        "fast/w": torch.randn(40, 30, generator=fast),
        "fast/clock": torch.tensor(seed),
        "slow/w": torch.randn(500, generator=other).bfloat16(),
    }


def raw(folder: Path) -> bytes:
    """Every byte of every file of a store."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with Store.open(folder) as found:
        found.create("ana", base="weights", config={"period": 512})
        yield found
