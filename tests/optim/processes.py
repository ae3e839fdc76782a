"""What the processes of `test_sharded.py` do: real ones, so their functions stand in a module that can be imported."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from circadia.optim import (
    CMS,
    DGD,
    DMGD,
    M3,
    AdaMuon,
    DeltaMomentum,
    Muon,
    PreconditionedMomentum,
    build,
    muon,
    sharded,
)
from circadia.optim.orthogonalize import orthogonalize

STEPS, STOP = 7, 4  # trained, and saved in the middle of a period
MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "muon": lambda model: Muon(model.parameters(), lr=0.05),
    "adamuon": lambda model: AdaMuon(model.parameters(), lr=0.05),
    "m3": lambda model: M3(model.parameters(), lr=0.05, periods=(1, 3), weight_decay=0.1),
    "m3/literal": lambda model: M3(model.parameters(), lr=0.01, mode="literal", periods=(1, 3), betas=(0.9, 0.9)),
    "dgd": lambda model: DGD(model, lr=0.05, weight_decay=0.1),
    "delta_momentum": lambda model: DeltaMomentum(model.parameters(), lr=0.05),
    "preconditioned_momentum": lambda model: PreconditionedMomentum(model.parameters(), lr=0.01),
    "dmgd": lambda model: DMGD(model.parameters(), lr=0.05, hidden=5),
    "cms/adamw": lambda model: cms(model, torch.optim.AdamW, lr=0.01),
    "cms/m3": lambda model: cms(model, M3, lr=0.05, beta_v=None, periods=(1, 2)),
    "build/m3": lambda model: build(getattr(model, "module", model), "m3", lr=0.05, periods=(1, 3)),
}


def cms(model: nn.Module, make: Callable[..., torch.optim.Optimizer], **settings: Any) -> CMS:
    """Saved after four steps: one group's second period is open, and another one's first, so that it has no state."""
    params = list(model.parameters())
    groups = [(params[:1], 1), (params[1:4], 3), (params[4:], 5)]
    return CMS(make([{"params": held, "period": period} for held, period in groups], **settings))


SIDEWAYS = "mid.weight"  # cut by columns


class Odd(nn.Module):
    """Rows that two processes cannot share evenly, a single row, two of one shape, and a batch of matrices."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        for name, (m, n) in {"up": (7, 4), "down": (4, 7), "one": (1, 4), "mid": (7, 4), "out": (3, 7)}.items():
            layer = nn.Linear(n, m, bias=False)
            layer.weight.data.copy_(torch.randn(m, n, generator=g) * 0.5)
            setattr(self, name, layer)
        self.stack = nn.Parameter(torch.randn(3, 7, 7, generator=g) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).tanh() + self.one(x)
        h = h + self.mid(self.down(h).tanh())
        return self.out(h + (h @ self.stack).tanh().sum(0))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, rank: int = 0, world: int = 1):
    """Steps on a batch of which each process has its share."""
    for step in range(first, last):
        g = torch.Generator().manual_seed(100 + step)
        x, y = torch.randn(8, 4, generator=g), torch.randn(8, 3, generator=g)
        optimizer.zero_grad()
        share = slice(rank * 8 // world, (rank + 1) * 8 // world)
        (model(x[share]) - y[share]).square().mean().backward()
        optimizer.step()


def fsdp(world: int) -> Odd:
    model = Odd()
    sideways = model.get_parameter(SIDEWAYS)
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(1 if p is sideways else 0))
    return model


def wholes(model: nn.Module) -> list[Tensor]:
    return [sharded.whole(p.detach()).clone() for p in model.parameters()]


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=str(folder))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    weights, state = get_state_dict(model, optimizer)
    held = {"model": weights, "optimizer": state}
    dcp.load(held, checkpoint_id=str(folder))
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])


