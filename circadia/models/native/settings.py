"""What is decided about a model of our own that learns a stream; its levels are its architecture's."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class NativeLevel:
    """Memories of one kind and period, over all blocks."""

    period: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything but the base."""

    levels: tuple[NativeLevel, ...]  # fastest first
    chunk: int
    context: int | None  # tokens before a chunk that full attention sees; None where there is none

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Settings":
        """Back from JSON."""
        return cls(**{**data, "levels": tuple(NativeLevel(**level) for level in data["levels"])})
