"""Timing in which a slow minute hits both sides.

A contest is a task and its contestants. Each repetition goes through all contests once and runs the contestants of one
right after another, in turns forwards and backwards; a ratio is taken within a repetition, and then the median of the
ratios. Warm-up is not counted.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch

ROOT = Path(__file__).resolve().parent.parent


class NotMeasured(Exception):
    """A contestant cannot take part, for the reason given."""


@dataclass(frozen=True)
class Contestant:
    """Something to time."""

    name: str
    run: Callable[[], object]
    warm: Callable[[], object] | None = None  # instead of one uncounted ``run``, where that would take long


@dataclass(frozen=True)
class Contest:
    """Contestants at one task. The first is ours: ratios say how many times as fast as each other one it is."""

    labels: dict[str, Any]
    contestants: list[Contestant]
    tokens: int  # of one run, over the whole batch
    every: int = 1  # takes part in every so many repetitions only
    absent: dict[str, str] = field(default_factory=dict)  # known beforehand not to take part: name -> reason


@dataclass
class Timing:
    """Of one contest: the seconds of every repetition, or why there are none."""

    seconds: dict[str, list[float]]
    failed: dict[str, str]


def measure(
    contests: Sequence[Contest],
    reps: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sync: Callable[[], None] = lambda: None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Run all contests; a contestant that fails is left out from then on and keeps no time."""
    timings = [Timing({c.name: [] for c in contest.contestants}, dict(contest.absent)) for contest in contests]

    def attempt(timing: Timing, name: str, run: Callable[[], object], count: bool) -> None:
        if name in timing.failed:
            return
        try:
            sync()
            begin = clock()
            out = run()
            sync()
            seconds = clock() - begin
            del out  # freed outside the clock
        except Exception as error:
            timing.failed[name] = reason(error)
            timing.seconds.pop(name)
            return
        if count:
            timing.seconds[name].append(seconds)

    for number, (contest, timing) in enumerate(zip(contests, timings)):
        progress(f"warming up {number + 1} of {len(contests)}")
        for c in contest.contestants:
            attempt(timing, c.name, c.warm or c.run, count=False)
    for rep in range(reps):
        gc.collect()
        for number, (contest, timing) in enumerate(zip(contests, timings)):
            progress(f"repetition {rep + 1} of {reps}, {number + 1} of {len(contests)}")
            if rep % contest.every:
                continue
            turn = -1 if rep // contest.every % 2 else 1
            for c in contest.contestants[::turn]:
                attempt(timing, c.name, c.run, count=True)
    return timings


def reason(error: BaseException) -> str:
    """One line about an exception: its first, and the next one where that only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said if isinstance(error, NotMeasured) else f"{type(error).__name__}: {said}"


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def result(contest: Contest, timing: Timing) -> dict[str, Any]:
    """All that is known of a contest, for the JSON file and the tables."""
    contestants: dict[str, Any] = {}
    for name, seconds in timing.seconds.items():
        known = spread(seconds)
        contestants[name] = {"seconds": seconds, **known, "tokens_per_second": contest.tokens / known["median"]}
    contestants |= {name: {"not_measured": why} for name, why in timing.failed.items()}
    ours = contest.contestants[0].name if contest.contestants else None
    ratios = {}
    for name, seconds in timing.seconds.items():
        if name != ours and ours in timing.seconds:
            each = [theirs / mine for theirs, mine in zip(seconds, timing.seconds[ours])]
            ratios[name] = {"each": each, **spread(each)}
    return {**contest.labels, "every": contest.every, "ours": ours, "contestants": contestants, "ratios": ratios}


def synchronizer(device: str) -> Callable[[], None]:
    """What waits until the device has done its work."""
    if torch.device(device).type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(torch.device(device))


def check_device(device: str) -> str:
    """The device's name, if it is there."""
    try:
        torch.empty(1, device=device)
    except Exception as error:
        raise ValueError(f"--device {device!r} cannot be used here ({reason(error)}): use cpu") from error
    return device


def machine(device: str, packages: Sequence[str] = ()) -> dict[str, Any]:
    """What the numbers were taken on."""
    versions = {name: _version(name) for name in ("torch", "numpy", *packages)}
    found: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len((_git("status", "--porcelain") or "").splitlines()),
    }
    if torch.device(device).type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


class Parser(argparse.ArgumentParser):
    """A mistake is one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def positive(text: str) -> int:
    """An argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number: give an integer of at least 1")
    return int(text)


def human(value: float, digits: int = 3) -> str:
    """A number for people."""
    if value >= 1e4:
        return f"{value / 1e3:,.0f}k"
    return f"{value:.0f}" if value >= 10**digits - 0.5 else f"{value:#.{digits}g}".rstrip(".")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name; where Linux does not tell, what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _git(*command: str) -> str | None:
    """Of the checkout that these files are in; None without git."""
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
