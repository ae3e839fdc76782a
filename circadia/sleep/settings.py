"""What a night does, as data. The arms that a measurement compares are in presets.py."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from circadia.sleep.checks import kinds
from circadia.sleep.dream import Dreaming
from circadia.sleep.filter import Filter
from circadia.sleep.pool import POLICIES
from circadia.sleep.replay import Replay
from circadia.sleep.seed import Seeding

Pairs = tuple[tuple[int, int], ...]
PARTS: dict[str, type] = {
    "filter": Filter, "replay": Replay, "again": Seeding, "seeding": Seeding, "dreaming": Dreaming,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The parts of a night in their order; None: left out.

    filter    what is checked before anything is learned from it
    inner     the day is read once more by the waking rule, every chunk so many times in a row
    replay    surprising windows, beside an older self's dreams
    again     the self is taught what it says itself, beside the older self's dreams: no experience is replayed
    seeding   each pair of levels: what the sender knows, into the receiver
    pairs     "all" consecutive ones, fastest first, whose receiver can take it; or (sender, receiver)
    full      policy for a full pool
    dreaming  text about tasks, kept if it helps
    into      where replay and dreaming write: "slowest" or "fastest" of each matrix's levels, the "last" level alone,
              or one by its number
    older     who holds what must stay: "base", or "slept", the self after the last night
    surprised whose surprise chooses the windows: "morning", the self after the last night (the base before the first),
              or "evening", the self after the day. What a day has told once is hardly known in the evening, and yet no
              longer surprising: of 80 chunks with a fact each, 91 % of the windows held its name by the morning's
              losses, and 8 % by the evening's
    dreams, dream_length   of the older self; a quarter of them is never trained on, and says how far the self went.
              128 with 4 a step instead of 32 with 2 halved what a night cost the base (0.47 against 0.86 bits a byte)
    corrections   a correction is gone over so many times as often as what was read: somebody meant it. At 1 five nights
              of five undid one that was said twice, where the day had said something else ten times; at 10 not (one
              case, and one in tests/live/test_sleeping.py)
    latest    of two tellings with one beginning and two ends only the later is gone over, see latest.py
    ask       tokens that stand between a window and what the self says about it, such as those of "In other words:" for
              a base that follows instructions; (): the one that a text begins with
    anchor    decay leads to the slept weights afterwards
    """

    name: str = ""
    filter: Filter | None = None
    inner: int = 0
    replay: Replay | None = None
    again: Seeding | None = None
    seeding: Seeding | None = None
    pairs: str | Pairs = "all"
    full: str = "merge"
    dreaming: Dreaming | None = None
    into: str | int = "slowest"
    older: str = "base"
    surprised: str = "morning"
    dreams: int = 128
    dream_length: int = 108
    corrections: int = 10
    latest: bool = True
    ask: tuple[int, ...] = ()
    anchor: bool = True

    def __post_init__(self) -> None:
        kinds(self, {"dreams": 4, "dream_length": 2, "corrections": 1})
        for name, kind in PARTS.items():
            part = getattr(self, name)
            if part is not None and not isinstance(part, kind):
                raise ValueError(f"{name}={part!r:.60}: give settings of this part, such as {{}}, or None")
        if self.full not in POLICIES:
            raise ValueError(f"full={self.full!r} is no policy for a full pool: use one of {', '.join(POLICIES)}")
        if self.older not in ("base", "slept"):
            raise ValueError(f"older={self.older!r}: use 'base' or 'slept'")
        if self.surprised not in ("morning", "evening"):
            raise ValueError(f"surprised={self.surprised!r}: use 'morning' or 'evening'")
        if not isinstance(self.ask, (list, tuple)) or any(
            isinstance(x, bool) or not isinstance(x, int) or x < 0 for x in self.ask
        ):
            raise ValueError(f"ask={self.ask!r}: give numbers of tokens, such as those of 'In other words:'")
        if self.pairs != "all" and not (isinstance(self.pairs, (list, tuple)) and all(map(_pair, self.pairs))):
            raise ValueError(f"pairs={self.pairs!r}: use 'all', or pairs of a sender and a receiver")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Settings":
        """Back from JSON."""
        known = {f.name for f in fields(cls)}
        made: dict[str, Any] = {}
        for name, value in data.items():
            if name not in known:
                raise ValueError(
                    f"{name}={value!r:.60} is no setting of a night: use one of {', '.join(sorted(known))}"
                )
            if name in PARTS and isinstance(value, Mapping):
                own = {n: _tuple(x) for n, x in value.items()}
                try:
                    value = PARTS[name](**own)
                except TypeError as error:
                    raise ValueError(f"{name}: {error}") from None
            made[name] = _tuple(value)
        return cls(**made)

    def but(self, **changes: Any) -> "Settings":
        """The same with some parts changed: a mapping changes single settings of a part."""
        for name, value in changes.items():
            if isinstance(value, Mapping) and name in PARTS:
                part = getattr(self, name)
                changes[name] = PARTS[name](**value) if part is None else replace(part, **value)
        return replace(self, **changes)


def _tuple(x: Any) -> Any:
    """JSON knows lists alone."""
    return tuple(map(_tuple, x)) if isinstance(x, list) else x


def _pair(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and len(x) == 2 and all(type(i) is int and i >= 0 for i in x)
