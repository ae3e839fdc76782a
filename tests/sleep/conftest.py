"""Tiny models, and journals with something to learn."""

import pytest
import torch

from circadia.models.retrofit import retrofit
from circadia.sleep import Entry
from tests.models.retrofit.conftest import base_of, text


@pytest.fixture
def tiny():
    """`tiny(periods=[8, 16])`: a retrofit of a tiny Llama."""

    def make(periods=(8,), family="llama", seed=0, config=None, **settings):
        return retrofit(base_of(family, torch.float32, seed, **(config or {})), periods, **settings)

    return make


@pytest.fixture
def journal():
    """Entries of random tokens, from two sources."""
    return [Entry(text(40, seed=10 + i), source="ab"[i % 2], number=i + 1) for i in range(4)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)
