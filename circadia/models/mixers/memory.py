"""A memory rule as a mixer: projections, convolution, gates, the rule, a norm per head and an output gate."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from circadia.memory import Rule, expand
from circadia.memory.closed import unit
from circadia.memory.rates import tell
from circadia.models.cache import State
from circadia.models.context import Context
from circadia.models.fields import changed_rule
from circadia.models.mixers.conv import ShortConv

MEMORY = "memory."


def exact(device: torch.device) -> AbstractContextManager:
    """No automatic casts: a memory's own products stay in float32."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a memory rule is used as a mixer."""

    rule: Rule
    silu: bool = True  # of q, k and v after the convolution
    top_rate: float = 2.0  # eta = top_rate sigmoid(.)
    # Retention sigmoid(. + bias), the bias spread over the heads from short to long: from 55 tokens to 8,000, so that
    # more than half of a memory's norm is left after 1,000 tokens that write nothing.
    alpha_bias: tuple[float, float] = (4.0, 9.0)
    # The same for the rate. A delta rule that writes at rate 1 with every token has erased a random direction within a
    # few times its width: half of the heads start slow, or nothing would be left of 2,000 tokens ago.
    eta_bias: tuple[float, float] = (0.0, 0.0)


class MemoryMixer(nn.Module):
    """State: "conv", and the rule's own state under "memory."; the start of the memory is learned.

    Without ``project`` what the gate lets through is returned as it is, for a mixer that goes on with it.
    """

    def __init__(self, config, writing: Writing, project: bool = True) -> None:
        super().__init__()
        self.writing, self.chunk = writing, config.chunk
        self.rule = changed_rule(writing.rule, config.rules.get(writing.rule.name, {}))
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
        self.out = nn.Linear(inner, config.hidden_size, bias=False) if project else nn.Identity()
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
            ends = {"alpha": self.writing.alpha_bias, "eta": self.writing.eta_bias, "beta": (0.0, 0.0)}
            spread = [torch.linspace(*ends[n], self.heads) for n in self.gate_names]
            init.copy_(self.offset, torch.stack(spread))

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        b, t, _ = x.shape
        streams, past = self.conv(self.into(x), state.get("conv"), ctx)
        q, k, v, *rest = streams.view(b, t, self.streams, self.heads, self.width).permute(2, 0, 3, 1, 4)
        if self.writing.silu:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        if not self.self_modifying:  # there the keys are made, and normalised, by the memory itself
            q, k = unit(q), unit(k)
        gates = self._gates(x)
        dtype = torch.promote_types(x.dtype, torch.float32)  # memories are float32 or better
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        if rest:
            gates["x"] = rest[0].to(dtype)
        start = self.beginning(x)
        memory = {n.removeprefix(MEMORY): w for n, w in state.items() if n.startswith(MEMORY)} or start
        initial = None if ctx.reset is None else start
        with exact(x.device):
            y, memory = self.rule(
                q, k, v, gates, memory, chunk=self.chunk, mask=ctx.mask, reset=ctx.reset, initial=initial
            )
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps) * self.norm[:, None]
        y = y.transpose(1, 2).reshape(b, t, -1).to(x.dtype) * F.silu(self.gate(x))
        return self.out(y), {"conv": past, **{MEMORY + n: w for n, w in memory.items()}}

    def beginning(self, x: Tensor) -> State:
        """The learned start for every row of x; memories are float32 or better."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return expand({n.replace("/", "."): w.to(dtype) for n, w in self.start.items()}, x.shape[0])

    def _gates(self, x: Tensor) -> dict[str, Tensor]:
        """Each [B, H, T]: logits for self-modifying memories, else rates and retentions in range.

        In float32 or better: a retention of 0.9997 would be 1 in bfloat16.
        """
        if self.offset is None:
            return {}
        b, t, _ = x.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        logits = self.offset[:, None, :, None].to(dtype)
        if self.rates is None:
            logits = logits.expand(-1, b, -1, t)
        else:
            logits = logits + self.rates(x).to(dtype).view(b, t, len(self.gate_names), self.heads).permute(2, 0, 3, 1)
        if self.self_modifying:
            return dict(zip(self.gate_names, logits))
        top = {"eta": self.writing.top_rate}
        gates = {name: top.get(name, 1.0) * torch.sigmoid(z) for name, z in zip(self.gate_names, logits)}
        if "eta" in gates:
            tell("eta", gates["eta"])
        return gates

    def levels_entry(self) -> list[dict]:
        start = {n.replace("/", "."): w[None] for n, w in self.start.items()}
        names = [f"start.{name}" for name in self.start]
        return [{**entry, "starts_from": names} for entry in self.rule.levels_entry(start, chunk=self.chunk)]
