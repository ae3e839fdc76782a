"""Matrix memories: Hebbian, delta, Oja and DGD, in one chunk-parallel form.

All of them are ``M_t = a_t M_{t-1} - r_t k_t^T`` with ``r_t = e_t M_{t-1} k_t - w_t``: a retention a, an erase rate e
and a write w. Over a tile (I + e (D1 o K K^T)) R = e g K M_0^T - w (``closed``), so R = Y M_0^T - U. Where w does not
depend on the state, Y and U of all tiles are formed at once and the state moves by ``M <- M T + B``; where it does (L2
gradient at the chunk start) only the inverse is. The reads of all tiles are formed at once.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from circadia.memory import check, reference
from circadia.memory.closed import log_retention, ratios, shift
from circadia.memory.derivatives import shorten
from circadia.memory.layout import Flags
from circadia.memory.rule import INF, Gates, How, Rule, Shapes
from circadia.memory.state import START, State


class Write(NamedTuple):
    """What a matrix rule does, over [B, H, n, c]."""

    log_a: Tensor | None  # log retention; None keeps all
    erase: Tensor | None  # e; None takes nothing out
    value: Tensor | None  # w [..., d_v]; None where it depends on the state at the chunk start (``late``)


@dataclass(frozen=True, kw_only=True)
class Matrix(Rule):
    """State "w" [B, H, d_v, d_k], y = M q."""

    def weights(self, d_k: int, d_v: int) -> Shapes:
        return {"w": (d_v, d_k)}

    @property
    def group(self) -> int:
        return 16

    def together(self, x: Tensor) -> int | None:
        """On a CPU as many tiles as stay in the cache; elsewhere the more at once, the better."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        return max(1, 128 // (x.shape[0] * x.shape[1]))

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
        """An empty memory."""
        return {"w": torch.zeros(batch, heads, d_k if d_v is None else d_v, d_k, dtype=dtype, device=device)}

    @property
    def goal(self) -> str:
        return "dot product, -<M k, v> (eq. 14)"

    def write(self, k: Tensor, v: Tensor, gates: Gates) -> Write:
        raise NotImplementedError

    def late(self, known: Tensor, v: Tensor, gates: Gates) -> Tensor:
        """The write w of a rule that needs M_start k for it."""
        raise NotImplementedError

    def loss(self, known: Tensor, v: Tensor) -> Tensor:
        """The inner loss of a pair, from what the memory knows of its key."""
        return -(known * v).sum(-1)

    def equation_at(
        self, m: Tensor, start: Tensor, k: Tensor, v: Tensor, gates: Gates, how: How
    ) -> tuple[Tensor, Tensor]:
        """M_t and the loss, in ``reference``."""
        raise NotImplementedError

    def token(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, how: How
    ) -> tuple[Tensor, State, Tensor]:
        return reference.matrix(self, q, k, v, gates, state, how)

    def tiles(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, flags: Flags, how: How
    ) -> tuple[Tensor, State, Tensor | None]:
        scan = scan_tiles(self, k, v, gates, self.write(k, v, gates), state, flags, how)
        if how.read == "chunk":
            y = q @ scan.starts.mT
        else:
            g, d = scan.decay(how.read)
            y = g * (q @ scan.states.mT) - (d * (q @ k.mT)) @ scan.taken
        if not how.surprise:
            return y, scan.end, None
        if self.anchored:
            point = scan.starts.detach() if how.order == "first" else scan.starts
            return y, scan.end, self.loss(k @ point.mT, v)
        g, d = scan.decay("previous")
        return y, scan.end, self.loss(g * (k @ scan.states.mT) - (d * (k @ k.mT)) @ scan.taken, v)


class Scan(NamedTuple):
    """All states of a run of tiles [B, H, n, ...], and what was taken out at every token."""

    g: Tensor  # [..., c, 1] decay since the beginning of the tile
    d: Tensor  # [..., c, c] decay between tokens
    states: Tensor  # [..., d_v, d_k] at the beginning of each tile
    starts: Tensor  # at the beginning of its chunk
    taken: Tensor  # R [..., c, d_v]
    end: State

    def decay(self, read: str) -> tuple[Tensor, Tensor]:
        """As seen after, or before, each token's own write."""
        return (self.g, self.d) if read == "running" else (shift(self.g, 1.0), shift(self.d, 0.0))


