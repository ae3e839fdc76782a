"""How a memory is written: pure functions on states, torch alone.

from circadia.memory import get
rule = get("gated_deltanet")
y, state = rule(q, k, v, {"alpha": alpha, "eta": eta}, rule.init(batch, heads, 64), chunk=64)
"""

from circadia.memory.custom import custom
from circadia.memory.deep import Deep
from circadia.memory.linear import DGD, Delta, Hebbian, Oja, proximal_rate
from circadia.memory.rule import Rule
from circadia.memory.rules import RULES, get
from circadia.memory.selfmod import SelfModifying
from circadia.memory.state import State, detach, expand, rows, state_bytes, weights_only

__all__ = [
    "DGD",
    "RULES",
    "Deep",
    "Delta",
    "Hebbian",
    "Oja",
    "Rule",
    "SelfModifying",
    "State",
    "custom",
    "detach",
    "expand",
    "get",
    "proximal_rate",
    "rows",
    "state_bytes",
    "weights_only",
]
