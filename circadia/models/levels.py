"""What follows the mixer in a block: a plain MLP, or a continuum memory system of several (section 7.1 of the paper).

A level adds to the residual stream like any MLP: x + MLP_l(norm x), fastest first, so that with a rate of zero the
network is the plain one (the printed chain (70) has neither residual nor norm; a retrofit is impossible without).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import initialization as init

from circadia.levels import cms
from circadia.memory.mlp import act
from circadia.memory.rates import tell
from circadia.models.cache import State
from circadia.models.config import HopeConfig
from circadia.models.context import Context

PREFIX = "levels."
GATE_BIAS = 2.0  # logit of a token's weight at the beginning: .88


class Level(nn.Module):
    """One MLP with its period, and the learned rates of a level that learns in context."""

    def __init__(self, config: HopeConfig, index: int) -> None:
        super().__init__()
        self.period = config.periods[index]
        self.kind: cms.Kind = config.mlp_kind  # type: ignore[assignment]  # the config has checked both
        self.order: cms.Order = config.cms_order  # type: ignore[assignment]
        self.learns = self.period > 0 and config.cms_regime == "context"
        slower = config.periods[index + 1 :]
        self.parent = slower[0] if config.cms_variant == "nested" and slower and slower[0] else None
        self.signal = config.cms_signal
        self.rate, self.fade = config.cms_rate, config.cms_decay
        width = config.level_widths[index]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.up = nn.Linear(config.hidden_size, width * (2 if self.kind == "swiglu" else 1), bias=False)
        self.out = nn.Linear(width, config.hidden_size, bias=False)
        # Logs of factors to the rates of "up" and "out", and logits of the decay and the transfer of a nested level:
        # one number each, in a vector, because FSDP2 takes no scalars.
        learned = self.learns and config.cms_rates != "fixed"
        self.log_rate = nn.Parameter(torch.empty(2)) if learned else None
        self.decay = nn.Parameter(torch.empty(1)) if learned else None
        self.transfer = nn.Parameter(torch.empty(1)) if learned and self.parent else None

    @torch.no_grad()
    def init_weights(self) -> None:
        if self.log_rate is not None and self.decay is not None:
            init.zeros_(self.log_rate)
            init.constant_(self.decay, float(torch.logit(torch.tensor(self.fade), eps=1e-6)))
        if self.transfer is not None:
            init.zeros_(self.transfer)

    @property
    def start(self) -> State:
        return {"up": _weight(self.up), "out": _weight(self.out)}

    def rates(self) -> dict[str, Tensor | float]:
        """In float32 or better, like the deltas that they move."""
        if self.log_rate is None or self.decay is None:
            return {"up": self.rate, "out": self.rate, "decay": self.fade, "transfer": 0.5}
        wide = torch.promote_types(self.log_rate.dtype, torch.float32)
        up, out = self.rate * self.log_rate.to(wide).exp()
        rates: dict[str, Tensor | float] = {"up": up, "out": out, "decay": torch.sigmoid(self.decay.to(wide)[0])}
        if self.transfer is not None:
            rates["transfer"] = torch.sigmoid(self.transfer.to(wide)[0])
        return rates

    def how(self, keep: bool) -> cms.How:
        return cms.How(period=self.period, kind=self.kind, parent=self.parent, order=self.order, keep=keep)

    def read(self, x: Tensor, state: State) -> Tensor:
        """The MLP with the weights that a sequence has now."""
        if "up" not in state:
            return self.out(act(self.kind, self.up(x)))
        w = {n: (start + state[n]).to(x.dtype) for n, start in self.start.items()}
        return cms.mlp(self.kind, x, w["up"], w["out"])

    def levels_entry(self) -> list[dict]:
        """For ``circadia.levels``. A level of the stream is written by its optimizer, and shown there."""
        if not self.learns:
            return []
        size = sum(w.numel() for w in self.start.values()) * 4
        local = self.signal == "local"
        return [
            {
                "name": "CMS level" if self.parent is None else f"CMS level, nested in {self.parent} tokens",
                "period": self.period,
                "learns_from": "tokens",
                "objective": "1/2 |MLP(x_t) - V x_{t+1}|²" if local else "next-token loss of the model",
                "rule": "gradient descent, clipped (eq. 71)",
                "enters": "in context, once a period",
                "leaves": "decays toward its start; the start of the next document forgets it",
                "state_bytes": size * (3 if self.parent else 2),
                "starts_from": ["up.weight", "out.weight"],
            }
        ]


def _weight(linear: nn.Linear) -> Tensor:
    """Its matrix, with what an adapter around it adds (LoRA), which only a call can tell."""
    if type(linear) is nn.Linear:
        return linear.weight
    w = linear.weight
    return linear(torch.eye(w.shape[1], dtype=w.dtype, device=w.device)).mT


class Levels(nn.Module):
    """The levels of a block, in a chain (70, 73), nested (72) or side by side (74)."""

    def __init__(self, config: HopeConfig) -> None:
        super().__init__()
        levels = [Level(config, i) for i in range(len(config.periods))]
        self.levels = nn.ModuleList(levels)
        self.carry = config.cms_carry
        learning = sum(level.learns for level in levels)
        self.local = learning > 0 and config.cms_signal == "local"
        # What a token would have been predicted as; and the weight of each token in what a level learns.
        self.target = nn.Linear(config.hidden_size, config.hidden_size, bias=False) if self.local else None
        gated = learning and config.cms_rates == "gated"
        self.gate = nn.Linear(config.hidden_size, learning) if gated else None
        side = config.cms_variant == "independent" and len(self.levels) > 1
        self.mix = nn.Parameter(torch.empty(len(self.levels))) if side else None
        self.watch: Callable[[Level, Tensor, Tensor], None] | None = None  # is told what was predicted, see watch.py

    @torch.no_grad()
    def init_weights(self) -> None:
        if self.gate is not None:
            init.constant_(self.gate.bias, GATE_BIAS)
        if self.mix is not None:
            init.ones_(self.mix)

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        levels: list[Level] = list(self.levels)  # type: ignore[arg-type]
        first = levels[0].norm(x)
        gates = None if self.gate is None else self.gate(first)
        if gates is not None:
            tell("cms", torch.sigmoid(gates))
        target = None if self.target is None else self.target(first)
        new: State = {}
        if gates is not None and not self.local:  # the next-token loss weighs whole periods, see online.py
            new[PREFIX + "gate"] = gates.sum(1) + state.get(PREFIX + "gate", 0.0)
        learned, total = 0, x
        for i, level in enumerate(levels):
            own = f"{PREFIX}{i}."
            mine = {n.removeprefix(own): w for n, w in state.items() if n.startswith(own)}
            inputs = first if i == 0 else level.norm(x if self.mix is not None else total)
            if level.learns and target is not None:
                weight = None if gates is None else torch.sigmoid(gates[..., learned])
                learned += 1
                reset = None if self.carry else ctx.reset
                y, mine = cms.run(
                    level.how(ctx.keep), inputs, target, level.start, level.rates(), mine,
                    weight=weight, mask=ctx.mask, reset=reset,
                )  # fmt: skip
                if self.watch is not None:
                    self.watch(level, y, target)
            else:
                y = level.read(inputs, mine)
            total = total + (y if self.mix is None else self.mix[i] * y)
            new |= {own + n: w for n, w in mine.items()}
        return total, new
