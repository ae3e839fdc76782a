"""Where a run stands."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Place:
    """How far a run is. A checkpoint holds all of it."""

    stage: int = 0
    step: int = 0  # whole steps over all stages, skipped ones included
    stage_step: int = 0
    micro: int = 0  # parts of the open step that are in the gradient already
    nats: float = 0.0  # their loss
    skipped: int = 0
    skipped_in_a_row: int = 0
    recent: list[float] = field(default_factory=list)
    evaluated: int = 0  # the step of the last evaluation
    best: float | None = None
    best_step: int = 0
    without_better: int = 0  # evaluations
    data: dict[str, Any] | None = None
