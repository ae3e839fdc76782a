"""The offline phase: what was learned awake is gone over, bound, moved into slower levels, and checked. See `sleep`."""

from circadia.sleep.dream import Dream, Dreaming, Task
from circadia.sleep.filter import Filter, Held
from circadia.sleep.fit import Interrupted, Meter
from circadia.sleep.fitted import fitted
from circadia.sleep.night import sleep
from circadia.sleep.pool import PoolFull
from circadia.sleep.presets import DEFAULT, PRESETS, preset
from circadia.sleep.rehearse import Rehearsal, anchored
from circadia.sleep.replay import Replay
from circadia.sleep.report import Report
from circadia.sleep.schedule import Schedule, due
from circadia.sleep.seed import Seeding
from circadia.sleep.settings import Settings
from circadia.sleep.windows import Entry, Probe, Window

__all__ = [
    "DEFAULT", "PRESETS", "Dream", "Dreaming", "Entry", "Filter", "Held", "Interrupted", "Meter", "PoolFull", "Probe",
    "Rehearsal", "Replay", "Report", "Schedule", "Seeding", "Settings", "Task", "Window", "anchored", "due", "fitted",
    "preset", "sleep",
]  # fmt: skip
