"""Titans with attention (arXiv 2501.00663, section 4): the memory as context, as gate and as layer.

Numbers of equations are those of that paper. Where it leaves something open, all three decide alike:

- Persistent tokens are learned keys and values of the attention (section 3.3). The memory does not read them: what it
  would write of them is the same for every sequence, and its learned start can hold that.
- Attention and memory give out their heads, gates applied, and one matrix ``out`` takes both back to the residual.
- The gating ``y ⊗ M(.)``: both sides are normalised with learned weights, and the non-linearity is a SiLU on the
  memory's side. As in SwiGLU, the gate can then carry content and not only shut.
- The attention counts positions from the first token that it can see in a segment (MAC) or in the document (the rest).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circadia.memory.closed import unit
from circadia.memory.deep import plain
from circadia.memory.layout import Flags, Tiles, grid, spans
from circadia.memory.state import POS, select
from circadia.models.cache import State
from circadia.models.context import Context
from circadia.models.mixers.attention import Attention
from circadia.models.mixers.memory import MEMORY, MemoryMixer, Writing

BEFORE = "before."
ATTENTION = ("k", "v", "next", "at")


class MemoryAsGate(nn.Module):
    """o = y ⊗ M(x) with y = SW-Attn(x): two branches side by side (eq. 26-28). State: that of both."""

    def __init__(self, config, writing: Writing) -> None:
        super().__init__()
        self.attention = Attention(config, config.sliding_window, config.persistent_tokens, project=False)
        self.memory = MemoryMixer(config, writing, project=False)
        self.norm_attention = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_memory = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        y, attended = self.attention(x, {n: state[n] for n in ATTENTION if n in state}, ctx)
        m, written = self.memory(x, state, ctx)
        return self.out(self.norm_attention(y.to(x.dtype)) * F.silu(self.norm_memory(m))), {**attended, **written}


class MemoryAsLayer(nn.Module):
    """o = SW-Attn(M(x)): the attention sees what the memory gives out (eq. 29-31). State: that of both."""

    def __init__(self, config, writing: Writing) -> None:
        super().__init__()
        self.memory = MemoryMixer(config, writing, project=False)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Attention(config, config.sliding_window, config.persistent_tokens)

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        m, written = self.memory(x, state, ctx)
        y, attended = self.attention(self.norm(m), {n: state[n] for n in ATTENTION if n in state}, ctx)
        return y, {**attended, **written}


class MemoryAsContext(nn.Module):
    """Segments of C tokens; for segment S (eq. 21-25)

    h = M_0(S W_Q)                     M_0: the memory as of before the segment, read without writing
    y = Attn([persistent; h; S])       token i sees all persistent tokens, and h_j and s_j for j <= i
    M_i = write(M_{i-1}; y_i)          the memory is written with what the attention gives out
    o_i = y_i ⊗ M_i(y_i)

    The paper reads and writes whole segments: h_j beside later tokens, and M after all of them. Both would show a token
    its future, so here token i sees h up to its own, and reads the memory just after its own write. h_j has the
    position of the token that it was asked for. W_Q is a matrix of its own: S and y are different spaces.

    A segment is counted from the beginning of its document over real tokens only. State: "k", "v", "hk", "hv"
    [B, C, kv_heads, width], keys and values of the open segment by their place in it, "slot" [B] its tokens so far,
    "before.*" M_0, and the memory's own.
    """

    def __init__(self, config, writing: Writing) -> None:
        super().__init__()
        self.segment = config.segment
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm_context = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = SegmentAttention(config, None, config.persistent_tokens, project=False)
        self.attention.segment = config.segment
        self.norm_attention = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.memory = MemoryMixer(config, writing, project=False)
        self.norm_memory = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        layout, end = self._layout(x, state, ctx)
        parts = []
        for tiles in layout:
            xs, ys = tiles.cut(x[:, None])[:, 0], []
            for i in range(tiles.n):
                y, state = self._segment(xs[:, i], state, tiles.flags(i, i + 1))
                ys.append(y)
            parts.append(tiles.join(torch.stack(ys, 1)[:, None])[:, 0])
        return self.out(torch.cat(parts, 1)), {**state, "slot": end}

    def _layout(self, x: Tensor, state: State, ctx: Context) -> tuple[list[Tiles], Tensor]:
        """How the tokens fall into segments, and the tokens of every row's open segment afterwards."""
        b, t, _ = x.shape
        slot = state["slot"] if "slot" in state else torch.zeros(b, dtype=torch.int64, device=x.device)
        if ctx.plain and ("slot" not in state or not torch.compiler.is_compiling()):
            first = set(slot.tolist()) if "slot" in state else {0}
            if len(first) == 1:  # rows in step: no slot is empty
                return list(spans(t, first.pop(), self.segment)), (slot + t) % self.segment
        mask = torch.ones(b, t, dtype=torch.bool, device=x.device) if ctx.mask is None else ctx.mask
        tiles, end = grid(mask, ctx.reset, slot, self.segment)
        return [tiles], end % self.segment

    def _segment(self, x: Tensor, state: State, flags: Flags) -> tuple[Tensor, State]:
        """Tokens x [B, c, D] of one segment, in step from some place in it, or each at its place where it is live."""
        start = self.memory.beginning(x)
        memory = {n: w for n, w in state.items() if n == "conv" or n.startswith(MEMORY)}
        now = {n: memory.get(MEMORY + n, w) for n, w in start.items()}
        old = {n: state.get(BEFORE + n, now[n]) for n in now}
        reset = None
        if flags.live is None:
            assert isinstance(flags.first, int)
            at, live = flags.first % self.segment, None
            if at == 0:
                old = now
                if self.segment % self.memory.chunk == 0:  # the rule need not look for the border that it is at
                    memory.pop(MEMORY + POS, None)
        else:
            at, live = 0, flags.live[:, 0]
            restart = flags.restarts(0)
            if restart is not None:
                now = select(restart, start, now)
                reset = F.pad(restart[:, None], (0, x.shape[1] - 1))
            old = select(live[:, 0], now, old)
        h = self.norm_context(self._recall(x, old))
        place = at + torch.arange(x.shape[1], device=x.device)
        k, v = self.attention.pairs(x, place[None])
        hk, hv = self.attention.pairs(h, place[None])
        kept = {"k": k, "v": v, "hk": hk, "hv": hv}
        for name, new in kept.items():
            if live is None and at:
                kept[name] = torch.cat((state[name][:, :at], new), 1)
            elif live is not None:
                past = state.get(name, torch.zeros_like(new))
                kept[name] = torch.where(live[..., None, None], new, past)
        # Places up to a token's own are filled, and what a former segment left lies behind them.
        seen = torch.arange(at + x.shape[1] if live is None else self.segment, device=x.device) <= place[:, None]
        q = self.attention.queries(x, place[None])
        keys, values = (torch.cat((kept["h" + n], kept[n]), 1) for n in ("k", "v"))
        y = self.norm_attention(self.attention.look(q, keys, values, torch.cat((seen, seen), 1)).to(x.dtype))
        m, memory = self.memory(y, memory, Context.of(live, reset))
        kept = {n: F.pad(w, (0, 0, 0, 0, 0, self.segment - w.shape[1])) for n, w in kept.items()}
        return y * F.silu(self.norm_memory(m)), {**kept, **{BEFORE + n: w for n, w in old.items()}, **memory}

    def _recall(self, x: Tensor, weights: State) -> Tensor:
        """h, by the path of a read: SiLU and unit length for the query, no convolution (that belongs to y)."""
        q = F.silu(self.query(x)).unflatten(-1, (self.memory.heads, self.memory.width)).transpose(1, 2)
        w = list(weights.values())
        q = unit(q.to(w[0].dtype))
        return plain(w, q.mT, q.mT).mT.transpose(1, 2).flatten(2).to(x.dtype)

    def levels_entry(self) -> dict:
        """What is recalled for a segment is a copy that the memory renews with every segment."""
        size = sum(w.numel() * max(w.element_size(), 4) for w in self.memory.start.values())
        return {
            "name": "titans, as of before the segment",
            "period": self.segment,
            "learns_from": "the faster memory",
            "objective": "none: a copy",
            "rule": "h = M_0(S W_Q) for the whole segment (eq. 21 of arXiv 2501.00663)",
            "enters": "copied from the memory at the beginning of every segment",
            "leaves": "read as context by the attention; replaced at the next segment",
            "state_bytes": size,
        }


class SegmentAttention(Attention):
    """Attention inside segments; the mixer that owns it keeps the keys."""

    segment = 0

    def levels_entry(self) -> dict:
        entry = super().levels_entry()
        return {
            **entry,
            "name": f"attention in segments of {self.segment} tokens, beside what the memory recalls",
            "leaves": "read by later tokens of the segment; gone at its end",
            "bytes_per_token": 2 * entry["bytes_per_token"],  # the token and what was recalled for it
            "state_bytes": 2 * entry["bytes_per_token"] * self.segment,
            "window": self.segment,
        }
