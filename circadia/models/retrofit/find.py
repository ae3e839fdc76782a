"""The decoder layers of a Hugging Face model and the matrices of their MLPs, found by structure and not by a list.

A decoder's layers are its longest ``nn.ModuleList`` whose parts hold an attention (or another mixer of tokens) and
linear maps beside it. Those linear maps are the MLP. Routers, gates of one output and experts that are stored as one
tensor are left alone, and what is left alone is said.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

MIXER = re.compile(r"attn|attention|mixer|mamba|conv|recurrent|rwkv|ssm|temporal", re.I)
MLP = re.compile(r"mlp|ffn|feed_?forward|^ff$|^levels\.levels|shared_expert", re.I)
EXPERTS = re.compile(r"(^|\.)experts$|moe", re.I)
SHARED = re.compile(r"shared_?(expert|mlp)s?(\.|$)", re.I)


@dataclass(frozen=True)
class Matrix:
    """One linear map of an MLP: y = W x, W [out, in], whatever way round the module stores it."""

    name: str  # of the module, in the base
    module: nn.Module
    shape: tuple[int, int]  # out, in
    transposed: bool  # stored as [in, out], as transformers' Conv1D does
    plain: bool  # a torch.nn.Linear or Conv1D with ordinary weights, not a quantised one

    @property
    def exact(self) -> bool:
        """Can base and delta be added into one float32 matrix?"""
        return self.plain and self.weight.dtype in (torch.float32, torch.float64)

    @property
    def weight(self) -> Tensor:
        found = self.module.weight
        assert isinstance(found, Tensor)
        return found

    def turned(self, x: Tensor) -> Tensor:
        """[out, in] to the way the module stores it, or back."""
        return x.mT if self.transposed else x


@dataclass
class Anatomy:
    """What a retrofit can write in, layer by layer."""

    layers: dict[int, list[Matrix]]
    count: int  # decoder layers in all
    left: dict[int, str] = field(default_factory=dict)  # layer -> what is not adapted there, and why


def anatomy(base: nn.Module) -> Anatomy:
    """The MLPs of a decoder, or a ValueError that says why it cannot be retrofitted."""
    kind = type(base).__name__
    config: Any = getattr(base, "config", None)
    if not isinstance(base, nn.Module) or config is None:
        raise ValueError(f"model is a {kind}: pass a Hugging Face causal language model, or its folder or Hub id")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"model is {kind}, an encoder with a decoder: only decoders of one stream can be retrofitted")
    causal = [m.is_causal for m in base.modules() if isinstance(getattr(m, "is_causal", None), bool)]
    able = getattr(base, "can_generate", lambda: False)()
    if not able or (causal and not any(causal)):
        why = "its attention looks both ways" if causal and not any(causal) else "it has no head to predict tokens"
        raise ValueError(f"model is {kind}, no causal language model ({why}): pass a decoder such as LlamaForCausalLM")
    if any(getattr(m, "learns", False) for m in base.modules() if type(m).__name__ == "Level"):
        raise ValueError(f"model is {kind} whose levels learn in context already: retrofit one with periods=[0]")
    lists = [(name, part) for name, part in base.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    stacks = [(name, part) for name, part in lists if all(_mixes(layer) for layer in part)]
    if not stacks:
        raise ValueError(f"model is {kind}: no list of decoder layers with attention or a memory was found in it")
    prefix, stack = max(stacks, key=lambda found: len(found[1]))
    found = Anatomy({}, len(stack))
    for i, layer in enumerate(stack):
        matrices, left = _mlp(layer, f"{prefix}.{i}")
        if matrices:
            found.layers[i] = matrices
        if left:
            found.left[i] = left
    if not found.layers:
        why = next(iter(found.left.values()), "its layers have no linear maps beside attention")
        raise ValueError(f"model is {kind}, which has no MLP to retrofit: {why}")
    return found


def positions(base: Any) -> int | None:
    """How many positions the base knows, if it is limited."""
    config = base.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    # A table of positions or rotations in our own models has no such limit, nor have recurrent ones.
    return limit if isinstance(limit, int) and limit > 0 else None


def _mixes(layer: nn.Module) -> bool:
    return any(MIXER.search(name.rpartition(".")[2]) for name, _ in layer.named_modules() if name)


def _mlp(layer: nn.Module, prefix: str) -> tuple[list[Matrix], str]:
    """Matrices of the MLP of a layer, and what was left alone."""
    beside = [(name, m) for name, m in _walk(layer) if name]
    experts = [name for name, m in beside if EXPERTS.search(name) or EXPERTS.search(type(m).__name__)]
    linear = [(name, *shape) for name, m in beside if (shape := linear_shape(m)) is not None]
    if experts:
        kept = [row for row in linear if SHARED.search(row[0])]
        left = f"the experts and the router of {prefix}.{experts[0]}: which expert a token meets is the base's choice"
    else:
        named = [row for row in linear if MLP.search(row[0])]
        kept, left = named or linear, ""
    modules = dict(beside)
    matrices = []
    for name, size, transposed, plain in kept:
        if size[0] > 1:  # a gate of one output is no memory
            matrices.append(Matrix(f"{prefix}.{name}", modules[name], size, transposed, plain))
    wide = {m.shape[1] for m in matrices} & {m.shape[0] for m in matrices}
    return (matrices if wide else []), left


def _walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules outside of what mixes tokens."""
    yield path, module
    for name, child in module.named_children():
        if not MIXER.search(name):
            yield from _walk(child, f"{path}.{name}" if path else name)


def linear_shape(module: nn.Module) -> tuple[tuple[int, int], bool, bool] | None:
    """(out, in), stored transposed?, plain weights? of a linear map; None for anything else."""
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        rows, columns = module.weight.shape  # type: ignore[misc]
        return (int(columns), int(rows)), True, True
    inner, outer = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not isinstance(inner, int) or not isinstance(outer, int):
        return None
    weight: Any = getattr(module, "weight", None)
    plain = isinstance(module, nn.Linear) and type(weight) in (nn.Parameter, Tensor)
    return (outer, inner), False, bool(plain and weight.is_floating_point() and weight.ndim == 2)
