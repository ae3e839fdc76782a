"""Each architecture in one line, at equal parameters: ``preset("gated-deltanet", "tiny")``."""

import torch

from circadia.models.config import HopeConfig

ARCHITECTURES: dict[str, dict] = {
    "transformer++": {"mixers": ["attention"]},
    "samba": {"mixers": ["mamba2", "sliding_attention"]},
    "linear": {"mixers": ["linear"]},
    "retnet": {"mixers": ["retnet"]},
    "mamba2": {"mixers": ["mamba2"]},
    "deltanet": {"mixers": ["deltanet"]},
    "gated-deltanet": {"mixers": ["gated_deltanet"]},
    "ttt": {"mixers": ["ttt"], "chunk": 16},
    "dla": {"mixers": ["dla"], "chunk": 16},
    "titans-lmm": {"mixers": ["titans"], "chunk": 16},
    "titans-mac": {"mixers": ["titans_mac"], "chunk": 16},
    "titans-mag": {"mixers": ["titans_mag"], "chunk": 16},
    "titans-mal": {"mixers": ["titans_mal"], "chunk": 16},
    "lstm": {"mixers": ["lstm"]},
    "srwm": {"mixers": ["srwm"]},
}

# Width, blocks, heads, vocabulary. From 340m on the widths and depths of Miras (arXiv 2504.13173, Table 5) where it
# gives them; bytes below 30m, the 32,000 pieces of the papers' tokenizer from there on.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (128, 5, 4, 256),
    "small": (320, 8, 5, 256),
    "30m": (384, 10, 6, 32000),
    "100m": (640, 14, 10, 32000),
    "340m": (1024, 24, 16, 32000),
    "760m": (1536, 24, 16, 32000),
    "1.3b": (2048, 24, 32, 32000),
}


def preset(architecture: str, size: str) -> HopeConfig:
    """A configuration with as many parameters as transformer++ of that size, to the nearest 16 units of its MLPs."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is unknown: use one of {', '.join(ARCHITECTURES)}")
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown: use one of {', '.join(SIZES)}")
    width, blocks, heads, vocabulary = SIZES[size]
    shape = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads, "vocab_size": vocabulary}
    model = HopeConfig(**shape, **ARCHITECTURES["transformer++"])
    if architecture == "transformer++":
        return model
    config = HopeConfig(**shape, **ARCHITECTURES[architecture], intermediate_size=model.intermediate_size)
    assert config.intermediate_size is not None
    spare = count(model) - count(config)
    config.intermediate_size = max(16, config.intermediate_size + round(spare / (3 * width * blocks) / 16) * 16)
    return config


def count(config: HopeConfig) -> int:
    """Parameters, without allocating them; tied ones once."""
    from circadia.models.model import HopeForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in HopeForCausalLM(config).parameters())
