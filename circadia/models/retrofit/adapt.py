"""Adaptation: starts, rates and decays that are learned so that the levels learn well (the papers' continual training).

Rows of tokens [B, T] are read in chunks, each row with deltas of its own that start at zero. Every chunk is scored with
the deltas from before it, then learned by the same update as in a stream (`step.stepped`). The outer gradient flows

    into the base's weights, the starts of all memories: through the scored losses and, in second order, through the
    inner gradients, which depend on them too. First order takes the inner gradients as constants
    into log-rates and logits of decays, one of each for every matrix of every level, through the updates

Rate and decay are rate exp(s r) and sigmoid(logit(decay) + s d), with r and d learned from 0: with s an optimizer whose
steps are as long as AdamW's moves them about 15 times as fast as weights, which they need.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_outputs import CausalLMOutputWithPast

from circadia.models.retrofit.find import positions
from circadia.models.retrofit.settings import LevelSettings
from circadia.models.retrofit.wear import OfEach, worn

if TYPE_CHECKING:
    from circadia.models.retrofit.model import RetrofitModel

SPEED = 15.0
TRAINED = ("all", "mlp", "rates")
Deltas = dict[str, Tensor]


class Learned(nn.Module):
    """Rates and decays of every matrix of every level."""

    def __init__(self, model: "RetrofitModel", first_order: bool) -> None:
        super().__init__()
        self.on, self.first_order = True, first_order
        counts = [len(own) for own in model.own]
        self.log_rate = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in counts)
        self.decay = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in counts)
        self.to(model.device)

    def rates(self, model: "RetrofitModel", i: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of one level, by matrix."""
        level = model.settings.levels[i]
        rates = level.rate * (SPEED * self.log_rate[i]).exp()
        logit = math.log(level.decay / (1 - level.decay)) if 0 < level.decay < 1 else math.inf * (level.decay - 0.5)
        decays = torch.sigmoid(logit + SPEED * self.decay[i])
        names = [site.name for site in model.own[i]]
        return dict(zip(names, rates.unbind())), dict(zip(names, decays.unbind()))

    def close(self, model: "RetrofitModel") -> None:
        """Adaptation is over: the base is frozen again, and streams are learned with the learned rates and decays."""
        self.on = False
        self.requires_grad_(False)
        model.base.requires_grad_(False)
        model.base.eval()


def begin(model: "RetrofitModel", first_order: bool, train: str) -> None:
    """`RetrofitModel.adapting`. train: "all" of the base, the adapted "mlp" matrices, or "rates" and decays alone."""
    if train not in TRAINED:
        raise ValueError(f"train={train!r} is unknown: use one of {', '.join(TRAINED)}")
    check(model)
    if model.learned is None:
        model.learned = Learned(model, first_order)
    model.learned.on, model.learned.first_order = True, first_order
    model.learned.requires_grad_(True)
    model.base.requires_grad_(False)
    if train == "all":
        model.base.requires_grad_(True)
    elif train == "mlp":
        for site in model.sites.values():
            site.matrix.weight.requires_grad_(True)  # type: ignore[union-attr]


def check(model: "RetrofitModel") -> None:
    """Adaptation differentiates through the updates, which it can for the plain ones."""
    for i, level in enumerate(model.settings.levels):
        wrong = {
            "target": model.settings.target != "mlp",
            "capacity": level.capacity != "full",
            "optimizer": level.optimizer not in ("gd", "ngd"),
            "feed": level.feed != "gradient",
            "bound": level.bound is not None,
        }
        for name, bad in wrong.items():
            if bad:
                value = model.settings.target if name == "target" else getattr(level, name)
                raise ValueError(
                    f"adaptation of level {i}: {name}={value!r} cannot be differentiated through; use target='mlp', "
                    "capacity='full', optimizer='gd' or 'ngd', feed='gradient' and no bound"
                )
    if any(model.anchored):
        raise ValueError("adaptation: anchor='slower' without stacked levels needs slow copies; use anchor='base'")
    for site in model.sites.values():
        if site.matrix is None or not site.matrix.plain:
            raise ValueError(f"adaptation: {site.name} is quantised; load the base in float32")


def loss(model: "RetrofitModel", tokens: Tensor, first_order: bool) -> Tensor:
    """`RetrofitModel.adapt_loss`: mean nats over all tokens but the first of each row."""
    check(model)
    logits = run(model, tokens, second=not first_order)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def forward(model: "RetrofitModel", ids: Tensor | None, **given: Any) -> CausalLMOutputWithPast:
    """Logits at every place, each by the deltas that its row had before the chunk of the next token."""
    assert model.learned is not None
    unknown = [name for name, value in given.items() if value is not None and name not in ("use_cache", "return_dict")]
    if ids is None or unknown or given.get("use_cache"):
        what = unknown[0] if unknown else "use_cache" if given.get("use_cache") else "no input_ids"
        raise ValueError(f"adaptation reads whole rows of input_ids and nothing else, got {what}: set data.carry=false")
    return CausalLMOutputWithPast(logits=run(model, ids, second=not model.learned.first_order))


