"""One thread per worker, and no luck with uninitialized memory."""

import pytest
import torch

torch.set_num_threads(1)
# Deterministic mode also fills torch.empty with NaN, so that a value nobody wrote is seen.
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
