"""The arms, by name: what a measurement compares, and the default that it has chosen so far.

`full` is all that there is at once, and each of its ablations leaves one thing out. In our first
measurements replay of surprising windows beside an older self's dreams was what bound facts without ruining the base,
and nothing beyond it was shown to help: it is the default until something is.
"""

from circadia.sleep.dream import Dreaming
from circadia.sleep.filter import Filter
from circadia.sleep.replay import Replay
from circadia.sleep.seed import Seeding
from circadia.sleep.settings import Settings

_TWO = Seeding(sources=("nothing", "prefixes"), older=1.0, free="all")
_FULL = Settings(
    name="full",
    filter=Filter(),
    replay=Replay(variations=2),
    seeding=_TWO,
    dreaming=Dreaming(questions=2),
    into="fastest",  # a seeding then carries what replay has bound into the slower level
)
_ONE = Settings(replay=Replay())

PRESETS: dict[str, Settings] = {
    "no-sleep": Settings(anchor=False),
    "inner-steps": Settings(inner=12, anchor=False),
    "fine-tune": Settings(replay=Replay(whole=True, dreams=0, earlier=0, rate=1e-3), anchor=False),
    "journal-replay": _ONE,
    "day-alone": _ONE.but(replay={"earlier": 0}),
    "journal-replay-unguarded": _ONE.but(replay={"dreams": 0}),
    "self-generated": Settings(again=Seeding(sources=("nothing", "prefixes"), alpha=1.0, older=1.0, on_policy=0.0)),
    "literal-seeding": Settings(seeding=Seeding(sources=("nothing",))),
    "two-teacher": Settings(replay=Replay(), into="fastest", seeding=_TWO),
    "no-expansion": _FULL.but(seeding={"expand": False}),
    "off-policy-only": _FULL.but(seeding={"on_policy": 0.0}),
    "on-policy-only": _FULL.but(seeding={"on_policy": 1.0}),
    "no-imitation": _FULL.but(seeding={"alpha": 1.0}),
    "no-dreaming": _FULL.but(dreaming=None),
    "slow-level-only": _ONE.but(into="last"),
    "full": _FULL,
}
DEFAULT = "journal-replay"
PRESETS = {name: settings.but(name=name) for name, settings in PRESETS.items()}


def preset(name: str = DEFAULT) -> Settings:
    """The settings of an arm."""
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} is unknown: use one of {', '.join(PRESETS)}")
    return PRESETS[name]
