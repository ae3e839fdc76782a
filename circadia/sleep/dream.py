"""Dreaming: the self makes text about a task, tries what learning it would do, and learns to make more of what helped.

    candidates  from the self with one random extra expert, so that not only the known is said
    selection   by what they would change: the best by importance, and some at random
    trial       each kept one is learned alone, in a fresh low-rank memory that is thrown away
    reward      1 if the task got better then, else 0
    ReST-EM     the self learns (task -> dream) of those with reward 1

A task is a context and probes of what it is for. Those of two experiences from different sources have both contexts
and both probes: their dreams look for what connects them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.find import positions
from circadia.models.retrofit.state import State, draw, key
from circadia.sleep.checks import kinds
from circadia.sleep.fit import Fit, Meter
from circadia.sleep.losses import divergence, nats, over_sequences
from circadia.sleep.pool import experts, has_pool
from circadia.sleep.sample import sample
from circadia.sleep.student import Extra, Student, Teacher, written
from circadia.sleep.windows import IGNORED, Probe, Window, batch, scores

Anew = Callable[[Window, Probe], Sequence[Probe]]
SELECT = ("greats", "norm", "influence", "overlap")


@dataclass(frozen=True, kw_only=True)
class Dreaming:
    """Numbers that the paper leaves open, but for 60 candidates of which 15 are kept on ARC.

    select   greats: <g_i, g_task> less what is chosen already; norm: |g_i|; influence: g_task F^-1 g_i with a diagonal
             F; overlap: share of its pieces of `gram` tokens that stand in the task. Gradients are those of the trial's
             memory. In an independent replication overlap beat gradients
    noise    size of the random expert where no level has one: its output as a share of the matrix's own
    margin   nats a token by which the probes must get better
    questions   of each task about a window in the self's own words, beside its probe, see words.py
    """

    tasks: int = 4
    relations: int = 2
    candidates: int = 12
    keep: int = 3
    random: int = 1
    length: int = 48
    warmth: float = 1.0
    select: str = "greats"
    gram: int = 4
    eta: float = 1e-2
    noise: float = 0.2
    rank: int = 4
    steps: int = 8
    rate: float = 1e-2
    margin: float = 0.0
    rounds: int = 1
    learn: int = 20
    learn_rate: float = 1e-3
    guard: float = 1.0
    questions: int = 0

    def __post_init__(self) -> None:
        ones = {"candidates": 1, "length": 1, "gram": 1, "rank": 1, "rounds": 1, "margin": -math.inf}
        kinds(self, ones, above=("rate", "learn_rate"))
        if self.select not in SELECT:
            raise ValueError(f"select={self.select!r}: use one of {', '.join(SELECT)}")
        if self.keep + self.random < 1 or self.keep + self.random > self.candidates:
            raise ValueError(f"keep={self.keep} and random={self.random} must be 1 to candidates={self.candidates}")


@dataclass(frozen=True)
class Task:
    """A context C, and probes whose mean loss is to fall."""

    name: str
    context: Tensor
    probes: tuple[Probe, ...]

    def __post_init__(self) -> None:
        if not self.probes:
            raise ValueError(f"task {self.name!r} has no probes: give at least one, whose loss is to fall")


@dataclass(frozen=True)
class Dream:
    """What was said about a task, and what learning it did to the task's probes, in nats a token."""

    task: str
    tokens: Tensor
    importance: float
    before: float
    after: float
    reward: int


def tasks_of(
    windows: Sequence[Window], probes: Sequence[Probe], how: Dreaming, generator: torch.Generator,
    anew: Anew | None = None,
) -> list[Task]:  # fmt: skip
    """Drawn from the night's own windows that have probes, and pairs of those from different sources.

    A window's probe is a question that needs no label: what surprised most, after what stands before it. `anew` asks
    for the same in other words.
    """
    by_name = {probe.name: probe for probe in probes}
    own = [(w, by_name[w.name]) for w in windows if w.name in by_name]
    order = torch.randperm(len(own), generator=generator).tolist()
    found = []
    for window, probe in [own[i] for i in order[: how.tasks]]:
        found.append(Task(probe.name, window.tokens, (probe, *(anew(window, probe) if anew else ()))))
    others = [(i, j) for i in order for j in order if i < j and own[i][0].source != own[j][0].source]
    for i, j in others[: how.relations]:
        (a, first), (b, second) = own[i], own[j]
        context = torch.cat((a.tokens, b.tokens))
        found.append(Task(f"{first.name} + {second.name}", context, (first, second)))
    return found


