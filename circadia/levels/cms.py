"""A level of the continuum memory system that learns in context: an MLP whose weights move once a period (eq. 71).

Every sequence has weights of its own, W = start + delta. During a period of C tokens they stand still; each token's
gradient is added up; when the next token opens a new period, the mean gradient moves them:

    delta <- home + (1 - decay) (delta - home) - rate clip(1/C sum_t w_t grad_t)

The signal is local: at token t the level predicts the next token as it will come in, 1/2 |MLP(x_t) - target_{t+1}|^2,
inside the period (the pair across its border is left out: its prediction was made by the weights of before). w_t is a
weight of the token, 1 if there is none. The gradient is written out, so nothing is differentiated to learn.

x, target  [B, T, d]   what comes in (normalised), and what each token would have been predicted as
start      "up" [m, d], "out" [d, h]: m = h for gelu, 2 h for SwiGLU
rates      "up", "out", "decay", "transfer": scalars, or tensors so that they can be learned
state      a flat dict, batch first; a missing entry is at its beginning:
           "up", "out" the deltas; "sum.*" the open period's gradients; "home.*" where a nested level restarts from;
           "last" [B, d] the last input; "pos" [B] the tokens of the open period

A nested level (eq. 72) restarts at every period of the next slower level, from a home that has moved a part
("transfer") of the way to what was learned: the first-order form of learning a start (Reptile).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.memory.layout import Flags, Tiles, grid, spans
from circadia.memory.mlp import Kind, learn, mlp
from circadia.memory.state import State, choose

Order = Literal["second", "first"]
NAMES = ("up", "out")


@dataclass(frozen=True, kw_only=True)
class How:
    """The settings of one level."""

    period: int
    kind: Kind = "swiglu"
    parent: int | None = None  # nested: the period of the next slower level
    clip: float = 1.0  # longest mean gradient of a sequence, both matrices together
    order: Order = "second"  # "first": outer gradients do not see the weights inside the inner gradients
    keep: bool = True  # will the state be used? If not, the last period's gradients are left out

    @property
    def wrap(self) -> int:
        return self.parent or self.period


def update(delta: State, home: State, mean: State, rates: Mapping[str, Tensor | float], clip: float) -> State:
    """One step at the end of a period (eq. 71), the mean gradient at most ``clip`` long."""
    square = torch.stack([g.square().sum((-2, -1)) for g in mean.values()]).sum(0)
    factor = (clip * torch.rsqrt(square.clamp_min(1e-30))).clamp_max(1.0)[:, None, None]
    kept = 1.0 - rates["decay"]
    return {n: home[n] + kept * (delta[n] - home[n]) - rates[n] * (factor * mean[n]) for n in NAMES}


def run(
    how: How,
    x: Tensor,
    target: Tensor,
    start: State,
    rates: Mapping[str, Tensor | float],
    state: State,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, State]:
    """All tokens of a call, a period at a time -> (y [B, T, d], state)."""
    if x.shape[1] == 0:
        return x, state
    tiles_of, end = _layout(how, x, state, mask, reset)
    if tiles_of[0][0].index is not None:  # rows that are not in step: each needs every entry
        state = _filled(how, state, start, x)
    weight = x.new_ones(x.shape[:2]) if weight is None else weight
    ys = []
    for tiles, final in tiles_of:
        parts = [tiles.cut(z[:, None]).squeeze(1).unbind(1) for z in (x, target, weight)]
        some = []
        for i, (x_i, target_i, weight_i) in enumerate(zip(*parts)):
            flags = tiles.flags(i, i + 1)
            state = _opened(how, state, flags, rates)
            learns = how.keep or not (final and i == tiles.n - 1)
            y, state = _tile(how, x_i, target_i, weight_i, start, state, flags, learns)
            some.append(y)
        ys.append(tiles.join(torch.stack(some, 1)[:, None]).squeeze(1))
    if how.keep:
        state = {**state, "pos": end % how.wrap}
    return torch.cat(ys, 1), state


def reference(
    how: How,
    x: Tensor,
    target: Tensor,
    start: State,
    rates: Mapping[str, Tensor | float],
    state: State,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The same, one token after another, with the gradient by ``torch.func``."""
    batch, tokens, _ = x.shape
    state = _filled(how, state, start, x)
    nothing = {n: torch.zeros_like(z) for n, z in state.items()}

    def loss(point: State, key: Tensor, value: Tensor) -> Tensor:
        return 0.5 * (mlp(how.kind, key, point["up"], point["out"]) - value).square().sum()

    def prediction_gradient(point: State, key: Tensor, value: Tensor) -> State:
        return torch.func.vmap(torch.func.grad(loss))(point, key, value)

    ys = []
    for t in range(tokens):
        live = x.new_ones(batch, dtype=torch.bool) if mask is None else mask[:, t]
        old = state
        if reset is not None:
            state = {n: choose(reset[:, t], nothing[n], z) for n, z in state.items()}
        opened = {**state, **_learned(how, state, rates)}
        state = {n: choose(state["pos"] % how.period == 0, opened[n], z) for n, z in state.items()}
        if how.parent is not None:
            moved = {**state, **restarted(state, rates)}
            state = {n: choose(state["pos"] % how.parent == 0, moved[n], z) for n, z in state.items()}
        w = {n: start[n] + state[n] for n in NAMES}
        ys.append(torch.where(live[:, None], mlp(how.kind, x[:, t, None], w["up"], w["out"])[:, 0], 0.0))
        point = {n: z.detach() for n, z in w.items()} if how.order == "first" else w
        grad = prediction_gradient(point, state["last"], target[:, t])
        worth = torch.ones_like(x[:, t, 0]) if weight is None else weight[:, t]
        worth = torch.where(state["pos"] % how.period == 0, 0.0, worth)[:, None, None]
        new = {**state, **{"sum." + n: state["sum." + n] + worth * grad[n] for n in NAMES}}
        new |= {"last": x[:, t], "pos": (state["pos"] + 1) % how.wrap}
        state = {n: choose(live, z, old[n]) for n, z in new.items()}
    return torch.stack(ys, 1), state


