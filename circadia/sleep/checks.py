"""Settings of the wrong kind are refused where they are given, not in the middle of a night."""

import math
from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, get_args


def kinds(settings: Any, least: Mapping[str, float] | None = None, above: tuple[str, ...] = ()) -> None:
    """Switches are switches, counts are whole and numbers finite; none is below its `least`, which is 0 if not given.

    Fields of other kinds are left alone. `above`: numbers that must be above 0.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        allowed = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        if (value is None and type(None) in allowed) or not {bool, int, float} & {*allowed} or str in allowed:
            continue
        if bool in allowed:
            if not isinstance(value, bool):
                raise ValueError(f"{field.name}={value!r}: give True or False")
            continue
        low, whole = (least or {}).get(field.name, 0), float not in allowed
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not good or not math.isfinite(value):
            raise ValueError(f"{field.name}={value!r} must be a {'whole' if whole else 'finite'} number")
        if value < low:
            raise ValueError(f"{field.name}={value!r} must be at least {low}")
        if field.name in above and value == 0:
            raise ValueError(f"{field.name}={value!r} must be above 0, such as {field.default!r}")
