"""Circadia: models that keep learning.

Importing the package costs milliseconds: everything that needs torch is loaded on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "memory": "circadia.memory",
    "models": "circadia.models",
    "Learner": "circadia.live.learner:Learner",  # a class
    "live": "circadia.live",
    "levels": "circadia.levels",  # a package that is also a function: circadia.levels(model)
    "optim": "circadia.optim",
    "bundled": "circadia.models.bundled:bundled",  # a function
    "retrofit": "circadia.models.retrofit:retrofit",  # a function
    "train": "circadia.train",
    "evals": "circadia.evals",
}
__all__ = [
    "Learner",
    "__version__",
    "bundled",
    "evals",
    "levels",
    "live",
    "memory",
    "models",
    "optim",
    "retrofit",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, _, attribute = _PUBLIC[name].partition(":")
        found = importlib.import_module(module)
        return getattr(found, attribute) if attribute else found
    raise AttributeError(f"module 'circadia' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
