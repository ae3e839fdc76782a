"""The table of optimizers, and one line to have any of them on a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from circadia.optim import check
from circadia.optim.combined import Combined
from circadia.optim.dgd import DGD
from circadia.optim.dmgd import DMGD
from circadia.optim.groups import Groups, groups
from circadia.optim.m3 import M3
from circadia.optim.momentum import DeltaMomentum, PreconditionedMomentum
from circadia.optim.muon import AdaMuon, Muon
from circadia.optim.preconditioner import LearnedPreconditioner


@dataclass(frozen=True, kw_only=True)
class OptimizerInfo:
    """One row: a class and what `build` presets."""

    name: str
    make: type[Optimizer]
    equation: str
    summary: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    adamw_scale: bool = False  # are its steps as long as AdamW's, so that one learning rate serves both?


_ROWS = [
    OptimizerInfo(
        name="adamw",
        make=torch.optim.AdamW,
        equation="W -= lr m / sqrt(v)  (eq. 101-105, approximately)",
        summary="torch's AdamW on everything: the baseline",
        adamw_scale=True,
    ),
    OptimizerInfo(
        name="muon",
        make=Muon,
        equation="W -= lr NS(m)  (eq. 42)",
        summary="orthogonalised momentum, at the step length of AdamW",
        defaults={"scale": "match_rms_adamw"},
        adamw_scale=True,
    ),
    OptimizerInfo(
        name="adamuon",
        make=AdaMuon,
        equation="O = NS(sign m), W -= lr O / sqrt(v)",
        summary="Muon with an element-wise second moment of its own steps",
        adamw_scale=True,
    ),
    OptimizerInfo(
        name="m3",
        make=M3,
        equation="W -= lr (O_1 + a O_2) / sqrt(V)  (Alg. 1, eq. 75)",
        summary="multi-scale momentum Muon, running means",
        adamw_scale=True,
    ),
    OptimizerInfo(
        name="m3_literal",
        make=M3,
        equation="M += b g, V += b g^2  (Alg. 1 as printed)",
        summary="M3 with accumulators that never fade",
        defaults={"mode": "literal", "betas": (0.9, 0.9), "weights": (1.0, 1.0)},
    ),
    OptimizerInfo(
        name="dgd",
        make=DGD,
        equation="W <- W (I - eta' x x^T) - eta' grad  (eq. 57)",
        summary="delta gradient descent, each linear layer with its inputs",
    ),
    OptimizerInfo(
        name="delta_momentum",
        make=DeltaMomentum,
        equation="m <- m (a - g^T g) + g, W -= lr m  (eq. 48-49)",
        summary="momentum that replaces what it holds along the gradient",
    ),
    OptimizerInfo(
        name="preconditioned_momentum",
        make=PreconditionedMomentum,
        equation="m <- a m + P g, W -= lr m  (eq. 46-47)",
        summary="momentum of gradients divided by their running size",
    ),
    OptimizerInfo(
        name="learned_preconditioner",
        make=LearnedPreconditioner,
        equation="P -= z (P ghat - g) ghat^T, W -= lr P^-1 g  (eq. 38-41)",
        summary="a preconditioner that is learned by gradient descent itself",
        adamw_scale=True,
    ),
    OptimizerInfo(
        name="dmgd",
        make=DMGD,
        equation="W += lr m(g)  (eq. 50)",
        summary="deep momentum gradient descent: the momentum m is an MLP",
    ),
]

OPTIMIZERS: dict[str, OptimizerInfo] = {row.name: row for row in _ROWS}


def build(
    model: nn.Module,
    name: str,
    *,
    lr: float | torch.Tensor,
    adamw: Mapping[str, Any] | None = None,
    split: Groups | None = None,
    memories: bool = False,
    **settings: Any,
) -> Optimizer:
    """An optimizer by name for a whole model: the rule on hidden matrices, AdamW on all that it must not touch.

    adamw      settings of AdamW; its lr is `lr` for rules whose steps are as long as AdamW's, else 3e-4
    split      `circadia.optim.groups(model, {...})`, where the automatic one is wrong
    memories   also give the rule the learned starts of memories (batches of matrices); AdamW has them otherwise
    settings   of the rule itself
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is unknown: use one of {', '.join(OPTIMIZERS)}")
    info = OPTIMIZERS[name]
    split = groups(model) if split is None else split
    own = list(split.matrices.items())
    if memories:
        own += [(n, p) for n, p in split.memories.items() if p.ndim >= 2]
    if name == "adamw":
        own = []
    elif not own:
        raise ValueError(f"model {type(model).__name__} has no hidden matrices for {name!r}: use 'adamw'\n{split}")
    parts: list[Optimizer] = []
    if own:
        rule = {"lr": lr, **info.defaults, **settings}
        params: Any = [{"params": [p for _, p in own], "name": name}]
        try:
            make: Any = info.make
            parts.append(make(model, params=params, **rule) if info.make is DGD else make(params, **rule))
        except TypeError as error:
            raise ValueError(f"settings {settings} do not fit {name!r}: {error}") from error
    taken = {id(p) for _, p in own}
    rest = {group: [p for p in held.values() if id(p) not in taken] for group, held in split.items()}
    options = {"lr": lr if info.adamw_scale else 3e-4, **(settings if name == "adamw" else {}), **(adamw or {})}
    left: list[dict[str, Any]] = [{"params": params, "name": group} for group, params in rest.items() if params]
    for group in left:
        if group["name"] in ("embeddings", "vectors"):
            group["weight_decay"] = 0.0
    if left:
        try:
            parts.append(torch.optim.AdamW(left, **options))
        except TypeError as error:
            raise ValueError(f"settings {options} do not fit AdamW: {error}") from error
    return parts[0] if len(parts) == 1 else Combined(parts)


def trainer(name: str, *, lr: float | torch.Tensor, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """`build` for the Trainer of transformers: ``Trainer(..., optimizer_cls_and_kwargs=trainer("m3", lr=3e-4))``.

    The Trainer's own `learning_rate`, `weight_decay` and `optim` are not read then; its scheduler works as always.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is unknown: use one of {', '.join(OPTIMIZERS)}")
    check.rate("lr", lr)
    return _factory, {"name": name, "lr": lr, **settings}


def _factory() -> Any:
    """What transformers takes for a maker of optimizers: it calls this, and what it gets with (model, **settings)."""
    return build
