"""The configuration of every model: which mixer in which layer, how large, how its memories are run."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from circadia.models.fields import check_ranges, foreign, refuse_foreign, warn_foreign
from circadia.models.mixers.table import MIXERS


@strict
class HopeConfig(PreTrainedConfig):
    """A stack of blocks, each a mixer followed by a SwiGLU MLP.

    ``mixers`` names the mixer of each layer; a shorter pattern is repeated, so that ["gated_deltanet",
    "sliding_attention"] gives an alternating hybrid.
    """

    model_type = "hope"

    vocab_size: int = 256
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None  # attention only; None: as many as heads
    intermediate_size: int | None = None  # None: 8/3 of the hidden size, rounded up to a multiple of 16
    mixers: list[str] = field(default_factory=lambda: ["gated_deltanet"])
    chunk: int = 64  # tokens between two refreshes of a memory's gradient point; of matrix memories the parallel unit
    memory_hidden: int | None = None  # hidden width of MLP memories; None: the width of a head
    conv_window: int = 4  # of the causal convolution before a memory
    sliding_window: int = 512  # tokens that sliding_attention sees
    rope_theta: float | int = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        refuse_foreign(type(self), kwargs)
        if self.intermediate_size is None:
            self.intermediate_size = -(-self.hidden_size * 8 // 48) * 16
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Keys that a tool has added to a saved config are kept, with a warning: they decide nothing here."""
        extra = {name: config_dict[name] for name in foreign(cls, config_dict)}
        loaded = super().from_dict({n: x for n, x in config_dict.items() if n not in extra}, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, value in extra.items():
            setattr(config, name, value)
        warn_foreign(cls, extra)
        return loaded

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def layer_mixers(self) -> list[str]:
        """The mixer of every layer."""
        return [self.mixers[i % len(self.mixers)] for i in range(self.num_hidden_layers)]

    def validate_architecture(self):
        """Errors name the field, the value and the fix."""
        assert self.num_key_value_heads is not None
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "chunk",
            "conv_window",
            "sliding_window",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        check_ranges(self)
        if not self.mixers:
            raise ValueError(f"mixers=[] is empty: name at least one of {', '.join(MIXERS)}")
        for mixer in self.mixers:
            if mixer not in MIXERS:
                raise ValueError(f"mixers: {mixer!r} is unknown; use {', '.join(MIXERS)}")
        if len(self.mixers) > self.num_hidden_layers:
            raise ValueError(
                f"mixers has {len(self.mixers)} entries for num_hidden_layers={self.num_hidden_layers}: "
                "the pattern may be shorter than the stack, not longer"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}: "
                "make the width a multiple of the heads"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by "
                f"num_key_value_heads={self.num_key_value_heads}: queries share keys in equal groups"
            )
        if any(MIXERS[m].attention for m in self.layer_mixers) and self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd: rotary positions need hidden_size / num_attention_heads even"
            )
