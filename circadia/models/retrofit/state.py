"""What levels hold, as one flat dict of tensors.

    level0/delta/NAME            full: the delta of the matrix NAME, [out, in], float32 (float64 over a float64 base)
    level0/a/NAME, level0/b/NAME low-rank: A [slots, r, in] and B [slots, out, r]
    level0/gate/NAME             gate="router": w and b of g(x) = sigmoid(w x + b), [slots, 1, in + 1]; 0: half open
    level0/mask                  low-rank: which slots are in use, bool [slots]
    level0/grad/PART/NAME        sum over tokens of the gradient since the last step; only where a period has several
                                 chunks. PART is delta, a, b or gate. In a stack of full deltas a slower level's
                                 sum grows when the period of the next faster one ends, by the sum of that one
    level0/gram/NAME             DGD: sum of x x^T since the last step, [in, in]
    level0/opt/WHAT/PART/NAME    what the optimizer of the level remembers
    level0/anchor/PART/NAME      the slow copy that an unstacked level decays to (anchor="slower")
    level0/steps                 updates made, int64
    level0/count                 tokens in that sum, int64
    level0/weight                of the tokens in that sum, float64; only where chunks were weighed
    clock/tokens                 tokens of all whole chunks learned so far, int64
    stream/context               the last tokens before the open chunk, int64 [up to context, at least 1]
    stream/pending               tokens of the open chunk, int64 [less than a chunk]

Level 0 is the fastest. NAME is the module's name in the base; with target="all" it is the parameter's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from circadia.models.retrofit.find import Matrix
from circadia.models.retrofit.settings import LevelSettings
from circadia.models.retrofit.step import rule_of

State = dict[str, Tensor]


@dataclass(frozen=True)
class Site:
    """A place in the base where levels write: a matrix of an MLP, or with target="all" any parameter."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype  # of the memory
    device: torch.device
    matrix: Matrix | None = None


def parts_of(level: LevelSettings) -> tuple[str, ...]:
    """What a level holds of each matrix."""
    if level.capacity == "full":
        return ("delta",)
    return ("a", "b", "gate") if level.gate == "router" else ("a", "b")


def key(level: int, *rest: str) -> str:
    """Of an entry of the state."""
    return "/".join((f"level{level}", *rest))


def shape_of(level: LevelSettings, site: Site, part: str) -> tuple[int, ...]:
    """Of an entry."""
    if part == "a":
        return level.slots, level.rank, site.shape[1]
    if part == "gate":
        return level.slots, 1, site.shape[1] + 1
    return (level.slots, site.shape[0], level.rank) if part == "b" else site.shape


def draw(site: Site, rank: int, seed: int, level: int, slot: int) -> Tensor:
    """A fresh A: entries of variance 1 / in. By name and numbers, so that every start is the same."""
    words = f"{site.name}/{level}/{slot}".encode()
    generator = torch.Generator().manual_seed(
        (seed * 1_000_003 + int.from_bytes(words[-7:], "big") + sum(words)) % 2**63
    )
    a = torch.randn(rank, site.shape[1], generator=generator, dtype=torch.float32) / site.shape[1] ** 0.5
    return a.to(site.device, site.dtype)


def start(
    levels: tuple[LevelSettings, ...], own: list[list[Site]], chunk: int, anchored: list[set[str]], seed: int
) -> State:
    """Nothing learned, nothing read."""
    state: State = {}
    for i, (level, sites) in enumerate(zip(levels, own)):
        rule = rule_of(level)
        for site in sites:
            for part in parts_of(level):
                memory = torch.zeros(shape_of(level, site, part), dtype=site.dtype, device=site.device)
                if part == "a":
                    memory[0] = draw(site, level.rank, seed, i, 0)
                state[key(i, part, site.name)] = memory
                if level.feed == "gradient":
                    if level.period > chunk:
                        state[key(i, "grad", part, site.name)] = torch.zeros_like(memory)
                    for what, tensor in rule.init(memory).items():
                        state[key(i, "opt", what, part, site.name)] = tensor
                if site.name in anchored[i]:
                    state[key(i, "anchor", part, site.name)] = memory.clone()
            if level.optimizer == "dgd" and level.feed == "gradient":
                width = site.shape[-1]
                state[key(i, "gram", site.name)] = torch.zeros(width, width, dtype=site.dtype, device=site.device)
        if level.capacity == "lowrank":
            state[key(i, "mask")] = torch.arange(level.slots) == 0
        state[key(i, "steps")] = torch.tensor(0)
        state[key(i, "count")] = torch.tensor(0)
    state["clock/tokens"] = torch.tensor(0)
    state["stream/context"] = torch.zeros(0, dtype=torch.int64)
    state["stream/pending"] = torch.zeros(0, dtype=torch.int64)
    return state


def use(state: State, level: int, slot: int, settings: LevelSettings, sites: list[Site], seed: int, on: bool) -> State:
    """A new state in which a slot is in use, empty, or freed. A freed slot is not read at all."""
    if settings.capacity != "lowrank" or not 0 <= slot < settings.slots:
        raise ValueError(
            f"slot={slot}: level {level} has {settings.slots if settings.capacity == 'lowrank' else 0} slots"
        )
    state = dict(state)
    mask = state[key(level, "mask")].clone()
    mask[slot] = on
    state[key(level, "mask")] = mask
    for site in sites:
        for name in [n for n in state if n.startswith(f"level{level}/") and n.endswith(f"/{site.name}")]:
            tensor = state[name].clone()
            tensor[slot] = 0
            if on and name in (key(level, "a", site.name), key(level, "anchor", "a", site.name)):
                tensor[slot] = draw(site, settings.rank, seed, level, slot)
            state[name] = tensor
    return state
