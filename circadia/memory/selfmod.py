"""Self-modifying Titans (eq. 83-91): keys, values, rates and retentions are made by memories that rewrite themselves.

Five memories per head, six with an adaptive query: k, v, eta, alpha and the one that is read, each
``M(x) = x + W_1 gelu(W_0 x)`` (eta and alpha: one output, a linear skip "skip" in the place of x). All are written with
the same key; each makes its own target from the value. The inputs of a call are streams: k, v and gates["x"] go through
M_k, M_v and M_eta, M_alpha; q is a static projection (eq. 85).

Two chunk sizes (section 8.2): ``chunk`` for the memory that is read, ``projection_chunk`` for the others; a tile is the
shorter of the two, and each memory is re-anchored at its own border.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.memory import check, reference
from circadia.memory.closed import Solver, Tile, Written, log_sigmoid, unit, write
from circadia.memory.deep import MlpMemory, inner_gradient, plain, read
from circadia.memory.derivatives import shorten
from circadia.memory.layout import Flags
from circadia.memory.rates import tell
from circadia.memory.rule import Gates, How, Shapes
from circadia.memory.stack import Stack
from circadia.memory.state import MOMENTUM, START, State

GATES = ("eta", "alpha")  # memories with one output


@dataclass(frozen=True, kw_only=True)
class SelfModifying(MlpMemory):
    """``M_i <- M_i (alpha_t I - eta_t k k^T) + eta_t grad <M_i(k), M_i(v)>``, for memories that make k and v.

    ``k = M_k(x_k)``, ``v = M_v(x_v)``, ``eta_t = 2 sigmoid(M_eta(x))``, ``alpha_t = sigmoid(M_alpha(x) + 8)``. The
    target of each memory is what it makes of the value itself, a constant of its gradient (eq. 83-91).

    State per memory: NAME.w0 [B, H, hidden, d], NAME.w1 [B, H, d or 1, hidden]; eta, alpha: .skip [B, H, 1, d].

    gates: "x" [B, H, T, d] the stream of the rates; "eta", "alpha" optional offsets (logits) to them; "beta" the
    logit of the momentum. ``static`` memories keep their start: the projections of the ablation.
    """

    objective: Literal["l2", "dot"] = "dot"
    adaptive_q: bool = False
    erase: bool = True  # the DGD factor of eq. 88; without it plain gradient descent
    decays: bool = True  # forgets at the rate that the alpha memory makes; without it everything is kept
    static: tuple[str, ...] = ()
    projection_chunk: int | None = None  # None: the same as chunk
    projection_rate: float = 0.1  # of the other memories, as a share of the main one's
    top_rate: float = 2.0  # eta = top_rate sigmoid(.): eigenvalues down to -1, which state tracking needs
    alpha_bias: float = 8.0  # where no offset is given: .9997 kept per token
    output_scale: float | None = None  # of the step of W_1; None is 1 / chunk
    max_target: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.static:
            check.one_of("static", name, self.memories)
        if "memory" in self.static:
            raise ValueError("static=('memory', ...) would write nothing: name projections only (k, v, q, eta, alpha)")
        if self.projection_chunk is not None:
            check.positive_int("projection_chunk", self.projection_chunk)

    @property
    def memories(self) -> tuple[str, ...]:
        return ("k", "v", *(("q",) if self.adaptive_q else ()), "eta", "alpha", "memory")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("x", "beta") if self.inertia else ("x",)

    @property
    def takes(self) -> tuple[str, ...]:
        return ("eta", "alpha") if self.decays else ("eta",)

    def weights(self, d_k: int, d_v: int) -> Shapes:
        shapes: Shapes = {}
        for name in self.memories:
            shapes |= {f"{name}.w0": (None, d_k), f"{name}.w1": (1 if name in GATES else d_v, None)}
            if name in GATES:
                shapes[f"{name}.skip"] = (1, d_k)
        return shapes

    def chunks(self, chunk: int) -> dict[str, int]:
        other = self.projection_chunk or chunk
        return {name: chunk if name.startswith("memory.") else other for name in self.weights(1, 1)}

    def check_call(self, how: How) -> None:
        chunk = how.chunk
        short, long = sorted((chunk, self.projection_chunk or chunk))
        if long % short:
            raise ValueError(
                f"chunk={chunk} and projection_chunk={self.projection_chunk}: one must divide the other, for example"
                f" projection_chunk={chunk * max(1, round(long / chunk))}"
            )

    def init(
        self,
        batch: int,
        heads: int,
        d_k: int,
        d_v: int | None = None,
        *,
        hidden: int | None = None,
        gain: float = 0.5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> State:
        """Random memories near the identity; the skips of the gates start small, so that rates start in the middle."""
        hidden = d_k if hidden is None else hidden
        state: State = {}
        for name, shape in self.weights(d_k, d_k).items():
            assert shape is not None
            m, n = (hidden if size is None else size for size in shape)
            factor = {"w0": 1.0, "w1": gain, "skip": 0.1}[name.rsplit(".")[-1]]
            w = torch.randn(heads, m, n, generator=generator, dtype=dtype) / n**0.5 * factor
            state[name] = w.to(device).expand(batch, -1, -1, -1)
        return state

    def token(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, how: How
    ) -> tuple[Tensor, State, Tensor]:
        return reference.self_modifying(self, q, k, v, gates, state, how)

    @property
    def stack(self) -> Stack:
        """The memory that is read, the projections, the rates."""
        return Stack(("memory", *(name for name in self.memories if name != "memory")), GATES)

    def tiles(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, flags: Flags, how: How
    ) -> tuple[Tensor, State, Tensor | None]:
        stack, n = self.stack, k.shape[2]
        now = stack.pack(state)
        initial = None if how.initial is None else stack.pack(how.initial)
        periods = (how.chunk, self.projection_chunk or how.chunk)
        q, k, v, x = (y.mT.contiguous() for y in (q, k, v, gates["x"]))  # tokens as columns
        asked = torch.stack((k, v, *((q,) if self.adaptive_q else ()), x, x), 3)  # one for each memory but the first
        q = q if self.adaptive_q else unit(q, -2)
        usual = {"eta": torch.zeros_like(k[..., 0, :]), "alpha": torch.full_like(k[..., 0, :], self.alpha_bias)}
        logits = torch.stack([gates.get(name, usual[name]) for name in GATES], 3)
        live = None if flags.live is None else flags.live[:, None].to(k.dtype)
        log_b = None
        if self.inertia:
            log_b = log_sigmoid(gates["beta"]) if live is None else log_sigmoid(gates["beta"]) * live
        ys: list[Tensor] = []
        losses: list[Tensor | None] = []
        parts = zip(*([None] * n if y is None else y.unbind(2) for y in (q, asked, logits, log_b, live)))
        for i, (q_i, asked_i, logits_i, log_b_i, live_i) in enumerate(parts):
            now = stack.opened(now, i, flags, periods, self.max_norm, initial)
            y, now, loss = self._tile(q_i, asked_i, logits_i, log_b_i, live_i, now, how)
            ys.append(y)
            losses.append(loss)
        surprise = torch.stack([x for x in losses if x is not None], 2) if how.surprise else None
        return torch.stack(ys, 2).mT, {**state, **stack.unpack(now)}, surprise

    def _tile(
        self,
        q: Tensor,
        asked: Tensor,
        logits: Tensor,
        log_b: Tensor | None,
        live: Tensor | None,
        now: State,
        how: How,
    ) -> tuple[Tensor, State, Tensor | None]:
        """One tile, q [B, H, d, C], ``asked`` [B, H, memories - 1, d, C], ``logits`` of the rates [B, H, 2, C]."""
        stack = self.stack
        rows, start, tops, start_tops = (now[name] for name in ("rows", START + "rows", "tops", START + "tops"))
        skips = slice(-len(GATES), None)
        answers = start_tops[:, :, 1:] @ F.gelu(stack.blocks(start)[:, :, 1:] @ asked)
        key = unit(asked[:, :, 0] + answers[:, :, 0], -2)  # eq. 83
        value = asked[:, :, 1] + answers[:, :, 1]  # eq. 84
        query = unit(asked[:, :, 2] + answers[:, :, 2], -2) if self.adaptive_q else q  # eq. 85
        logits = logits + answers[:, :, skips, 0] + start[:, :, skips] @ asked[:, :, -1]
        eta, log_a = self.top_rate * torch.sigmoid(logits[:, :, 0]), log_sigmoid(logits[:, :, 1])
        tell("eta", eta)
        if not self.decays:
            log_a = torch.zeros_like(log_a)
        if live is not None:
            eta, log_a = eta * live, log_a * live
        tile = Tile.make(log_a, log_b, live, key)
        before = tile.before
        # The memory that is read at the full rate, the others at a share of it: two systems, one solve.
        rate = eta[..., None, :]
        rates = [rate] if self.projection_rate == 1.0 else [rate, self.projection_rate * rate]
        solvers = Solver.make(key, rates, before) if self.erase else [None]

        # Eq. 87: for every memory its own target, and its gradient at the chunk start.
        first_order = how.order == "first"
        point, point_tops = (start.detach(), start_tops.detach()) if first_order else (start, start_tops)
        known, seen = point @ key, point @ value
        target = point_tops @ F.gelu(stack.blocks(seen)) + self._skipped(value, seen)
        target = shorten(target, self.max_target, -2)
        inner = inner_gradient(
            [stack.blocks(point), point_tops],
            key,
            stack.blocks(known),
            self._skipped(key, known) if how.surprise or self.objective == "l2" else key,
            target,
            self.objective,
            how.surprise,
        )
        below, error = self.clipped(inner.error[0]), self.clipped(inner.out_error)

        # Eq. 88, on all matrices whose input is the key; then on the second ones, which have inputs of their own.
        momentum, top_momentum = now.get(MOMENTUM + "rows"), now.get(MOMENTUM + "tops")
        errors = torch.cat((below.flatten(2, 3), error[:, :, skips, 0]), 2)
        own = tops.shape[-1]
        written = [
            write(
                rows[:, :, part],
                None if momentum is None else momentum[:, :, part],
                key,
                speed * errors[:, :, part],
                tile,
                solver,
                known[:, :, part] if rows is point else None,
            )
            for part, speed, solver in (
                (slice(None, own), rates[0], solvers[0]),
                (slice(own, None), rates[-1], solvers[-1]),
            )
        ]
        share = tops.new_full((tops.shape[2], 1, 1), self.projection_rate * self.last_scale(how.chunk))
        share[0] = self.last_scale(how.chunk)
        f = share * rate[:, :, None] * error
        first = Written(
            tops[:, :, 0],
            inner.inputs[1][:, :, 0],
            f[:, :, 0],
            tile,
            None,
            None if top_momentum is None else top_momentum[:, :, 0],
        )
        if how.read == "chunk":
            y = plain([start[:, :, :own], start_tops[:, :, 0]], query, query)
        else:
            y = read([written[0], first], query, query, tile if how.read == "running" else before)

        taken = None if written[0].r is None else torch.cat([w.r for w in written if w.r is not None], 2)
        whole = Written(rows, key, torch.cat([w.f for w in written], 2), tile, taken, momentum)
        upper = Written(tops, inner.inputs[1], f, tile.each(lambda x: x.unsqueeze(-3)), None, top_momentum)
        new = dict(now)
        for part, w in (("rows", whole), ("tops", upper)):
            new[part], s = w.end()
            if s is not None:
                new[MOMENTUM + part] = s
        return y, self._hold(new, now), None if inner.loss is None else inner.loss[:, :, 0]

    def _skipped(self, x: Tensor, rows: Tensor) -> Tensor:
        """What is added to each memory's output at x, given all rows at x: x itself, or the rate's skip."""
        full = x.unsqueeze(2).expand(-1, -1, len(self.memories) - len(GATES), -1, -1)
        skips = rows[:, :, -len(GATES) :, None]
        return torch.cat((full, F.pad(skips, (0, 0, 0, x.shape[-2] - 1))), 2)

    def _hold(self, new: State, old: State) -> State:
        """Static memories keep what they had."""
        if not self.static:
            return new
        entries = self.stack.unpack(new)
        kept = self.stack.unpack(old)
        held = {n: x for n, x in kept.items() if n.removeprefix(MOMENTUM).split(".")[0] in self.static}
        return self.stack.pack({**entries, **held})
