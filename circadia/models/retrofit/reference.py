"""The truth that `learn` is tested against: a plain loop over chunks, from the first token on, one equation a line.

Nothing is shared with the fast form but the rules of `circadia.optim`. The base is called with whole weights W + delta,
and autograd differentiates the deltas themselves.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from circadia.models.retrofit.step import rule_of
from circadia.optim.general import dgd

if TYPE_CHECKING:
    from circadia.models.retrofit.model import RetrofitModel

Deltas = list[dict[str, Tensor]]  # by level, then by PART/NAME


def learn(model: "RetrofitModel", tokens: list[int]) -> tuple[list[float], Deltas]:
    """Surprise of every whole chunk in nats a token, and what each level holds at the end."""
    levels, chunk, context = model.settings.levels, model.settings.chunk, max(1, model.settings.context)
    memory: Deltas = [{} for _ in levels]
    for name, x in model.start().items():
        level_, _, rest = name.partition("/")
        if rest.startswith(("delta/", "a/", "b/", "gate/")):
            memory[int(level_.removeprefix("level"))][rest] = x
    opt = [{n: rule_of(level).init(x) for n, x in own.items()} for level, own in zip(levels, memory)]
    total = [{n: torch.zeros_like(x) for n, x in own.items()} for own in memory]
    grams: list[dict[str, Any]] = [{} for _ in levels]
    anchor = [{n: x.clone() for n, x in own.items()} for own in memory]
    count, steps, surprises = [0] * len(levels), [0] * len(levels), []
    for t in range(0, len(tokens) - len(tokens) % chunk, chunk):
        end = t + chunk
        ids = torch.tensor(tokens[max(0, t - context) : end])
        n = chunk if t else chunk - 1
        leaves = [{name: x.detach().requires_grad_() for name, x in own.items()} for own in memory]
        loss, inputs = _loss(model, leaves, ids, n)  # sum over the chunk of L_t, by the state from before it
        surprises.append(loss.item() / n)
        flat = [x for own in leaves for x in own.values()]
        found = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        grads = [
            {name: torch.zeros_like(x) if (g := next(found)) is None else g for name, x in own.items()}
            for own in leaves
        ]
        for i, level in enumerate(levels):
            if level.listen is None or (end - 1) % level.period >= level.period - level.listen:
                for name in memory[i]:
                    total[i][name] = total[i][name] + grads[i][name]  # eq. 71: sum over t of grad L_t
                    if level.optimizer == "dgd":
                        x = inputs[name.partition("/")[2]]
                        grams[i][name] = grams[i].get(name, 0.0) + x.mT @ x  # sum over t of x_t x_t^T (eq. 57)
                count[i] += n
        for i, level in enumerate(levels):
            if end % level.period:
                continue
            steps[i] += 1
            if level.feed == "faster":
                for name, slow in memory[i].items():
                    keep = 1 - level.decay if level.anchor else 1.0
                    memory[i][name] = keep * slow + level.transfer * memory[i - 1][name]
                    memory[i - 1][name] = (1 - level.transfer) * memory[i - 1][name]
                continue
            slope = sum(g.square().sum() for g in total[i].values()) ** 0.5 / count[i]
            for name, x in memory[i].items():
                g = total[i][name] / count[i]  # mean over the period
                g = g / slope if level.optimizer == "ngd" else g * min(1.0, (level.clip or float("inf")) / slope)
                g = g * count[i] if level.reduction == "sum" else g
                if level.optimizer == "dgd":
                    x = dgd(x, g, grams[i][name] / count[i], level.rate)  # eq. 57, normalised
                else:
                    move, opt[i][name] = rule_of(level).direction(g, opt[i][name], steps[i])
                    x = x - level.rate * move
                alone = name.partition("/")[2] in model.anchored[i]
                if level.anchor and (alone or not name.startswith(("a/", "gate/"))):
                    x = x + level.decay * ((anchor[i][name] if alone else 0.0) - x)  # retention
                memory[i][name] = x
                total[i][name] = torch.zeros_like(x)
            if level.bound:
                for name, x in memory[i].items():
                    weight = dict(model.base.named_parameters())[_parameter(model, name.partition("/")[2])]
                    memory[i][name] = x * min(1.0, level.bound * weight.norm() / x.norm().clamp_min(1e-30))
            count[i], grams[i] = 0, {}
        for i, own in enumerate(anchor[:-1]):
            if end % levels[i + 1].period == 0:
                anchor[i] = {n: a + levels[i].follow * (memory[i][n] - a) for n, a in own.items()}
    return surprises, memory


def _loss(model: "RetrofitModel", memory: Deltas, ids: Tensor, n: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss of the last n tokens with W + sum_i delta_i, and what each matrix has read for them."""
    weights: dict[str, Any] = {}
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name, site in model.sites.items():
        own = dict(model.base.named_parameters())[_parameter(model, name)]
        delta: Any = 0.0
        for level in memory:
            if f"delta/{name}" in level:
                delta = delta + level[f"delta/{name}"]
            if f"gate/{name}" in level and site.matrix is not None:
                hooks.append(site.matrix.module.register_forward_hook(_gated(level, name)))
            elif f"a/{name}" in level:
                delta = delta + torch.einsum("sor,sri->oi", level[f"b/{name}"], level[f"a/{name}"])
        transposed = site.matrix is not None and site.matrix.transposed
        weights[_parameter(model, name)] = own.detach() + (delta.mT if transposed else delta)
        if site.matrix is not None:
            hooks.append(site.matrix.module.register_forward_pre_hook(_keep(inputs, name, n)))
    logits = functional_call(model.base, weights, (ids[None, :-1],), {"use_cache": False}).logits[0, -n:]
    for hook in hooks:
        hook.remove()
    return F.cross_entropy(logits, ids[-n:], reduction="sum"), inputs


def _gated(level: dict[str, Tensor], name: str) -> Any:
    """Adds the sum over slots of sigmoid(w x + b) B A x."""

    def hook(module: Any, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
        (x,) = given
        for a, b, gate in zip(level[f"a/{name}"], level[f"b/{name}"], level[f"gate/{name}"]):
            y = y + torch.sigmoid(x @ gate[0, :-1] + gate[0, -1])[..., None] * (x @ a.mT @ b.mT)
        return y

    return hook


def _keep(inputs: dict[str, Tensor], name: str, n: int) -> Any:
    def hook(module: Any, given: tuple[Tensor, ...]) -> None:
        inputs[name] = given[0].detach().flatten(0, -2)[-n:]

    return hook


def _parameter(model: "RetrofitModel", name: str) -> str:
    return name if model.settings.target == "all" else f"{name}.weight"
