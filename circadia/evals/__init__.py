"""Evaluations. One row a suite; nothing heavy is imported before a suite is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circadia.evals.suite import Suite

# Name -> the module whose SUITE it is.
SUITES = {
    "formal": "circadia.evals.formal",
    "mad": "circadia.evals.mad",
    "mqar": "circadia.evals.mqar",
    "recode": "circadia.evals.recode",
    "niah": "circadia.evals.niah",
    "levels": "circadia.evals.levels",
    "babilong": "circadia.evals.babilong",
    "lm": "circadia.evals.lm",
    "read": "circadia.evals.read",
    "adapt": "circadia.evals.adapt",
    "stream": "circadia.evals.stream",
    "classes": "circadia.evals.classes",
    "languages": "circadia.evals.translation",
    "personal": "circadia.evals.personal",
    "facts": "circadia.evals.facts",
    "incorporate": "circadia.evals.incorporate",
    "arc": "circadia.evals.arc",
    "sleep": "circadia.evals.sleep",
    "recall": "circadia.evals.recall",
    "context": "circadia.evals.context",
    "ablation": "circadia.evals.ablation",
}


def load(name: str) -> "Suite":
    """The suite of that name."""
    if name not in SUITES:
        raise ValueError(f"suite {name!r} is unknown: use one of {', '.join(SUITES)}")
    return import_module(SUITES[name]).SUITE
