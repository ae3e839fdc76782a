"""Wrong settings fail at construction, each with the field, the value and the fix."""

from dataclasses import fields

import pytest
from transformers import AutoConfig, PreTrainedConfig

from circadia.models import HopeConfig
from circadia.models.config import CHOICES

AT_LEAST_ONE = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
AT_LEAST_ONE += ["intermediate_size", "chunk", "conv_window", "sliding_window", "memory_hidden", "segment"]
POSITIVE = ["rope_theta", "rms_norm_eps", "initializer_range"]
TOKENS = ["bos_token_id", "eos_token_id", "pad_token_id"]
FLAGS = ["tie_word_embeddings", "use_cache"]

BAD: list[tuple[dict, str]] = [
    *[({name: value}, f"{name}={value}: must be at least 1") for name in AT_LEAST_ONE for value in (0, -3)],
    *[({name: value}, f"{name}={value}: must be above 0") for name in POSITIVE for value in (0.0, -1.0, float("inf"))],
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan: must be above 0 and finite"),
    *[({name: value}, f"{name}={value}: must be from 0 to 255") for name in TOKENS for value in (256, -1)],
    ({"eos_token_id": [2, 300]}, r"eos_token_id=\[2, 300\]: must be from 0 to 255 for vocab_size=256"),
    ({"pad_token_id": 60, "vocab_size": 60}, "pad_token_id=60: must be from 0 to 59 for vocab_size=60, or None"),
    ({"mixers": ["deltanett"]}, "mixers: 'deltanett' is unknown; use attention, sliding_attention, linear"),
    ({"mixers": []}, r"mixers=\[\] is empty: name at least one of attention"),
    ({"mixers": ["linear"] * 5}, "mixers has 5 entries for num_hidden_layers=4: the pattern may be shorter"),
    (
        {"num_attention_heads": 3},
        "hidden_size=128 is not divisible by num_attention_heads=3: make the width a multiple",
    ),
    ({"num_key_value_heads": 3}, "num_attention_heads=4 is not divisible by num_key_value_heads=3: queries share"),
    ({"num_key_value_heads": 8}, "num_attention_heads=4 is not divisible by num_key_value_heads=8"),
    ({"hidden_size": 12, "mixers": ["attention"]}, "head_dim=3 is odd: rotary positions need .* even"),
    ({"hidden_size": 12, "mixers": ["linear", "sliding_attention"]}, "head_dim=3 is odd"),
    ({"periods": [64, 16]}, r"periods=.* wrong order: fastest first, \[16, 64\]"),
    ({"periods": [64, 64]}, "periods=.*: 64 comes twice; make one level of them"),
    ({"periods": [64, 100]}, "periods=.*: 100 is not a multiple of 64; use 128"),
    ({"periods": [0, 64]}, r"periods=.*: 0 \(never learns\) is the slowest level, put it last"),
    ({"periods": [-1]}, r"periods=\[-1\]: must be at least 0"),
    ({"periods": [1]}, "periods: 1 leaves no token to predict"),
    ({"periods": []}, r"periods=\[\] is empty"),
    ({"widths": [64], "periods": [8, 0]}, "give one width for each level"),
    ({"intermediate_size": 1, "periods": [8, 0]}, "must be at least 1; raise intermediate_size=1"),
    *[({name: "chained"}, f"{name}='chained' is unknown; use one of") for name in CHOICES],
    ({"persistent_tokens": -1}, "persistent_tokens=-1: must be at least 0"),
    ({"cms_rate": -0.1}, "cms_rate=-0.1: must lie between 0 and inf"),
    ({"cms_decay": 1.5}, "cms_decay=1.5: must lie between 0 and 1.0"),
    ({"cms_carry": "four"}, "'cms_carry'"),
    ({"rules": {"titans": {}}}, "rules: no mixer of this model writes by 'titans'; use one of gated_deltanet"),
    ({"rules": {"gated_deltanet": {"decay": 1}}}, r"rules\.gated_deltanet\.decay is unknown; use one of"),
    ({"rules": {"self_modifying": {"static": ["w"]}}, "mixers": ["self_modifying"]}, "static='w' is unknown"),
    (
        {"rules": {"titans": {"clip": "1"}}, "mixers": ["titans"]},
        r"rules\.titans\.clip='1': input should be a valid num",
    ),
    (
        {"rules": {"self_modifying": {"static": "k"}}, "mixers": ["self_modifying"]},
        r"static='k': input should be a .*tup",
    ),
    ({"rules": [3]}, "'rules'"),
    ({"dropout": 0.1}, "dropout=0.1: HopeConfig has no such field: leave it out"),
    ({"hiden_size": 64}, "hiden_size=64: HopeConfig has no such field: did you mean hidden_size"),
    ({"num_layers": 2}, "num_layers=2: HopeConfig has no such field: did you mean num_hidden_layers"),
    ({"max_length": 20}, "max_length=20: HopeConfig has no such field: .*go to generate"),
    *[({name: "four"}, f"'{name}'") for name in [*AT_LEAST_ONE, *POSITIVE, *TOKENS, *FLAGS]],
    *[({name: 1.5}, f"'{name}'") for name in AT_LEAST_ONE],
    ({"mixers": "linear"}, "'mixers'"),
    ({"mixers": [3]}, "'mixers'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=lambda x: str(x)[:40] if isinstance(x, dict) else "")
def test_wrong_configs_fail_at_construction(settings: dict, message: str) -> None:
    for build in (HopeConfig, lambda **given: AutoConfig.for_model("hope", **given)):
        with pytest.raises(Exception, match=message):
            build(**settings)


def test_every_field_has_a_bad_value() -> None:
    """A field that is added here must say what it refuses."""
    own = {f.name for f in fields(HopeConfig)} - {f.name for f in fields(PreTrainedConfig)}
    assert own <= {name for settings, _ in BAD for name in settings}


def test_right_configs_are_taken() -> None:
    given = dict(rope_theta=500000, eos_token_id=[0, 255], sliding_window=1, conv_window=1, memory_hidden=1)
    config = HopeConfig(**given, vocab_size=256)
    assert {name: getattr(config, name) for name in given} == given
    # An odd width is no trouble without rotary positions.
    assert HopeConfig(hidden_size=12, mixers=["linear"]).head_dim == 3
    settings = dict(name_or_path="x", attn_implementation="sdpa", num_labels=3, architectures=["X"])
    config = HopeConfig(dtype="bfloat16", **settings)
    assert config.num_labels == 3 and config.architectures == ["X"] and config._attn_implementation == "sdpa"


def test_keys_that_other_tools_have_saved_are_kept(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    config = HopeConfig(chunk=16)
    config.note_of_a_tool = "hello"
    config.save_pretrained(tmp_path)
    again = HopeConfig.from_pretrained(tmp_path)
    assert again.chunk == 16 and again.note_of_a_tool == "hello"
    assert "note_of_a_tool='hello' in a saved HopeConfig is none of its fields" in caplog.text
