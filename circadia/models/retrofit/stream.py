"""One pass over chunks: gradients of the levels that listen, and the updates of those whose period is over."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.models.retrofit.report import ChunkReport, LevelReport
from circadia.models.retrofit.settings import LevelSettings
from circadia.models.retrofit.state import State, key, parts_of
from circadia.models.retrofit.step import Step, Stepped, joint, norm_of, stepped
from circadia.models.retrofit.wear import Reading, swapped, total, worn

if TYPE_CHECKING:
    from circadia.models.retrofit.model import RetrofitModel

Weigh = Callable[[ChunkReport], float]


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


def _times(tensors: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: factor * x for name, x in tensors.items()}


@dataclass
class Stream:
    """A state on its way through chunks. The tensors of the state that came in are never written."""

    model: "RetrofitModel"
    given: State
    weigh: Weigh | None = None
    state: State = field(init=False)
    mine: set[str] = field(default_factory=set)  # entries made in this call, which may be written in place
    wholes: dict[str, Tensor] = field(default_factory=dict)  # base and deltas added up, until one of the deltas moves
    norms: dict[int, float] = field(default_factory=dict)  # of levels, after an update

    def __post_init__(self) -> None:
        self.state = dict(self.given)

    def take(self, window: Window, levels: list[LevelReport]) -> ChunkReport:
        """Predict, add up gradients, and update the levels whose period ends here."""
        settings = self.model.settings
        end = window.start + window.size
        listening = [i for i, level in enumerate(settings.levels) if listens(level, end)] if window.scored else []
        due = [i for i, level in enumerate(settings.levels) if end % level.period == 0]
        if listening:
            nats, found, grams = self.gradients(lambda base: nats_of(base, window), listening, due, window.scored)
        else:
            nats, found, grams = self.nats(window), {}, {}
        refused = "" if math.isfinite(nats) else "the loss is not finite"
        lengths = {name: torch.linalg.vector_norm(x) for name, x in found.items()} if not refused else {}
        if not math.isfinite(joint(lengths.values())):
            refused = "the gradient is not finite"
        chunk = ChunkReport(window.start, window.scored, nats / max(1, window.scored), refused)
        weight = 1.0
        if self.weigh is not None and window.scored and not refused:
            weight = float(self.weigh(chunk))
            if not 0 <= weight <= 1:
                raise ValueError(f"weigh gave {weight!r} for the chunk at {chunk.start}: it must be from 0 to 1")
            chunk = replace(chunk, weight=weight)
        if not refused:
            if weight != 1:
                found, grams, lengths = (_times(x, weight) for x in (found, grams, lengths))
            for i in listening:
                self.collect(i, found, grams, window.scored, weight)
        passing = dict.fromkeys(listening, found) if not refused else {}
        for i in due:
            self.update(i, settings.levels[i], passing.get(i, {}), lengths, levels[i])
        for i, level in enumerate(settings.levels[:-1]):
            if end % settings.levels[i + 1].period == 0:
                self.follow(i, level)
        return chunk

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
        model = self.model
        if model.settings.target == "all":
            with swapped(model.base, self.parameters()):
                return float(nats_of(model.base, window))
        readings = {name: self.reading(name, self.state) for name in model.sites}
        with worn({reading.matrix.module: reading for reading in readings.values()}):
            nats = float(nats_of(model.base, window))
        self.wholes = {name: x for name, reading in readings.items() if (x := reading.kept) is not None}
        return nats

    def reading(self, name: str, held: State) -> Reading:
        """Of one matrix."""
        matrix = self.model.sites[name].matrix
        assert matrix is not None
        found = Reading(matrix, [x for _, x in self.model.deltas(self.state, name)], self.model.pairs(held, name))
        found.kept = self.wholes.get(name)
        return found

    def parameters(self) -> dict[str, Tensor]:
        """target="all": base and deltas."""
        for name, p in self.model.base.named_parameters():
            if name not in self.wholes:
                deltas = [x for _, x in self.model.deltas(self.state, name)]
                self.wholes[name] = (p.detach() + total(deltas)).to(p.dtype)
        return self.wholes

    @torch.enable_grad()
    def gradients(
        self, loss: Callable[[Any], Tensor], listening: list[int], due: list[int], scored: int
    ) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
        """The loss, its gradients by PART/NAME (of pairs by LEVEL/PART/NAME), and for DGD x x^T.

        That is summed over the `scored` tokens as the loss is; 0: a loss of another kind, and the mean over all tokens.
        """
        model, state = self.model, self.state
        leaves: dict[str, Tensor] = {}
        if model.settings.target == "all":
            values = {name: x.detach().requires_grad_() for name, x in self.parameters().items()}
            with swapped(model.base, values):
                nats = loss(model.base)
            slopes = _slopes(nats, {f"delta/{name}": x for name, x in values.items()})
            return float(nats.detach()), {n: g.to(model.sites[n[6:]].dtype) for n, g in slopes.items()}, {}
        watch = any(model.settings.levels[i].optimizer == "dgd" for i in listening)
        held = dict(state)
        for i in listening:
            for name in [key(i, part, site.name) for site in model.own[i] for part in ("a", "b", "gate")]:
                if name in state:
                    held[name] = leaves[name] = state[name].detach().requires_grad_()
        moves = {site.name for i in due for site in model.own[i]}
        learns = {
            site.name for i in listening if "delta" in parts_of(model.settings.levels[i]) for site in model.own[i]
        }
        readings = {name: self.reading(name, held) for name in model.sites}
        for name, reading in readings.items():
            reading.brief = name in moves
            reading.inputs = [] if watch else None
            if name in learns:
                # The sum is what the loss sees, so that one gradient serves every level of a stack.
                reading.leaf = leaves[f"delta/{name}"] = reading.deltas[0].detach().requires_grad_()
        with worn({reading.matrix.module: reading for reading in readings.values()}):
            nats = loss(model.base)
        slopes = _slopes(nats, leaves)
        self.wholes = {name: x for name, reading in readings.items() if (x := reading.kept) is not None}
        grams = {}
        for name, reading in readings.items() if watch else ():
            rows = torch.cat([x.reshape(-1, x.shape[-1])[-scored:] for x in reading.inputs or []])
            rows = rows.to(model.sites[name].dtype)
            grams[name] = rows.mT @ rows if scored else rows.mT @ rows / rows.shape[0]
        return float(nats.detach()), slopes, grams

    def collect(self, i: int, found: dict[str, Tensor], grams: dict[str, Tensor], scored: int, weight: float) -> None:
        """Into the open sum of a level; a level of one chunk takes the gradient as it is.

        Where the next faster level gathers the same, its sum is taken over when its period ends.
        """
        state, level = self.state, self.model.settings.levels[i]
        if self.follows(i):
            return
        for site in self.model.own[i]:
            for part in parts_of(level):
                name = key(i, "grad", part, site.name)
                if name in state:
                    self.add(name, self.of(found, i, part, site.name))
            if level.optimizer == "dgd":
                self.add(key(i, "gram", site.name), grams[site.name])
        self.count(i, scored, weight * scored)

    def count(self, i: int, tokens: int, weight: float) -> None:
        """More tokens in an open sum; their weight is kept only where it is not their number."""
        state = self.state
        if weight != tokens or key(i, "weight") in state:
            before = float(state.get(key(i, "weight"), state[key(i, "count")]))
            state[key(i, "weight")] = torch.tensor(before + weight, dtype=torch.float64)
        state[key(i, "count")] = state[key(i, "count")] + tokens

    def follows(self, i: int) -> bool:
        """Does a level take its gradients from the sum of the next faster one?"""
        levels, own = self.model.settings.levels, self.model.own
        return (
            i > 0
            and own[i] == own[i - 1]
            and levels[i - 1].period > self.model.settings.chunk
            and all(
                (one.feed, one.capacity, one.listen) == ("gradient", "full", None) and one.optimizer != "dgd"
                for one in levels[i - 1 : i + 1]
            )
        )

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
        self, i: int, level: LevelSettings, found: dict[str, Tensor], lengths: dict[str, Tensor], report: LevelReport
    ) -> None:
        """A level whose period is over. `lengths` are the norms of what was found."""
        state, sites = self.state, self.model.own[i]
        for site in sites:
            self.wholes.pop(site.name, None)
        if level.feed == "faster":
            self.take_over(i, level, report)
            return
        count = int(state[key(i, "count")])
        if count == 0:
            return
        # Chunks of weight w teach by their weighted mean gradient, and the level goes the share w of its way.
        weight = float(state.pop(key(i, "weight"), torch.tensor(float(count))))
        names = [f"{part}/{site.name}" for part in parts_of(level) for site in sites]
        stored = key(i, "grad", names[0]) in state
        sums = {n: state[key(i, "grad", n)] if stored else self.of(found, i, *n.split("/", 1)) for n in names}
        sizes = {} if stored else {n: self.of(lengths, i, *n.split("/", 1)) for n in names}
        squares = {f"delta/{s.name}": state[key(i, "gram", s.name)] for s in sites} if level.optimizer == "dgd" else {}
        if 0 < weight < count:
            sums, sizes, squares = (_times(x, count / weight) for x in (sums, sizes, squares))
        after = self.stepped(i, sums, count, squares, sizes, whole=weight == count) if weight else None
        if i + 1 < len(self.model.own) and self.follows(i + 1):
            for n in names:
                self.add(key(i + 1, "grad", n), state[key(i, "grad", n)])
            self.count(i + 1, count, weight)
        for name in [key(i, "grad", n) for n in names if stored] + [key(i, "gram", n.name) for n in sites]:
            if name in state:
                state[name] = state[name].zero_() if name in self.mine else torch.zeros_like(state[name])
                self.mine.add(name)
        state[key(i, "count")] = torch.zeros_like(state[key(i, "count")])
        if after is None:
            report.refused += weight > 0
            return
        self.write(i, after, weight / count, report)

    def stepped(
        self, i: int, sums: dict[str, Tensor], count: int, squares: dict[str, Tensor], lengths: dict[str, Tensor],
        whole: bool,
    ) -> Stepped | None:  # fmt: skip
        """A level after a step on these gradients, of which it may go a part of the way; None where it is refused."""
        state, names, level = self.state, list(sums), self.model.settings.levels[i]
        rates, decays = rates_of(self.model, i)
        step = Step(
            memory={n: state[key(i, n)] for n in names},
            sums=sums,
            count=count,
            number=int(state[key(i, "steps")]) + 1,
            opt={n: {what: state[key(i, "opt", what, n)] for what in self.held(i, names[0])} for n in names},
            anchors={n: state[k] for n in names if (k := key(i, "anchor", n)) in state},
            grams=squares,
            sizes=self.sizes(i) if level.bound is not None else {},
            rates=rates,
            decays=decays,
            mine={n for n in names if key(i, n) in self.mine} if whole else (),
            lengths=lengths,
            norm=self.norms.get(i),
        )
        return stepped(level, step)

    def write(self, i: int, after: Stepped, share: float, report: LevelReport) -> None:
        """Go this share of the way."""
        state = self.state
        for n, new in after.memory.items():
            old = state[key(i, n)]
            state[key(i, n)] = new if share == 1 else old + share * (new - old)
            self.mine.add(key(i, n))
            state |= {key(i, "opt", what, n): x for what, x in after.opt[n].items()}
        state[key(i, "steps")] = state[key(i, "steps")] + 1
        self.norms[i] = after.norm if share == 1 else norm_of(state[key(i, n)] for n in after.memory)
        report.updates, report.moved = report.updates + 1, report.moved + share * after.moved
        report.norm, report.slope = self.norms[i], after.slope

    @torch.no_grad()
    def ahead(self, i: int) -> None:
        """The update of a level as if its period ended now; its clock goes on.

        What the faster levels of a stack still hold of its sum counts, and is taken off again, as it comes once more
        when their periods end.
        """
        levels, report = self.model.settings.levels, LevelReport(f"level {i}", self.model.settings.levels[i].period)
        first = i
        while self.follows(first):
            first -= 1
        names = [f"{part}/{site.name}" for part in parts_of(levels[i]) for site in self.model.own[i]]
        held = []
        for j in range(first, i):
            count = int(self.state[key(j, "count")])
            held.append((j, count, float(self.state.get(key(j, "weight"), torch.tensor(float(count))))))
        for sign in (1, -1):
            for j, count, weight in held:
                for n in names:
                    self.add(key(i, "grad", n), sign * self.state[key(j, "grad", n)])
                self.count(i, sign * count, sign * weight)
            if sign == 1:
                self.update(i, levels[i], {}, {}, report)

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
        self.norms.pop(i - 1, None)
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
