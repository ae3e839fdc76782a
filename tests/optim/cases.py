"""Every optimizer and setting that the table-driven tests run, and problems for it. A new one is one row of CASES."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from circadia.optim import (
    CMS,
    DGD,
    DMGD,
    M3,
    AdaMuon,
    DeltaMomentum,
    LearnedPreconditioner,
    Muon,
    PreconditionedMomentum,
    build,
)

Make = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Case:
    make: Make  # (model, lr=..., **settings)
    lr: float  # for the quadratic
    rosenbrock: float  # for the Rosenbrock valley
    reaches: tuple[float, float] = (1e-3, 1e-2)  # of the first loss, after 300 and 600 steps under a cosine


def on(make: Any, **preset: Any) -> Make:
    return lambda model, **settings: make(model.parameters(), **{**preset, **settings})


def cms(model: nn.Module, lr: float = 1e-3, **settings: Any) -> torch.optim.Optimizer:
    params = list(model.parameters())
    groups = [{"params": params[:1], "period": 1}, {"params": params[1:], "period": 3}]
    return CMS(Muon(groups, lr=lr, **{"weight_decay": 0.0, **settings}))


plain = {"weight_decay": 0.0}
CASES: dict[str, Case] = {
    "muon": Case(on(Muon, **plain), 0.1, 0.05),
    "muon/match_rms": Case(on(Muon, scale="match_rms_adamw", nesterov=False, **plain), 0.1, 0.1),
    "adamuon": Case(on(AdaMuon, **plain), 0.3, 0.1),
    "adamuon/no sign": Case(on(AdaMuon, sign=False, **plain), 0.3, 0.1),
    "m3": Case(on(M3, periods=(1, 4)), 0.5, 0.1),
    "m3/three levels": Case(on(M3, periods=(1, 3, 7), betas=(0.9, 0.5, 0.5), weights=(1.0, 0.5, 0.2)), 0.3, 0.3),
    "m3/no V, cubic": Case(
        on(M3, periods=(1, 4), beta_v=None, ns_coefficients=(1.5, -0.5, 0.0), scale="original"), 0.1, 0.05
    ),
    # What never fades swings on: of rates from 0.01 to 50 the best leaves 12 % of the quadratic's loss.
    "m3/literal": Case(on(M3, mode="literal", periods=(1, 4), betas=(0.9, 0.9)), 1.0, 3.0, (0.5, 0.3)),
    "dgd": Case(DGD, 0.3, 2e-3, (1e-3, 0.2)),
    "dgd/proximal": Case(lambda model, **kw: DGD(model, rate="proximal", **kw), 0.3, 2e-3, (1e-3, 0.2)),
    "delta_momentum": Case(on(DeltaMomentum), 0.3, 2e-3),
    "delta_momentum/column": Case(on(DeltaMomentum, side="column", erase=0.5), 0.3, 2e-3),
    "preconditioned_momentum": Case(on(PreconditionedMomentum), 0.03, 0.05),
    "learned_preconditioner": Case(on(LearnedPreconditioner), 0.2, 0.1),
    "learned_preconditioner/eq. 38": Case(on(LearnedPreconditioner, momentum=0.0, zeta=0.5), 0.1, 0.1),
    "dmgd": Case(on(DMGD), 0.3, 2e-3, (1e-3, 0.2)),
    "dmgd/dot, linear": Case(on(DMGD, objective="dot", depth=1, momentum=0.9), 0.3, 2e-3, (1e-3, 0.2)),
    "cms": Case(cms, 0.1, 0.05),
    "build/m3": Case(lambda model, **kw: build(model, "m3", periods=(1, 4), **kw), 0.5, 0.1),
}


class Net(nn.Module):
    """Four matrices, two of one shape and one its transpose, so that batches form; a batch of data for each step."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        for name, (m, n) in {"a": (6, 4), "b": (6, 4), "c": (4, 6), "d": (3, 6)}.items():
            layer = nn.Linear(n, m, bias=False, dtype=dtype)
            layer.weight.data.copy_(torch.randn(m, n, generator=g) * 0.5)
            setattr(self, name, layer)

    def loss(self, step: int) -> Tensor:
        g = torch.Generator().manual_seed(100 + step)
        x, y = torch.randn(8, 4, generator=g), torch.randn(8, 3, generator=g)
        w = self.a.weight.dtype
        h = self.a(x.to(w)).tanh() + self.b(x.to(w))
        h = h + self.a(self.c(h).tanh())
        return (self.d(h) - y.to(w)).float().square().mean()


def train(net: Net, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        net.loss(step).backward()
        optimizer.step()


class Matrix(nn.Module):
    """One matrix as the only thing to learn."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())


def values(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(left) == len(right) and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(left, right))


def states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every tensor of a state dict, in order."""

    def walk(x: Any) -> Any:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, dict):
            for key in x:
                yield from walk(x[key])
        elif isinstance(x, (list, tuple)):
            for item in x:
                yield from walk(item)

    return list(walk(optimizer.state_dict()))
