"""What a memory has learned, for programs that know nothing of it: a LoRA, a file of deltas, a merged model."""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from circadia.models.retrofit.state import State, key
from circadia.models.retrofit.wear import total, uninstall

if TYPE_CHECKING:
    from circadia.models.retrofit.model import RetrofitModel


def peft(model: "RetrofitModel", state: State, folder: Any) -> None:
    """Levels and slots side by side as one LoRA of their summed rank, with scaling 1: W + B A."""
    model.check(state)
    full = [i for i, level in enumerate(model.settings.levels) if level.capacity == "full"]
    if full:
        raise ValueError(
            f"level {full[0]} has capacity='full', which is no LoRA: export a delta or merge it, or retrofit with "
            "capacity='lowrank'"
        )
    _open(model, state, "no LoRA", "export")
    pairs = {name: model.pairs(state, name) for name in model.sites}
    ranks = {name: sum(pair.a.shape[0] for pair in found) for name, found in pairs.items()}
    if not any(ranks.values()):
        raise ValueError("state has no slot in use: there is nothing to export")
    rank = max(ranks.values())
    tensors = {}
    for name, found in pairs.items():
        outer, inner = model.sites[name].shape
        # One rank for all, as vLLM wants it: rows of zeros add nothing.
        a, b = torch.zeros(rank, inner), torch.zeros(outer, rank)
        if found:
            a[: ranks[name]] = torch.cat([pair.a.cpu().float() for pair in found])
            b[:, : ranks[name]] = torch.cat([pair.b.cpu().float() for pair in found], 1)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    matrices = [site.matrix for site in model.sites.values()]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.source or getattr(model.config, "name_or_path", "") or "",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "fan_in_fan_out": any(m is not None and m.transposed for m in matrices),
        "target_modules": sorted(model.sites),
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _open(model: "RetrofitModel", state: State, what: str, do: str) -> None:
    """A gated expert adds what its gate lets through, which another input changes; one that holds nothing adds 0."""
    for i, level in enumerate(model.settings.levels):
        if level.gate == "router" and any(bool(state[key(i, "b", s.name)].any()) for s in model.own[i]):
            raise ValueError(
                f"level {i} has gate='router': a gated expert is {what}, as its gate is another one for every token; "
                f"read with the state itself, or retrofit with gate='always' to {do} it"
            )


def deltas(model: "RetrofitModel", state: State) -> dict[str, Tensor]:
    """What is added to each parameter of the base, as the base stores it; only what is not zero."""
    model.check(state)
    _open(model, state, "no matrix", "add up")
    found = {}
    for name, site in model.sites.items():
        parts = [x for _, x in model.deltas(state, name)] + [b @ a for a, b, _ in model.pairs(state, name)]
        if parts and bool((whole := total(parts)).any()):
            matrix = site.matrix
            found[name if matrix is None else f"{name}.weight"] = whole if matrix is None else matrix.turned(whole)
    return found


def delta(model: "RetrofitModel", state: State, path: Any) -> None:
    """`deltas` as a safetensors file, with the base's fingerprint."""
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in deltas(model, state).items()}
    facts = {"format": "pt", "kind": "delta", "base": model.fingerprint(), "source": str(model.source or "")}
    safetensors.torch.save_file(tensors, path, facts)


@torch.no_grad()
def merge(model: "RetrofitModel", state: State) -> nn.Module:
    """A copy of the base with the memory in its weights. In few bits, what is smaller than their grain is lost."""
    for site in model.sites.values():
        if site.matrix is not None and not site.matrix.plain:
            raise ValueError(f"{site.name} is quantised and cannot take in a delta: merge into a base in float32")
    merged = copy.deepcopy(model.base)
    uninstall(merged)
    own = dict(merged.named_parameters())
    for name, x in deltas(model, state).items():
        own[name].copy_((own[name] + x).to(own[name].dtype))
    return merged.requires_grad_(True)
