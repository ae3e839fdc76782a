"""A live state as one safetensors file, apart from the base weights.

Tensors are named LAYER.NAME. The header's one entry, "circadia", is JSON: the version of the format, the architecture
and the base that the state belongs to, what is not a tensor, and a checksum over everything.
"""

import hashlib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from circadia.files import write_whole
from circadia.models.cache import HopeCache
from circadia.models.config import HopeConfig

if TYPE_CHECKING:
    from circadia.models.model import HopePreTrainedModel

VERSION = 1
KEY = "circadia"
FORMAT = "circadia memory"
# Fields of a config that change neither what a state means nor its shapes; every other one must be equal.
FREE = {"vocab_size", "initializer_range", "tie_word_embeddings", "use_cache"}
FREE |= {"bos_token_id", "eos_token_id", "pad_token_id"}


def save(model: "HopePreTrainedModel", path: str | os.PathLike, cache: HopeCache) -> None:
    """Write the cache; a kill at any moment leaves either the old file or the new one."""
    if not isinstance(cache, HopeCache):
        raise ValueError(f"cache is a {type(cache).__name__}: pass the HopeCache that the model has read into")
    layers = model.config.num_hidden_layers
    if len(cache.layers) != layers:
        raise ValueError(
            f"cache has {len(cache.layers)} layers, the model num_hidden_layers={layers}: "
            "pass a cache that this model has read into"
        )
    if not all(cache.states):
        raise ValueError("cache is empty: let the model read something with past_key_values=cache, use_cache=True")
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for i, state in enumerate(cache.states):
        for name, x in state.items():
            if isinstance(x, Tensor):
                # A copy each: learned starts are views of one parameter, which safetensors does not store.
                tensors[f"{i}.{name}"] = x.detach().cpu().clone(memory_format=torch.contiguous_format)
            elif x is None or isinstance(x, (bool, int, float, str)):
                plain[f"{i}.{name}"] = x
            else:
                raise ValueError(f"layer {i} holds {name!r}, a {type(x).__name__}: only tensors and numbers are saved")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": architecture(model),
        "base": fingerprint(model),
        "seen": [layer.seen for layer in cache.layers],
        "order": [list(state) for state in cache.states],  # of the entries: safetensors sorts them, rules count on it
        "plain": plain,
    }
    header["checksum"] = checksum(header, tensors)
    write_whole(Path(path), safetensors.torch.save(tensors, {KEY: json.dumps(header, sort_keys=True)}))


def load(model: "HopePreTrainedModel", path: str | os.PathLike, any_base: bool = False) -> HopeCache:
    """The cache as it was, on the model's device. ``any_base=True`` takes a memory that other weights have written."""
    header, tensors = read(Path(path), FORMAT)
    saved, own = header["architecture"], architecture(model)
    for name in [*own, *saved]:  # in the order of the config: what others follow from comes first
        theirs, ours = saved.get(name, "(no such field)"), own.get(name, "(no such field)")
        if theirs != ours:
            raise ValueError(
                f"{path}: {name}={theirs!r} in this memory, but {name}={ours!r} in this model: load it into a model "
                f"with {name}={theirs!r}, or start a new memory"
            )
    if not any_base and header["base"] != (base := fingerprint(model)):
        raise ValueError(
            f"{path}: this memory was written by base weights {header['base'][:12]}, but this model has {base[:12]}: "
            "load the weights it was written with, or pass any_base=True to read it with these"
        )
    cache = HopeCache(model.config.num_hidden_layers)
    values = {**{name: x.to(model.device) for name, x in tensors.items()}, **header["plain"]}
    for i, (layer, names) in enumerate(zip(cache.layers, header["order"])):
        layer.write({name: values[f"{i}.{name}"] for name in names}, header["seen"][i])
    return cache


def architecture(model: "HopePreTrainedModel") -> dict[str, Any]:
    """What decides whether a state fits: the config's own fields but for ``FREE``, and the type of the weights."""
    inherited = {f.name for f in fields(PreTrainedConfig)}
    names = [f.name for f in fields(HopeConfig) if f.name not in inherited | FREE]
    values = {name: getattr(model.config, name) for name in names} | {"mixers": model.config.layer_mixers}
    values["dtype"] = str(model.dtype).removeprefix("torch.")
    return json.loads(json.dumps(values))  # as a file gives it back: tuples as lists


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the weights that write memories: the stack without its head, names, types, shapes and bytes."""
    found = hashlib.sha256()
    base = getattr(model, "base_model", model)
    for name, x in sorted(base.state_dict().items()):
        if x.device.type == "meta":
            raise ValueError(f"{name} is on the meta device: load the weights before a memory is saved or loaded")
        digest(found, name, x)
    return found.hexdigest()


def digest(found: Any, name: str, x: Tensor) -> None:
    found.update(f"{name} {x.dtype} {tuple(x.shape)};".encode())
    found.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    rest = {name: x for name, x in header.items() if name != "checksum"}
    found = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        digest(found, name, x)
    return found.hexdigest()


def read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a whole and unchanged file."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give one that save_memory wrote")
    fix = "give a file that save_memory wrote, or its backup"
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            # Copies, because the file is mapped into memory and may be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no memory file ({error}): {fix}") from None
    if text is None:
        raise ValueError(f"{path} is a safetensors file but holds no memory, perhaps weights: {fix}")
    try:
        header = json.loads(text)
        version, stored = header["version"], header["checksum"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is damaged (its header cannot be read): {fix}") from None
    if header.get("format") != kind:
        raise ValueError(f"{path} holds a {header.get('format')!r}, not a {kind!r}: give a file of this kind of model")
    if version != VERSION:
        raise ValueError(
            f"{path}: format version {version!r}, this Circadia reads {VERSION}: use the Circadia that wrote it"
        )
    if stored != checksum(header, tensors):
        raise ValueError(f"{path} is damaged (its checksum does not fit its contents): {fix}")
    return header, tensors
