"""Knowledge seeding: a teacher's text, and a student that learns to say it without what the teacher has.

The text is the teacher's own (no experience is stored in it): from nothing, from kept beginnings of windows, or by
study, where the teacher has the window before it and the student has not. Of a batch the student is taught, with the
chance `on_policy` (lambda), on what it says itself, through which no gradient flows. Imitation gives it a reward for
completing a text as the teacher did.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.models.retrofit import RetrofitModel
from circadia.sleep.checks import kinds
from circadia.sleep.fit import Fit, Meter
from circadia.sleep.losses import KINDS, advantages, divergence, objective, policy_gradient, reward
from circadia.sleep.pool import FREE
from circadia.sleep.sample import sample, starts
from circadia.sleep.student import Student, Teacher
from circadia.sleep.windows import Window

Judge = Callable[[list[int], list[int]], bool]
SOURCES = ("nothing", "prefixes", "study")


@dataclass(frozen=True, kw_only=True)
class Seeding:
    """The paper names lambda, alpha, gamma, z_0, F, lengths and temperatures, and gives no values; these are ours.

    on_policy    lambda: the student's share of the text. A half: neither alone was better in our toy
    distance     F, with `beta` for jsd. forward: the student has to give room to what only the teacher knows
    temperature  of both distributions in F;  warmth: of sampling
    alpha        weight of F against imitation; 1: no imitation
    gamma        share of meaning in the reward;  z_0: farthest edit distance that earns any, a half of the text
    steps, rate  the paper's 100 steps of 5e-6 move nothing in a fresh expert: a thousandfold rate is needed there
    older        weight of the second teacher, an older self on its own dreams, for what must stay; 0: the paper's form
    free         what the sender loses in the student: "experts" of former sleeps (the paper), "all" it holds, "nothing"
    expand       a new expert in the receiver; False: the receiver's own memory learns
    """

    sources: tuple[str, ...] = ("nothing", "prefixes")
    texts: int = 48
    length: int = 48
    prefix: int = 12
    on_policy: float = 0.5
    distance: str = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    warmth: float = 1.0
    alpha: float = 0.7
    gamma: float = 0.5
    z_0: float | None = None
    group: int = 4
    cosine: float = 0.9
    steps: int = 100
    rate: float = 5e-3
    rows: int = 8
    older: float = 0.0
    older_rows: int = 2
    free: str = "experts"
    expand: bool = True

    def __post_init__(self) -> None:
        ones = ("texts", "length", "prefix", "group", "steps", "rows", "older_rows")
        kinds(self, dict.fromkeys(ones, 1) | {"cosine": -1}, above=("temperature", "rate"))
        for name in ("on_policy", "alpha", "gamma", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is outside [0, 1]")
        if self.distance not in KINDS:
            raise ValueError(f"distance={self.distance!r}: use one of {', '.join(KINDS)}")
        if self.free not in FREE:
            raise ValueError(f"free={self.free!r}: use one of {', '.join(FREE)}")
        if isinstance(self.sources, str):
            raise ValueError(f"sources={self.sources!r}: give several, such as ({self.sources!r},)")
        for source in self.sources:
            if source not in SOURCES:
                raise ValueError(f"sources: {source!r} is none: use {', '.join(SOURCES)}")
        if not self.sources:
            raise ValueError("sources=() leaves nothing to learn from: give at least one")


@dataclass(frozen=True)
class Texts:
    """Of one source, rows of the same shape: what only the teacher sees, what both do, and what the teacher said."""

    hint: Tensor
    prompt: Tensor
    text: Tensor


def texts(
    teacher: Teacher, windows: Sequence[Window], how: Seeding, generator: torch.Generator, meter: Meter,
    start: int | None = None,
) -> list[Texts]:  # fmt: skip
    """The teacher's data set D. Sources that need windows are left out where there are none."""
    found = []
    long = [w.tokens for w in windows if w.tokens.numel() > how.prefix]
    for source in how.sources:
        hint = torch.zeros(how.texts, 0, dtype=torch.int64)
        if source == "nothing":
            prompt = starts(teacher.model, how.texts, start)
        elif long:
            drawn = [long[i] for i in torch.randint(len(long), (how.texts,), generator=generator).tolist()]
            prompt = torch.stack([row[: how.prefix] for row in drawn])
            if source == "study":
                size = min(row.numel() for row in drawn)
                hint = torch.cat((torch.stack([r[:size] for r in drawn]), starts(teacher.model, how.texts, start)), 1)
        else:
            continue
        whole = sample(teacher, torch.cat((hint, prompt), 1), how.length, generator, how.warmth)
        meter.made += whole.numel()
        found.append(Texts(hint, prompt, whole[:, -how.length :]))
    if not found:
        raise ValueError(f"sources={how.sources!r} need windows of the journal, and there are none: add 'nothing'")
    return found


