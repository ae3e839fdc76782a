"""One process or many, by torchrun: who we are, how the model is split, sums over all processes.

What is sharded are the slow weights. Fast weights are activations of a sequence, so inner updates stay on everywhere.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True)
class World:
    """The processes of a run, and the device of this one."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Does this process write the files?"""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        return self.rank, self.size

    def sum(self, *values: float | Tensor) -> list[float]:
        """Over all processes, the same bits in each."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.stack([torch.as_tensor(value, dtype=torch.float64).to(self.device) for value in values])
        dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def started(device: str) -> Iterator[World]:
    """The processes that torchrun has started, or this one alone."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", 0)) if size > 1 else None)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        if ours:
            dist.destroy_process_group()


def _device(name: str, local: int | None) -> torch.device:
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = "cpu" if found is None else found.type
    try:
        device = torch.device(name)
        if local is not None and device.type != "cpu" and device.index is None:
            device = torch.device(device.type, local)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"train.device={name!r} cannot be used here ({said}): use auto or cpu") from error
    return device


def blocks(net: nn.Module) -> list[nn.Module]:
    """The parts that are compiled, recomputed and sharded one by one."""
    names = set(getattr(net, "_no_split_modules", None) or ())
    return [part for part in net.modules() if type(part).__name__ in names]


def shard(net: nn.Module, parallel: str, world: World) -> nn.Module:
    """The model over all processes; what is called in the training step. `net` itself keeps its names."""
    if world.size == 1:
        return net
    if parallel == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        # A model whose memories write nothing in this stage leaves their learned rates without a gradient.
        return DistributedDataParallel(net, find_unused_parameters=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A block returns views as part of its state; nothing here changes a state in place, which is what this is about.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def accumulating(called: nn.Module, last: bool) -> Any:
    """The gradients of a step are averaged over the processes once, with its last part. (Sharded ones at every part:
    each process has room for its own shard only.)
    """
    from torch.nn.parallel import DistributedDataParallel

    return called.no_sync() if isinstance(called, DistributedDataParallel) and not last else nullcontext()


def like(value: Tensor, p: Tensor) -> Tensor:
    """A whole tensor with the layout of a parameter, in memory and over the processes; as it is where shapes differ."""
    if isinstance(value, DTensor):
        return value
    if value.shape != p.shape or not value.ndim:
        return value.clone()
    if isinstance(p, DTensor):
        return distribute_tensor(value.to(p.device), p.device_mesh, p.placements)
    return torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def whole(value: Tensor) -> Tensor:
    """All of a tensor; every process must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value
