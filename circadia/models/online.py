"""Levels that learn in context from the model's own next-token loss, end to end (eq. 71; ambiguity A11).

The tokens are read in pieces of the fastest period. When the first token after a piece comes, the gradient of the
piece's mean next-token loss in every learning level's weights is added up, and the levels whose period is over move
(``cms.update``). The prediction across a piece's border was made by other weights and is left out; so is what a
piece's loss owes to weights through the states from before it. A call may end anywhere: the state keeps the tokens of
the open piece and, as "border.*", the states from before it, so that the gradient is the same for every split.

Outer gradients flow through the updates: through the inner gradients too ("second" order), or past them ("first").
All rows are in step, so there is no padding and there are no packed documents here.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from circadia.levels import cms
from circadia.models.cache import State
from circadia.models.context import Context
from circadia.models.levels import PREFIX, Level

if TYPE_CHECKING:
    from circadia.models.model import HopeForCausalLM

Place = tuple[int, int, Level]  # block, index and module of a level
BORDER, IDS, POS, GATE = "border.", "online.ids", "online.pos", PREFIX + "gate"


def read(model: "HopeForCausalLM", ids: Tensor, states: list[State], keep: bool) -> tuple[Tensor, list[State]]:
    """Last hidden states [B, T, d] for ids [B, T], every piece scored before it is learned, and the new states."""
    period = model.config.periods[0]
    open_ids = states[0].get(IDS, ids[:, :0])
    live = [{n: w for n, w in state.items() if not n.startswith((BORDER, "online."))} for state in states]
    border = live
    if open_ids.shape[1]:
        border = [{n.removeprefix(BORDER): w for n, w in s.items() if n.startswith(BORDER)} for s in states]
    pos = int(states[0][POS][0]) if POS in states[0] else 0
    parts, at = [], 0
    while at < ids.shape[1]:
        known = open_ids.shape[1]
        take = min(period - known, ids.shape[1] - at)
        piece = torch.cat((open_ids, ids[:, at : at + take]), 1)
        at += take
        if at == ids.shape[1]:  # the piece stays open, if only for the token that will close it
            hidden, live = model.model.run(model.model.embed_tokens(piece[:, known:]), live, Context(keep=keep))
            open_ids = piece
        else:
            hidden, live = _learn(model, piece, border, pos)
            hidden = hidden[:, known:]
            border, open_ids, pos = live, piece[:, :0], (pos + period) % max(model.config.periods)
        parts.append(hidden)
    if keep:
        live = [{**new, **{BORDER + n: w for n, w in old.items()}} for new, old in zip(live, border)]
        live[0] |= {IDS: open_ids, POS: torch.full_like(ids[:, 0], pos)}
    return torch.cat(parts, 1), live


def _learn(model: "HopeForCausalLM", ids: Tensor, states: list[State], pos: int) -> tuple[Tensor, list[State]]:
    """Read a whole piece, then let the levels learn it."""
    hidden, after, means = gradients(model, ids, states)
    for (at, index, level), mean in means:
        prefix = f"{PREFIX}{index}."
        mine = {n.removeprefix(prefix): w for n, w in after[at].items() if n.startswith(prefix)}
        after[at] |= {prefix + n: w for n, w in _move(level, mine, mean, ids.shape[1], pos).items()}
    return hidden, after


def gradients(
    model: "HopeForCausalLM", ids: Tensor, states: list[State]
) -> tuple[Tensor, list[State], list[tuple[Place, State]]]:
    """Read a whole piece: last hidden states, states, and its mean gradient for every level, weighed by the gates."""
    outer = torch.is_grad_enabled()
    second = outer and model.config.cms_order == "second"
    levels = _levels(model)
    states = [dict(state) for state in states]
    nudges: list[Tensor] = []
    with torch.enable_grad():
        for at, index, level in levels:
            for n in cms.NAMES:
                name = f"{PREFIX}{index}.{n}"
                w = level.start[n]
                delta = states[at].get(name)
                if delta is None:
                    delta = w.new_zeros(ids.shape[0], *w.shape, dtype=torch.promote_types(w.dtype, torch.float32))
                # The gradient is taken here: of this piece's use of the weights, not of what earlier pieces did.
                nudges.append(torch.zeros_like(delta, requires_grad=True))
                states[at][name] = delta + nudges[-1]
        # The fused kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            hidden, after = model.model.run(model.model.embed_tokens(ids), states, Context())
            logits = model.lm_head(hidden[:, :-1]).flatten(0, 1)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum") / ids.shape[1]
            grads = torch.autograd.grad(loss, nudges, create_graph=second, retain_graph=outer)
    with torch.set_grad_enabled(outer):
        if not outer:
            hidden, after = hidden.detach(), [{n: w.detach() for n, w in state.items()} for state in after]
        after = [dict(state) for state in after]
        gates = [state.pop(GATE, None) for state in after]
        means: list[tuple[Place, State]] = []
        for place, own in zip(levels, zip(grads[::2], grads[1::2])):
            weight: Tensor | float = 1.0
            gate = gates[place[0]]
            if gate is not None:
                weight = torch.sigmoid(gate[:, place[1]] / ids.shape[1])[:, None, None]
            means.append((place, {n: weight * grad for n, grad in zip(cms.NAMES, own)}))
    return hidden, after, means


def _move(level: Level, state: State, mean: State, piece: int, pos: int) -> State:
    """One level after a piece: gradients added up until its period is over, then a step."""
    pieces = level.period // piece
    total = {n: mean[n] / pieces + state.get("sum." + n, 0.0) for n in cms.NAMES}
    if (pos + piece) % level.period:
        return {**state, **{"sum." + n: g for n, g in total.items()}}
    rates = level.rates()
    state = {**state, **cms.stepped(state, total, rates, level.how(True).clip)}
    if level.parent and (pos + piece) % level.parent == 0:
        state |= cms.restarted(state, rates)
    return state


def _levels(model: "HopeForCausalLM") -> list[Place]:
    """Block, index and module of every level that learns."""
    found = []
    for at, block in enumerate(model.model.layers):
        for index, level in enumerate(block.levels.levels):  # type: ignore[union-attr,arg-type]
            if level.learns:
                found.append((at, index, level))
    return found
