"""The offline phase: what was learned awake is gone over, bound, moved into slower levels, and checked."""

from circadia.sleep.fit import Interrupted, Meter
from circadia.sleep.replay import Replay
from circadia.sleep.windows import Entry, Probe, Window

__all__ = ["Entry", "Interrupted", "Meter", "Probe", "Replay", "Window"]
