"""Does the runs of a suite that are not done yet, and writes what is known."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from circadia.evals import record as records
from circadia.evals import report
from circadia.evals.suite import Options, Record, Run, Suite, key

RUNS = "runs.jsonl"


@dataclass(frozen=True)
class Outcome:
    """How far it came."""

    records: list[Record]  # of the runs that were asked for, in their order
    left: int  # runs that are known and not done
    stopped: int | None  # the signal that ended it


def evaluate(suite: Suite, options: Options, out: Path, *, resume: bool = False, console: Console) -> Outcome:
    """Do what is missing; an interrupt gives up the run that it hits, and keeps all before it."""
    lines = records.Lines(out / RUNS)
    known = {key(one.run): one for one in lines.read()}
    if known and not resume:
        raise ValueError(f"--out {out} holds {len(known)} finished runs: go on with --resume, or take another folder")
    plan = suite.runs(options, list(known.values()))
    stopped = None
    with _signals(), _progress(console) as bar:
        task = bar.add_task(suite.name, total=len(plan), now="")
        try:
            while todo := [run for run in plan if key(run) not in known]:
                for run in todo:
                    name = _short(run, plan)
                    bar.update(task, total=len(plan), completed=len(plan) - _left(plan, known), now=name)
                    one = _do(suite, run, options)
                    lines.add(one)
                    known[key(run)] = one
                    if not console.is_terminal:
                        console.print(f"{name}: {one.seconds:.1f} s", highlight=False, soft_wrap=True)
                plan = suite.runs(options, list(known.values()))
        except Interrupted as error:
            stopped = error.number
    found = [known[key(run)] for run in plan if key(run) in known]
    if found:
        report.write(suite, options, found, _left(plan, known), out)
    return Outcome(found, _left(plan, known), stopped)


def _do(suite: Suite, run: Run, options: Options) -> Record:
    began = time.perf_counter()
    # Through JSON, so that a record read back equals the one that was made.
    scores = json.loads(json.dumps(suite.run(run, options), allow_nan=False))
    return Record(run, scores, round(time.perf_counter() - began, 2), records.where(options.device))


def _left(plan: list[Run], known: dict[str, Record]) -> int:
    return sum(key(run) not in known for run in plan)


def _short(run: Run, plan: list[Run]) -> str:
    """What tells it from other runs."""
    differ = [name for name in run if len({str(other.get(name)) for other in plan}) > 1]
    return ", ".join(f"{run[n]}" if isinstance(run[n], str) else f"{n} {run[n]}" for n in differ) or "the only run"


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[now]}"))  # fmt: skip
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class Interrupted(Exception):
    """SIGINT or SIGTERM: raised where the run stands, since runs may be long and are done again whole."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
