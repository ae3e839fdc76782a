"""What is known about the memories inside modules: one table, `KINDS`, read from top to bottom.

A kind is recognised by the name of a class (or of one of its bases) and then by its structure, so that
neither transformers nor any other model library has to be imported, and copies of an architecture are
recognised too. To teach the view another module, add a row here, or give the module a method `levels_entry()`
(see `circadia.levels.view`).

Equation numbers are those of the Nested Learning paper, arXiv 2512.24695.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from circadia.levels.level import Level

Sizes = dict[str, Any]  # the fields of a Level that are measured on a module


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of memory module. `measure` returns its sizes, or None if the structure does not fit."""

    name: str
    classes: str  # regular expression that must match the whole class name
    measure: Callable[[nn.Module], Sizes | None]
    objective: str
    rule: str
    path: str = ""  # regular expression that the last part of the module's path must match, if given
    period: float = 1
    learns_from: str = "tokens"
    enters: str = "in context: every token writes its (k, v)"
    leaves: str = "read by later tokens; gone at the end of the sequence"

    def level(self, **sizes: Any) -> Level:
        """The level of one module of this kind; what was measured on it wins over the table."""
        known = ("name", "period", "learns_from", "objective", "rule", "enters", "leaves")
        return Level(**{**{field: getattr(self, field) for field in known}, **sizes})


# Attributes under which model libraries keep the same number.
_HEADS = ("num_heads", "num_attention_heads", "n_head", "n_heads", "nheads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_local_kv_heads", *_HEADS)
_HEAD_DIM = ("head_dim", "attention_head_size", "head_size", "headdim")
_WIDTH = ("embed_dim", "hidden_size", "n_embd", "d_model", "dim")
_KEYS = ("k_proj", "key", "k", "k_lin", "wk", "to_k", "key_proj")
_VALUES = ("v_proj", "value", "v", "v_lin", "wv", "to_v", "value_proj")
_FUSED = ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv", "W_pack", "in_proj")


def number(module: nn.Module, names: tuple[str, ...], config: bool = False) -> int | None:
    """The first of the names that is an integer on the module, or (if asked for) on its config."""
    for owner in (module, getattr(module, "config", None)) if config else (module,):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def item_size(module: nn.Module) -> int:
    """Bytes of one number of a state: states take the type of the activations, which is that of the weights.

    Weights stored in fewer than 16 bits are unpacked before use, so they do not count.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.element_size() >= 2:
            return parameter.element_size()
    dtype = getattr(getattr(module, "config", None), "dtype", None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else torch.get_default_dtype().itemsize


def _out_features(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for name in names:
        child = getattr(module, name, None)
        if isinstance(child, nn.Module):
            return number(child, ("out_features",))
    return None


def _kv_numbers(module: nn.Module) -> int | None:
    """How many numbers one token adds to the key/value cache of an attention module."""
    latent, rope = number(module, ("kv_lora_rank",)), number(module, ("qk_rope_head_dim",))
    if latent is not None and rope is not None:
        # Multi-head latent attention caches the compressed pair and the rotary key that all heads share.
        return latent + rope
    keys, values = _out_features(module, _KEYS), _out_features(module, _VALUES)
    if keys and values:
        return keys + values
    if not any(hasattr(module, name) for name in _FUSED):
        return None
    heads, kv_heads = number(module, _HEADS, config=True), number(module, _KV_HEADS, config=True)
    head_dim, width = number(module, _HEAD_DIM, config=True), number(module, _WIDTH, config=True)
    if head_dim is None and heads and width:
        head_dim = width // heads
    return 2 * kv_heads * head_dim if kv_heads and head_dim else None


def _window(module: nn.Module) -> int | None:
    """The number of tokens attention looks back, if it is bounded."""
    config, index = getattr(module, "config", None), number(module, ("layer_idx",))
    types = getattr(config, "layer_types", None)
    if types and index is not None and index < len(types):
        fields = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
        field = fields.get(types[index])
        return getattr(config, field, None) if field else None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return number(module, ("sliding_window",), config=True)


def _cache(module: nn.Module, window: int | None) -> Sizes | None:
    numbers = _kv_numbers(module)
    if numbers is None:
        return None
    per_token = numbers * item_size(module)
    return {"bytes_per_token": per_token, "state_bytes": per_token * (window or 0), "window": window}


def _full_attention(module: nn.Module) -> Sizes | None:
    return None if _window(module) else _cache(module, None)


def _sliding_attention(module: nn.Module) -> Sizes | None:
    window = _window(module)
    return _cache(module, window) if window else None


def _torch_attention(module: nn.Module) -> Sizes | None:
    # nn.MultiheadAttention projects keys and values to embed_dim, whatever kdim and vdim are.
    return {"bytes_per_token": 2 * module.embed_dim * item_size(module)}  # type: ignore[operator]


def _state(module: nn.Module, inputs: int, memory: int = 0) -> Sizes:
    """Bytes of kept inputs, in the activations' type, and of a memory, which libraries keep in float32."""
    size = item_size(module)
    return {"state_bytes": inputs * size + memory * max(size, 4)}


