"""What a config may contain: ranges of its fields, and which keys are not ours."""

import difflib
import math
from dataclasses import fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers.utils import logging

from circadia.memory import RULES, Rule

logger = logging.get_logger(__name__)

# What transformers itself passes to a config, or keeps in a saved one, beside its fields.
KNOWN = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "tokenizer_class",
    "torch_dtype",
}


def foreign(cls: type, keys: Any) -> list[str]:
    """Keys that are neither fields of the config nor known to transformers."""
    own = {f.name for f in fields(cls)}
    return [name for name in keys if name not in own | KNOWN and not name.startswith("_")]


def refuse_foreign(cls: type, given: dict[str, Any]) -> None:
    """A mistyped or foreign setting would otherwise do nothing, in silence."""
    for name in foreign(cls, given):
        own = [f.name for f in fields(cls)]
        near = difflib.get_close_matches(name, own, 1)
        fix = f"did you mean {near[0]}?" if near else "leave it out; settings of generation go to generate()"
        raise ValueError(f"{name}={given[name]!r}: {cls.__name__} has no such field: {fix}")


def warn_foreign(cls: type, given: dict[str, Any]) -> None:
    for name, value in given.items():
        logger.warning(f"{name}={value!r} in a saved {cls.__name__} is none of its fields: kept, and not used")


def check_ranges(config: Any) -> None:
    """Settings that have a range of their own; what must fit together is checked in the config."""
    if config.memory_hidden is not None and config.memory_hidden < 1:
        raise ValueError(f"memory_hidden={config.memory_hidden}: must be at least 1, or None for the width of a head")
    for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
        value = getattr(config, name)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value}: must be above 0 and finite")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not 0 <= token < config.vocab_size:
                raise ValueError(
                    f"{name}={value}: must be from 0 to {config.vocab_size - 1} for vocab_size={config.vocab_size}, "
                    "or None"
                )


def check_rules(rules: dict[str, dict[str, Any]], used: set[str | None]) -> None:
    """Settings of memory rules: of one that a mixer of the model writes with, and such as it has."""
    known = sorted(name for name in used if name is not None)
    for name, settings in rules.items():
        if name not in known:
            raise ValueError(f"rules: no mixer of this model writes by {name!r}; use one of {', '.join(known) or '-'}")
        changed_rule(RULES[name], settings)


def changed_rule(rule: Rule, settings: dict[str, Any]) -> Rule:
    """A rule with some of its settings changed; a list, as files have it, stands for a tuple."""
    own = [f.name for f in fields(rule) if f.name not in ("name", "family", "equation", "summary", "compiled")]
    for name in settings:
        if name not in own:
            raise ValueError(f"rules.{rule.name}.{name} is unknown; use one of {', '.join(own)}")
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in settings.items()}
    kinds: dict[str, Any] = {f.name: f.type for f in fields(rule)}
    for name, value in values.items():
        try:
            TypeAdapter(kinds[name]).validate_python(value, strict=True)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise ValueError(f"rules.{rule.name}.{name}={value!r}: {said[0].lower()}{said[1:]}") from None
    return replace(rule, **values)