def random_expert(model: RetrofitModel, state: State, how: Dreaming, generator: torch.Generator) -> dict[str, Extra]:
    """One expert in use, once more and without a gate; where there is none, a fresh one of `noise` of the matrix."""
    pools = [(i, s) for i in range(len(model.own)) if has_pool(model, i) for s in experts(model, state, i)]
    if pools:
        level, slot = pools[int(torch.randint(len(pools), (1,), generator=generator))]
        return {
            site.name: (state[key(level, "a", site.name)][slot], state[key(level, "b", site.name)][slot])
            for site in model.own[level]
        }
    found = {}
    for name, site in model.sites.items():
        if site.matrix is None:
            continue
        a, b = (
            torch.randn(shape, generator=generator) for shape in ((how.rank, site.shape[1]), (site.shape[0], how.rank))
        )
        size = float((b @ a).norm())
        weight = site.matrix.weight.detach().float().norm() if site.matrix.plain else torch.tensor(1.0)
        found[name] = (
            a.to(site.device, site.dtype),
            (b * (how.noise * float(weight) / size)).to(site.device, site.dtype),
        )
    return found


def _fresh(model: RetrofitModel, how: Dreaming, seed: int) -> dict[str, Extra]:
    """A memory for a trial: an exact no-op until it learns."""
    return {
        name: (
            draw(site, how.rank, seed, 0, 0),
            torch.zeros(site.shape[0], how.rank, dtype=site.dtype, device=site.device),
        )
        for name, site in model.sites.items()
    }


def _loss(student: Student, rows: Sequence[Tensor], given: Sequence[int], meter: Meter) -> Tensor:
    """Mean loss of what stands behind the given tokens of each row."""
    ids, labels = batch(rows)
    for i, count in enumerate(given):
        labels[i, : max(0, count - 1)] = IGNORED
    meter.learned += ids.numel()
    ids, labels = ids.to(student.model.device), labels.to(student.model.device)
    return over_sequences(nats(student.logits(ids), labels), (labels != IGNORED).float())


def gradient(student: Student, row: Tensor, given: int, meter: Meter) -> Tensor:
    """Of one text, as one vector."""
    return flat(student, _loss(student, [row], [given], meter))


def flat(student: Student, loss: Tensor) -> Tensor:
    """The gradient of a loss with respect to all that is trained, as one vector."""
    found = torch.autograd.grad(loss, student.leaves, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(x).flatten() if g is None else g.flatten() for x, g in zip(student.leaves, found)]
    )


def chosen(scores_: Tensor, gram: Tensor | None, how: Dreaming, generator: torch.Generator) -> list[int]:
    """The best, one after the other, and some at random. gram: <g_i, g_j>, which what is chosen takes from the rest."""
    left, picked = scores_.clone(), []
    for _ in range(how.keep):
        best = int(left.argmax())
        picked.append(best)
        if gram is not None:
            left = left - how.eta**2 * gram[best]
        left[picked] = -torch.inf
    rest = [i for i in range(scores_.numel()) if i not in picked]
    order = torch.randperm(len(rest), generator=generator).tolist()
    return picked + [rest[i] for i in order[: how.random]]


def importance(
    model: RetrofitModel, state: State, task: Task, rows: Sequence[Tensor], how: Dreaming, seed: int, meter: Meter
) -> tuple[Tensor, Tensor | None]:
    """Of each candidate; and for greats how they overlap."""
    if how.select == "overlap":
        known = {tuple(task.context[i : i + how.gram].tolist()) for i in range(task.context.numel() - how.gram + 1)}
        shares = []
        for row in rows:
            pieces = [tuple(row[i : i + how.gram].tolist()) for i in range(row.numel() - how.gram + 1)]
            shares.append(sum(piece in known for piece in pieces) / max(1, len(pieces)))
        return torch.tensor(shares), None
    student = Student(model, state, [], _fresh(model, how, seed))
    own = torch.stack([gradient(student, row, 1, meter) for row in rows])
    wanted = None
    if how.select != "norm":
        wanted = torch.stack([gradient(student, p.tokens, p.cue, meter) for p in task.probes]).mean(0)
    return worth(own, wanted, how)