def _tile(
    how: How,
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    start: State,
    state: State,
    flags: Flags,
    learns: bool,
) -> tuple[Tensor, State]:
    """Tokens of one period: read with its weights, and add up the gradients."""
    w = {n: start[n].to(x.dtype) for n in NAMES}
    if "up" in state:
        w = {n: (start[n] + state[n]).to(x.dtype) for n in NAMES}
    if not learns:
        return mlp(how.kind, x, w["up"], w["out"]), state
    pairs, before = None, 0
    if isinstance(flags.first, int):
        if flags.first % how.period:  # the first pair's key came with an earlier call
            x, before = torch.cat((state["last"][:, None].to(x.dtype), x), 1), 1
        last = x[:, -1]
    else:
        x, pairs, last = _gathered(x, state, flags)
    # The key at t is paired with the token at t + 1; the last one waits for the next call, or its period ends.
    value, worth = (F.pad(z[:, 1 - before :], (0, 0, 0, 1)) for z in (target, weight[..., None]))
    if pairs is not None:
        worth = worth * F.pad(pairs, (0, 1))[..., None]
    y, *grads = learn(how.kind, x, value, worth, w["up"], w["out"], first=how.order == "first")
    wide = torch.promote_types(start["up"].dtype, torch.float32)
    state = dict(state)
    for n, grad in zip(NAMES, grads):
        total = state.get("sum." + n)
        state["sum." + n] = grad.to(wide) if total is None else total + grad
    state["last"] = last
    return y[:, before:], state