def scan_tiles(
    rule: Matrix, k: Tensor, v: Tensor, gates: Gates, write: Write, state: State, flags: Flags, how: How
) -> Scan:
    """Carry the state through n tiles of c tokens."""
    log_a, erase, value = write
    if flags.live is not None:
        live = flags.live[:, None].to(k.dtype)  # an empty slot neither decays, nor takes out, nor puts in
        log_a = None if log_a is None else log_a * live
        erase = None if erase is None else erase * live
        value = None if value is None else value * live[..., None]
    c, d_k = k.shape[-2:]
    g, d = ratios(log_a, k)
    last = d[..., -1, :, None] * k
    total = g[..., -1:, :]
    system = None if erase is None else erase[..., None] * shift(d, 0.0) * (k @ k.mT)
    m, start = state["w"], state.get(START + "w", state["w"])
    states, starts, late = [], [], []

    if value is not None and system is None:  # Hebbian: R = -w
        b, t, y, u = value.mT @ last, None, None, value
    elif value is not None:
        assert system is not None and erase is not None
        lead = erase[..., None] * shift(g, 1.0) * k
        solved = torch.linalg.solve_triangular(system, torch.cat((lead, value), -1), upper=False, unitriangular=True)
        y, u = solved.split([d_k, value.shape[-1]], -1)
        t, b = total * torch.eye(d_k, dtype=k.dtype, device=k.device) - y.mT @ last, u.mT @ last
    else:
        assert system is not None and erase is not None
        eye = torch.eye(c, dtype=k.dtype, device=k.device).expand_as(system)
        inverse = torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)
        lead = erase[..., None] * shift(g, 1.0) * k

    # Unbound once: indexing tile by tile would fill a whole gradient with zeros for every tile.
    n = k.shape[2]
    keeps = total.expand(*k.shape[:3], 1, 1).unbind(2)
    if value is None:
        late_k, late_v, lasts, leads, inverses = (x.unbind(2) for x in (k, v, last, lead, inverse))
        late_gates = {name: x.unbind(2) for name, x in gates.items()}
    else:
        ts, bs = [None] * n if t is None else t.unbind(2), b.unbind(2)
    for i in range(n):
        opened = rule.opened({"w": m, START + "w": start} if how.anchored else {"w": m}, i, flags, how)
        m = opened["w"]
        start = opened.get(START + "w", m)
        states.append(m)
        starts.append(start)
        if value is None:
            point = start.detach() if how.order == "first" else start
            w = rule.late(late_k[i] @ point.mT, late_v[i], {name: x[i] for name, x in late_gates.items()})
            w = w if flags.live is None else w * flags.live[:, None, i, :, None]
            r = inverses[i] @ (leads[i] @ m.mT - w)
            late.append(r)
            m = keeps[i] * m - r.mT @ lasts[i]
        elif (move := ts[i]) is None:
            m = keeps[i] * m + bs[i]
        else:
            m = torch.baddbmm(bs[i].flatten(0, 1), m.flatten(0, 1), move.flatten(0, 1)).unflatten(0, m.shape[:2])

    at, begun = torch.stack(states, 2), torch.stack(starts, 2)
    taken = torch.stack(late, 2) if value is None else (-u if y is None else y @ at.mT - u)
    return Scan(g, d, at, begun, taken, {**state, "w": m} | ({START + "w": start} if how.anchored else {}))


@dataclass(frozen=True, kw_only=True)
class Hebbian(Matrix):
    """``M_t = alpha_t M_{t-1} + eta_t v k^T`` (eq. 14-18, 64): adds every pair.

    It forgets not at all, at a fixed rate per head, or as the data say.
    """

    decay: Literal["none", "fixed", "gated"] = "none"
    span: float = 0.0  # of the fixed decays, at least

    @property
    def needs(self) -> tuple[str, ...]:
        return ("alpha", "eta") if self.decay == "gated" else ()

    def ranges(self, k: Tensor, v: Tensor, gates: Gates) -> dict[str, tuple[Tensor, float, float]]:
        if self.decay != "gated":
            return {}
        return {"gates['alpha']": (gates["alpha"], 0.0, 1.0), "gates['eta']": (gates["eta"], 0.0, INF)}

    def gamma(self, heads: int) -> Tensor:
        """RetNet's decay per head, 1 - 2^-(5 + head); few heads are spread so that the powers span ``span``."""
        step = max(1.0, self.span / max(heads - 1, 1))
        return 1.0 - 2.0 ** -(5.0 + step * torch.arange(heads, dtype=torch.float64))

    def write(self, k: Tensor, v: Tensor, gates: Gates) -> Write:
        if self.decay == "none":
            return Write(None, None, v)
        if self.decay == "fixed":
            log_a = self.gamma(k.shape[1]).log().to(k).view(-1, 1, 1).expand(k.shape[:-1])
            return Write(log_a, None, v)
        return Write(log_retention(gates["alpha"]), None, gates["eta"][..., None] * v)

    def equation_at(
        self, m: Tensor, start: Tensor, k: Tensor, v: Tensor, gates: Gates, how: How
    ) -> tuple[Tensor, Tensor]:
        return reference.hebbian(self, m, start, k, v, gates, how)