def worth(own: Tensor, wanted: Tensor | None, how: Dreaming) -> tuple[Tensor, Tensor | None]:
    """Importance of gradients [n, size] by that of the task, which the norm does without; and how they overlap."""
    if wanted is None or how.select == "norm":
        return own.norm(dim=1), None
    if how.select == "influence":
        fisher = own.square().mean(0)
        return own @ (wanted / (fisher + fisher.mean().clamp_min(1e-12))), None
    return how.eta * (own @ wanted), own @ own.mT


def check(model: RetrofitModel) -> None:
    """Can it dream?"""
    if model.settings.target != "mlp":
        raise ValueError(f"dreaming tries low-rank memories, which target={model.settings.target!r} has not: use 'mlp'")


def fitting(model: RetrofitModel, tasks: Sequence[Task], how: Dreaming) -> tuple[list[Task], list[str]]:
    """Those about which the base has positions enough to say something, and what is left out."""
    limit = positions(model.base)
    long = [task for task in tasks if limit is not None and task.context.numel() + how.length > limit]
    told = [f"task {t.name}: {t.context.numel()} + {how.length} tokens are more than {limit} positions" for t in long]
    return [task for task in tasks if all(task is not other for other in long)], told


def dream(
    model: RetrofitModel, state: State, tasks: Sequence[Task], how: Dreaming, into: str | int,
    generator: torch.Generator, meter: Meter, older: Teacher | None = None, own: Tensor | None = None,
) -> tuple[State, list[Dream]]:  # fmt: skip
    """The self after its dreams, and the dreams that were tried. `own` are dreams of the older self that hold it."""
    check(model)
    made: list[Dream] = []
    for _ in range(how.rounds):
        good: list[tuple[Tensor, Tensor]] = []
        for at, task in enumerate(tasks):
            if meter.over:
                break
            meter.step("dreaming", at, len(tasks))
            tried = _about(model, state, task, how, generator, meter)
            good += [(task.context, found.tokens) for found in tried if found.reward]
            made += tried
        if good and how.learn:
            state = _learned(model, state, good, how, into, generator, meter, older, own)
    return state, made


def _about(
    model: RetrofitModel, state: State, task: Task, how: Dreaming, generator: torch.Generator, meter: Meter
) -> list[Dream]:
    wild = Student(model, state, [], random_expert(model, state, how, generator))
    whole = sample(wild, task.context.repeat(how.candidates, 1), how.length, generator, how.warmth)
    meter.made += whole.numel()
    rows = list(whole[:, task.context.numel() :])
    seed = int(torch.randint(2**31, (1,), generator=generator))
    values, overlap = importance(model, state, task, rows, how, seed, meter)
    before = sum(scores(Teacher(model, state), task.probes)) / len(task.probes)
    found = []
    for i in chosen(values, overlap, how, generator):
        trial = Student(model, state, [], _fresh(model, how, seed))
        fit = Fit(trial, how.steps, how.rate, generator, {})
        fit.run(lambda row=rows[i], who=trial: _loss(who, [row], [1], meter), meter, "trial")  # type: ignore[misc]
        after = sum(scores(trial, task.probes)) / len(task.probes)
        helped = int(after < before - how.margin)
        found.append(Dream(task.name, rows[i], float(values[i]), before, after, helped))
    return found


def _learned(
    model: RetrofitModel, state: State, good: list[tuple[Tensor, Tensor]], how: Dreaming, into: str | int,
    generator: torch.Generator, meter: Meter, older: Teacher | None, own: Tensor | None,
) -> State:  # fmt: skip
    student = Student(model, state, written(model, into, state))
    held: dict[str, Any] = {}

    def loss() -> Tensor:
        drawn = torch.randint(len(good), (min(4, len(good)),), generator=generator).tolist()
        value = _loss(student, [torch.cat(good[i]) for i in drawn], [good[i][0].numel() for i in drawn], meter)
        if how.guard and older is not None and own is not None:
            text = own[torch.randint(len(own), (2,), generator=generator)].to(model.device)
            meter.read, meter.learned = meter.read + text.numel(), meter.learned + text.numel()
            value = value + how.guard * divergence(older.logits(text[:, :-1]), student.logits(text[:, :-1]))
        return value

    Fit(student, how.learn, how.learn_rate, generator, held).run(loss, meter, "learn dreams")
    return student.state()
