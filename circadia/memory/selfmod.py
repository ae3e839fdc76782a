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
from torch import Tensor

from circadia.memory import check, reference
from circadia.memory.closed import Solver, Tile, Written, log_sigmoid, shorten, unit, write
from circadia.memory.deep import MlpMemory, inner_gradient, plain, read
from circadia.memory.layout import Flags
from circadia.memory.rule import Gates, How, Shapes
from circadia.memory.state import MOMENTUM, START, State

GATES = ("eta", "alpha")  # memories with one output


@dataclass(frozen=True, kw_only=True)
class SelfModifying(MlpMemory):
    """State per memory: NAME.w0 [B, H, hidden, d], NAME.w1 [B, H, d or 1, hidden]; eta, alpha: .skip [B, H, 1, d].

    gates: "x" [B, H, T, d] the stream of the rates; "eta", "alpha" optional offsets (logits) to them; "beta" the
    logit of the momentum. ``static`` memories keep their start: the projections of the ablation.
    """

    objective: Literal["l2", "dot"] = "dot"
    adaptive_q: bool = False
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
        return ("eta", "alpha")

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

    def tiles(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, flags: Flags, how: How
    ) -> tuple[Tensor, State, Tensor | None]:
        ys: list[Tensor] = []
        losses: list[Tensor | None] = []
        some = {name: x.unbind(2) for name, x in gates.items()}
        for i, (q_i, k_i, v_i) in enumerate(zip(q.unbind(2), k.unbind(2), v.unbind(2))):
            state = self.opened(state, i, flags, how)
            live = None if flags.live is None else flags.live[:, i].to(k.dtype)
            y, state, loss = self._tile(q_i, k_i, v_i, {n: x[i] for n, x in some.items()}, state, live, how)
            ys.append(y)
            losses.append(loss)
        return torch.stack(ys, 2), state, torch.stack([x for x in losses if x is not None], 2) if how.surprise else None

    def _tile(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, live: Tensor | None, how: How
    ) -> tuple[Tensor, State, Tensor | None]:
        start = {name: state[START + name] for name in self.weights(1, 1)}
        key, value = unit(_answer("k", k, start)), _answer("v", v, start)  # eq. 83, 84
        eta = self.top_rate * torch.sigmoid(_answer("eta", gates["x"], start).squeeze(-1) + gates.get("eta", 0.0))
        log_a = log_sigmoid(_answer("alpha", gates["x"], start).squeeze(-1) + gates.get("alpha", self.alpha_bias))
        query = unit(_answer("q", q, start) if self.adaptive_q else q)
        log_b = log_sigmoid(gates["beta"]) if self.inertia else None
        if live is not None:
            eta, log_a = eta * live[:, None], log_a * live[:, None]
            log_b = None if log_b is None else log_b * live[:, None]
        tile = Tile.make(log_a, log_b, None if live is None else live[:, None], key)
        before = tile.before
        rate = eta[..., None]
        # The memory that is read at the full rate, the others at a share of it: two systems, one solve.
        rates = [rate] if self.projection_rate == 1.0 else [rate, self.projection_rate * rate]
        solvers = Solver.make(key, rates, before)

        state = dict(state)
        y, loss = None, None
        for name in self.memories:
            main = name == "memory"
            if name in self.static:
                continue
            written, each = self._write(name, value, solvers[0 if main else -1], state, start, tile, how)
            if main:
                loss = each
                pair = [written["w0"], written["w1"]]
                if how.read == "chunk":
                    y = _answer("memory", query, start)
                else:
                    y = read(pair, query, query, tile if how.read == "running" else before)
            for part, w in written.items():
                state[f"{name}.{part}"], momentum = w.end()
                if momentum is not None:
                    state[f"{MOMENTUM}{name}.{part}"] = momentum
        assert y is not None
        return y, state, loss

    def _write(
        self,
        name: str,
        value: Tensor,
        solver: Solver,
        state: State,
        start: State,
        tile: Tile,
        how: How,
    ) -> tuple[dict[str, Written], Tensor | None]:
        """Eq. 87 and 88 for one memory: its own target, its gradient at the chunk start, its writes."""
        key, rate = solver.x, solver.rate
        own = {part: start[f"{name}.{part}"] for part in ("w0", "w1", "skip") if f"{name}.{part}" in start}
        point = {part: w.detach() for part, w in own.items()} if how.order == "first" else own
        ws = [point["w0"], point["w1"]]
        skips = (key @ point["skip"].mT, value @ point["skip"].mT) if "skip" in point else (key, value)
        target = shorten(plain(ws, value, skips[1]), self.max_target)
        inner = inner_gradient(ws, key, skips[0], target, self.objective, how.surprise and name == "memory")
        written = {}
        parts = {"w0": (inner.error[0], key), "w1": (inner.error[1], inner.inputs[1])}
        if "skip" in point:
            parts["skip"] = (inner.out_error, key)
        for part, (error, x) in parts.items():
            full = f"{name}.{part}"
            step = rate * self.last_scale(how.chunk) if part == "w1" else rate
            f = step * shorten(self.scale * error, self.clip)
            free = inner.first if part == "w0" and state[full] is point["w0"] else None
            takes_out = None if part == "w1" else solver
            written[part] = write(state[full], state.get(MOMENTUM + full), x, f, tile, takes_out, free)
        return written, inner.loss


def _answer(name: str, x: Tensor, ws: State) -> Tensor:
    """M_name(x) from one state."""
    skip = x @ ws[name + ".skip"].mT if name + ".skip" in ws else x
    return plain([ws[name + ".w0"], ws[name + ".w1"]], x, skip)