@dataclass(frozen=True, kw_only=True)
class Online(Matrix):
    """Rules whose gradient is taken at the running state: only second-order outer gradients exist in closed form."""

    def check_call(self, how: How) -> None:
        if how.order == "first":
            raise ValueError(
                f"order='first' cannot be had from {self.name}: its gradient sees the running state; use order='second'"
            )


@dataclass(frozen=True, kw_only=True)
class Delta(Online):
    """``M_t = alpha_t M_{t-1} - eta_t (alpha_t M_{t-1} k - v) k^T`` (eq. 65): what was stored under k is replaced.

    One step of L2 regression at the running state; without a gate ``alpha_t = 1``.
    """

    gated: bool = False

    @property
    def goal(self) -> str:
        return "L2 regression, 1/2 |M k - v|^2 (eq. 65)"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("alpha", "eta") if self.gated else ("eta",)

    def ranges(self, k: Tensor, v: Tensor, gates: Gates) -> dict[str, tuple[Tensor, float, float]]:
        return contraction("k", k, gates, 1.0)

    def write(self, k: Tensor, v: Tensor, gates: Gates) -> Write:
        eta = gates["eta"]
        if not self.gated:
            return Write(None, eta, eta[..., None] * v)
        return Write(log_retention(gates["alpha"]), gates["alpha"] * eta, eta[..., None] * v)

    def loss(self, known: Tensor, v: Tensor) -> Tensor:
        return 0.5 * (known - v).square().sum(-1)

    def equation_at(
        self, m: Tensor, start: Tensor, k: Tensor, v: Tensor, gates: Gates, how: How
    ) -> tuple[Tensor, Tensor]:
        return reference.delta(self, m, start, k, v, gates, how)


@dataclass(frozen=True, kw_only=True)
class Oja(Online):
    """``M_t = alpha_t M_{t-1} + eta_t v (k - M_{t-1}^T v)^T`` (eq. 66, 67): the delta rule on the transpose of M."""

    @property
    def goal(self) -> str:
        return "-<M k, v> + 1/2 |M^T v|^2 (eq. 66, 67)"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("eta",)

    @property
    def takes(self) -> tuple[str, ...]:
        return ("alpha",)

    def ranges(self, k: Tensor, v: Tensor, gates: Gates) -> dict[str, tuple[Tensor, float, float]]:
        return contraction("v", v, gates, 1.0)

    def tiles(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, flags: Flags, how: How
    ) -> tuple[Tensor, State, Tensor | None]:
        log_a = log_retention(gates["alpha"]) if "alpha" in gates else None
        write = Write(log_a, gates["eta"], gates["eta"][..., None] * k)
        turned = replace(how, initial=None if how.initial is None else _turn(how.initial))
        scan = scan_tiles(self, v, k, gates, write, _turn(state), flags, turned)
        y = q @ scan.starts if how.read == "chunk" else self._read(scan, q, v, how.read)
        loss = None
        if how.surprise:
            g, d = scan.decay("previous")
            back = g * (v @ scan.states.mT) - (d * (v @ v.mT)) @ scan.taken
            loss = 0.5 * back.square().sum(-1) - (self._read(scan, k, v, "previous") * v).sum(-1)
        return y, _turn(scan.end), loss

    @staticmethod
    def _read(scan: Scan, q: Tensor, v: Tensor, read: str) -> Tensor:
        g, d = scan.decay(read)
        return g * (q @ scan.states) - (d * (q @ scan.taken.mT)) @ v

    def equation_at(
        self, m: Tensor, start: Tensor, k: Tensor, v: Tensor, gates: Gates, how: How
    ) -> tuple[Tensor, Tensor]:
        return reference.oja(self, m, start, k, v, gates, how)


