"""Levels: when each memory of a model is written, from every token to never.

`circadia.levels` is a package and a function at once: `circadia.levels(model, optimizer)` shows any PyTorch
module as a nested system of levels. See `circadia.levels.view.levels` for what it accepts and returns.
"""

import sys
from types import ModuleType
from typing import Any

from circadia.levels.level import Level, Member
from circadia.levels.view import LevelsView, levels

__all__ = ["Level", "LevelsView", "Member", "levels"]


class _CallablePackage(ModuleType):
    """Lets `circadia.levels(model)` work while `from circadia.levels import LevelsView` keeps working.

    A function in `circadia/__init__.py` could not do it: importing the package `circadia.levels` binds that
    name on the parent and would replace the function. Python allows a module to take a ModuleType subclass as
    its class.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> LevelsView:
        return levels(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
