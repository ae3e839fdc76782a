"""The same idea on gradients: optimizers as memories, torch alone.

from circadia.optim import build, groups
print(groups(model))
optimizer = build(model, "m3", lr=3e-4)        # M3 on hidden matrices, AdamW on the rest

`circadia.optim.rules` and `.orthogonal` hold the update rules as pure functions, `.memories` and `.general` the forms
that the paper derives them from.
"""

from circadia.optim.build import OPTIMIZERS, OptimizerInfo, build, trainer
from circadia.optim.cms import CMS, periods
from circadia.optim.combined import Combined
from circadia.optim.dgd import DGD
from circadia.optim.dmgd import DMGD
from circadia.optim.groups import Groups, groups
from circadia.optim.m3 import M3
from circadia.optim.momentum import DeltaMomentum, PreconditionedMomentum
from circadia.optim.muon import AdaMuon, Muon
from circadia.optim.orthogonalize import newton_schulz
from circadia.optim.preconditioner import LearnedPreconditioner

__all__ = [
    "CMS",
    "DGD",
    "DMGD",
    "M3",
    "OPTIMIZERS",
    "AdaMuon",
    "Combined",
    "DeltaMomentum",
    "Groups",
    "LearnedPreconditioner",
    "Muon",
    "OptimizerInfo",
    "PreconditionedMomentum",
    "build",
    "groups",
    "newton_schulz",
    "periods",
    "trainer",
]
