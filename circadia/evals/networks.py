"""Small models at equal parameters, by the names of the presets, and variants of them for controls."""

from dataclasses import dataclass, field, replace
from typing import Any

from circadia.models import HopeConfig, HopeForCausalLM
from circadia.models.measure import cost
from circadia.models.mixers.memory import MemoryMixer
from circadia.models.presets import ARCHITECTURES, count


@dataclass(frozen=True)
class Variant:
    """An architecture with other settings of its config, its memory rule or the writing of it."""

    of: str
    config: dict[str, Any] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    writing: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    # Keys, values and rates by projections that do not change inside the sequence.
    "hope-static": Variant("hope", rule={"static": ("k", "v", "eta", "alpha")}),
    # Only the mixer of hope: its MLPs do not learn in the sequence.
    "self-modifying": Variant("hope", config={"periods": [0]}),
    # Rates up to 1, as published: no eigenvalue of the transition is below 0.
    "deltanet-positive": Variant("deltanet", writing={"top_rate": 1.0}),
}
NAMES = (*ARCHITECTURES, *VARIANTS)


@dataclass(frozen=True)
class Shape:
    """What all models of a comparison share."""

    vocabulary: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    mlp: int | None = None  # of the transformer, which all others equal in parameters; None: 4 widths
    periods: tuple[int, ...] = (64, 256)  # of models with levels
    own: dict[str, Any] = field(default_factory=dict)  # further settings of the config


def config(name: str, shape: Shape) -> HopeConfig:
    """As many parameters as transformer++ of that shape, to the next step in the width of its MLPs."""
    if name not in NAMES:
        raise ValueError(f"model {name!r} is unknown: use one of {', '.join(NAMES)}")
    variant = VARIANTS.get(name, Variant(name))
    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        **shape.own,
    }
    base = HopeConfig(**common, mixers=["attention"], intermediate_size=shape.mlp or 4 * shape.width)
    own = dict(ARCHITECTURES[variant.of])
    if own.pop("levels", False):
        own["periods"] = list(shape.periods)
    made = HopeConfig(**{**common, **own, **variant.config}, intermediate_size=base.intermediate_size)
    step = 4 * len(made.periods)
    assert made.intermediate_size is not None
    spare = (count(base) - count(made)) / (3 * shape.width * shape.layers)
    made.intermediate_size = max(step, round((made.intermediate_size + spare) / step) * step)
    return made


def build(name: str, shape: Shape) -> HopeForCausalLM:
    """A model with fresh weights from torch's random numbers."""
    net = HopeForCausalLM(config(name, shape))
    variant = VARIANTS.get(name, Variant(name))
    for module in net.modules():
        if isinstance(module, MemoryMixer):
            module.rule = replace(module.rule, **variant.rule)
            module.writing = replace(module.writing, **variant.writing)
    return net


def levels(run: dict[str, Any]) -> dict[str, Any]:
    """For a shape: the periods that a run gives (suite `levels`), where it does."""
    return {"periods": tuple(run["periods"])} if "periods" in run else {}


def size(name: str, shape: Shape, tokens: int) -> dict[str, int]:
    """Parameters, and bytes of the state of one sequence after so many tokens."""
    found = cost(config(name, shape), max(tokens, 64))
    return {"parameters": found.parameters, "state_bytes": found.state_bytes + tokens * found.bytes_per_token}
