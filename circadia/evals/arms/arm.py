"""What every arm does: learn examples, and lend a model to answer with. This one never learns: the base itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from circadia.evals.bases import Base


@dataclass(frozen=True)
class Example:
    """A question with its answer; or a sentence, as an answer to nothing."""

    before: str
    after: str

    @property
    def text(self) -> str:
        return self.before + self.after


class Arm:
    """A way to go on with a base. `learn` is called with pieces of a task, `finish` at its end."""

    at_once = False  # learns all tasks together
    sleeps = False  # `finish` is its night, so that it answers otherwise in the morning

    def __init__(self, base: Base, seed: int = 0) -> None:
        self.base, self.seed = base, seed
        self.learned = 0  # tokens, with repetitions

    def learn(self, examples: Sequence[Example]) -> None:
        """The next examples of the task, in their order."""

    def finish(self) -> None:
        """The task, or the day, is over. Arms that need no borders do nothing."""

    @contextmanager
    def reading(self) -> Iterator[torch.nn.Module]:
        """The model as it answers now."""
        yield self.base.model

    def prompt(self, text: str) -> str:
        """What is read before an answer is given: the question, after whatever the arm puts there."""
        return text

    @property
    def bytes(self) -> int:
        """All that the arm keeps beside the base."""
        return 0

    def cost(self) -> dict[str, Any]:
        """A token read costs about 2 operations for each parameter, a token learned from 6 (Kaplan et al. 2020)."""
        return {"tokens": self.learned, "flops": 6 * self.base.parameters * self.learned, "bytes": self.bytes}


def size(tensors: Sequence[torch.Tensor]) -> int:
    """In bytes."""
    return sum(x.numel() * x.element_size() for x in tensors)