def embedded(model: RetrofitModel, cosine: float) -> Judge:
    """A judge of meaning that needs no other model: the base's mean embeddings, frozen, point the same way."""
    table = model.base.get_input_embeddings().weight  # type: ignore[operator]

    def same(made: list[int], meant: list[int]) -> bool:
        if not made or not meant:
            return made == meant
        a, b = (table[torch.tensor(ids, device=table.device)].float().mean(0) for ids in (made, meant))
        return float(F.cosine_similarity(a, b, dim=0)) > cosine

    return same


def seed(
    teacher: Teacher, student: Student, data: list[Texts], how: Seeding, generator: torch.Generator, meter: Meter,
    held: dict[str, Any], older: Teacher | None = None, dreams: Tensor | None = None, judge: Judge | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Teach; what came of it. `older` is asked only where how.older > 0."""
    fit = Fit(student, how.steps, how.rate, generator, held)
    device = student.model.device
    judge = judge or embedded(student.model, how.cosine)
    curve: list[float] = held.get("curve", [])
    rewards: list[float] = held.get("rewards", [])

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        some = data[int(torch.randint(len(data), (1,), generator=generator))]
        rows = torch.randint(len(some.text), (count,), generator=generator)
        return some.hint[rows], some.prompt[rows], some.text[rows]

    def loss() -> Tensor:
        hint, prompt, text = draw(how.rows)
        if float(torch.rand(1, generator=generator)) < how.on_policy:
            text = sample(student, prompt, text.shape[1], generator, how.warmth)[:, prompt.shape[1] :]
            meter.made += text.numel()
        value = taught(teacher, student, hint, prompt, text, how, meter)
        curve.append(float(value.detach()))
        imitation = None
        if how.alpha < 1:
            _, prompt, text = draw(1)
            imitation, got = imitated(student, prompt[0], text[0], how, judge, generator, meter)
            rewards.append(got)
        value = objective(value, imitation, how.alpha)
        if how.older and older is not None and dreams is not None:
            own = dreams[torch.randint(len(dreams), (how.older_rows,), generator=generator)].to(device)
            meter.read, meter.learned = meter.read + own.numel(), meter.learned + own.numel()
            value = value + how.older * divergence(
                older.logits(own[:, :-1]), student.logits(own[:, :-1]), how.distance, how.beta
            )
        return value

    try:
        fit.run(loss, meter, "seed")
    finally:
        if held:
            held.update(curve=curve, rewards=rewards)
    tenth = max(1, len(curve) // 10)
    told: dict[str, Any] = {"steps": fit.at, "refused": fit.refused}
    if curve:
        told |= {"distance_first": sum(curve[:tenth]) / tenth, "distance_last": sum(curve[-tenth:]) / tenth}
    if rewards:
        told["reward"] = sum(rewards) / len(rewards)
    return told


def taught(
    teacher: Teacher, student: Student, hint: Tensor, prompt: Tensor, text: Tensor, how: Seeding, meter: Meter
) -> Tensor:
    """F along the text. Only its tokens count; what stands before it is given."""
    device, n = student.model.device, text.shape[1]
    seen = torch.cat((hint, prompt, text), 1).to(device)
    own = seen[:, hint.shape[1] :]
    meter.read, meter.learned = meter.read + seen.numel(), meter.learned + own.numel()
    meant, said = teacher.logits(seen[:, :-1])[:, -n:], student.logits(own[:, :-1])[:, -n:]
    return divergence(meant, said, how.distance, how.beta, how.temperature)


def imitated(
    student: Student, prompt: Tensor, text: Tensor, how: Seeding, judge: Judge, generator: torch.Generator, meter: Meter
) -> tuple[Tensor, float]:
    """A group of completions of a text cut at a random place, and the policy gradient on their rewards."""
    cut = int(torch.randint(1, text.numel(), (1,), generator=generator)) if text.numel() > 1 else 0
    given, meant = torch.cat((prompt, text[:cut])), text[cut:]
    made = sample(student, given.repeat(how.group, 1), meant.numel(), generator, how.warmth)
    meter.made, meter.learned = meter.made + meant.numel() * how.group, meter.learned + made.numel()
    z_0 = meant.numel() / 2 if how.z_0 is None else how.z_0
    ends = [row[given.numel() :].tolist() for row in made]
    got = torch.tensor([reward(e, meant.tolist(), judge(e, meant.tolist()), how.gamma, z_0) for e in ends])
    made = made.to(student.model.device)
    logits = student.logits(made[:, :-1])[:, -meant.numel() :]
    chosen = logits.log_softmax(-1).gather(-1, made[:, -meant.numel() :, None])[..., 0]
    # The mean over tokens, so that its size does not hang on where the text was cut.
    return policy_gradient(chosen.mean(-1), advantages(got).to(chosen)), float(got.mean())
