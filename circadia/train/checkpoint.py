"""Checkpoints: a folder that is there whole or not at all, without pickle, from which a run goes on bit for bit.

checkpoints/step-00000200/       the newest; step-00000200-0003 stands after 3 parts of step 201
    model/                       as `save_pretrained` leaves it (from many processes: dcp/, which holds all)
    optimizer.safetensors
    rest-0.safetensors           of process 0: random numbers, place in the data, carried memories, open gradients and
                                 what an optimizer has seen beside them
    state.json                   numbers
checkpoints/best-00000150/       the model with the lowest held-out loss, for from_pretrained
"""

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers.utils import logging

from circadia.files import sync
from circadia.optim import DGD
from circadia.train.distributed import World, like, whole

Tensors = dict[str, Tensor]


class Busy(ValueError):
    """Another process is training there."""


class Checkpoints:
    """Those of one run."""

    def __init__(self, run: Path, world: World) -> None:
        self.folder, self.world = run / "checkpoints", world
        if world.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".new-*"):  # of a process that was killed while it wrote
                shutil.rmtree(leftover)
        world.wait()

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        return max(self.folder.glob("step-*"), default=None, key=lambda path: _numbers(path.name))

    def best(self) -> Path | None:
        """The best model so far."""
        return max(self.folder.glob("best-*"), default=None, key=lambda path: _numbers(path.name))

    def save(self, name: str, write: Callable[[Path], None]) -> Path:
        """Write a folder in all processes, then show it at once and remove the ones before it of the same kind."""
        path = self.folder / name
        kind = name.partition("-")[0]
        temporary = self.folder / f".new-{name}"
        if self.world.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        self.world.wait()
        write(temporary)
        self.world.wait()
        if self.world.first:
            for file in temporary.rglob("*"):
                sync(file)
            sync(temporary)
            if not path.exists():  # it may, after a resume: then it holds the same
                temporary.rename(path)
            sync(self.folder)
            for old in self.folder.glob(f"{kind}-*"):
                if old != path:  # killed here, half of it stays until the next time; the newest is the one that counts
                    shutil.rmtree(old)
            shutil.rmtree(temporary, ignore_errors=True)
        self.world.wait()
        return path


def _numbers(name: str) -> list[int]:
    return [int(part) for part in name.split("-")[1:]]


def save_model(net: Any, folder: Path, world: World) -> None:
    """For from_pretrained, gathered from all processes."""
    weights = {name: whole(value) for name, value in net.state_dict().items()}
    if world.first:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            net.save_pretrained(folder, state_dict=weights, max_shard_size="1TB")
        finally:
            if shown:
                logging.enable_progress_bar()


def load_model(net: nn.Module, folder: Path) -> None:
    """The weights of `save_model` into parameters as they lie, sharded or not."""
    if callable(own_way := getattr(net, "load_weights", None)):  # a retrofit, whose base has a folder of its own
        own_way(folder)
        return
    values = load_file(folder / "model.safetensors")
    kept = [(name, own) for name, own in net.named_buffers() if name in values]  # others can be computed
    for name, own in [*net.named_parameters(), *kept]:
        value = values[name]
        own.detach().copy_(like(value, own) if isinstance(own, DTensor) else value)


def optimizer_state(optimizer: Optimizer, names: dict[int, str], prefix: str = "") -> tuple[Tensors, dict[str, Any]]:
    """What an optimizer remembers: tensors by the name of their parameter, and the numbers of parameters and groups."""
    tensors: Tensors = {}
    numbers: dict[str, Any] = {prefix + "groups": [_plain(group) for group in optimizer.param_groups]}
    for p, state in optimizer.state.items():
        for key, value in state.items():
            name = f"{prefix}{names[id(p)]}/{key}"
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                numbers[name] = value
    if isinstance(inner := getattr(optimizer, "inner", None), Optimizer):  # CMS around another one
        more, held = optimizer_state(inner, names, prefix + "inner/")
        tensors, numbers = {**tensors, **more}, {**numbers, **held}
    return tensors, numbers


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """What changes in a group is a number; the settings beside it come from the configuration."""
    return {key: value for key, value in group.items() if isinstance(value, (bool, int, float)) or value is None}


def restore_optimizer(
    optimizer: Optimizer, params: dict[str, Tensor], tensors: Tensors, numbers: dict[str, Any], prefix: str = ""
) -> None:
    """Take up what `optimizer_state` gave."""
    groups = numbers[prefix + "groups"]
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(f"the checkpoint has {len(groups)} groups of parameters, not {len(optimizer.param_groups)}")
    for group, saved in zip(optimizer.param_groups, groups):
        group.update(saved)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    for name, value in {**tensors, **numbers}.items():
        owner, _, key = name.removeprefix(prefix).rpartition("/")
        if not name.startswith(prefix) or owner not in params:
            continue
        p = params[owner]
        assert p in held
        if isinstance(value, Tensor):
            value = like(value, p.detach())
            value = value if key == "step" else value.to(p.device)
        optimizer.state[p][key] = value
    if isinstance(inner := getattr(optimizer, "inner", None), Optimizer):
        restore_optimizer(inner, params, tensors, numbers, prefix + "inner/")


