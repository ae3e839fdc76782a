"""Inputs for memory rules: unit vectors, gates in each rule's range, a start. Drawn on the CPU, so alike everywhere."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.memory import Rule, State


@dataclass(frozen=True)
class Shape:
    """Of a call: q, k, v are [batch, heads, tokens, width]."""

    batch: int
    heads: int
    tokens: int
    width: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


@dataclass(frozen=True)
class Inputs:
    """One call of a rule."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: dict[str, Tensor]
    state: State

    def leaves(self) -> list[Tensor]:
        """Everything that an outer gradient can reach."""
        return [self.q, self.k, self.v, *self.gates.values(), *self.state.values()]

    def map(self, change: Callable[[Tensor], Tensor], state: bool = True) -> "Inputs":
        """The same call with every tensor changed; ``state=False`` leaves the start as it is."""
        gates = {name: change(x) for name, x in self.gates.items()}
        start = {name: change(x) for name, x in self.state.items()} if state else self.state
        return Inputs(change(self.q), change(self.k), change(self.v), gates, start)

    def require_grad(self) -> "Inputs":
        return self.map(lambda x: x.detach().clone().requires_grad_())

    def first(self, tokens: int) -> "Inputs":
        """The beginning of the sequence."""
        return self.map(lambda x: x[:, :, :tokens], state=False)


def draw(rule: Rule, shape: Shape, seed: int = 0) -> Inputs:
    """Random inputs under which the rule neither forgets at once nor diverges."""
    g = torch.Generator().manual_seed(seed)
    size = (shape.batch, shape.heads, shape.tokens)

    def place(x: Tensor) -> Tensor:
        return x.to(shape.device, shape.dtype)

    q, k, v = (place(F.normalize(torch.randn(*size, shape.width, generator=g), dim=-1)) for _ in "qkv")
    gates = {}
    for name in rule.needs + rule.takes:
        x = torch.randn(*size, shape.width, generator=g) if name == "x" else torch.randn(*size, generator=g)
        gates[name] = place(_gate(rule, name, x))
    start = rule.init(shape.batch, shape.heads, shape.width, generator=g)
    # Contiguous: a learned start expanded over the batch is the model's business, not the rule's.
    return Inputs(q, k, v, gates, {name: x.to(shape.device).contiguous() for name, x in start.items()})


def _gate(rule: Rule, name: str, x: Tensor) -> Tensor:
    """A gate from normal noise."""
    # Gradient descent on an MLP adds up a whole chunk of gradients: large rates overshoot and become chaotic.
    overshoots = getattr(rule, "objective", None) == "l2" and rule.family in ("deep", "self-modifying")
    if rule.family == "self-modifying":  # its gates are logits, and "x" a stream
        return x if name in ("x", "beta") else x + 5 if name == "alpha" else x - 4 if overshoots else x
    if name == "eta":
        return torch.sigmoid(x) * (0.05 if overshoots else 0.9)
    return torch.sigmoid(x + 4) if name == "alpha" else torch.sigmoid(x)