def _mamba(module: nn.Module) -> Sizes | None:
    state, kernel = (
        number(module, ("ssm_state_size", "d_state")),
        number(module, ("conv_kernel_size", "d_conv")),
    )
    inner = number(module, ("intermediate_size", "d_ssm", "d_inner"))
    if not (state and kernel and inner):
        return None
    return _state(module, inner * kernel, inner * state)


def _mamba2(module: nn.Module) -> Sizes | None:
    state, kernel = (
        number(module, ("ssm_state_size", "d_state")),
        number(module, ("conv_kernel_size", "d_conv")),
    )
    inner, groups = (
        number(module, ("intermediate_size", "d_ssm", "d_inner")),
        number(module, ("n_groups", "ngroups")),
    )
    heads, head_dim = number(module, ("num_heads", "nheads")), number(module, ("head_dim", "headdim"))
    if not (state and kernel and inner and groups and heads and head_dim):
        return None
    # The short convolution runs over x, B and C; the memory is one head_dim x state matrix a head.
    return _state(module, (inner + 2 * groups * state) * kernel, heads * head_dim * state)


def _matrix_memory(module: nn.Module) -> Sizes | None:
    """One matrix per head, as in DeltaNet and its relatives (transformers and flash-linear-attention)."""
    heads = number(module, ("num_v_heads", *_HEADS))
    keys, values = number(module, ("head_k_dim", *_HEAD_DIM)), number(module, ("head_v_dim", *_HEAD_DIM))
    if not (heads and keys and values):
        return None
    kernel = number(module, ("conv_kernel_size", "conv_size")) or 0
    if getattr(module, "use_short_conv", True) is False:
        kernel = 0
    key_dim, value_dim = (
        number(module, ("key_dim",)) or heads * keys,
        number(module, ("value_dim",)) or heads * values,
    )
    return _state(module, kernel * (2 * key_dim + value_dim), heads * keys * values)


def _rwkv(module: nn.Module) -> Sizes | None:
    # The last input of both token shifts; numerator, denominator and running maximum of the weighted average.
    width, inner = number(module, ("hidden_size",), config=True), number(module, ("attention_hidden_size",))
    return _state(module, 2 * width, 3 * inner) if width and inner else None


def _linear_recurrence(module: nn.Module) -> Sizes | None:
    width, kernel = number(module, ("lru_width",)), number(module, ("conv1d_width",))
    return _state(module, width * (kernel - 1), width) if width and kernel else None