def run(model: "RetrofitModel", ids: Tensor, second: bool) -> Tensor:
    """Logits [B, T, vocabulary] in float32 or better, with inner updates between the chunks."""
    settings, length, limit = model.settings, ids.shape[-1], positions(model.base)
    if ids.ndim != 2 or length <= settings.chunk:
        raise ValueError(
            f"tokens of shape {tuple(ids.shape)}: adaptation learns from rows [B, T] longer than one chunk of "
            f"{settings.chunk} tokens"
        )
    outer = torch.is_grad_enabled()
    second = second and outer
    deltas: list[Deltas] = [{} for _ in model.own]
    sums: list[Deltas] = [{} for _ in model.own]
    counts = [0] * len(model.own)
    parts = []
    for at in range(0, length, settings.chunk):
        end = at + settings.chunk
        last = end >= length
        before, first = max(0, at - max(1, settings.context)), max(0, at - 1)
        stop = length if last else end - 1
        # A row's last token predicts nothing of it; with it the window can be longer than the base knows positions.
        room = stop - before if limit is None else limit
        long = stop - before > room
        inputs = ids[:, before : stop - long]
        with torch.enable_grad():
            nudges, readings = _nudged(model, deltas, ids.shape[0])
            # The fused kernels of attention have no second derivative.
            kernels = [SDPBackend.MATH] if second else list(SDPBackend.__members__.values())
            with worn(readings), sdpa_kernel([k for k in kernels if k != SDPBackend.ERROR]):
                logits = model.base(inputs, use_cache=False).logits[:, first - before :]
                if long:
                    after = model.base(ids[:, stop - room : stop], use_cache=False).logits[:, -1:]
                    logits = torch.cat((logits, after), 1)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            parts.append(logits if outer else logits.detach())
            if last:
                break
            nats = F.cross_entropy(logits.flatten(0, 1), ids[:, first + 1 : end].flatten(), reduction="sum")
            slopes = torch.autograd.grad(nats, list(nudges.values()), create_graph=second, retain_graph=outer)
        found = dict(zip(nudges, slopes))
        with torch.set_grad_enabled(outer):
            for i, level in enumerate(settings.levels):
                if level.listen is None or (end - 1) % level.period >= level.period - level.listen:
                    own = {site.name: found[site.name] for site in model.own[i]}
                    sums[i] = {name: sums[i][name] + g if name in sums[i] else g for name, g in own.items()}
                    counts[i] += end - max(at, 1)
                if end % level.period == 0 and counts[i]:
                    deltas[i] = _moved(model, i, level, deltas[i], sums[i], counts[i])
                    sums[i], counts[i] = {}, 0
    return torch.cat(parts, 1)


def _nudged(model: "RetrofitModel", deltas: list[Deltas], rows: int) -> tuple[Deltas, dict[nn.Module, OfEach]]:
    """What every matrix adds for each row. The gradient is taken at a nudge of zero, of this chunk's reading alone."""
    nudges, readings = {}, {}
    for name, site in model.sites.items():
        assert site.matrix is not None
        nudge = torch.zeros(rows, *site.shape, dtype=site.dtype, device=site.device, requires_grad=True)
        held = [own[name] for own in deltas if name in own]
        nudges[name] = nudge
        readings[site.matrix.module] = OfEach(site.matrix, sum(held[1:], held[0]) + nudge if held else nudge)
    return nudges, readings


def _moved(model: "RetrofitModel", i: int, level: LevelSettings, old: Deltas, sums: Deltas, count: int) -> Deltas:
    """`step.stepped` for gd and ngd, each row by itself, differentiable."""
    square = sum(g.square().sum((1, 2)) for g in sums.values())
    assert isinstance(square, Tensor)
    slope = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt() / count
    factor = torch.ones_like(slope) if level.clip is None else (level.clip / slope).clamp(max=1.0)
    if level.optimizer == "ngd":
        factor = 1 / slope
    factor = (factor if level.reduction == "sum" else factor / count)[:, None, None]
    if model.learned is None:
        rates: dict[str, Any] = dict.fromkeys(sums, level.rate)
        decays: dict[str, Any] = dict.fromkeys(sums, level.decay)
    else:
        rates, decays = model.learned.rates(model, i)
    new = {}
    for name, g in sums.items():
        delta = old.get(name, 0.0) - rates[name] * (g * factor)
        delta = delta - decays[name] * delta if level.fades else delta
        new[name] = delta.to(g.dtype)
    return new
