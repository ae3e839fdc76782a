"""Training of small models on synthetic tasks: the same for every model and every suite."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LOST = 20  # steps in a row without a finite gradient: then training has diverged


@dataclass(frozen=True)
class Recipe:
    """AdamW with a warm-up and a cosine down to a share of the rate."""

    steps: int
    rate: float
    warm: int = 50
    floor: float = 0.05
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    every: int = 100  # steps between two checks

    def at(self, step: int) -> float:
        """The rate in step 1, 2, ..."""
        rise = min(1.0, step / max(1, min(self.warm, self.steps // 4)))
        return self.rate * rise * (self.floor + (1 - self.floor) / 2 * (1 + math.cos(math.pi * step / self.steps)))


def fit(
    net: nn.Module, loss: Callable[[int], Tensor], recipe: Recipe, done: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Minimise ``loss(step)``; ``done`` may end it early.

    A step without a finite gradient is left out and counted.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.decay)
    began, last, skipped, lost, step = time.perf_counter(), math.nan, 0, 0, 0
    for step in range(1, recipe.steps + 1):
        optimizer.param_groups[0]["lr"] = recipe.at(step)
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)):
            optimizer.step()
            last, lost = value.item(), 0
        else:
            skipped, lost = skipped + 1, lost + 1
        if lost == LOST or (step % recipe.every == 0 and step < recipe.steps and done()):
            break
    return {
        "steps": step,
        "loss": last if math.isfinite(last) else None,
        "skipped": skipped,
        "diverged": lost == LOST,
        "train_seconds": round(time.perf_counter() - began, 2),
    }


def start(seed: int, device: str) -> torch.Generator:
    """Seed everything that a run draws: weights by torch's own numbers, data by the generator that is returned.

    States decay to denormal numbers, which are slow.
    """
    if torch.device(device).type == "cpu":
        torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)
