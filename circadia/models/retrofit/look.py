"""Looking at what a retrofit has learned: how much, where, and what it predicts with it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circadia.models.retrofit.find import positions
from circadia.models.retrofit.learn import tokens_of
from circadia.models.retrofit.state import State

if TYPE_CHECKING:
    from circadia.models.retrofit.model import RetrofitModel


def placed(model: "RetrofitModel", stored: State) -> State:
    """`RetrofitModel.placed`."""
    where = {site.name: site.device for site in model.sites.values()}
    return {n: x.to(where.get(n.rpartition("/")[2], torch.device("cpu"))) for n, x in stored.items()}


def norms(model: "RetrofitModel", state: State) -> list[float]:
    """`RetrofitModel.norms`."""
    found = []
    for i in range(len(model.settings.levels)):
        held = [x for n, x in state.items() if n.startswith(f"level{i}/delta/")]
        found.append(sum(float(x.double().square().sum()) for x in held) ** 0.5)
    return found


def share(model: "RetrofitModel", state: State) -> float:
    """`RetrofitModel.share`."""
    worst, weights = 0.0, dict(model.base.named_parameters())
    for name, site in model.sites.items():
        matrix = weights[name] if site.matrix is None else site.matrix.weight
        parts = [x for _, x in model.deltas(state, name)]
        parts += [b @ a for a, b, _ in model.pairs(state, name)]  # with a gate at most that
        if parts:
            size = float(sum(parts[1:], parts[0]).norm())
            worst = max(worst, size / max(1e-12, float(matrix.detach().float().norm())))
    return worst


@torch.no_grad()
def reads(model: "RetrofitModel", tokens: Any, state: State | None) -> Iterator[Tensor]:
    """`RetrofitModel.reads`."""
    ids, chunk, context = tokens_of(model, tokens), model.settings.chunk, model.settings.context
    limit = positions(model.base)
    if limit is not None:  # a stream leaves out a chunk's last token, which predicts nothing of it
        context = min(context, limit - chunk)
    for at in range(0, ids.numel(), chunk):
        window = ids[None, max(0, at - context) : at + chunk].to(model.device)
        with model.wearing(state) as base:
            logits = base(window, use_cache=False).logits
        yield logits[0, -min(chunk, ids.numel() - at) :]
