"""Synthetic sequences with questions in them: drawing without overlap, training, scores. Shared by several suites."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.evals import fit, networks
from circadia.evals.metrics import macro, majority
from circadia.evals.suite import Options, Run
from circadia.models import HopeForCausalLM

NOTHING = -100


@dataclass(frozen=True)
class Sequences:
    """[N, T] each; at a token stands what is to be said after it, or NOTHING."""

    tokens: Tensor
    learn: Tensor  # in training
    asked: Tensor  # in tests

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor | slice) -> "Sequences":
        return Sequences(self.tokens[index], self.learn[index], self.asked[index])

    def to(self, device: str) -> "Sequences":
        return Sequences(self.tokens.to(device), self.learn.to(device), self.asked.to(device))


Draw = Callable[[int, torch.Generator], Sequences]


def following(tokens: Tensor) -> Tensor:
    """Labels of a language model: each next token."""
    return torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], NOTHING)), 1)


def apart(draw: Draw, sizes: tuple[int, ...], generator: torch.Generator) -> list[Sequences]:
    """Parts of these sizes, no sequence of which is in another part (or twice in the same)."""
    seen: set[bytes] = set()
    parts = []
    for size in sizes:
        kept: list[Sequences] = []
        missing = size
        for _ in range(100):
            drawn = draw(missing, generator)
            new = []
            for i, row in enumerate(drawn.tokens.numpy()):
                if (text := row.tobytes()) not in seen:
                    seen.add(text)
                    new.append(i)
            kept.append(drawn.rows(torch.tensor(new, dtype=torch.long)))
            missing -= len(new)
            if not missing:
                break
        else:
            raise ValueError(f"{size} different sequences cannot be found: take longer ones, or a larger vocabulary")
        parts.append(Sequences(*(torch.cat([getattr(p, n) for p in kept]) for n in ("tokens", "learn", "asked"))))
    return parts


def logits(net: HopeForCausalLM, tokens: Tensor, where: Tensor) -> Tensor:
    """At the tokens where something is asked; only they go through the head."""
    hidden = net.model(tokens, use_cache=False).last_hidden_state
    return net.lm_head(hidden[where]).float()


def loss(net: HopeForCausalLM, part: Sequences) -> Tensor:
    where = part.learn != NOTHING
    return F.cross_entropy(logits(net, part.tokens, where), part.learn[where])


@torch.no_grad()
def answers(net: HopeForCausalLM, part: Sequences, device: str, batch: int) -> Tensor:
    """What the net says wherever something is asked, in order."""
    said = []
    for index in torch.arange(len(part)).split(batch):
        rows = part.rows(index).to(device)
        said.append(logits(net, rows.tokens, rows.asked != NOTHING).argmax(-1).cpu())
    return torch.cat(said)


def accuracy(wanted: Tensor, said: Tensor) -> dict[str, float]:
    """micro: right answers; macro: the mean of their shares over the classes."""
    asked = Counter(wanted.tolist())
    right = Counter(wanted[wanted == said].tolist())
    return {"micro": right.total() / asked.total(), "macro": macro(dict(right), dict(asked))}


def wanted(part: Sequences) -> Tensor:
    return part.asked[part.asked != NOTHING]


def experiment(
    run: Run,
    options: Options,
    shape: networks.Shape,
    train: Sequences,
    valid: Sequences,
    tests: dict[str, Sequences],
    generator: torch.Generator,
    cut: Callable[[Sequences, int], Sequences] = lambda part, step: part,
) -> dict[str, Any]:
    """Train a model on sequences drawn from ``train``, and score it; ``cut`` may change a batch by its step."""
    net = networks.build(run["model"], shape).to(options.device)
    whole = train.to(options.device)
    batch = run["batch"]

    def step_loss(step: int) -> Tensor:
        index = torch.randint(len(whole), (batch,), generator=generator)
        return loss(net, cut(whole.rows(index.to(options.device)), step))

    def scored(part: Sequences) -> dict[str, float]:
        return accuracy(wanted(part), answers(net, part, options.device, batch))

    trained = fit.fit(net, step_loss, fit.Recipe(run["steps"], run["rate"]), lambda: scored(valid)["micro"] == 1.0)
    return {
        **trained,
        **networks.size(run["model"], shape, train.tokens.shape[1]),
        "valid": scored(valid),
        "test": {name: scored(part) for name, part in tests.items()},
        "majority": {name: majority(wanted(part).tolist()) for name, part in tests.items()},
    }


def goal(scores: dict[str, Any]) -> float:
    """For tuning: right answers in the part for validation."""
    return scores["valid"]["micro"]
