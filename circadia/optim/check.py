"""Wrong settings get a ``ValueError`` that names the field, the value and the fix."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, allowed))}")


def rate(name: str, value: Any) -> None:
    """A learning rate or a weight: a number >= 0, or a tensor of one number."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} is a tensor of {value.numel()} numbers: give one number")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value!r} is not a finite number >= 0: give, for example, {name}=0.01")


def fraction(name: str, value: Any) -> None:
    """A decay: what a step keeps, in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} is outside [0, 1): give, for example, {name}=0.9")


def count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} is not a whole number of at least 1: give, for example, {name}=5")


def as_many(name: str, value: Any, other: str, size: int) -> None:
    """A sequence with one entry for each entry of another."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != size:
        raise ValueError(f"{name}={value!r} must have {size} entries: one for each of {other}")


def coefficients(name: str, value: Any) -> None:
    if not isinstance(value, Sequence) or len(value) != 3:
        raise ValueError(f"{name}={value!r} must be three numbers (a, b, c) of a X + b XX'X + c (XX')^2 X")
