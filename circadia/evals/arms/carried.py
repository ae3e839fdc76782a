"""A model of our own, trained from scratch, that reads with the memory it was trained to have, carried over the stream.

Nothing is retrofitted and there is no rate: how it learns was learned when it was trained. Beside it belongs the same
model as `frozen`, which begins every text with the memory it was born with.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from circadia.evals.arms.arm import Arm, Example, size
from circadia.evals.bases import Base
from circadia.models.native import native


class Carried(Arm):
    """A Hope, Hope-Attention or any other stack of ours with a memory that learns in context. Its cost is counted as if
    all its parameters took gradients, which is more than it costs: only its memories do.
    """

    def __init__(self, base: Base, seed: int = 0) -> None:
        super().__init__(base, seed)
        self.model = native(base.model)
        self.state = self.model.start()

    def learn(self, examples: Sequence[Example]) -> None:
        tokens = self.base.encode("".join(one.text for one in examples))
        _, self.state = self.model.learn(torch.tensor(tokens, dtype=torch.int64), self.state)
        self.learned += len(tokens)

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """A text of its own, with what was learned and without what was read last."""
        with self.model.wearing(self.state) as module:
            yield module

    @property
    def bytes(self) -> int:
        return size(list(self.state.values()))
