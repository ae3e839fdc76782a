"""One pass over chunks: gradients of the levels that listen, and the updates of those whose period is over."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.models.retrofit.report import ChunkReport, LevelReport
from circadia.models.retrofit.settings import LevelSettings
from circadia.models.retrofit.state import State, key, parts_of
from circadia.models.retrofit.step import Step, norm_of, stepped
from circadia.models.retrofit.wear import Reading, swapped, total, worn

if TYPE_CHECKING:
    from circadia.models.retrofit.model import RetrofitModel


@dataclass(frozen=True)
class Window:
    """One chunk and what comes before it."""

    ids: Tensor  # context and chunk [1, ...]
    start: int  # position of the chunk's first token
    size: int  # of the chunk
    scored: int  # its last tokens, all but the first of a stream


def nats_of(base: Any, window: Window) -> Tensor:
    """Loss summed over the scored tokens."""
    logits = base(window.ids[:, :-1], use_cache=False).logits[0, -window.scored :]
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), window.ids[0, -window.scored :],
                           reduction="sum")  # fmt: skip


def _slopes(nats: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients; 0 for what the loss does not reach, such as an unused slot or position."""
    found = torch.autograd.grad(nats, list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(leaves.items(), found)}


@dataclass
class Stream:
    """A state on its way through chunks. The tensors of the state that came in are never written."""

    model: "RetrofitModel"
    given: State
    state: State = field(init=False)
    mine: set[str] = field(default_factory=set)  # sums made in this call, which may be added to in place

    def __post_init__(self) -> None:
        self.state = dict(self.given)

    def take(self, window: Window, levels: list[LevelReport]) -> ChunkReport:
        """Predict, add up gradients, and update the levels whose period ends here."""
        settings = self.model.settings
        end = window.start + window.size
        listening = [i for i, level in enumerate(settings.levels) if listens(level, end)] if window.scored else []
        nats, found, grams = self.gradients(window, listening) if listening else (self.nats(window), {}, {})
        refused = "" if math.isfinite(nats) else "the loss is not finite"
        if found and not refused and not math.isfinite(norm_of(found.values())):
            refused = "the gradient is not finite"
        if not refused:
            for i in listening:
                self.collect(i, found, grams, window.scored)
        passing = dict.fromkeys(listening, found) if not refused else {}
        for i, level in enumerate(settings.levels):
            if end % level.period == 0:
                self.update(i, level, passing.get(i, {}), grams, end, levels[i])
        for i, level in enumerate(settings.levels[:-1]):
            if end % settings.levels[i + 1].period == 0:
                self.follow(i, level)
        return ChunkReport(window.start, window.scored, nats / max(1, window.scored), refused)

    def finish(self, ids: Tensor) -> None:
        """Clock, the last tokens as context, and the open chunk."""
        state, settings = self.state, self.model.settings
        rest = torch.cat((state["stream/pending"], ids))
        done = rest.numel() - rest.numel() % settings.chunk
        context = torch.cat((state["stream/context"], rest[:done]))
        state["stream/context"] = context[-max(1, settings.context) :].clone()
        state["stream/pending"] = rest[done:].clone()
        state["clock/tokens"] = state["clock/tokens"] + done

    @torch.no_grad()
    def nats(self, window: Window) -> float:
        """The loss alone."""
        if not window.scored:
            return 0.0
        with self.model.wearing(self.state) as base:
            return float(nats_of(base, window))

    @torch.enable_grad()
    def gradients(self, window: Window, listening: list[int]) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
        """Summed loss, its gradients by PART/NAME (of pairs by LEVEL/PART/NAME), and x x^T for DGD."""
        model, state = self.model, self.state
        leaves: dict[str, Tensor] = {}
        if model.settings.target == "all":
            values = {}
            for name, p in model.base.named_parameters():
                value = p.detach() + total([x for _, x in model.deltas(state, name)])
                values[name] = value.to(p.dtype).requires_grad_()
                leaves[f"delta/{name}"] = values[name]
            with swapped(model.base, values):
                nats = nats_of(model.base, window)
            wide = {n: g.to(model.sites[n.partition("/")[2]].dtype) for n, g in _slopes(nats, leaves).items()}
            return float(nats.detach()), wide, {}
        readings: dict[Any, Reading] = {}
        watch = any(model.settings.levels[i].optimizer == "dgd" for i in listening)
        held = dict(state)
        for name, site in model.sites.items():
            assert site.matrix is not None
            deltas = []
            for i, x in model.deltas(state, name):
                # The sum is what the loss sees, so that one gradient serves every level of a stack.
                if i in listening and f"delta/{name}" not in leaves:
                    x = leaves[f"delta/{name}"] = x.detach().requires_grad_()
                deltas.append(x)
            for i in listening:
                for part in parts_of(model.settings.levels[i]):
                    own = key(i, part, name)
                    if part != "delta" and own in state:
                        held[own] = leaves[own] = state[own].detach().requires_grad_()
            inputs: list | None = [] if watch else None
            readings[site.matrix.module] = Reading(site.matrix, deltas, model.pairs(held, name), False, inputs)
        with worn(readings):
            nats = nats_of(model.base, window)
        grads = _slopes(nats, leaves)
        grams = {}
        if watch:
            for name, site in model.sites.items():
                reading = readings[site.matrix.module]  # type: ignore[union-attr]
                rows = torch.cat([x.reshape(-1, x.shape[-1])[-window.scored :] for x in reading.inputs or []])
                rows = rows.to(site.dtype)
                grams[name] = rows.mT @ rows
        return float(nats.detach()), grads, grams

    def collect(self, i: int, found: dict[str, Tensor], grams: dict[str, Tensor], scored: int) -> None:
        """Into the open sum of a level; a level of one chunk takes the gradient as it is."""
        state, level = self.state, self.model.settings.levels[i]
        for site in self.model.own[i]:
            for part in parts_of(level):
                name = key(i, "grad", part, site.name)
                if name in state:
                    self.add(name, self.of(found, i, part, site.name))
            if level.optimizer == "dgd":
                self.add(key(i, "gram", site.name), grams[site.name])
        state[key(i, "count")] = state[key(i, "count")] + scored

    def of(self, found: dict[str, Tensor], i: int, part: str, name: str) -> Tensor:
        """The gradient of a level's entry."""
        return found[f"delta/{name}"] if part == "delta" else found[key(i, part, name)]

    def add(self, name: str, x: Tensor) -> None:
        """To a sum, in place once it is ours."""
        if name in self.mine:
            self.state[name].add_(x)
        else:
            self.state[name] = self.state[name] + x
            self.mine.add(name)

    @torch.no_grad()
    def update(
        self, i: int, level: LevelSettings, found: dict[str, Tensor], grams: dict[str, Tensor], end: int,
        report: LevelReport,
    ) -> None:  # fmt: skip
        """A level whose period is over."""
        state, sites = self.state, self.model.own[i]
        if level.feed == "faster":
            self.take_over(i, level, report)
            return
        count = int(state[key(i, "count")])
        if count == 0:
            return
        names = [f"{part}/{site.name}" for part in parts_of(level) for site in sites]
        stored = key(i, "grad", names[0]) in state
        sums = {n: state[key(i, "grad", n)] if stored else self.of(found, i, *n.split("/", 1)) for n in names}
        rates, decays = rates_of(self.model, i)
        step = Step(
            memory={n: state[key(i, n)] for n in names},
            sums=sums,
            count=count,
            number=int(state[key(i, "steps")]) + 1,
            opt={n: {what: state[key(i, "opt", what, n)] for what in self.held(i, names[0])} for n in names},
            anchors={n: state[k] for n in names if (k := key(i, "anchor", n)) in state},
            grams={f"delta/{s.name}": state[key(i, "gram", s.name)] for s in sites} if level.optimizer == "dgd" else {},
            sizes=self.sizes(i) if level.bound is not None else {},
            rates=rates,
            decays=decays,
        )
        after = stepped(level, step)
        for name in [key(i, "grad", n) for n in names if stored] + [key(i, "gram", n.name) for n in sites]:
            if name in state:
                state[name] = torch.zeros_like(state[name])
                self.mine.add(name)
        state[key(i, "count")] = torch.zeros_like(state[key(i, "count")])
        if after is None:
            report.refused += 1
            return
        for n in names:
            state[key(i, n)] = after.memory[n]
            state |= {key(i, "opt", what, n): x for what, x in after.opt[n].items()}
        state[key(i, "steps")] = state[key(i, "steps")] + 1
        report.updates, report.moved = report.updates + 1, report.moved + after.moved
        report.norm, report.slope = after.norm, after.slope

    def held(self, i: int, name: str) -> list[str]:
        """What a level's optimizer remembers."""
        start, end = f"level{i}/opt/", f"/{name}"
        return [n[len(start) : -len(end)] for n in self.state if n.startswith(start) and n.endswith(end)]

    def sizes(self, i: int) -> dict[str, float]:
        """Norms of the base's matrices."""
        weights = dict(self.model.base.named_parameters())
        own = {s.name: weights[s.name] if s.matrix is None else s.matrix.weight for s in self.model.own[i]}
        return {name: float(w.detach().to(self.model.sites[name].dtype).norm()) for name, w in own.items()}

    def take_over(self, i: int, level: LevelSettings, report: LevelReport) -> None:
        """feed="faster": a share of what the next faster level holds moves here; their sum stays what it is."""
        moved = []
        for site in self.model.own[i]:
            fast, slow = key(i - 1, "delta", site.name), key(i, "delta", site.name)
            share = level.transfer * self.state[fast]
            self.state[fast] = self.state[fast] - share
            kept = self.state[slow] * (1 - level.decay) if level.fades else self.state[slow]
            moved.append(kept + share - self.state[slow])
            self.state[slow] = kept + share
        self.state[key(i, "steps")] = self.state[key(i, "steps")] + 1
        report.updates, report.moved = report.updates + 1, report.moved + norm_of(moved)
        report.norm = norm_of([self.state[key(i, "delta", site.name)] for site in self.model.own[i]])

    def follow(self, i: int, level: LevelSettings) -> None:
        """The slow copy of an unstacked level moves at the clock of the next slower one."""
        for name in self.model.anchored[i]:
            for part in parts_of(level):
                anchor = self.state[key(i, "anchor", part, name)]
                self.state[key(i, "anchor", part, name)] = anchor + level.follow * (
                    self.state[key(i, part, name)] - anchor
                )


def listens(level: LevelSettings, end: int) -> bool:
    """Does the level take gradients from the chunk that ends here?"""
    if level.feed == "faster":
        return False
    return level.listen is None or (end - 1) % level.period >= level.period - level.listen


def rates_of(model: "RetrofitModel", i: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rate and decay of every matrix of a level: the settings', or what adaptation has learned."""
    level, sites = model.settings.levels[i], model.own[i]
    if model.learned is None:
        return {s.name: level.rate for s in sites}, {s.name: level.decay for s in sites}
    with torch.no_grad():
        return model.learned.rates(model, i)
