"""A rule from two plain functions: what the memory answers, and what it should have answered.

    rule = custom(
        "huber_line",
        memory=lambda w, x: w["a"] @ x + w["b"],
        objective=lambda y, v: torch.nn.functional.huber_loss(y, v, reduction="sum"),
        start=lambda d_k, d_v: {"a": torch.zeros(d_v, d_k), "b": torch.zeros(d_v)},
    )

Gradients come from ``torch.func``, so any differentiable memory works: ``W_t = alpha_t W_{t-1} - eta_t grad`` with the
gradient at the start of the chunk. Every W_t of a tile is formed, which costs C times the state: for what has a closed
form, the built-in rules are one to two orders faster.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from circadia.memory.closed import log_retention, ratios, shift
from circadia.memory.layout import Flags
from circadia.memory.rule import INF, Gates, How, Rule, Shapes
from circadia.memory.state import START, State

Memory = Callable[[State, Tensor], Tensor]
Objective = Callable[[Tensor, Tensor], Tensor]
Start = Callable[[int, int], State]


@dataclass(frozen=True, kw_only=True)
class Custom(Rule):
    """State: the entries of ``start``, each [B, H, ...]."""

    memory: Memory  # (weights of one head, x [d_k]) -> y [d_v]
    objective: Objective  # (y, v) -> scalar
    start: Start  # (d_k, d_v) -> weights of one head
    names: tuple[str, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        return ("eta",)

    @property
    def takes(self) -> tuple[str, ...]:
        return ("alpha",)

    @property
    def anchored(self) -> bool:
        return True

    def weights(self, d_k: int, d_v: int) -> Shapes:
        return dict.fromkeys(self.names)

    def ranges(self, k: Tensor, v: Tensor, gates: Gates) -> dict[str, tuple[Tensor, float, float]]:
        found = {"gates['eta']": (gates["eta"], 0.0, INF)}
        return found | ({"gates['alpha']": (gates["alpha"], 0.0, 1.0)} if "alpha" in gates else {})

    def init(
        self,
        batch: int,
        heads: int,
        d_k: int,
        d_v: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> State:
        """The same start for every head and sequence; ``generator`` is not used: draw inside ``start``."""
        one = self.start(d_k, d_k if d_v is None else d_v)
        return {n: x.to(device, dtype).expand(batch, heads, *x.shape) for n, x in one.items()}

    @property
    def goal(self) -> str:
        return "a user's own function"

    def check_call(self, how: How) -> None:
        if how.checkpoint:
            raise ValueError(
                f"checkpoint=True cannot be had from {self.name}: torch.func does not run under it; use a smaller chunk"
            )

    def _gradient(self, weights: State, k: Tensor, v: Tensor) -> tuple[State, Tensor]:
        """Of one pair at one head's weights, with the loss."""
        return grad_and_value(lambda w: self.objective(self.memory(w, k), v))(weights)

    def token(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, how: How
    ) -> tuple[Tensor, State, Tensor]:
        start = {n: state[START + n] for n in self.names}
        point = {n: w.detach() for n, w in start.items()} if how.order == "first" else start
        over_heads = vmap(vmap(self._gradient))  # batch, then heads
        gradient, loss = over_heads(point, k, v)
        new = {}
        for n in self.names:
            gate = {g: x.view(*x.shape, *[1] * (state[n].ndim - 2)) for g, x in gates.items()}
            new[n] = gate.get("alpha", 1.0) * state[n] - gate["eta"] * gradient[n]
        seen = {"running": new, "previous": {n: state[n] for n in self.names}, "chunk": start}[how.read]
        return vmap(vmap(self.memory))(seen, q), new, loss

    def tiles(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, flags: Flags, how: How
    ) -> tuple[Tensor, State, Tensor | None]:
        eta, log_a = (
            gates["eta"],
            log_retention(gates["alpha"]) if "alpha" in gates else torch.zeros_like(gates["eta"]),
        )
        if flags.live is not None:
            live = flags.live[:, None].to(k.dtype)
            eta, log_a = eta * live, log_a * live
        ys, losses = [], []
        tokens, pairs = vmap(vmap(vmap(self.memory, (0, 0)))), vmap(vmap(vmap(self._gradient, (None, 0, 0))))
        for i, (q_i, k_i, v_i, eta_i, log_a_i) in enumerate(zip(*(x.unbind(2) for x in (q, k, v, eta, log_a)))):
            state = self.opened(state, i, flags, how)
            start = {n: state[START + n] for n in self.names}
            point = {n: w.detach() for n, w in start.items()} if how.order == "first" else start
            gradient, loss = pairs(point, k_i, v_i)
            g, d = ratios(log_a_i, k_i)
            g_read, d_read = (shift(g, 1.0), shift(d, 0.0)) if how.read == "previous" else (g, d)
            state, at = dict(state), {}
            for n in self.names:
                put = eta_i[..., None] * gradient[n].reshape(*k.shape[:2], k.shape[3], -1)
                flat = state[n].reshape(*state[n].shape[:2], 1, -1)
                at[n] = (g_read * flat - d_read @ put).view(*put.shape[:3], *state[n].shape[2:])
                state[n] = (g[..., -1:, :] * flat - d[..., -1:, :] @ put).view(state[n].shape)
            if how.read == "chunk":
                ys.append(vmap(vmap(vmap(self.memory, (None, 0))))(start, q_i))
            else:
                ys.append(tokens(at, q_i))
            losses.append(loss)
        return torch.stack(ys, 2), state, torch.stack(losses, 2)


def custom(name: str, *, memory: Memory, objective: Objective, start: Start, summary: str = "") -> Custom:
    """A working rule from plain functions; gates "eta" and, if wanted, "alpha"."""
    try:
        one = start(8, 8)
    except Exception as error:
        raise ValueError(
            f"start(8, 8) of {name} failed: {error}; it must give one head's weights for any widths"
        ) from error
    if not isinstance(one, dict) or not one or not all(isinstance(x, Tensor) for x in one.values()):
        raise ValueError(f"start of {name} returned {type(one).__name__}: it must return a non-empty dict of tensors")
    x = torch.zeros(8, dtype=next(iter(one.values())).dtype)
    answer = memory(one, x)
    if answer.shape != (8,):
        raise ValueError(
            f"memory of {name} answers {tuple(answer.shape)} to an input of width 8: it must give one vector [d_v]"
        )
    loss = objective(answer, x)
    if loss.shape != ():
        raise ValueError(f"objective of {name} returns {tuple(loss.shape)}: it must return one number; add .sum()")
    return Custom(
        name=name,
        family="custom",
        equation="W_t = alpha_t W_{t-1} - eta_t grad objective(memory(W_0, k), v)",
        summary=summary or "made by a user",
        memory=memory,
        objective=objective,
        start=start,
        names=tuple(one),
    )