def _gathered(x: Tensor, state: State, flags: Flags) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that are not in step: the key of an open period put into its slot, what pairs count, and the last inputs."""
    assert flags.live is not None and isinstance(flags.first, Tensor)
    live = flags.live[:, 0]
    slots = torch.arange(flags.c, device=x.device)
    last = state["last"].to(x.dtype)
    # Only a call's first tile can begin inside a period; there its first real slot says how far.
    opens = torch.where(live.any(1), live.long().argmax(1), 0)
    held = (slots == opens[:, None] - 1) & live.any(1, keepdim=True)
    x = torch.where(held[..., None], last[:, None], x)
    pairs = ((live | held)[:, :-1] & live[:, 1:]).to(x.dtype)
    final = torch.where(live, slots, -1).amax(1)
    picked = x.take_along_dim(final.clamp_min(0)[:, None, None], 1).squeeze(1)
    return x, pairs, torch.where((final >= 0)[:, None], picked, last)


def _opened(how: How, state: State, flags: Flags, rates: Mapping[str, Tensor | float]) -> State:
    """The state at the beginning of a tile: forgotten where a document begins, moved where a period does."""
    restart = flags.restarts(0)
    if restart is not None:
        state = {n: choose(restart, torch.zeros_like(z), z) if n != "pos" else z for n, z in state.items()}
    for period, change in ((how.period, _learned), (how.parent, restarted)):
        if period is None or "sum.up" not in state:  # nothing has been learned yet
            continue
        due = flags.fresh(0, period)
        if due is False:
            continue
        new = _learned(how, state, rates) if change is _learned else restarted(state, rates)
        if due is not True:
            new = {n: choose(due, z, state[n]) for n, z in new.items()}
        state = {**state, **new}
    return state


def stepped(state: State, mean: State, rates: Mapping[str, Tensor | float], clip: float) -> State:
    """The deltas after a period with this mean gradient, and no gradients."""
    zero = {n: torch.zeros_like(g) for n, g in mean.items()}
    delta, home = ({n: state.get(prefix + n, zero[n]) for n in NAMES} for prefix in ("", "home."))
    moved = update(delta, home, mean, rates, clip)
    return {**moved, **{"sum." + n: z for n, z in zero.items()}}


def restarted(state: State, rates: Mapping[str, Tensor | float]) -> State:
    """Eq. 72: the home moves toward what was learned, and the level begins there again."""
    new: State = {}
    for n in NAMES:
        home = state.get("home." + n, torch.zeros_like(state[n]))
        new[n] = new["home." + n] = home + rates["transfer"] * (state[n] - home)
    return new


def _learned(how: How, state: State, rates: Mapping[str, Tensor | float]) -> State:
    return stepped(state, {n: state["sum." + n] / how.period for n in NAMES}, rates, how.clip)


def _layout(
    how: How, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None
) -> tuple[list[tuple[Tiles, bool]], Tensor]:
    """The tiles of a call, the last ones marked, and every row's position afterwards."""
    batch, tokens = x.shape[:2]
    pos = state.get("pos")
    compiling = torch.compiler.is_compiling()
    if mask is None and reset is None:
        shared = {0} if pos is None else set() if compiling else set(pos.tolist())
        if len(shared) == 1:
            runs = list(spans(tokens, shared.pop(), how.period))
            end = torch.zeros(batch, dtype=torch.int64, device=x.device) if pos is None else pos
            return [(tiles, tiles is runs[-1]) for tiles in runs], end + tokens
    pos = torch.zeros(batch, dtype=torch.int64, device=x.device) if pos is None else pos
    mask = torch.ones(batch, tokens, dtype=torch.bool, device=x.device) if mask is None else mask
    tiles, end = grid(mask, reset, pos, how.period)
    return [(tiles, True)], end


def _filled(how: How, state: State, start: State, x: Tensor) -> State:
    """Every entry present, zero at the beginning."""
    wide = torch.promote_types(start["up"].dtype, torch.float32)
    prefixes = ("", "sum.") if how.parent is None else ("", "sum.", "home.")
    empty = {p + n: x.new_zeros(x.shape[0], *start[n].shape, dtype=wide) for p in prefixes for n in NAMES}
    empty["last"] = torch.zeros_like(x[:, 0])
    empty["pos"] = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    return {**empty, **state}
