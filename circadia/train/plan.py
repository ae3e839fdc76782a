"""What a run would cost, before it starts: levels, parameters, operations, memory, a part of a step by the clock."""

import resource
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circadia.levels import levels
from circadia.levels.level import bytes_text, count_text
from circadia.models import HopeConfig
from circadia.models.measure import activation_bytes, cost
from circadia.train import checkpoint, distributed
from circadia.train.config import TrainConfig
from circadia.train.data import Batch
from circadia.train.loop import Run
from circadia.train.place import Place

PATIENCE = 8.0  # seconds that a part of a step may take to be timed whole


def plan(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Print it for every stage; returns the numbers of the last one. Nothing is written but the cache of tokens."""
    numbers: dict[str, Any] = {}
    with distributed.started(config.train.device) as world:
        if world.size > 1:
            raise ValueError("--dry-run measures one process: start it without torchrun")
        run = Run(config, None, world, None)
        total = 0.0
        for index, name in enumerate(config.names):
            run.open(index)
            console.print(Text(f"{name}: timing a part of a step", "dim"))
            seconds = _seconds(run)
            now = run.now
            total += seconds * now.steps
            numbers = _numbers(run, seconds)
            table = Table.grid(padding=(0, 3, 0, 0))
            for key, value in numbers.items():
                table.add_row(Text(key, "dim"), Text(value))
            view = levels(run.net, run.optimizer, tokens_per_step=now.train.batch * now.data.length)
            shown = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
            for column in ("level", "written every", "learns from", "size"):
                shown.add_column(column)
            for level in view.levels:
                every = level.period_text(view.tokens_per_step)
                shown.add_row(Text(level.name, "bold"), Text(every), Text(level.learns_from), Text(level.size_text()))
            console.print(Text(f"{name}: {now.model.preset or now.model.path}", "bold"), shown, "", table, "")
        console.print(f"estimated time: {_duration(total)}, without evaluations and checkpoints", highlight=False)
    return {**numbers, "seconds": total}


def _seconds(run: Run) -> float:
    """Of a real step, from the time of one of its parts: a whole one may take minutes on a laptop.

    One row warms up. Then all rows of a part are timed, if that does not take long, else one row again.
    """
    before, run.place = run.place, replace(run.place)
    run.learns = False
    batch, rows, parts = next(run.batches), run.micro, run.parts
    warm = _part(run, batch.part(0, 1))
    timed = 1 if warm * rows > PATIENCE else rows
    seconds = _part(run, batch.part(0, timed)) * rows / timed
    run.micro, run.parts = rows, parts
    run.place = Place(stage=before.stage)  # so that the next stage starts where it would
    return seconds * parts


def _part(run: Run, batch: Batch) -> float:
    """A whole step on these rows alone."""
    run.batch, run.micro, run.parts, run.caches = batch, len(batch), 1, {}
    begin = time.perf_counter()
    run.step()
    return time.perf_counter() - begin


def _numbers(run: Run, seconds: float) -> dict[str, str]:
    now, net = run.now, run.net
    parameters = list(net.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    held = checkpoint.optimizer_state(run.optimizer, {id(p): n for n, p in net.named_parameters()})[0].values()
    tokens = now.steps * now.train.batch * now.data.length
    count = sum(p.numel() for p in parameters)
    if isinstance(net.config, HopeConfig):
        forward, kind = cost(net.config, now.data.length).flops_per_token, "counted"
    else:
        forward, kind = 2 * count, "2 a parameter"
    times = 4 if now.train.checkpointing else 3  # a backward pass costs two forward passes
    return {
        "text": str(run.data),
        "parameters": f"{count:,}",
        "FLOPs": f"{count_text(forward)} a token forward ({kind}), {times * forward * tokens:.2e} in all",
        "tokens": f"{tokens:,} in {now.steps:,} steps of {now.train.batch} x {now.data.length}",
        "memory": f"weights {bytes_text(weights)}, gradients {bytes_text(weights)}, optimizer "
        f"{bytes_text(sum(x.numel() * x.element_size() for x in held))}; peak of the process {bytes_text(_peak(run))}",
        "a step": f"{run.parts} parts of {run.micro} rows" + _held(run),
        "speed": f"{now.train.batch * now.data.length / seconds:,.0f} tokens/s, {_duration(seconds * now.steps)}",
    }


def _held(run: Run) -> str:
    """What a part keeps for its backward pass."""
    config, now = run.net.config, run.now
    if not isinstance(config, HopeConfig):
        return ""
    row = activation_bytes(config, now.data.length, now.train.checkpointing)
    return f", activations {bytes_text(row * run.micro)} (counted)"


def _peak(run: Run) -> int:
    """Bytes: of the device if it counts them, else of the whole process."""
    if run.world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(run.world.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
