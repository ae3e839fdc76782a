"""The truth: every rule as a plain loop, one equation a line, any dtype, gradients by ``torch.func``.

Equation numbers are those of Nested Learning (arXiv 2512.24695, long version); [T] is Titans (arXiv 2501.00663).
Shapes at one token: q, k [B, H, d_k], v [B, H, d_v], gates [B, H], matrices [B, H, outputs, inputs].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.memory.closed import unit
from circadia.memory.derivatives import shorten
from circadia.memory.state import MOMENTUM, POS, START, State, choose, limit, precision, select

if TYPE_CHECKING:
    from circadia.memory.deep import Deep
    from circadia.memory.linear import DGD, Delta, Hebbian, Matrix
    from circadia.memory.rule import How, Rule
    from circadia.memory.selfmod import SelfModifying

Gates = dict[str, Tensor]


def run(
    rule: Rule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: State,
    how: How,
    mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, State, Tensor]:
    """One token after another. A chunk is counted from the start of a document, over real tokens."""
    outer, inner = v.dtype, precision(state)
    periods = rule.chunks(how.chunk)
    ys, losses = [], []
    for t in range(q.shape[2]):
        if reset is not None:
            assert how.initial is not None
            state = select(reset[:, t], how.initial, state)
        if how.anchored:
            state = dict(state)
            for name, period in periods.items():  # the gradient's point, M_{C floor((t-1)/C)} of eq. 90
                border = state[POS] % period == 0
                for key in (name, MOMENTUM + name) if rule.momentum else (name,):
                    state[key] = choose(border, limit(state[key], rule.max_norm), state[key])
                state[START + name] = choose(border, state[name], state[START + name])
        q_t, k_t, v_t = (x[:, :, t].to(inner) for x in (q, k, v))
        y, new, loss = rule.token(q_t, k_t, v_t, {n: g[:, :, t].to(inner) for n, g in gates.items()}, state, how)
        new = {**state, **new}
        if how.anchored:
            new[POS] = (state[POS] + 1) % max(periods.values())
        if mask is not None:
            y = torch.where(mask[:, t, None, None], y, 0.0)
            loss = torch.where(mask[:, t, None], loss, 0.0)
            new = select(mask[:, t], new, state)
        state = new
        ys.append(y)
        losses.append(loss)
    if not ys:
        return v, state, v[..., 0]
    return torch.stack(ys, 2).to(outer), state, torch.stack(losses, 2).to(outer)


def apply(m: Tensor, x: Tensor) -> Tensor:
    """M x."""
    return (m @ x[..., None]).squeeze(-1)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """A b^T."""
    return a[..., :, None] * b[..., None, :]


def col(gate: Tensor) -> Tensor:
    """A gate [B, H] against matrices."""
    return gate[..., None, None]


def matrix(
    rule: Matrix, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, how: How
) -> tuple[Tensor, State, Tensor]:
    """A matrix memory: y = M q, from the state that the call asks for."""
    m = state["w"]
    new, loss = rule.equation_at(m, state.get(START + "w", m), k, v, gates, how)
    y = apply({"running": new, "previous": m, "chunk": state.get(START + "w", m)}[how.read], q)
    return y, {"w": new}, loss


def hebbian(
    rule: Hebbian, m: Tensor, start: Tensor, k: Tensor, v: Tensor, gates: Gates, how: How
) -> tuple[Tensor, Tensor]:
    """Objective -<M k, v>; its gradient is -v k^T wherever it is taken (eq. 14-18)."""
    loss = -(apply(m, k) * v).sum(-1)
    if rule.decay == "none":
        return m + outer(v, k), loss  # linear attention, eq. 15
    if rule.decay == "fixed":
        gamma = rule.gamma(m.shape[1]).to(m)
        return gamma[:, None, None] * m + outer(v, k), loss  # RetNet
    return col(gates["alpha"]) * m + col(gates["eta"]) * outer(v, k), loss  # Mamba-2; eq. 64


def delta(rule: Delta, m: Tensor, start: Tensor, k: Tensor, v: Tensor, gates: Gates, how: How) -> tuple[Tensor, Tensor]:
    """Objective 1/2 |M k - v|^2, gradient at the running state (eq. 65)."""
    eta = col(gates["eta"])
    if rule.gated:
        m_decayed = col(gates["alpha"]) * m
        return m_decayed - eta * outer(apply(m_decayed, k), k) + eta * outer(v, k), _half(apply(m, k) - v)
    return m - eta * outer(apply(m, k) - v, k), _half(apply(m, k) - v)


def oja(rule: Matrix, m: Tensor, start: Tensor, k: Tensor, v: Tensor, gates: Gates, how: How) -> tuple[Tensor, Tensor]:
    """Objective -<M k, v> + 1/2 |M^T v|^2 (eq. 66, 67): the write forgets what already points to v."""
    back = apply(m.mT, v)
    loss = -(apply(m, k) * v).sum(-1) + _half(back)
    alpha = col(gates["alpha"]) if "alpha" in gates else 1.0
    return alpha * m + col(gates["eta"]) * outer(v, k - back), loss


def dgd(rule: DGD, m: Tensor, start: Tensor, k: Tensor, v: Tensor, gates: Gates, how: How) -> tuple[Tensor, Tensor]:
    """M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) - eta_t u_t k_t^T (eq. 57, 88)."""
    point = m if rule.gradient == "online" else start
    if how.order == "first":
        point = point.detach()
    alpha = col(gates["alpha"]) if "alpha" in gates else torch.ones_like(col(gates["eta"]))
    eta = col(gates["eta"])
    if rule.objective == "l2":
        u = rule.scale * (apply(point, k) - v)  # eq. 93: gradient of 1/2 |M k - v|^2 is u k^T
        loss = _half(apply(point, k) - v)
    else:
        u = v if rule.literal_sign else -v  # eq. 92 as printed ascends; -<M k, v> has the gradient -v k^T
        loss = -(apply(m, k) * v).sum(-1)
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    return m @ (alpha * eye - eta * outer(k, k)) - eta * outer(shorten(u, rule.clip), k), loss


def _half(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def forward(
    ws: list[Tensor], x: Tensor, skip: Tensor, norm: tuple[Tensor, Tensor] | None, nudge: list[Tensor]
) -> Tensor:
    """M(x) = skip + W_L gelu(... gelu(W_1 x)) (eq. 89, 91); ``nudge`` is added to what each matrix gives out."""
    for i, (w, n) in enumerate(zip(ws, nudge)):
        x = apply(w, x if i == 0 else F.gelu(x)) + n
    if norm is not None:
        x = F.layer_norm(x, x.shape[-1:], eps=1e-5) * norm[0] + norm[1]
    return skip + x


def errors(
    ws: list[Tensor],
    k: Tensor,
    target: Tensor,
    objective: str,
    norm: tuple[Tensor, Tensor] | None = None,
    w_skip: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Per matrix its error (the gradient at what it gives out) and its input; the error of the output; the loss.

    The gradient of matrix l is the outer product of the two, so nudging the outputs gives all of them at once.
    """
    skip = k if w_skip is None else apply(w_skip, k)

    def loss_of(nudge: list[Tensor], out_nudge: Tensor) -> tuple[Tensor, Tensor]:
        out = forward(ws, k, skip, norm, nudge) + out_nudge
        each = -(out * target).sum(-1) if objective == "dot" else _half(out - target)
        return each.sum(), each

    nothing = [torch.zeros_like(apply(w, torch.zeros_like(w[..., 0, :]))) for w in ws]
    at = (nothing, torch.zeros_like(skip))
    (deltas, err), loss = torch.func.grad(loss_of, argnums=(0, 1), has_aux=True)(*at)
    inputs = [k]
    for w in ws[:-1]:
        inputs.append(F.gelu(apply(w, inputs[-1])))
    return deltas, inputs, err, loss