def samples(optimizer: Optimizer) -> Tensors:
    """What DGD has seen since its last step, by layer: between parts of a step, or inside a period of CMS."""
    found: Tensors = {}
    for part in _watching(optimizer):
        names = {layer: name for name, layer in part.model.named_modules()}
        found |= {f"{names[layer]}/{what}": x for layer, sums in part.seen.items() for what, x in sums.items()}
    return found


def restore_samples(optimizer: Optimizer, tensors: Tensors) -> None:
    """Take up what `samples` gave."""
    for part in _watching(optimizer):
        layers: dict[str, Any] = dict(part.model.named_modules())
        for key, x in tensors.items():
            name, _, what = key.rpartition("/")
            part.seen.setdefault(layers[name], {})[what] = x.to(layers[name].weight.device)


def _watching(optimizer: Any) -> list[DGD]:
    inner = getattr(optimizer, "inner", optimizer)
    return [part for part in getattr(inner, "parts", [inner]) if isinstance(part, DGD)]


def random_state() -> tuple[Tensors, dict[str, Any]]:
    """Of torch, of the GPU, of numpy and of Python."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    tensors = {"random/torch": torch.get_rng_state(), "random/numpy": torch.from_numpy(np.array(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    return tensors, {"python": random.getstate(), "numpy": [kind, *rest]}


def restore_random(tensors: Tensors, numbers: dict[str, Any]) -> None:
    """Take up what `random_state` gave."""
    torch.set_rng_state(tensors["random/torch"])
    kind, *rest = numbers["numpy"]
    np.random.set_state((kind, tensors["random/numpy"].numpy().astype(np.uint32), *rest))
    version, words, gauss = numbers["python"]
    random.setstate((version, tuple(words), gauss))
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])


def save(
    folder: Path,
    net: nn.Module,
    optimizer: Optimizer,
    rest: Tensors,
    numbers: dict[str, Any],
    world: World,
) -> None:
    """Everything of a run into a folder; every process calls it."""
    names = {id(p): name for name, p in net.named_parameters()}
    tensors, held = optimizer_state(optimizer, names)
    chance, chances = random_state()
    if world.size == 1:
        save_model(net, folder / "model", world)
        save_file(_own(tensors), folder / "optimizer.safetensors")
    else:
        own = {f"model/{name}": p.detach() for name, p in net.named_parameters()}
        dcp.save(
            {**own, **{f"optimizer/{name}": value for name, value in tensors.items()}}, checkpoint_id=folder / "dcp"
        )
        if world.first:
            net.config.save_pretrained(folder / "model")  # type: ignore[union-attr, operator]
    save_file(_own({**rest, **chance}), folder / f"rest-{world.rank}.safetensors")
    if world.first:
        state = {**numbers, "optimizer": held, "random": chances, "processes": world.size}
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


def _own(tensors: Tensors) -> Tensors:
    """Safetensors wants memory that is not shared and lies in order."""
    return {name: value.detach().contiguous().clone() for name, value in tensors.items()}


def numbers_of(folder: Path) -> dict[str, Any]:
    """The numbers of a checkpoint."""
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def load(folder: Path, net: nn.Module, optimizer: Optimizer, world: World) -> Tensors:
    """Model, optimizer and random numbers from a checkpoint of any number of processes; returns the rest."""
    numbers = numbers_of(folder)
    params: dict[str, Tensor] = dict(net.named_parameters())
    with torch.no_grad():
        if (folder / "dcp").is_dir():
            tensors = _load_sharded(folder / "dcp", params)
        else:
            load_model(net, folder / "model")
            tensors = load_file(folder / "optimizer.safetensors")
        restore_optimizer(optimizer, params, tensors, numbers["optimizer"])
    same = numbers["processes"] == world.size
    rest = load_file(folder / f"rest-{world.rank if same else 0}.safetensors")
    if same:
        restore_random(rest, numbers["random"])
    return {name: value for name, value in rest.items() if not name.startswith("random/")}


def _load_sharded(folder: Path, params: dict[str, Tensor]) -> Tensors:
    """Weights in place; what the optimizer remembers in the layout that its parameter has now."""
    known = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    targets: dict[str, Any] = {f"model/{name}": p.detach() for name, p in params.items()}
    for name, entry in known.items():
        if name.startswith("optimizer/"):
            assert isinstance(entry, dcp.metadata.TensorStorageMetadata)
            owner = name.removeprefix("optimizer/").removeprefix("inner/").rpartition("/")[0]
            p = params[owner].detach()
            same = entry.size == p.shape and len(entry.size)
            kind = entry.properties.dtype
            targets[name] = torch.zeros_like(p, dtype=kind) if same else torch.zeros(entry.size, dtype=kind)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled"
        )  # one process may read what many wrote
        dcp.load(targets, checkpoint_id=folder)
    return {name.removeprefix("optimizer/"): value for name, value in targets.items() if name.startswith("optimizer/")}


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """One process group writes a run at a time; the operating system drops the lock with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(run / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"out={run}: another process is training there; stop it first") from error
        yield