def everything(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """All at once: to start a process takes longer than what it does."""
    return {"layouts": layouts(rank, world), **trained(rank, world, folder)}


def trained(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Every optimizer under FSDP2 and under DDP: weights at the end, and what this process orthogonalised."""
    done: list[torch.Size] = []

    def counting(matrices: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        done.extend(x.shape for x in matrices)
        return orthogonalize(matrices, *args, **kwargs)

    muon.orthogonalize = counting
    found: dict[str, Any] = {}
    for name, make in MAKERS.items():
        model = fsdp(world)
        optimizer = make(model)
        train(model, optimizer, 0, 1, rank, world)
        first = [tuple(shape) for shape in done]
        train(model, optimizer, 1, STOP, rank, world)
        save(folder / name.replace("/", "-"), model, optimizer)
        train(model, optimizer, STOP, STEPS, rank, world)
        kept = sum(sharded.local(x).numel() for state in optimizer.state.values() for x in state.values())
        found[name] = {"fsdp": wholes(model), "first": first, "kept": kept}
        if name == "m3":
            again = fsdp(world)
            same = make(again)
            same.step = torch.compile(same.step, backend="aot_eager")  # type: ignore[method-assign]
            train(again, same, 0, STEPS, rank, world)
            found["compiled"] = wholes(again)
        copies = DistributedDataParallel(Odd())
        train(copies, make(copies), 0, STEPS, rank, world)
        found[name]["ddp"] = wholes(copies)
        done.clear()
    return found


def resumed(rank: int, world: int, folder: Path, names: list[str]) -> dict[str, list[Tensor]]:
    """What another number of processes has saved, taken up and trained to the end."""
    found = {}
    for name in names:
        model = fsdp(world)
        optimizer = MAKERS[name](model)
        load(folder / name.replace("/", "-"), model, optimizer)
        train(model, optimizer, STOP, STEPS, rank, world)
        found[name] = wholes(model)
    return found


def layouts(rank: int, world: int) -> dict[str, Any]:
    """`on_matrices` and `rescale` on every layout, against the whole; rank 0 says what differs."""
    meshes = {"line": init_device_mesh("cpu", (world,)), "copies": init_device_mesh("cpu", (world, 1))}
    if world == 4:
        meshes["square"] = init_device_mesh("cpu", (2, 2))
    found = {}
    for title, mesh in meshes.items():
        for cuts in [(Shard(0),), (Shard(1),), (Shard(2),), (Replicate(),)]:
            for other in (Replicate(), Shard(1)) if mesh.ndim == 2 else (None,):
                placements = [other, *cuts] if other is not None else list(cuts)
                shapes = [(5, 3, 4), (5, 3, 4), (2, 7, 3), (1, 4, 4)]
                g = torch.Generator().manual_seed(0)
                full = [torch.randn(shape, generator=g) for shape in shapes]
                params = [distribute_tensor(x, mesh, placements) for x in full]
                seen: list[int] = []

                def twice(matrices: list[Tensor], seen: list[int] = seen) -> list[Tensor]:
                    seen.append(len(matrices))
                    return orthogonalize(matrices)

                got = sharded.on_matrices(twice, [p.to_local() for p in params], params)
                whole = [sharded.whole(sharded.part_of(x, p)).clone() for x, p in zip(got, params)]
                sharded.rescale(got, params)
                size = [sharded.whole(sharded.part_of(x, p)).square().mean((1, 2)).sqrt() for x, p in zip(got, params)]
                gap = max((a - b).abs().max().item() for a, b in zip(whole, orthogonalize(full)))
                found[f"{title} {placements}"] = {
                    "gap": gap,
                    "rms": max((x - 0.2).abs().max().item() for x in size),
                    "worked_on": sum(seen),
                }
    return found


def _work(rank: int, world: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, timeout=timedelta(seconds=60), rank=rank, world_size=world)
    try:
        torch.save(function(rank, world, *args), folder / f"{function.__name__}-{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def together(folder: Path, function: Callable[..., Any], *args: Any, world: int = 2, seconds: float = 120) -> list[Any]:
    """What ``function(rank, world, *args)`` returns in each of several new processes, which end by themselves."""
    context = mp.start_processes(_work, (world, folder, function, args), nprocs=world, join=False, start_method="spawn")
    end = time.monotonic() + seconds
    try:
        while not context.join(timeout=1):
            if time.monotonic() > end:
                raise TimeoutError(f"{world} processes did not end within {seconds} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{function.__name__}-{rank}.pt", weights_only=False) for rank in range(world)]
