"""On disk: a folder with the settings, the base by reference or copied, and memories in safetensors files."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from circadia.files import write_whole
from circadia.models import memory_file
from circadia.models.bundled import located
from circadia.models.retrofit import build
from circadia.models.retrofit import state as states
from circadia.models.retrofit.settings import Settings
from circadia.models.retrofit.state import State

if TYPE_CHECKING:
    from circadia.models.retrofit.model import RetrofitModel

FORMAT = "circadia retrofit memory"
VERSION = 1
# Of a config: what changes neither what the weights compute nor their shapes.
FREE = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "auto_map"}
FREE |= {"_attn_implementation", "return_dict", "output_hidden_states", "output_attentions"}


def save(
    model: "RetrofitModel",
    folder: Any,
    *,
    state: State | None = None,
    base: str | None = None,
    state_dict: dict[str, Tensor] | None = None,
    max_shard_size: Any = None,
) -> None:
    """Write retrofit.json, memory.safetensors if a state is given, and the base.

    base        "reference": only its path and fingerprint; "copy": its weights too, into FOLDER/base. Default: a
                reference if the model was made from a path and its base never trained
    state_dict, max_shard_size   as for transformers' `save_pretrained`, for a model that is trained
    """
    if base not in (None, "reference", "copy"):
        raise ValueError(f"base={base!r} is unknown: use 'reference' or 'copy'")
    copied = base == "copy" or (base is None and (model.source is None or model.learned is not None))
    if not copied and model.source is None:
        raise ValueError("base='reference': this model was made from an object and knows no path; use base='copy'")
    if not copied and model.learned is not None:
        raise ValueError("base='reference': the base was adapted and is no longer what its path holds; use base='copy'")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if copied:
        own = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        if state_dict is not None:
            own["state_dict"] = {n.removeprefix("base."): x for n, x in state_dict.items() if n.startswith("base.")}
        with _quiet():
            model.base.save_pretrained(folder / "base", **own)  # type: ignore[operator]
    header = {
        "format": "circadia retrofit",
        "version": VERSION,
        "base": "base" if copied else str(model.source),
        "copied": copied,
        "dtype": str(next(iter(model.base.parameters())).dtype).removeprefix("torch."),
        "fingerprint": model.fingerprint(),
        "settings": model.settings.to_dict(),
        "learned": None if model.learned is None else {"first_order": model.learned.first_order},
    }
    if model.learned is not None:
        values = {n: x.detach().cpu().clone() for n, x in model.learned.state_dict().items()}
        safetensors.torch.save_file(values, folder / "learned.safetensors")
    if state is not None:
        save_state(model, state, folder / "memory.safetensors")
    write_whole(folder / "retrofit.json", json.dumps(header, indent=2).encode())


def load(folder: Any) -> "RetrofitModel":
    """The model that `save` wrote; its memory is read with `model.load_state(FOLDER / "memory.safetensors")`."""
    folder = Path(folder)
    header = build.settings_of(folder)
    if header.get("version") != VERSION:
        raise ValueError(f"{folder}: format version {header.get('version')!r}, this Circadia reads {VERSION}")
    source = str(folder / "base") if header["copied"] else header["base"]
    base = build.loaded(source, getattr(torch, header["dtype"]))
    made = _arranged(base, header, None if header["copied"] else source)
    if made.fingerprint() != header["fingerprint"]:
        raise ValueError(
            f"{folder}: the base at {source} is not the one that was retrofitted "
            f"(fingerprint {made.fingerprint()[:12]}, expected {header['fingerprint'][:12]}): put the old one back"
        )
    if header["learned"] is not None:
        made.adapting(header["learned"]["first_order"])
        assert made.learned is not None
        made.learned.load_state_dict(safetensors.torch.load_file(folder / "learned.safetensors"))
        made.learned.close(made)
    return made


def skeleton(folder: Path) -> "RetrofitModel":
    """The same without weights, on the meta device, to be looked at."""
    from transformers import AutoConfig, AutoModelForCausalLM

    header = build.settings_of(folder)
    config = AutoConfig.from_pretrained(str(folder / "base") if header["copied"] else located(header["base"]))
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, header["dtype"]))
    return _arranged(base, header, None)


def _arranged(base: Any, header: dict[str, Any], source: str | None) -> "RetrofitModel":
    settings = Settings.from_dict(header["settings"])
    return build.arranged(
        base, settings.levels, assign=settings.assign, layers=settings.layers, target=settings.target,
        chunk=settings.chunk, context=settings.context, seed=settings.seed, source=source,
    )  # fmt: skip


def load_weights(model: "RetrofitModel", folder: Path) -> None:
    """The weights of a saved retrofit into this one, in place: for a training run that goes on."""
    from safetensors import safe_open

    own = dict(model.base.named_parameters())
    for path in sorted((folder / "base").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name in own:
                    own[name].detach().copy_(file.get_tensor(name))
    if model.learned is not None:
        model.learned.load_state_dict(safetensors.torch.load_file(folder / "learned.safetensors"))


def save_state(model: "RetrofitModel", state: State, path: Any) -> None:
    """Write a memory; a kill at any moment leaves either the old file or the new one."""
    model.check(state)
    tensors = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in state.items()}
    header = {
        "format": FORMAT,
        "version": memory_file.VERSION,
        "base": model.fingerprint(),
        "settings": model.settings.to_dict(),
    }
    header["checksum"] = memory_file.checksum(header, tensors)
    content = safetensors.torch.save(tensors, {memory_file.KEY: json.dumps(header, sort_keys=True)})
    write_whole(Path(path), content)


def load_state(model: "RetrofitModel", path: Any) -> State:
    """A memory as it was, on the model's devices."""
    header, tensors = memory_file.read(Path(path), FORMAT)
    if header["base"] != model.fingerprint():
        raise ValueError(
            f"{path}: this memory belongs to the base {header['base'][:12]}, but this model's is "
            f"{model.fingerprint()[:12]}: load the base that it was learned on, or start a new memory"
        )
    theirs, ours = header["settings"], json.loads(json.dumps(model.settings.to_dict()))
    for name in ("chunk", "context", "target"):
        if theirs[name] != ours[name]:
            raise ValueError(f"{path}: {name}={theirs[name]!r} in this memory, {name}={ours[name]!r} in this model")
    if [level["period"] for level in theirs["levels"]] != [level["period"] for level in ours["levels"]]:
        raise ValueError(
            f"{path}: this memory has periods={[level['period'] for level in theirs['levels']]}, this model "
            f"{[level['period'] for level in ours['levels']]}: retrofit the base with the periods of the memory"
        )
    model.check(tensors)
    lacking = sorted(_names(model) - tensors.keys())
    if lacking:
        pairs = zip(theirs["levels"], ours["levels"])
        odd = [f"{n}={x!r}, here {n}={b[n]!r}" for a, b in pairs for n, x in a.items() if n in b and b[n] != x]
        raise ValueError(
            f"{path}: this memory has no {lacking[0]}: it was made with {odd[0] if odd else 'another assignment'}; "
            "retrofit the base with the settings of the memory"
        )
    where = {site.name: site.device for site in model.sites.values()}
    return {name: x.to(_device(name, where)) for name, x in tensors.items()}


def _names(model: "RetrofitModel") -> set[str]:
    """Of all entries of a state, from a start with matrices of one number."""
    small = [[replace(site, shape=(1,) * len(site.shape)) for site in own] for own in model.own]
    return set(states.start(model.settings.levels, small, model.settings.chunk, model.anchored, 0))


def _device(name: str, where: dict[str, torch.device]) -> torch.device:
    return where.get(name.rpartition("/")[2], torch.device("cpu"))


def fingerprint(base: nn.Module) -> str:
    """SHA-256 of what a base is: its config, and names, types, shapes and bytes of its weights."""
    config = {name: value for name, value in base.config.to_dict().items() if name not in FREE}  # type: ignore[union-attr,operator]
    found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for whole, tensor in sorted(base.state_dict().items()):
        for name, x in _stored(whole, tensor):
            if x.device.type == "meta":
                raise ValueError(f"{name} is on the meta device: load the weights of the base first")
            memory_file.digest(found, name, x)
    return found.hexdigest()


def _stored(name: str, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a quantised one is made of."""
    if not hasattr(x, "__tensor_flatten__"):
        yield name, x
        return
    for part in x.__tensor_flatten__()[0]:
        yield from _stored(f"{name}.{part}", getattr(x, part))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
