"""The protocol of every memory rule: ``rule(q, k, v, gates, state, *, chunk) -> (y, state)``.

q, k      [B, H, T, d_k]   what is asked, what is stored under
v         [B, H, T, d_v]   what is stored
gates     name -> [B, H, T]: "eta" the rate of the write, "alpha" the retention (1 keeps all), "beta" the momentum
state     a flat dict, see ``circadia.memory.state``
chunk     tokens between two refreshes of the gradient's point (eq. 90); for rules without one, a unit of parallel work

Three ways through a rule, equal in outputs, final state and outer gradients: ``rule(...)`` chunk-parallel,
``rule.reference(...)`` the equations token by token, ``rule.step(...)`` one token of a stream.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from circadia.memory import check, reference
from circadia.memory.layout import Flags, Tiles, grid, spans
from circadia.memory.state import (
    MOMENTUM,
    POS,
    START,
    State,
    choose,
    complete,
    limit,
    precision,
    select,
    state_bytes,
    weights_only,
)

Read = Literal["running", "previous", "chunk"]
Order = Literal["second", "first"]
Gates = dict[str, Tensor]
Shapes = dict[str, tuple[int | None, ...] | None]
INF = float("inf")


@dataclass(frozen=True)
class How:
    """The settings of one call, as a rule's own code sees them."""

    chunk: int
    read: Read = "running"
    order: Order = "second"
    surprise: bool = False
    initial: State | None = None
    checkpoint: bool = False
    anchored: bool = False  # does the state know its chunk? (gradient at its start, or reads from there)
    bare: bool = False  # did the state come without a position, so at the border of a chunk?


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A memory rule. Subclasses say what is written (``tiles``, ``token``) and what they need."""

    name: str
    family: str
    equation: str
    summary: str
    # Whole tiles by ``torch.compile``: a graph of one tile (of 64 tokens where they are shorter), not of the loop over
    # them, so that it is compiled once for every length. The rest of a chunk and padded batches stay as they are.
    compiled: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Gates that must be given."""
        return ()

    @property
    def takes(self) -> tuple[str, ...]:
        """Gates that may be given."""
        return ()

    @property
    def anchored(self) -> bool:
        """Are gradients and targets taken at the start of the chunk? Then the chunk is part of the rule."""
        return False

    @property
    def momentum(self) -> bool:
        return False

    @property
    def same_width(self) -> bool:
        """Must keys and values have one width?"""
        return False

    @property
    def max_norm(self) -> float | None:
        """Bound on each matrix at the start of a chunk (root-mean-square singular value)."""
        return None

    @property
    def group(self) -> int:
        """Tiles recomputed together under gradient checkpointing."""
        return 1

    def together(self, x: Tensor) -> int | None:
        """Tiles formed at once; None: all."""
        return None

    def weights(self, d_k: int, d_v: int) -> Shapes:
        """Shapes of what is written, after batch and heads; None is free."""
        raise NotImplementedError

    def ranges(self, k: Tensor, v: Tensor, gates: Gates) -> dict[str, tuple[Tensor, float, float]]:
        """What must lie where: name -> (values, low, high)."""
        return {}

    def chunks(self, chunk: int) -> dict[str, int]:
        """The period of each written matrix's gradient point."""
        return dict.fromkeys(self.weights(1, 1), chunk)

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
        """A start to experiment with; in a model, starts are parameters (``state.expand``)."""
        raise NotImplementedError

    def tiles(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, flags: Flags, how: How
    ) -> tuple[Tensor, State, Tensor | None]:
        """The fast form over [B, H, n, c, ...] -> (y, state, surprise or None)."""
        raise NotImplementedError

    def token(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, how: How
    ) -> tuple[Tensor, State, Tensor]:
        """The equations at one token, [B, H, d] -> (y, state, surprise)."""
        raise NotImplementedError

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates | None = None,
        state: State | None = None,
        *,
        chunk: int = 64,
        read: Read = "running",
        order: Order = "second",
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        initial: State | None = None,
        checkpoint: bool = False,
        surprise: bool = False,
    ) -> Any:
        """Chunk-parallel pass over T tokens -> (y [B, H, T, d_v], state), and the surprise [B, H, T] if asked for.

        read      "running": y_t from the memory after its own write; "previous": from before it; "chunk": from the
                  start of the chunk, as eq. 90 has it literally (a token is then blind to its own chunk)
        order     "second": outer gradients flow through the inner gradients; "first": those are constants
        mask      [B, T] bool, False is padding: it writes nothing and reads 0
        reset     [B, T] bool, True at the first token of a document: the row starts again from ``initial``
        checkpoint  keep only the states between chunks for the backward pass, and compute the rest again
        surprise  also return the inner loss of every token before its write
        """
        how = How(chunk, read, order, surprise, initial, checkpoint)
        how, gates, state = self._prepare(q, k, v, gates, state, how, mask, reset)
        tile, wrap = self._periods(how)
        outer, inner = v.dtype, precision(state)
        ys: list[Tensor] = []
        losses: list[Tensor] = []
        with _full_precision(q):
            q, k, v = (x.to(inner) for x in (q, k, v))
            gates = {name: x.to(inner) for name, x in gates.items()}
            layout, end = self._layout(q, mask, reset, state, how, tile)
            for tiles in layout:
                y, state, loss = self._run(tiles, q, k, v, gates, state, how)
                ys.append(y)
                losses.append(loss)
        if end is not None:
            state = {**state, POS: end % wrap}
        y = torch.cat(ys, 2).to(outer) if ys else v.to(outer)
        if not surprise:
            return y, state
        return y, state, torch.cat(losses, 2).to(outer) if ys else v[..., 0].to(outer)

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates | None = None,
        state: State | None = None,
        *,
        chunk: int = 64,
        read: Read = "running",
        order: Order = "second",
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        initial: State | None = None,
        surprise: bool = False,
    ) -> Any:
        """The same, one token after another, one equation a line."""
        how = How(chunk, read, order, surprise, initial)
        how, gates, state = self._prepare(q, k, v, gates, state, how, mask, reset)
        y, state, loss = reference.run(self, q, k, v, gates, state, how, mask, reset)
        return (y, state, loss) if surprise else (y, state)

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates | None = None,
        state: State | None = None,
        *,
        chunk: int = 64,
        read: Read = "running",
        mask: Tensor | None = None,
        surprise: bool = False,
    ) -> Any:
        """One token, q, k [B, H, d_k], v [B, H, d_v], gates [B, H] -> (y [B, H, d_v], state)."""
        q, k, v = (x.unsqueeze(2) for x in (q, k, v))
        gates = {name: x.unsqueeze(2) for name, x in (gates or {}).items()}
        at = None if mask is None else mask[:, None]
        how, gates, state = self._prepare(q, k, v, gates, state, How(chunk, read, "second", surprise), at, None)
        outer, inner = v.dtype, precision(state)
        live = torch.ones_like(k[:, :1, :, 0], dtype=torch.bool).squeeze(1) if at is None else at
        first = state[POS][:, None] if how.anchored else torch.zeros_like(live, dtype=torch.int64)
        with _full_precision(q):
            q, k, v = (x.to(inner).unsqueeze(3) for x in (q, k, v))
            gates = {name: x.to(inner).unsqueeze(3) for name, x in gates.items()}
            y, state, loss = self.tiles(q, k, v, gates, state, Flags(1, first, live[:, :, None]), how)
        if how.anchored:
            state = {**state, POS: (first[:, 0] + live[:, 0]) % self._periods(how)[1]}
        y = (y[:, :, 0, 0] * live[:, :, None]).to(outer)
        if not surprise:
            return y, state
        assert loss is not None
        return y, state, (loss[:, :, 0, 0] * live).to(outer)

    def opened(self, state: State, i: int, flags: Flags, how: How) -> State:
        """The state at the beginning of tile i: restarted where a document begins, re-anchored where a chunk does."""
        restart = flags.restarts(i)
        if restart is not None:
            assert how.initial is not None
            state = select(restart, how.initial, state)
        if not how.anchored:
            return state
        state = dict(state)
        for name, chunk in self.chunks(how.chunk).items():
            fresh = flags.fresh(i, chunk)
            if fresh is False:
                continue
            for key in (name, MOMENTUM + name) if self.momentum else (name,):
                bounded = limit(state[key], self.max_norm)
                state[key] = bounded if fresh is True else choose(fresh, bounded, state[key])
            state[START + name] = state[name] if fresh is True else choose(fresh, state[name], state[START + name])
        return state

    def _run(
        self,
        tiles: Tiles,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        state: State,
        how: How,
    ) -> tuple[Tensor, State, Tensor]:
        cq, ck, cv = tiles.cut(q), tiles.cut(k), tiles.cut(v)
        cg = {name: tiles.cut(x) for name, x in gates.items()}
        parts, losses = [], []
        most = self.group if how.checkpoint else self.together(q) or tiles.n
        whole = tiles.index is None and tiles.c == self._periods(how)[0]
        compiled = _compiled_tiles(self) if self.compiled and whole and not torch.compiler.is_compiling() else None
        if compiled is not None:
            most = max(1, 64 // tiles.c)
        # Not sliced one by one: the gradient of a slice is as long as the whole.
        pieces = zip(*(x.split(most, 2) for x in (cq, ck, cv, *cg.values())))
        for i, (q_i, k_i, v_i, *some) in zip(range(0, tiles.n, most), pieces):
            j = min(i + most, tiles.n)
            args = (q_i, k_i, v_i, dict(zip(cg, some)), state, tiles.flags(i, j), how)
            call: Any = self.tiles
            if compiled is not None and j - i == most:
                call, args = compiled, self._alike(*args)
            if how.checkpoint:
                y, state, loss = recompute(call, *args, use_reentrant=False, preserve_rng_state=False)
            else:
                y, state, loss = call(*args)
            parts.append(y)
            losses.append(y[..., 0] if loss is None else loss)
        return tiles.join(torch.cat(parts, 2)), state, tiles.join(torch.cat(losses, 2))

    def _alike(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, flags: Flags, how: How
    ) -> tuple[Tensor, Tensor, Tensor, Gates, State, Flags, How]:
        """The same arguments in one form, whatever the length of the sequence and the number of the tile."""
        assert isinstance(flags.first, int)
        gates = {name: x.contiguous() for name, x in gates.items()}
        state = {name: x.contiguous() for name, x in state.items() if name != POS}
        flags = replace(flags, first=flags.first % self._periods(how)[1])
        return q.contiguous(), k.contiguous(), v.contiguous(), gates, state, flags, replace(how, bare=False)

    def _periods(self, how: How) -> tuple[int, int]:
        """Tokens of a tile, and tokens after which all gradient points are refreshed together."""
        periods = self.chunks(how.chunk).values()
        return min(periods), max(periods)

    def _layout(
        self, q: Tensor, mask: Tensor | None, reset: Tensor | None, state: State, how: How, tile: int
    ) -> tuple[Iterable[Tiles], Tensor | None]:
        """How the tokens fall into tiles, and the position of every row afterwards."""
        batch, tokens = q.shape[0], q.shape[2]
        if tokens == 0:
            return [], None
        pos = state[POS] if how.anchored else torch.zeros(batch, dtype=torch.int64, device=q.device)
        nothing_padded = mask is None or (not torch.compiler.is_compiling() and bool(mask.all()))
        if nothing_padded and reset is None:
            common = _common(pos, how)
            if common is not None:
                return spans(tokens, common, tile), pos + tokens if how.anchored else None
        mask = torch.ones(batch, tokens, dtype=torch.bool, device=q.device) if mask is None else mask
        layout, end = grid(mask, reset, pos, tile)
        return [layout], end if how.anchored else None

    def _prepare(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates | None,
        state: State | None,
        how: How,
        mask: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[How, Gates, State]:
        """Check everything, and complete the states."""
        gates = dict(gates or {})
        check.positive_int("chunk", how.chunk)
        check.one_of("read", how.read, check.READS)
        check.one_of("order", how.order, check.ORDERS)
        check.gate_names(self.name, gates, self.needs, self.takes)
        check.shapes(self.name, q, k, v, gates, same_width=self.same_width)
        check.token_mask("mask", mask, k)
        check.token_mask("reset", reset, k)
        self.check_call(how)
        if (reset is None) != (how.initial is None):
            got, fix = ("reset", "initial") if how.initial is None else ("initial", "reset")
            raise ValueError(
                f"{got} is given without {fix}: documents need both the borders and the state to begin with"
            )
        batch, heads, _, d_k = k.shape
        if state is None:
            state = self.init(batch, heads, d_k, v.shape[-1], device=k.device)
        shapes = self.weights(d_k, v.shape[-1])
        check.state_shapes(self.name, state, shapes, k)
        how = replace(how, anchored=self.anchored or how.read == "chunk", bare=POS not in state)
        fill = {"anchored": how.anchored, "momentum": self.momentum}
        state = complete(state, shapes, **fill)
        if how.initial is not None:
            check.state_shapes(f"{self.name}, initial", how.initial, shapes, k)
            how = replace(how, initial=complete(weights_only(how.initial), shapes, **fill))
        if not torch.compiler.is_compiling() and not k.is_meta:  # there is nothing to look at
            check.values({"q": (q, -INF, INF), "k": (k, -INF, INF), "v": (v, -INF, INF)})
            check.values({f"gates[{name!r}]": (x, -INF, INF) for name, x in gates.items()})
            check.values({f"state[{name!r}]": (x, -INF, INF) for name, x in state.items() if name != POS})
            check.values(self.ranges(k, v, gates))
            if mask is not None and reset is not None and bool((reset & ~mask).any()):
                raise ValueError("reset is set where mask is False: mark the first real token of the document instead")
        return how, gates, state

    def check_call(self, how: How) -> None:
        """Refuse settings that this rule does not have."""

    @property
    def goal(self) -> str:
        """The inner objective, in words for the levels view."""
        raise NotImplementedError

    def levels_entry(self, state: State, *, chunk: int = 64) -> list[dict[str, Any]]:
        """What ``circadia.levels`` shows of a module that runs this rule: one level for each period.

        A module's own ``levels_entry`` returns this; ``state`` is a start with a batch axis.
        """
        names: dict[int, list[str]] = {}
        for name, period in self.chunks(chunk).items():
            names.setdefault(period if self.anchored else 1, []).append(name)
        return [
            {
                "name": self.name if len(names) == 1 else f"{self.name}, {part}",
                "period": period,
                "learns_from": "tokens",
                "objective": self.goal,
                "rule": self.equation,
                "enters": "in context, by writing (key, value) pairs",
                "leaves": "by reads in context; the start of the next document forgets it",
                "state_bytes": state_bytes({n: state[n] for n in group}),
            }
            for period, group in names.items()
            for part in [" and ".join(dict.fromkeys(n.split(".")[0] for n in group))]
        ]


@functools.cache
def _compiled_tiles(rule: Rule) -> Any:
    """The fast form of a rule as the compiler makes it, once for every rule and setting."""
    return torch.compile(rule.tiles, dynamic=False, fullgraph=True, recompile_limit=64)  # type: ignore[call-overload]


def _full_precision(x: Tensor) -> torch.autocast:
    """Memories are computed in the type of their state, whatever is in force around them."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def _common(pos: Tensor, how: How) -> int | None:
    """The position that all rows share; None when they differ, or when the data must not be looked at."""
    if not how.anchored or how.bare:
        return 0
    if torch.compiler.is_compiling() or pos.is_meta:
        return None
    shared = pos.tolist()
    return shared[0] if len(set(shared)) == 1 else None
