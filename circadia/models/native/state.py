"""The state of a stream as one flat dict of tensors, and back to what each block takes.

    levelI/memory/BLOCK.NAME    what level I has learned
    levelI/open/BLOCK.NAME      what it keeps for its open chunk or period: momentum, anchors, sums, clocks
    levelI/steps                updates, int64: periods that ended with something learned
    stream/BLOCK.NAME           the near past: inputs of convolutions, keys and values inside windows, clocks
    stream/hidden               the last hidden state [1, 1, d], which predicts the next chunk's first token
    stream/pending              tokens of the open chunk, int64 [less than a chunk]
    clock/tokens                tokens of all whole chunks read so far, int64

Level 0 is the fastest. BLOCK is the block's number, NAME as the block names it (circadia/models/native/layout.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from circadia.models.native.layout import Block
from circadia.models.native.settings import NativeLevel

State = dict[str, Tensor]
OWN = ("stream/hidden", "stream/pending")


def flat(blocks: Sequence[Block], levels: Sequence[NativeLevel], states: Sequence[State]) -> State:
    """What the blocks hold, under the names of the file."""
    found: State = {}
    for at, (block, state) in enumerate(zip(blocks, states)):
        for name, x in state.items():
            level = block.level(name)
            if level is None:
                found[f"stream/{at}.{name}"] = x
            else:
                part = "memory" if block.kind(name) == "memory" else "open"
                found[f"level{levels.index(level)}/{part}/{at}.{name}"] = x
    return found


def nested(count: int, state: State) -> list[State]:
    """By block, whatever the order was."""
    found: list[State] = [{} for _ in range(count)]
    for key in sorted(state):
        head, _, rest = key.rpartition("/")
        block, _, name = rest.partition(".")
        if block.isdigit() and (head == "stream" or head.endswith(("/memory", "/open"))):
            found[int(block)][name] = state[key]
    return found


def start(blocks: Sequence[Block], levels: Sequence[NativeLevel], device: torch.device) -> State:
    """Nothing read: every memory at its learned beginning."""
    state = {n: x.to(device) for n, x in flat(blocks, levels, [block.start() for block in blocks]).items()}
    state |= {f"level{i}/steps": torch.tensor(0) for i in range(len(levels))}
    return {**state, "clock/tokens": torch.tensor(0), "stream/pending": torch.zeros(0, dtype=torch.int64)}


def fresh(blocks: Sequence[Block], levels: Sequence[NativeLevel], state: State) -> State:
    """The same memories before another text, whose clock begins at 0."""
    within = [block.fresh(own) for block, own in zip(blocks, nested(len(blocks), state))]
    rest = {n: x for n, x in state.items() if not n.startswith("stream/") and "/memory/" not in n and "/open/" not in n}
    none = torch.zeros(0, dtype=torch.int64)
    return {**rest, **flat(blocks, levels, within), "clock/tokens": torch.tensor(0), "stream/pending": none}


def on(state: State, device: torch.device) -> State:
    """Memories where the base is; clocks, tokens and what others keep beside them on the CPU."""
    there = ("/memory/", "/open/")
    return {
        n: x.to(device) if any(part in n for part in there) or (n.startswith("stream/") and n != OWN[1]) else x
        for n, x in state.items()
    }
