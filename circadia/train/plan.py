"""What a run would cost, before it starts: levels, parameters, operations, memory, and real steps by the clock."""

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
from circadia.models.measure import cost
from circadia.train import checkpoint, distributed
from circadia.train.config import TrainConfig
from circadia.train.loop import Place, Run

STEPS = 3  # by the clock, after one to warm up
PATIENCE = 20.0  # seconds after which one has to do


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
            console.print(Text(f"{name}: timing a few steps", "dim"))
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
    """Of a real step: the median of a few. The place is put back, so that the next stage starts where it would."""
    before, run.place = run.place, replace(run.place)
    found: list[float] = []
    for _ in range(1 + min(STEPS, run.now.steps)):
        begin = time.perf_counter()
        run.step()
        found.append(time.perf_counter() - begin)
        if len(found) > 1 and sum(found) > PATIENCE:
            break
    run.place = Place(stage=before.stage)
    return sorted(found[1:])[len(found[1:]) // 2]


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
        "speed": f"{now.train.batch * now.data.length / seconds:,.0f} tokens/s, {_duration(seconds * now.steps)}",
    }


def _peak(run: Run) -> int:
    """Bytes: of the device if it counts them, else of the whole process."""
    if run.world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(run.world.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
