"""The configuration of every model: which mixer in which layer, how large, how its memories are run."""

from dataclasses import field
from itertools import pairwise
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from circadia.models.fields import check_ranges, check_rules, foreign, refuse_foreign, warn_foreign
from circadia.models.mixers.table import MIXERS

CHOICES = {
    "mlp_kind": ("swiglu", "gelu"),
    "cms_variant": ("sequential", "nested", "independent"),
    "cms_regime": ("context", "stream"),
    "cms_signal": ("local", "loss"),
    "cms_rates": ("fixed", "learned", "gated"),
    "cms_order": ("second", "first"),
}


@strict
class HopeConfig(PreTrainedConfig):
    """A stack of blocks, each a mixer followed by one or more levels of MLPs.

    ``mixers`` names the mixer of each layer; a shorter pattern is repeated, so that ["gated_deltanet",
    "sliding_attention"] gives an alternating hybrid. ``periods`` makes the MLPs of every block a continuum memory
    system: the tokens between two updates of each level, fastest first; 0, last, never learns after training.
    """

    model_type = "hope"

    vocab_size: int = 256
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None  # attention only; None: as many as heads
    intermediate_size: int | None = None  # of all levels; None: 8/3 of the hidden size, to a multiple of 16
    mixers: list[str] = field(default_factory=lambda: ["gated_deltanet"])
    chunk: int = 64  # tokens between two refreshes of a memory's gradient point; of matrix memories the parallel unit
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)  # {"self_modifying": {"inertia": True}}: see RULES
    memory_hidden: int | None = None  # hidden width of MLP memories; None: the width of a head
    conv_window: int = 4  # of the causal convolution before a memory
    sliding_window: int = 512  # tokens that sliding_attention sees, and the attention of titans_mag and titans_mal
    segment: int = 128  # tokens of a segment of titans_mac
    persistent_tokens: int = 4  # learned tokens before the sequence, of titans_mac, titans_mag and titans_mal
    rope_theta: float | int = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    periods: list[int] = field(default_factory=lambda: [0])
    widths: list[int] | None = None  # hidden width of each level; None: equal shares of intermediate_size
    mlp_kind: str = "swiglu"  # or "gelu"
    cms_variant: str = "sequential"  # "sequential" (70, 73), "nested" (72) or "independent" (74)
    cms_regime: str = "context"  # weights of each sequence's own; "stream": slow weights that an optimizer steps
    cms_signal: str = "local"  # predict the next token's input, chunk-parallel; "loss": the model's next-token loss
    cms_rates: str = "gated"  # learned, and by the token; "learned", "fixed"
    cms_rate: float = 0.3  # of the mean gradient (at most 1 long), at the beginning of training
    cms_decay: float = 0.01  # of what was learned, per update
    cms_order: str = "second"  # "first": outer gradients do not flow through the inner gradients' own weights
    cms_carry: bool = False  # do the levels keep what they learned over the borders of packed documents?
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

    @classmethod
    def preset(cls, architecture: str, size: str) -> "HopeConfig":
        """Each architecture in one line, at equal parameters: ``HopeConfig.preset("hope", "tiny")``."""
        from circadia.models.presets import preset  # which builds configs

        return preset(architecture, size)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def layer_mixers(self) -> list[str]:
        """The mixer of every layer."""
        return [self.mixers[i % len(self.mixers)] for i in range(self.num_hidden_layers)]

    @property
    def level_widths(self) -> list[int]:
        """The hidden width of every level."""
        if self.widths is not None:
            return self.widths
        assert self.intermediate_size is not None
        return [self.intermediate_size // len(self.periods)] * len(self.periods)

    @property
    def learns_from_loss(self) -> bool:
        """Is there a level that learns in context from the model's own next-token loss?"""
        return any(self.periods) and self.cms_regime == "context" and self.cms_signal == "loss"

    def _check_levels(self):
        """Periods, widths and the choices of the continuum memory system."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}")
        if not self.periods:
            raise ValueError("periods=[] is empty: give one for each level in tokens, or [0] for a plain MLP")
        if min(self.periods) < 0:
            raise ValueError(f"periods={self.periods}: must be at least 0 (0 never learns)")
        learning = [p for p in self.periods if p]
        if 0 in self.periods[:-1]:
            raise ValueError(f"periods={self.periods}: 0 (never learns) is the slowest level, put it last")
        for fast, slow in pairwise(learning):
            if slow < fast:
                raise ValueError(f"periods={self.periods} are in the wrong order: fastest first, {sorted(learning)}")
            if slow == fast:
                raise ValueError(f"periods={self.periods}: {fast} comes twice; make one level of them, twice as wide")
            if slow % fast:
                fix = max(slow - slow % fast, 2 * fast)
                raise ValueError(f"periods={self.periods}: {slow} is not a multiple of {fast}; use {fix}")
        if self.cms_regime == "context" and min(learning, default=2) < 2:
            raise ValueError("periods: 1 leaves no token to predict inside a period; use at least 2 in context")
        if self.widths is not None and len(self.widths) != len(self.periods):
            raise ValueError(f"widths={self.widths} and periods={self.periods}: give one width for each level")
        if min(self.level_widths) < 1:
            raise ValueError(
                f"widths={self.level_widths}: must be at least 1; raise intermediate_size={self.intermediate_size}"
            )
        for name, top in (("cms_rate", float("inf")), ("cms_decay", 1.0)):
            if not 0 <= getattr(self, name) <= top:
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 0 and {top}")

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
        check_ranges(self)
        if self.persistent_tokens < 0:
            raise ValueError(f"persistent_tokens={self.persistent_tokens}: must be at least 0")
        if not self.mixers:
            raise ValueError(f"mixers=[] is empty: name at least one of {', '.join(MIXERS)}")
        for mixer in self.mixers:
            if mixer not in MIXERS:
                raise ValueError(f"mixers: {mixer!r} is unknown; use {', '.join(MIXERS)}")
        check_rules(self.rules, {MIXERS[m].rule for m in self.mixers})
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
        if any(MIXERS[m].rotary for m in self.layer_mixers) and self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd: rotary positions need hidden_size / num_attention_heads even"
            )
        self._check_levels()
