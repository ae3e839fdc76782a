"""An arm that first writes what follows from a text, and then learns that beside the text (Zweiger et al. 2025, SEAL).

SEAL asks a large model for a list of implications, and trains by reinforcement which lists are worth learning. Here the
self that reads is asked, in the same words, and everything that it says is learned: what a small base says is mostly a
going on in the manner of the text. Nothing chooses among it, so this is SEAL's self-edit without its outer loop.
"""

from collections.abc import Sequence
from typing import Any

import torch

from circadia.evals.arms.arm import Example
from circadia.evals.arms.streamed import Streamed
from circadia.evals.bases import Base
from circadia.models.retrofit.find import positions
from circadia.sleep.sample import sample
from circadia.sleep.student import Teacher

ASKED = "Implications:\n"  # after the text
COUNT, TOKENS = 4, 96  # pieces written about each text, and their length


class Implying(Streamed):
    """What is written about a text is written once, when it is first read, and learned at every reading after it."""

    def __init__(self, base: Base, seed: int, settings: dict[str, Any]) -> None:
        super().__init__(base, seed, settings)
        self.generator = torch.Generator().manual_seed(seed)
        self.said: dict[str, list[str]] = {}
        self.passed = 0  # tokens read and made in writing

    def learn(self, examples: Sequence[Example]) -> None:
        for one in examples:
            if one.text not in self.said:
                self.said[one.text] = self.written(one.text)
            super().learn([one, *(Example("", text) for text in self.said[one.text])])

    def written(self, text: str) -> list[str]:
        """Each under the first line of the text, which is its title."""
        room = positions(self.model.base)
        tokens = self.base.encode(text + ASKED)
        prompt = torch.tensor(tokens if room is None else tokens[-(room - TOKENS) :])
        rows = sample(Teacher(self.model, self.state), prompt.expand(COUNT, -1), TOKENS, self.generator)
        self.passed += rows.numel()
        title = text.lstrip().split("\n", 1)[0]
        return [f"{title}\n{self.base.decode(row[len(prompt) :].tolist()).strip()}\n\n" for row in rows]

    @property
    def bytes(self) -> int:
        return super().bytes + sum(len(text.encode()) for said in self.said.values() for text in said)

    def cost(self) -> dict[str, Any]:
        found = super().cost()
        return {**found, "flops": found["flops"] + 2 * self.base.parameters * self.passed}
