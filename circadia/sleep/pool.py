"""Capacity: the low-rank experts of a level. Their number is fixed when a model is retrofitted, so that it is bounded.

Slot 0 of a low-rank level is in use from the start; the others are experts for what sleeps bring. Awake, all in use are
written. An expert that is freed is an exact no-op. Where none is left: "merge" (all of them, exactly, into a slower
level that has whole deltas in the same matrices; without one, the two least useful into one, by the best matrix of
their rank), "prune" (the least useful is freed), or "refuse".
"""

from typing import Any

import torch
from torch import Tensor

from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.state import State, key, parts_of
from circadia.sleep.student import Part, Teacher, apart

PARTS = ("delta", "a", "b", "gate")  # of a level, that are read
POLICIES = ("merge", "prune", "refuse")
FREE = ("experts", "all", "nothing")


class PoolFull(ValueError):
    """There is no free expert, and the policy is to refuse."""


def experts(model: RetrofitModel, state: State, level: int) -> list[int]:
    """The slots that sleeps have filled."""
    return [s for s in state[key(level, "mask")].nonzero().flatten().tolist() if s] if has_pool(model, level) else []


def has_pool(model: RetrofitModel, level: int) -> bool:
    """Can a sleep put something into this level beside what it has?"""
    settings = model.settings.levels[level]
    return settings.capacity == "lowrank" and settings.slots > 1


def check(model: RetrofitModel, level: int) -> None:
    """A ValueError if it cannot."""
    if not has_pool(model, level):
        raise ValueError(
            f"level {level} has no pool of experts: retrofit with capacity='lowrank' and slots=6 there, or expand=False"
        )


def parts(model: RetrofitModel, level: int, slot: int) -> list[Part]:
    """What an expert consists of."""
    names = parts_of(model.settings.levels[level])
    return [(key(level, part, site.name), slot) for site in model.own[level] for part in names]


def activate(
    model: RetrofitModel, state: State, level: int, policy: str, dreams: Tensor | None
) -> tuple[State, int, list[str]]:
    """An empty expert in a level; where the pool is full, after the policy has made room. What was done, in words."""
    if policy not in POLICIES:
        raise ValueError(f"full={policy!r} is no policy for a full pool: use one of {', '.join(POLICIES)}")
    check(model, level)
    told: list[str] = []
    slots = model.settings.levels[level].slots
    if len(experts(model, state, level)) == slots - 1:
        state, told = room(model, state, level, policy, dreams)
    slot = min(set(range(1, slots)) - set(experts(model, state, level)))
    return model.allocate(state, level, slot), slot, told


def room(model: RetrofitModel, state: State, level: int, policy: str, dreams: Tensor | None) -> tuple[State, list[str]]:
    """At least one free expert."""
    count = len(experts(model, state, level))
    below = whole_below(model, level)
    if policy == "refuse":
        raise PoolFull(f"level {level}: all {count} experts are in use, and full='refuse'; use 'merge' or 'prune'")
    if policy == "merge" and model.settings.levels[level].gate == "router":
        raise PoolFull(
            f"level {level}: all {count} experts are in use, and with gate='router' they cannot be merged, as each has "
            "a gate of its own; use full='prune' or 'refuse'"
        )
    if policy == "merge" and below is not None:
        return merged_into(model, state, level, below), [f"{count} experts of level {level} merged into level {below}"]
    if policy == "merge" and count < 2:
        raise PoolFull(f"level {level} has one expert: it cannot be merged with another; give more slots, or 'prune'")
    use = usefulness(model, state, level, dreams)
    order = sorted(use, key=lambda slot: (use[slot], slot))
    if policy == "prune":
        return model.free(state, level, order[0]), [f"expert {order[0]} of level {level} pruned ({use[order[0]]:.3g})"]
    kept, gone = sorted(order[:2])
    state, lost = merged(model, state, level, kept, gone)
    return state, [f"experts {kept} and {gone} of level {level} merged, {lost:.1%} of their sum lost"]