@dataclass(frozen=True, kw_only=True)
class DGD(Matrix):
    """``M_t = M_{t-1} (alpha_t I - eta_t k k^T) - eta_t grad``: delta gradient descent with weight decay (eq. 57, 88).

    The gradient is that of ``L = -<M k, v>`` (eq. 92) or ``L = 1/2 |M k - v|^2`` (eq. 93).
    """

    objective: Literal["dot", "l2"] = "dot"
    gradient: Literal["chunk", "online"] = "chunk"  # where the L2 gradient is taken; the other does not see the state
    literal_sign: bool = False  # eq. 92 as printed: the write climbs the objective
    scale: float = 1.0  # c of the L2 objective: 1 is eq. 93, 2 is the gradient of |M k - v|^2
    clip: float | None = None  # longest inner error of a token
    # The L2 rule erases twice, and with its gradient at the chunk start it can grow without end.
    bound: float | None = 64.0

    def __post_init__(self) -> None:
        check.one_of("objective", self.objective, ("dot", "l2"))
        check.one_of("gradient", self.gradient, ("chunk", "online"))
        if self.literal_sign and self.objective == "l2":
            raise ValueError(
                "literal_sign=True belongs to objective='dot' (eq. 92): eq. 93 is printed with the right sign"
            )
        if self.clip is not None and self.objective == "l2" and self.gradient == "online":
            raise ValueError(
                "clip needs gradient='chunk': an error at the running state cannot be clipped in closed form"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("eta",)

    @property
    def takes(self) -> tuple[str, ...]:
        return ("alpha",)

    @property
    def anchored(self) -> bool:
        return self.objective == "l2" and self.gradient == "chunk"

    @property
    def goal(self) -> str:
        return (
            "L2 regression, 1/2 |M k - v|^2 (eq. 93)" if self.objective == "l2" else "dot product, -<M k, v> (eq. 92)"
        )

    @property
    def max_norm(self) -> float | None:
        return self.bound if self.anchored else None

    def check_call(self, how: How) -> None:
        if how.order == "first" and self.objective == "l2" and self.gradient == "online":
            raise ValueError(f"order='first' cannot be had from {self.name}: use gradient='chunk' or order='second'")

    def ranges(self, k: Tensor, v: Tensor, gates: Gates) -> dict[str, tuple[Tensor, float, float]]:
        online = self.objective == "l2" and self.gradient == "online"
        return contraction("k", k, gates, 1.0 + self.scale if online else 1.0)

    def write(self, k: Tensor, v: Tensor, gates: Gates) -> Write:
        eta = gates["eta"]
        log_a = log_retention(gates["alpha"]) if "alpha" in gates else None
        if self.objective == "dot":
            sign = -1.0 if self.literal_sign else 1.0
            return Write(log_a, eta, sign * eta[..., None] * shorten(v, self.clip))
        if self.gradient == "online":
            return Write(log_a, (1.0 + self.scale) * eta, self.scale * eta[..., None] * v)
        return Write(log_a, eta, None)

    def late(self, known: Tensor, v: Tensor, gates: Gates) -> Tensor:
        return -gates["eta"][..., None] * shorten(self.scale * (known - v), self.clip)

    def loss(self, known: Tensor, v: Tensor) -> Tensor:
        return 0.5 * (known - v).square().sum(-1) if self.objective == "l2" else super().loss(known, v)

    def equation_at(
        self, m: Tensor, start: Tensor, k: Tensor, v: Tensor, gates: Gates, how: How
    ) -> tuple[Tensor, Tensor]:
        return reference.dgd(self, m, start, k, v, gates, how)


def proximal_rate(eta: Tensor, k: Tensor) -> Tensor:
    """The exact rate of the proximal step behind DGD, eta / (1 + eta |k|^2): eq. 57 prints the case |k| = 1."""
    return eta / (1.0 + eta * k.square().sum(-1))


def contraction(name: str, x: Tensor, gates: Gates, times: float) -> dict[str, tuple[Tensor, float, float]]:
    """Rates under which a write is no expansion: eta |x|^2 up to 2 (eigenvalue -1, which state tracking needs)."""
    eta = gates["eta"]
    found = {
        "gates['eta']": (eta, 0.0, INF),
        f"{'' if times == 1.0 else f'{times:g} * '}gates['eta'] * |{name}|^2": (
            times * eta * x.square().sum(-1),
            0.0,
            2.0 + 1e-3,  # room for rounding in |x| = 1
        ),
    }
    if "alpha" in gates:
        found["gates['alpha']"] = (gates["alpha"], 0.0, 1.0)
    return found


def _turn(state: State) -> State:
    """Transpose every matrix of a state."""
    return {name: x.mT if x.ndim == 4 else x for name, x in state.items()}
