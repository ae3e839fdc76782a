"""A retrofitted base that reads the examples as one stream, every chunk scored and then learned; also from old text."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from circadia.evals.arms.arm import Arm, Example, size
from circadia.evals.bases import Base
from circadia.models.retrofit import retrofit
from circadia.models.retrofit.find import positions
from circadia.models.retrofit.wear import swapped

CHUNK = 256
CONTEXT = 128  # tokens before a chunk that it sees: most examples are cut by a border, and would lose their question


class Streamed(Arm):
    """`settings` are those of `circadia.retrofit`."""

    def __init__(self, base: Base, seed: int, settings: dict[str, Any]) -> None:
        super().__init__(base, seed)
        limit = positions(base.model)
        context = CONTEXT if limit is None else max(0, min(CONTEXT, limit - CHUNK + 1))
        self.model = retrofit(base.model, **{"context": context, "seed": seed, **settings})
        self.state = self.model.start()

    def learn(self, examples: Sequence[Example]) -> None:
        self.read(self.base.encode("".join(one.text for one in examples)))

    def read(self, tokens: list[int]) -> None:
        """Learn the next tokens of the stream."""
        _, self.state = self.model.learn(torch.tensor(tokens, dtype=torch.int64), self.state)
        self.learned += len(tokens)

    @contextmanager
    def reading(self) -> Iterator[torch.nn.Module]:
        with self.model.wearing(self.state) as base:
            yield base

    @property
    def bytes(self) -> int:
        return size(list(self.state.values()))


class Replay(Streamed):
    """Old text among the new: pieces of a chunk's length, drawn from all that earlier tasks brought.

    share     of old pieces in what is learned, once there are any
    instead   old pieces take the place of new ones, so that a task costs what it costs without replay (equal compute);
              otherwise they come on top
    """

    def __init__(self, base: Base, seed: int, settings: dict[str, Any], share: float, instead: bool) -> None:
        super().__init__(base, seed, settings)
        if not 0 < share < 1:
            raise ValueError(f"share={share}: give the share of old text between 0 and 1, such as 0.05")
        self.share, self.instead, self.chance = share, instead, random.Random(seed)
        self.old: list[list[int]] = []
        self.new: list[list[int]] = []
        self.owed = 0.0  # old pieces that are due

    def learn(self, examples: Sequence[Example]) -> None:
        tokens = self.base.encode("".join(one.text for one in examples))
        mixed: list[int] = []
        for at in range(0, len(tokens), CHUNK):
            piece = tokens[at : at + CHUNK]
            self.new.append(piece)
            if self.old:
                # On top: share of the whole, so share / (1 - share) for every new piece.
                self.owed += self.share if self.instead else self.share / (1 - self.share)
            if self.owed >= 1:
                self.owed -= 1
                mixed += self.chance.choice(self.old)
                if self.instead:
                    continue
            mixed += piece
        self.read(mixed)

    def finish(self) -> None:
        self.old += self.new
        self.new = []

    @property
    def bytes(self) -> int:
        """Old text as tokens of four bytes."""
        return super().bytes + 4 * sum(map(len, self.old + self.new))


class Joint(Streamed):
    """The ceiling: all tasks at once, mixed."""

    at_once = True

    def learn(self, examples: Sequence[Example]) -> None:
        mixed = list(examples)
        random.Random(self.seed).shuffle(mixed)
        super().learn(mixed)


class EWC(Streamed):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, eq. 3) of every parameter.

    L(theta) = L_new(theta) + sum over earlier tasks k of  strength/2 sum_i F_k,i (theta_i - theta*_k,i)^2

    The second part is a parabola, of which the sums of F_k and of F_k theta*_k are all that is needed. Its step is
    taken implicitly after that of the gradient, theta <- (theta + s sum F theta*) / (1 + s sum F) with
    s = rate strength, which is stable at every strength. F is the diagonal empirical Fisher information of a token:
    the mean over chunks of n g^2, with g the mean gradient of a chunk's n tokens.
    """

    CHUNKS = 64  # of a task that its Fisher information is taken from

    def __init__(self, base: Base, seed: int, settings: dict[str, Any], strength: float) -> None:
        super().__init__(base, seed, {**settings, "target": "all"})
        if strength < 0:
            raise ValueError(f"strength={strength}: must be at least 0")
        self.strength, self.rate = strength, self.model.settings.levels[0].rate
        self.fisher: dict[str, Tensor] = {}  # sum of F_k, by the name of a delta
        self.pull: dict[str, Tensor] = {}  # sum of F_k theta*_k
        self.pieces: list[list[int]] = []

    def read(self, tokens: list[int]) -> None:
        self.pieces += [tokens[at : at + CHUNK] for at in range(0, len(tokens) - CHUNK + 1, CHUNK)]
        for at in range(0, len(tokens), CHUNK):
            before = int(self.state["level0/steps"])
            super().read(tokens[at : at + CHUNK])
            if int(self.state["level0/steps"]) > before:
                for name, fisher in self.fisher.items():
                    s = self.rate * self.strength
                    self.state[name] = (self.state[name] + s * self.pull[name]) / (1 + s * fisher)

    def finish(self) -> None:
        chosen = random.Random(self.seed).sample(self.pieces, min(self.CHUNKS, len(self.pieces)))
        self.pieces = []
        for piece in chosen:
            for name, slope in self.slopes(piece).items():
                part = len(piece) * slope.square() / len(chosen)
                held = self.fisher.get(name)
                self.fisher[name] = part if held is None else held + part
                # theta* of this task is where the state stands now.
                drawn = part * self.state[name]
                self.pull[name] = drawn if held is None else self.pull[name] + drawn

    @torch.enable_grad()
    def slopes(self, piece: list[int]) -> dict[str, Tensor]:
        """Of the mean loss of a piece."""
        ids = torch.tensor([piece], device=self.model.device)
        values = {}
        for name, p in self.base.model.named_parameters():
            values[name] = (p.detach() + self.state[f"level0/delta/{name}"]).requires_grad_()
        with swapped(self.base.model, values):
            logits = self.base.model(ids[:, :-1], use_cache=False).logits.float()
            loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
        found = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        return {f"level0/delta/{name}": torch.zeros_like(x) if g is None else g
                for (name, x), g in zip(values.items(), found)}  # fmt: skip

    @property
    def bytes(self) -> int:
        return super().bytes + size([*self.fisher.values(), *self.pull.values()])