def usefulness(model: RetrofitModel, state: State, level: int, dreams: Tensor | None) -> dict[int, float]:
    """By ablation: how far the self is from itself without the expert, on its dreams, nats a token."""
    if dreams is None or not len(dreams):
        raise ValueError("experts are compared on dreams: give some, or full='refuse'")
    own, found = Teacher(model, state), {}
    for slot in experts(model, state, level):
        found[slot] = apart(own, Teacher(model, model.free(state, level, slot)), dreams[:, :-1])
    return found


def whole_below(model: RetrofitModel, level: int) -> int | None:
    """The next slower level with whole deltas in all matrices of this one."""
    names = {site.name for site in model.own[level]}
    for i in range(level + 1, len(model.own)):
        if model.settings.levels[i].capacity == "full" and names <= {site.name for site in model.own[i]}:
            return i
    return None


def merged_into(model: RetrofitModel, state: State, level: int, below: int) -> State:
    """All experts of a level added to the whole deltas of a slower one, and freed: the self stays the same."""
    used, new = experts(model, state, level), dict(state)
    for site in model.own[level]:
        a, b = (state[key(level, part, site.name)][used] for part in ("a", "b"))
        for name in (key(below, "delta", site.name), key(below, "anchor", "delta", site.name)):
            if name in new:  # what a level decays to moves with it
                new[name] = new[name] + torch.einsum("sor,sri->oi", b, a)
    for slot in used:
        new = model.free(new, level, slot)
    return new


def merged(model: RetrofitModel, state: State, level: int, kept: int, gone: int) -> tuple[State, float]:
    """Two experts as the nearest one of their rank; the share of the sum's norm that is lost."""
    new, lost, whole = dict(state), 0.0, 0.0
    for site in model.own[level]:
        a_name, b_name = key(level, "a", site.name), key(level, "b", site.name)
        a = torch.cat((state[a_name][kept], state[a_name][gone])).double()  # [2r, in]
        b = torch.cat((state[b_name][kept], state[b_name][gone]), 1).double()  # [out, 2r]
        # B A = Q_b (R_b R_a^T) Q_a^T: the small matrix in the middle has its singular values.
        q_b, r_b = torch.linalg.qr(b)
        q_a, r_a = torch.linalg.qr(a.mT)
        u, s, v = torch.linalg.svd(r_b @ r_a.mT)
        rank = model.settings.levels[level].rank
        lost, whole = lost + float(s[rank:].square().sum()), whole + float(s.square().sum())
        root = s[:rank].sqrt()
        first, second = new[a_name].clone(), new[b_name].clone()
        first[kept] = 0
        second[kept] = 0
        first[kept, : root.numel()] = ((root[:, None] * v[:rank]) @ q_a.mT).to(first)
        second[kept, :, : root.numel()] = ((q_b @ u[:, :rank]) * root).to(second)
        new[a_name], new[b_name] = first, second
    return model.free(new, level, gone), (lost / whole) ** 0.5 if whole else 0.0


def freed(model: RetrofitModel, state: State, level: int, what: str) -> State:
    """A sender after its knowledge has moved up: "experts" of former sleeps reset (the paper); or "all" it holds."""
    if what not in FREE:
        raise ValueError(f"free={what!r}: use one of {', '.join(FREE)}")
    if what == "nothing":
        return state
    if model.settings.levels[level].capacity == "lowrank":
        for slot in experts(model, state, level):
            state = model.free(state, level, slot)
        return model.allocate(state, level, 0) if what == "all" else state
    if what == "all":
        # Its open sum goes on: in a stack slower levels are still to get it, and an update ahead has taken it off.
        empty = tuple(f"level{level}/{what}/" for what in ("delta", "opt", "anchor"))
        state = {n: torch.zeros_like(x) if n.startswith(empty) else x for n, x in state.items()}
    return state


def sizes(model: RetrofitModel, state: State) -> dict[str, Any]:
    """For a report: numbers that the memory holds, and the experts in use."""
    held = sum(x.numel() for n, x in state.items() if n.split("/")[1] in PARTS)
    used = {f"level {i}": experts(model, state, i) for i in range(len(model.own)) if has_pool(model, i)}
    return {"parameters": held, "experts": used}
