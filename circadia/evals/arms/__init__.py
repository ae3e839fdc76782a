"""Ways to go on learning, compared by the suites: none, context, fine-tuning and its remedies, levels, nights.

All that learn read the same examples in the same order, chunk by chunk, and are tuned over grids of the same length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from circadia.evals.arms.arm import Arm, Example
from circadia.evals.arms.asleep import Asleep
from circadia.evals.arms.carried import Carried
from circadia.evals.arms.context import Retrieved, Sliding
from circadia.evals.arms.implying import Implying
from circadia.evals.arms.streamed import CHUNK, EWC, Joint, Replay, Streamed
from circadia.evals.arms.tuned import OSF, Cartridge
from circadia.evals.bases import Base
from circadia.evals.suite import Options

__all__ = ["ARMS", "CHUNK", "DEFAULT", "FULL", "QUICK", "Arm", "Example", "Kind", "make", "pairs", "rates"]

RATES = (0.03, 0.1, 0.3)  # of plain descent on a gradient clipped to length 1
_ONE = {"periods": [CHUNK], "anchor": None}
_ALL = {**_ONE, "target": "all"}
_DECAY = {**_ONE, "anchor": "base", "decay": 0.01}
_THREE = {"periods": [256, 1024, 4096], "anchor": "base", "decay": [0.05, 0.03, 0.02]}


@dataclass(frozen=True)
class Kind:
    """How an arm is made; without settings it has no rate."""

    make: Callable[..., Arm]
    settings: dict[str, Any] | None = None  # of `circadia.retrofit`
    scale: float = 1.0  # of the rates, for optimizers whose steps have another length
    factors: Sequence[float] = ()  # of the rate, level by level: a mean over a longer period deserves a longer step
    more: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "frozen": Kind(Arm),
    "sliding window": Kind(Sliding),
    "retrieval": Kind(Retrieved),
    "full": Kind(Streamed, _ALL),
    "full by AdamW": Kind(Streamed, {**_ALL, "optimizer": "adamw"}, 0.003),
    "LoRA": Kind(Streamed, {**_ONE, "capacity": "lowrank", "rank": 16, "optimizer": "adamw"}, 0.03),
    "EWC 30": Kind(EWC, _ALL, more={"strength": 30.0}),
    "EWC 1000": Kind(EWC, _ALL, more={"strength": 1000.0}),
    "replay 5 %": Kind(Replay, _ALL, more={"share": 0.05, "instead": False}),
    "replay at equal compute": Kind(Replay, _ALL, more={"share": 0.5, "instead": True}),
    "MLPs": Kind(Streamed, _ONE),
    "MLPs every 1024": Kind(Streamed, {**_ONE, "periods": [1024], "chunk": CHUNK}, 2.0),
    "MLPs every 4096": Kind(Streamed, {**_ONE, "periods": [4096], "chunk": CHUNK}, 4.0),
    "MLPs + decay": Kind(Streamed, _DECAY),
    "sleep": Kind(Asleep, _DECAY),
    "sleep + rehearsal": Kind(Asleep, _DECAY, more={"rehearse": True}),
    "sleep over the day alone": Kind(Asleep, _DECAY, more={"earlier": 0}),
    "sleep over all tellings": Kind(Asleep, _DECAY, more={"latest": False}),
    "first 2 MLPs": Kind(Streamed, {**_ONE, "layers": "first:2"}, 2.0),
    "last 2 MLPs": Kind(Streamed, {**_ONE, "layers": "last:2"}, 2.0),
    "2 levels": Kind(
        Streamed, {"periods": [256, 1024], "anchor": "base", "decay": [0.03, 0.012]}, factors=(1, 2)
    ),
    "3 levels": Kind(Streamed, _THREE, factors=(1, 2, 4)),
    "4 levels": Kind(
        Streamed,
        {"periods": [256, 1024, 4096, 16384], "anchor": "base", "decay": [0.05, 0.03, 0.02, 0.01]},
        factors=(1, 2, 4, 8),
    ),
    "implications": Kind(Implying, _DECAY),  # of whole passages; sentences and labels imply nothing
    "carried memory": Kind(Carried),
    "OSF": Kind(OSF, {}, 0.03),
    "Cartridge": Kind(Cartridge, {}, 0.1),
    "joint": Kind(Joint, _ALL),
}  # fmt: skip
CARRIED = "carried memory"  # which needs a model that was trained to have one: --hope
# Circadia's own models cannot take a Cartridge.
FULL = tuple(name for name in ARMS if name not in ("Cartridge", "implications", CARRIED))
QUICK = ("frozen", "retrieval", "full", "MLPs", "3 levels", "joint")
DEFAULT = (
    "frozen", "sliding window", "retrieval", "full", "LoRA", "EWC 30", "replay 5 %", "replay at equal compute", "MLPs",
    "MLPs + decay", "sleep", "sleep + rehearsal", "sleep over the day alone",
    "sleep over all tellings", "2 levels", "3 levels", "joint",
)  # fmt: skip


def rates(name: str) -> tuple[float, ...]:
    """The grid of an arm; one rate of nothing for those that have none."""
    kind = ARMS[name]
    return (0.0,) if kind.settings is None else tuple(float(f"{rate * kind.scale:.3g}") for rate in RATES)


def pairs(options: Options, offered: tuple[str, ...], shown: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every base with every arm; and models trained from scratch, with their memory carried and without."""
    chosen, hopes = options.chosen(offered, shown), options.hope_folders()
    if CARRIED in chosen and not hopes:
        raise ValueError(
            f"--models {CARRIED!r} reads with a model trained from scratch: give --hope FOLDER, as `circadia train "
            "configs/hope-novels.yaml` makes one"
        )
    own = [arm for arm in ("frozen", CARRIED) if not options.models or arm in options.models]
    found = [(base, arm) for base in options.base_folders() for arm in chosen if arm != CARRIED]
    return found + [(hope, arm) for hope in hopes for arm in own]


def make(name: str, base: Base, rate: float, seed: int, **given: Any) -> Arm:
    """An arm at the start of its life. `given` is for those that read out of a context: window, count."""
    if name not in ARMS:
        raise ValueError(f"arm {name!r} is unknown: use one of {', '.join(ARMS)}")
    kind = ARMS[name]
    if kind.settings is None:
        return kind.make(base, seed, **({} if kind.make is Arm else given))
    each = [rate * factor for factor in kind.factors] if kind.factors else rate
    return kind.make(base, seed, {**kind.settings, "rate": each}, **kind.more)
