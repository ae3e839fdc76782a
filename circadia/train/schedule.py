"""Learning rates over a run, as a pure function of the step: nothing to save, nothing to resume."""

import math


def scale(step: int, steps: int, kind: str, warmup: float, decay: float, floor: float) -> float:
    """The factor on lr in step 0, 1, ..., steps - 1.

    cosine    down to ``floor`` over all steps after the warm-up (Loshchilov and Hutter 2017, arXiv 1608.03983)
    wsd       warm-up, stable, then down in a straight line over the last ``decay`` of the steps (arXiv 2404.06395)
    constant  no decay
    """
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    if kind == "cosine":
        done = (step - rise) / max(1, steps - 1 - rise)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if kind == "wsd":
        fall = max(1, round(decay * steps))
        left = (steps - 1 - step) / fall if decay else 1.0
        return floor + (1 - floor) * min(1.0, left)
    return 1.0
