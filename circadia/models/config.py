"""The configuration of every model: which mixer in which layer, how large, how its memories are run."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

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
    sliding_window: int = 512  # tokens that sliding_attention sees, and the attention of titans_mag and titans_mal
    segment: int = 128  # tokens of a segment of titans_mac
    persistent_tokens: int = 4  # learned tokens before the sequence, of titans_mac, titans_mag and titans_mal
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = -(-self.hidden_size * 8 // 48) * 16
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

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
            "segment",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.persistent_tokens < 0:
            raise ValueError(f"persistent_tokens={self.persistent_tokens}: must be at least 0")
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
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if any(MIXERS[m].rotary for m in self.layer_mixers) and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd: rotary positions need an even width of heads")
