"""Every rule and setting that the table-driven tests run, and inputs for it.

A new rule in ``circadia.memory.RULES`` is tested without a line here; a new setting is one row of ``VARIANTS``.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.memory import RULES, Rule, custom
from circadia.memory.state import POS, State

CUSTOM = custom(
    "custom_mlp",
    memory=lambda w, x: x + w["b"] + w["out"] @ torch.tanh(w["into"] @ x),
    objective=lambda y, v: F.huber_loss(y, v, reduction="sum"),
    start=lambda d_k, d_v: {"into": torch.eye(3, d_k), "out": torch.eye(d_v, 3), "b": torch.zeros(d_v)},
)

_self = RULES["self_modifying"]
VARIANTS: dict[str, Rule] = {
    rule.name: rule
    for rule in [
        replace(RULES["dgd"], name="dgd/clip", clip=0.5),
        replace(RULES["dgd_l2"], name="dgd_l2/clip,c=2", clip=0.5, scale=2.0),
        replace(RULES["dgd_l2"], name="dgd_l2/bound", bound=0.3),
        replace(RULES["gd"], name="gd/depth=1", depth=1),
        replace(RULES["gd"], name="gd/depth=3,clip=none", depth=3, clip=None),
        replace(RULES["gd"], name="gd/depth=4,bound", depth=4, bound=0.5),
        replace(RULES["ttt"], name="ttt/depth=1", depth=1),
        replace(RULES["titans"], name="titans/depth=3,erase=key", depth=3, erase="key"),
        replace(RULES["titans"], name="titans/small bound", depth=1, bound=0.02),
        replace(RULES["titans"], name="titans/erase=layer", erase="layer", scale=0.5),
        replace(RULES["dgd_mlp"], name="dgd_mlp/l2,depth=3", objective="l2", depth=3),
        replace(RULES["dgd_mlp"], name="dgd_mlp/bound", bound=0.5, output_scale=0.3),
        replace(_self, name="self_modifying/adaptive_q", adaptive_q=True),
        replace(_self, name="self_modifying/momentum", inertia=True, clip=0.3),
        replace(_self, name="self_modifying/plain descent", erase=False, objective="l2", inertia=True),
        replace(_self, name="self_modifying/static", static=("k", "eta")),
        replace(_self, name="self_modifying/all static", static=("k", "v", "eta", "alpha")),
        replace(_self, name="self_modifying/two chunks", projection_chunk=64),
        replace(_self, name="self_modifying/two chunks, momentum", projection_chunk=16, inertia=True, bound=0.7),
        CUSTOM,
    ]
}
ALL: dict[str, Rule] = {**RULES, **VARIANTS}

LENGTHS, CHUNKS = (1, 7, 63, 64, 65, 257), (1, 16, 64)
# The rows of the table get the whole grid; settings of a row the corners of it.
GRID = [(name, t, c) for name in RULES for t in LENGTHS for c in CHUNKS] + [
    (name, t, c) for name in VARIANTS for t, c in ((65, 1), (65, 16), (130, 64))
]


class Inputs:
    """q, k, v, gates and a start that is not zero, in the rule's own ranges."""

    def __init__(
        self,
        rule: Rule,
        tokens: int,
        *,
        batch: int = 2,
        heads: int = 2,
        d: int = 6,
        dtype: torch.dtype = torch.float64,
        correlated: bool = False,
        seed: int = 0,
    ) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        base = 3 * draw(batch, heads, 1, d) if correlated else 0.0
        self.q, self.k, self.v = (F.normalize(draw(batch, heads, tokens, d) + base, dim=-1).to(dtype) for _ in "qkv")
        self.gates: dict[str, Tensor] = {}
        logits = rule.family == "self-modifying"
        # Online L2 counts its rate twice: 2 eta |k|^2 must stay below 2. Gradient descent on an MLP overshoots at large
        # rates and becomes chaotic, so that rounding alone tells two correct computations apart.
        chaotic = getattr(rule, "objective", None) == "l2" and rule.family in ("deep", "self-modifying")
        top = 0.95 if "online" in rule.name else 0.02 if rule.family == "custom" else 0.2 if chaotic else 1.9
        for name in rule.needs + rule.takes:
            x = draw(batch, heads, tokens)
            if name == "x":
                x = draw(batch, heads, tokens, d)
            elif name == "alpha":
                x = x + 5 if logits else torch.sigmoid(x + 4)
            elif name == "eta" and logits:
                x = x - 4 if chaotic else x
            elif not logits:
                x = torch.sigmoid(x) * (top if name == "eta" else 1.0)
            self.gates[name] = x.to(dtype)
        start = rule.init(batch, heads, d, dtype=torch.float64, generator=g)
        self.state: State = {n: (x + 0.2 * draw(*x.shape)).to(dtype) for n, x in start.items()}

    def args(self) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], State]:
        return self.q, self.k, self.v, self.gates, self.state

    def leaves(self) -> dict[str, Tensor]:
        """Everything that an outer gradient can reach."""
        gates = {f"gates[{n}]": x for n, x in self.gates.items()}
        return {"q": self.q, "k": self.k, "v": self.v} | gates | {f"state[{n}]": x for n, x in self.state.items()}

    def require_grad(self) -> "Inputs":
        for x in self.leaves().values():
            x.requires_grad_()
        return self

    def cut(self, a: int, b: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        gates = {n: x[:, :, a:b] for n, x in self.gates.items()}
        return self.q[:, :, a:b], self.k[:, :, a:b], self.v[:, :, a:b], gates

    def at(self, t: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        return (
            self.q[:, :, t],
            self.k[:, :, t],
            self.v[:, :, t],
            {n: x[:, :, t] for n, x in self.gates.items()},
        )

    def row(self, b: int, a: int = 0, e: int | None = None) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], State]:
        """One sequence alone, tokens a to e."""
        one = slice(b, b + 1)
        gates = {n: x[one, :, a:e] for n, x in self.gates.items()}
        return (
            self.q[one, :, a:e],
            self.k[one, :, a:e],
            self.v[one, :, a:e],
            gates,
            {n: x[one] for n, x in self.state.items()},
        )


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value of ``a``."""
    assert a.shape == b.shape, (a.shape, b.shape)
    if a.numel() == 0:
        return 0.0
    return ((a - b).abs().max() / a.abs().max().clamp_min(1e-12)).item()


def same_state(a: State, b: State, tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        if name == POS:
            assert torch.equal(a[name], b[name]), name
        else:
            assert gap(a[name], b[name]) < tolerance, name


def objective(y: Tensor, state: State, loss: Tensor) -> Tensor:
    """A number that depends on everything a rule gives back, each entry with its own weight."""
    g = torch.Generator().manual_seed(1)

    def weigh(x: Tensor) -> Tensor:
        return (x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype)).sum()

    return weigh(y) + weigh(loss) + sum(weigh(state[n]) for n in sorted(state) if n != POS)
