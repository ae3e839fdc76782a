"""Several optimizers as one: one list of groups, one state dict, one step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from circadia.optim.base import restore


class Combined(Optimizer):
    """Optimizers that share a state: schedulers, scalers, checkpoints see one ordinary optimizer.

    `parts` are the optimizers; `circadia.levels` shows each by itself.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        if not parts or not all(isinstance(part, Optimizer) for part in parts):
            raise ValueError(f"parts={parts!r} must be one or more torch.optim.Optimizer objects")
        held = [id(p) for part in parts for group in part.param_groups for p in group["params"]]
        if len(held) != len(set(held)):
            raise ValueError("parts hold a parameter twice: give every parameter to one optimizer")
        self.parts: list[Optimizer] = []
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = list(parts)
        for part in self.parts:
            self.state.update(part.state)
        self._share([len(part.param_groups) for part in self.parts])

    def _share(self, sizes: list[int]) -> None:
        """Every part works on its slice of the groups, and on the one state."""
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        for part, size, end in zip(self.parts, sizes, ends):
            part.param_groups = self.param_groups[end - size : end]
            part.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the last part, AdamW in what `build` makes; to another one with ``part=0``."""
        if not self.parts:  # while being made
            super().add_param_group(param_group)
            return
        group = dict(param_group)
        index = group.pop("part", len(self.parts) - 1)
        if not isinstance(index, int) or not 0 <= index < len(self.parts):
            raise ValueError(f"part={index!r} is not one of the parts 0 to {len(self.parts) - 1}")
        given = group.get("params", [])
        group["params"] = [given] if isinstance(given, torch.Tensor) else list(given)
        held = {id(p) for own in self.param_groups for p in own["params"]}
        if any(id(p) in held for p in group["params"]):
            raise ValueError("params holds a parameter that is in a group already: give every parameter to one group")
        self.parts[index].add_param_group(group)
        self.param_groups = [own for part in self.parts for own in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every part; a closure is called once, first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """By the parts, one of which may hold more than gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state, with its own types."""
        sizes = [len(part.param_groups) for part in self.parts]
        super().load_state_dict(state_dict)
        restore(self, state_dict)
        self._share(sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}
