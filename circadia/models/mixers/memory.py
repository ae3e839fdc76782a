"""A memory rule as a mixer: projections, convolution, gates, the rule, a norm per head and an output gate."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from circadia.memory import expand
from circadia.memory.closed import unit
from circadia.models.cache import State
from circadia.models.context import Context
from circadia.models.mixers.conv import ShortConv
from circadia.models.mixers.table import MixerRow

MEMORY = "memory."


class MemoryMixer(nn.Module):
    """State: "conv", and the rule's own state under "memory."; the start of the memory is learned."""

    def __init__(self, config, row: MixerRow) -> None:
        super().__init__()
        assert row.rule is not None
        self.row, self.rule, self.chunk = row, row.rule, config.chunk
        self.heads, self.width = config.num_attention_heads, config.head_dim
        inner = self.heads * self.width
        self.self_modifying = "x" in self.rule.needs
        self.streams = 4 if self.self_modifying else 3  # q, k, v, and what the memories of the rates read
        self.into = nn.Linear(config.hidden_size, self.streams * inner, bias=False)
        self.conv = ShortConv(self.streams * inner, config.conv_window)
        # A self-modifying memory makes its rates itself; only their offsets are parameters.
        self.gate_names = [n for n in (*self.rule.needs, *self.rule.takes) if n != "x"]
        self.rates = None
        if self.gate_names and not self.self_modifying:
            self.rates = nn.Linear(config.hidden_size, len(self.gate_names) * self.heads, bias=False)
        self.offset = nn.Parameter(torch.empty(len(self.gate_names), self.heads)) if self.gate_names else None
        hidden = {} if config.memory_hidden is None else {"hidden": config.memory_hidden}
        deep = self.rule.family in ("deep", "self-modifying")
        start = self.rule.init(1, self.heads, self.width, **(hidden if deep else {}))
        self.start = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(x[0].clone()) for name, x in start.items()})
        self.norm = nn.Parameter(torch.empty(self.heads, self.width))
        self.gate = nn.Linear(config.hidden_size, inner, bias=False)
        self.out = nn.Linear(inner, config.hidden_size, bias=False)
        self.eps = config.rms_norm_eps

    def init_weights(self) -> None:
        deep = self.rule.family in ("deep", "self-modifying")
        hidden = {}
        if deep:
            first = next(x for name, x in self.start.items() if name.endswith("w0"))
            hidden = {"hidden": first.shape[-2]}
        for name, x in self.rule.init(1, self.heads, self.width, **hidden).items():
            init.copy_(self.start[name.replace(".", "/")], x[0])
        init.ones_(self.norm)
        if self.offset is not None:
            ends = {"alpha": self.row.alpha_bias, "eta": self.row.eta_bias, "beta": (0.0, 0.0)}
            spread = [torch.linspace(*ends[n], self.heads) for n in self.gate_names]
            init.copy_(self.offset, torch.stack(spread))

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        b, t, _ = x.shape
        streams, past = self.conv(self.into(x), state.get("conv"), ctx)
        q, k, v, *rest = streams.view(b, t, self.streams, self.heads, self.width).permute(2, 0, 3, 1, 4)
        if self.row.silu:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        if not self.self_modifying:  # there the keys are made, and normalised, by the memory itself
            q, k = unit(q), unit(k)
        gates = self._gates(x)
        if rest:
            gates["x"] = rest[0]
        # Autocast leaves rates in float32, where retentions near 1 need to be; a rule wants one type.
        wide = functools.reduce(torch.promote_types, (gate.dtype for gate in gates.values()), q.dtype)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
        gates = {name: gate.to(wide) for name, gate in gates.items()}
        dtype = torch.promote_types(x.dtype, torch.float32)  # memories are float32 or better
        start = expand({n.replace("/", "."): w.to(dtype) for n, w in self.start.items()}, b)
        memory = {n.removeprefix(MEMORY): w for n, w in state.items() if n.startswith(MEMORY)} or start
        initial = None if ctx.reset is None else start
        y, memory = self.rule(q, k, v, gates, memory, chunk=self.chunk, mask=ctx.mask, reset=ctx.reset, initial=initial)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps) * self.norm[:, None]
        y = y.transpose(1, 2).reshape(b, t, -1).to(x.dtype) * F.silu(self.gate(x))
        return self.out(y), {"conv": past, **{MEMORY + n: w for n, w in memory.items()}}

    def _gates(self, x: Tensor) -> dict[str, Tensor]:
        """Each [B, H, T]: logits for self-modifying memories, else rates and retentions in range."""
        if self.offset is None:
            return {}
        b, t, _ = x.shape
        logits = self.offset[:, None, :, None].to(x.dtype)
        if self.rates is None:
            logits = logits.expand(-1, b, -1, t)
        else:
            logits = logits + self.rates(x).view(b, t, len(self.gate_names), self.heads).permute(2, 0, 3, 1)
        if self.self_modifying:
            return dict(zip(self.gate_names, logits))
        top = {"eta": self.row.top_rate}
        return {name: top.get(name, 1.0) * torch.sigmoid(z) for name, z in zip(self.gate_names, logits)}

    def levels_entry(self) -> list[dict]:
        start = {n.replace("/", "."): w[None] for n, w in self.start.items()}
        names = [f"start.{name}" for name in self.start]
        return [{**entry, "starts_from": names} for entry in self.rule.levels_entry(start, chunk=self.chunk)]