def deep(
    rule: Deep, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, how: How
) -> tuple[Tensor, State, Tensor]:
    """A residual MLP memory of any depth (eq. 88-91), Titans' momentum [T], A4 options by name."""
    names = list(rule.weights(1, 1))
    norm = (state["ln.weight"], state["ln.bias"]) if rule.norm else None
    start = [state[START + n] for n in names]
    point = [w.detach() for w in start] if how.order == "first" else start
    deltas, inputs, _, loss = errors(point, k, shorten(v, rule.max_target), rule.objective, norm)
    alpha = col(gates["alpha"]) if "alpha" in gates else 1.0
    new: State = {}
    for i, (name, error, x) in enumerate(zip(names, deltas, inputs)):
        w, eta = state[name], col(gates["eta"])
        if rule.erase == "layer" and i > 0:
            eta = eta / (1 + eta * x.square().sum(-1)[..., None, None])  # eq. 57 for inputs of any length
        step = eta * (rule.last_scale(how.chunk) if i == len(names) - 1 else 1.0)
        gradient = outer(shorten(rule.scale * error, rule.clip), x)
        kept = alpha * w
        if rule.erase == "layer" or (rule.erase == "key" and i == 0):
            kept = kept - eta * outer(apply(w, x), x)  # W (alpha I - eta x x^T)
        if rule.momentum:
            s = col(gates["beta"]) * state[MOMENTUM + name] - step * gradient  # S_t [T]
            new[MOMENTUM + name] = s
            new[name] = kept + s
        else:
            new[name] = kept - step * gradient
    ws = {"running": [new[n] for n in names], "previous": [state[n] for n in names], "chunk": start}[how.read]
    return forward(ws, q, q, norm, [torch.zeros(())] * len(ws)), new, loss