def _mlstm(module: nn.Module) -> Sizes | None:
    keys, values = number(module, ("qk_dim",)), number(module, ("v_dim",))
    heads = number(module, _HEADS, config=True)
    # A matrix, a normaliser and a running maximum per head.
    return _state(module, keys * values // heads + keys + heads) if keys and values and heads else None


def _recurrent(module: nn.Module) -> Sizes | None:
    hidden = number(module, ("hidden_size",))
    if hidden is None:
        return None
    output = number(module, ("proj_size",)) or hidden
    copies = (number(module, ("num_layers",)) or 1) * (2 if getattr(module, "bidirectional", False) else 1)
    # Only an LSTM has a cell state beside its output.
    cell = hidden if any(base.__name__.startswith("LSTM") for base in type(module).__mro__) else 0
    return _state(module, copies * (output + cell))


def _short_convolution(module: nn.Module) -> Sizes | None:
    conv = getattr(module, "conv", module)
    return _state(module, conv.in_channels * math.prod(conv.kernel_size)) if isinstance(conv, nn.Conv1d) else None


def _running_statistics(module: nn.Module) -> Sizes | None:
    statistics = [part for part in (module.running_mean, module.running_var) if isinstance(part, torch.Tensor)]
    if not statistics:
        return None
    return {
        "state_bytes": sum(part.numel() * part.element_size() for part in statistics),
        "period": 1 if module.training else math.inf,
        "unit": "step",
        "shared": True,
        "note": "" if module.training else "the module is in eval mode, where the averages stand still",
    }


_ATTENTION = r".*(Attention|Attn)(Layer)?"
_SOFTMAX = "Nadaraya-Watson: min over M of Σ s(k_i, q) ‖v_i - M‖²"
_FULL = Kind(
    name="attention",
    classes=_ATTENTION,
    measure=_full_attention,
    period=0,
    objective=f"{_SOFTMAX} (eq. 62)",
    rule="closed form (softmax), nothing is iterated",
)
_ACROSS = replace(
    _FULL,
    name="cross-attention",
    path=r".*([Cc]ross|EncDec|encoder_attn|multihead_attn).*",
    learns_from="tokens of the encoder",
    enters="in context: the encoder's tokens write (k, v)",
)

KINDS: tuple[Kind, ...] = (
    Kind(
        name="Mamba2 memory",
        classes=r".*(Mamba|SSM|SSD).*|.*Mixer",
        measure=_mamba2,
        objective="dot product -⟨M k, v⟩ with k = B, v = Δx (eq. 64)",
        rule="gated Hebbian with decay: M = exp(ΔA) M + Δx Bᵀ",
    ),
    Kind(
        name="Mamba memory",
        classes=r".*(Mamba|SSM).*",
        measure=_mamba,
        objective="dot product -⟨M k, v⟩ per channel with k = B, v = Δx (eq. 64)",
        rule="gated Hebbian with decay: h = exp(ΔA) h + Δx B",
    ),
    Kind(
        name="gated delta memory",
        classes=r".*(Gated|Kimi).*Delta.*",
        measure=_matrix_memory,
        objective="L2 regression ‖M k - v‖² after a decay of M (eq. 65)",
        rule="gated delta rule: M = α M (I - β k kᵀ) + β v kᵀ",
    ),
    Kind(
        name="delta memory",
        classes=r".*Delta(Net|Product|Rule).*",
        measure=_matrix_memory,
        objective="L2 regression ‖M k - v‖² (eq. 65)",
        rule="delta rule: M = M (I - β k kᵀ) + β v kᵀ",
    ),
    Kind(
        name="gated linear attention",
        classes=r"GatedLinearAttention|.*LightningAttention|MultiScaleRetention",
        measure=_matrix_memory,
        objective="dot product -⟨M k, v⟩ with a decay of M (eq. 64)",
        rule="gated Hebbian: M = α M + v kᵀ",
    ),
    Kind(
        name="linear attention",
        classes=r"(Based|Causal|Chunk)?LinearAttention",
        measure=_matrix_memory,
        objective="dot product -⟨M k, v⟩ (eq. 14-18)",
        rule="Hebbian: M = M + v kᵀ",
    ),
    Kind(
        name="RWKV memory",
        classes=r"Rwkv.*Attention",
        measure=_rwkv,
        objective="average of the values with exponentially decaying weights",
        rule="numerator and denominator decay, then add exp(k) v and exp(k)",
    ),
    Kind(
        name="gated linear recurrence",
        classes=r"RecurrentGemma.*",
        measure=_linear_recurrence,
        objective="element-wise dot product -⟨h, i ⊙ x⟩ with a decay of h (as eq. 64)",
        rule="gated Hebbian, element-wise: h = a ⊙ h + √(1 - a²) ⊙ i ⊙ x",
        enters="in context: every token writes through the input gate",
    ),
    Kind(
        name="mLSTM memory",
        classes=r"(x|m)LSTMLayer",
        measure=_mlstm,
        objective="dot product -⟨M k, v⟩ with a decay of M (eq. 64)",
        rule="gated Hebbian: M = f M + i v kᵀ, read through a normaliser",
    ),
    Kind(
        name="LSTM state",
        classes=r"LSTM(Cell)?",
        measure=_recurrent,
        objective="element-wise dot product -⟨c, i ⊙ g⟩ with a forget gate on c (as eq. 64)",
        rule="gated Hebbian, element-wise: c = f ⊙ c + i ⊙ g",
        enters="in context: every token writes through the input gate",
    ),
    Kind(
        name="GRU state",
        classes=r"GRU(Cell)?",
        measure=_recurrent,
        objective="element-wise L2 regression ½‖h - n‖² on the candidate n",
        rule="one gradient step of size 1 - z: h = z ⊙ h + (1 - z) ⊙ n",
        enters="in context: every token writes through the update gate",
    ),
    Kind(
        name="RNN state",
        classes=r"RNN(Cell)?",
        measure=_recurrent,
        objective="none: the state is replaced, not fitted",
        rule="overwrite: h = tanh(W x + U h)",
        enters="in context: every token rewrites the state",
    ),
    Kind(
        name="short convolution",
        classes=r".*ShortConv(olution)?",
        measure=_short_convolution,
        objective="none: the last inputs are kept as they are",
        rule="first in, first out",
        enters="in context: every token is appended",
    ),
    Kind(
        name="batch statistics",
        classes=r"_BatchNorm",
        measure=_running_statistics,
        learns_from="activations of the batch",
        objective="running mean and variance",
        rule="exponential moving average",
        enters="at every forward pass in training mode",
        leaves="persistent; normalises in eval mode",
    ),
    replace(_ACROSS, classes="MultiheadAttention", measure=_torch_attention),
    replace(_FULL, classes="MultiheadAttention", measure=_torch_attention),
    _ACROSS,
    _FULL,
    replace(
        _FULL,
        name="sliding-window attention",
        measure=_sliding_attention,
        objective=f"{_SOFTMAX} over the last window (eq. 63)",
        leaves="read by later tokens; gone once it falls out of the window",
    ),
)


def describe(path: str, module: nn.Module) -> Level | None:
    """The memory that this very module is, or None if the table does not know one."""
    names = [base.__name__ for base in type(module).__mro__]
    last = path.rpartition(".")[2]
    for kind in KINDS:
        if not any(re.fullmatch(kind.classes, name) for name in names):
            continue
        if kind.path and not re.fullmatch(kind.path, last):
            continue
        sizes = kind.measure(module)
        if sizes is not None:
            return kind.level(**sizes)
    return None


def unknown_attention(module: nn.Module) -> Level | None:
    """Better than leaving it out: a level of unknown size for what is named attention but fits no row."""
    if not re.fullmatch(_ATTENTION, type(module).__name__) or next(module.parameters(), None) is None:
        return None
    note = f"the size of {type(module).__name__} is not known; give it a levels_entry() method"
    return _FULL.level(name="attention (size unknown)", note=note)
