"""What every block of a model remembers, and what kind of thing each entry of its state is.

    memory      what is learned: the weights of a memory, deltas of CMS levels, cells of an LSTM
    momentum    of a memory's inner optimizer: on the way into the memory
    anchor      where the gradients of an open chunk are taken (eq. 90), what an open segment recalls from: copies of
                the memory as of before
    level       what a CMS level keeps for its open period, see circadia/levels/cms.py
    stream      the near past, which is never learned: inputs of convolutions, keys and values inside windows, clocks

Only memory and momentum are learned, by the whole or by a part (stream.py); the rest follows from the tokens' places.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from circadia.levels import cms
from circadia.memory.state import MOMENTUM, POS, START, complete
from circadia.models.cache import State
from circadia.models.levels import PREFIX, Level
from circadia.models.mixers.attention import Attention
from circadia.models.mixers.lstm import LSTM
from circadia.models.mixers.memory import MEMORY, MemoryMixer
from circadia.models.mixers.srwm import SRWM
from circadia.models.mixers.titans import BEFORE, MemoryAsContext
from circadia.models.native.settings import NativeLevel

HELD = MEMORY + MOMENTUM, MEMORY + START


@dataclass
class Block:
    """One block: its memory, its CMS levels that learn, and the level that each name belongs to."""

    memory: MemoryMixer | None
    cell: LSTM | SRWM | None
    cms: dict[int, Level]
    full: bool  # attention that would keep every token
    segment: int | None
    levels: dict[str, NativeLevel] = field(default_factory=dict)  # of memories, by name; of CMS levels "levels.I."

    @classmethod
    def of(cls, block: torch.nn.Module) -> "Block":
        """What is found in a block of the model."""
        mixer, parts = block.mixer, list(block.mixer.modules())  # type: ignore[union-attr]
        memory = next((m for m in parts if isinstance(m, MemoryMixer)), None)
        cell = mixer if isinstance(mixer, (LSTM, SRWM)) else None
        learning = {i: level for i, level in enumerate(block.levels.levels) if level.learns}  # type: ignore[union-attr,arg-type]
        segment = mixer.segment if isinstance(mixer, MemoryAsContext) else None
        full = any(isinstance(m, Attention) and m.window is None for m in parts) and segment is None
        found = cls(memory, cell, learning, full, segment)
        if memory is not None:
            names = {entry["period"]: entry["name"] for entry in memory.levels_entry()}
            periods = found.periods()
            usual = min(names)
            for n in memory.start:
                period = periods.get(n.replace("/", "."), usual)  # what no rule writes lies with the fastest
                found.levels[MEMORY + n.replace("/", ".")] = NativeLevel(period, names[period])
        if cell is not None:
            entry = cell.levels_entry()
            found.levels |= dict.fromkeys(
                ("h", "c") if isinstance(cell, LSTM) else ("W",), NativeLevel(entry["period"], entry["name"])
            )
        for i, level in learning.items():
            entry = level.levels_entry()[0]
            found.levels[f"{PREFIX}{i}."] = NativeLevel(entry["period"], entry["name"])
        return found

    def periods(self) -> dict[str, int]:
        """Of every matrix of the memory: tokens between two refreshes of its gradient point, or 1."""
        if self.memory is None:
            return {}
        rule = self.memory.rule
        return {n: p if rule.anchored else 1 for n, p in rule.chunks(self.memory.chunk).items()}

    def borders(self) -> set[int]:
        """Periods that a chunk must fit into, or hold whole."""
        anchored = self.memory is not None and self.memory.rule.anchored
        found = set(self.periods().values()) if anchored else set()
        found |= {level.period for level in self.cms.values()}
        return found | ({self.segment} if self.segment else set())

    def start(self) -> State:
        """Every memory of one stream at its learned beginning."""
        state: State = {}
        with torch.no_grad():
            if self.memory is not None:
                rule = self.memory.rule
                first = {n.replace("/", "."): _wide(w)[None] for n, w in self.memory.start.items()}
                full = complete(first, self.periods(), anchored=rule.anchored, momentum=rule.momentum)
                state |= {MEMORY + n: w for n, w in full.items()}
            if isinstance(self.cell, LSTM):
                state |= {n: _wide(w)[None] for n, w in self.cell.start.items()}
            if isinstance(self.cell, SRWM):
                state["W"] = _wide(self.cell.start)[None]
            for i, level in self.cms.items():
                state |= {f"{PREFIX}{i}.{n}": x for n, x in blank(level).items()}
        return {n: owned(x) for n, x in state.items()}

    def later(self, state: State, tokens: int) -> State:
        """The clocks so many tokens later, and all else as it was."""
        new = dict(state)
        clocks = {MEMORY + POS: max(self.periods().values(), default=1), "slot": self.segment or 1}
        clocks |= {f"{PREFIX}{i}.pos": level.parent or level.period for i, level in self.cms.items()}
        for name, wrap in clocks.items():
            if name in new:
                new[name] = (new[name] + tokens) % wrap
        return new

    def kind(self, name: str) -> str:
        """What an entry is."""
        if name in self.levels:
            return "memory"
        if name.startswith(PREFIX):
            return "memory" if name.rpartition(".")[2] in cms.NAMES and name.count(".") == 2 else "level"
        if name.startswith(MEMORY + MOMENTUM):
            return "momentum"
        return "anchor" if name.startswith((MEMORY + START, BEFORE)) else "stream"

    def level(self, name: str) -> NativeLevel | None:
        """Whose it is; None of what belongs to the stream."""
        if name.startswith(PREFIX):
            return self.levels.get(".".join(name.split(".")[:2]) + ".")
        return self.levels.get(self.source(name))

    def source(self, name: str) -> str:
        """The memory that an anchor copies, or a momentum goes into."""
        for prefix in HELD:
            if name.startswith(prefix):
                return MEMORY + name.removeprefix(prefix)
        return MEMORY + name.removeprefix(BEFORE) if name.startswith(BEFORE) else name

    def fresh(self, state: State) -> State:
        """The same memories at the beginning of another text: no near past, no open period, chunk or segment."""
        new: State = {}
        for name, x in state.items():
            kind = self.kind(name)
            if kind in ("memory", "momentum"):
                new[name] = x
            elif kind == "anchor" and not name.startswith(BEFORE):
                new[name] = state[self.source(name)]
        if MEMORY + POS in state:
            new[MEMORY + POS] = torch.zeros_like(state[MEMORY + POS])
        for i, level in self.cms.items():
            own = f"{PREFIX}{i}."
            new |= {own + n: x.to(state[own + "up"].device) for n, x in blank(level).items() if n not in cms.NAMES}
            new |= {n: x for n, x in state.items() if n.startswith(own + "home.")}
        return new


def blank(level: Level) -> State:
    """A CMS level that has read nothing; "weight" are the tokens of its open period, by what they count."""
    wide = {n: torch.zeros_like(_wide(w.detach()), device="cpu")[None] for n, w in level.start.items()}
    state = {**wide, **{"sum." + n: x.clone() for n, x in wide.items()}}
    if level.parent:
        state |= {"home." + n: x.clone() for n, x in wide.items()}
    weight = torch.zeros(1, dtype=torch.float64)
    if level.signal == "local":
        state["last"] = torch.zeros(1, level.norm.weight.shape[0], dtype=level.norm.weight.dtype)
        state["pos"] = torch.zeros(1, dtype=torch.int64)
    return {**state, "weight": weight}


def _wide(x: Tensor) -> Tensor:
    """Memories are float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def owned(x: Tensor) -> Tensor:
    """A copy with nothing around it: a view would keep what it is a view of."""
    return x.detach().clone(memory_format=torch.contiguous_format)