def self_modifying(
    rule: SelfModifying, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State, how: How
) -> tuple[Tensor, State, Tensor]:
    """Self-modifying Titans (eq. 83-90): k, v, eta, alpha are made by memories that rewrite themselves."""
    start = {n: state[START + n] for n in rule.chunks(how.chunk)}

    def memory(name: str, x: Tensor, ws: State) -> Tensor:
        skip = apply(ws[name + ".skip"], x) if name + ".skip" in ws else x
        return forward([ws[name + ".w0"], ws[name + ".w1"]], x, skip, None, [torch.zeros(())] * 2)

    key = unit(memory("k", k, start))  # eq. 83
    value = memory("v", v, start)  # eq. 84
    eta = rule.top_rate * torch.sigmoid(memory("eta", gates["x"], start).squeeze(-1) + gates.get("eta", 0.0))
    alpha = torch.sigmoid(memory("alpha", gates["x"], start).squeeze(-1) + gates.get("alpha", rule.alpha_bias))
    if not rule.decays:
        alpha = torch.ones_like(alpha)
    query = unit(memory("q", q, start) if rule.adaptive_q else q)  # eq. 85
    new: State = {}
    loss = None
    for name in rule.memories:
        ws = [start[f"{name}.{part}"] for part in ("w0", "w1")]
        ws_skip = start.get(name + ".skip")
        point = [w.detach() if how.order == "first" else w for w in ws]
        point_skip = ws_skip.detach() if ws_skip is not None and how.order == "first" else ws_skip
        seen = {f"{name}.w0": point[0], f"{name}.w1": point[1]} | (
            {} if point_skip is None else {name + ".skip": point_skip}
        )
        target = shorten(memory(name, value, seen), rule.max_target)  # eq. 87, each memory makes its own
        # The target is a constant of the inner gradient, which is taken in `errors`, and a variable of the outer one.
        deltas, inputs, err, each = errors(point, key, target, rule.objective, None, point_skip)
        loss = each if name == "memory" else loss
        if name in rule.static:
            continue
        rate = col(eta) * (1.0 if name == "memory" else rule.projection_rate)
        parts = {"w0": (deltas[0], key), "w1": (deltas[1], inputs[1])} | (
            {} if ws_skip is None else {"skip": (err, key)}
        )
        for part, (error, x) in parts.items():
            full = f"{name}.{part}"
            w = state[full]
            gradient = outer(shorten(rule.scale * error, rule.clip), x)
            step = rate * (rule.last_scale(how.chunk) if part == "w1" else 1.0)
            kept = col(alpha) * w
            if part != "w1" and rule.erase:
                kept = kept - rate * outer(apply(w, key), key)  # eq. 88, on the matrices whose input is k
            if rule.momentum:
                s = torch.sigmoid(col(gates["beta"])) * state[MOMENTUM + full] - step * gradient
                new[MOMENTUM + full] = s
                new[full] = kept + s
            else:
                new[full] = kept - step * gradient
    now = {"running": {**state, **new}, "previous": state, "chunk": start}[how.read]
    assert loss is not None
    return memory("memory", query, now), new, loss  # eq. 86
