"""What a model knows: facts among their choices, and bits per byte of its mother tongue; and what is fine-tuned."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.demo.facts import MOTHER_TONGUE, Fact

Logits = Callable[[Tensor], Tensor]  # tokens [B, T] -> logits [B, T, V]


@torch.no_grad()
def nats(logits: Logits, prompt: str, answers: Sequence[str]) -> list[float]:
    """What each answer costs after a prompt, a byte a token."""
    rows = [list(f"{prompt} {answer}.".encode()) for answer in answers]
    cue, length = len(prompt.encode()), max(map(len, rows))
    ids, labels = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, cue : len(row)] = ids[i, cue : len(row)]
    found = F.cross_entropy(logits(ids[:, :-1]).transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
    return found.sum(1).tolist()


def choice(logits: Logits, fact: Fact, reworded: bool = False) -> str:
    """The likeliest of a fact's choices."""
    costs = nats(logits, fact.other if reworded else fact.prompt, fact.choices)
    return fact.choices[costs.index(min(costs))]


@torch.no_grad()
def bits(logits: Logits, text: str = MOTHER_TONGUE) -> float:
    """Bits per byte."""
    ids = torch.tensor(list(text.encode()))
    return F.cross_entropy(logits(ids[None, :-1])[0], ids[1:]).item() / math.log(2)


def known(logits: Logits, days: dict[str, Sequence[Fact]]) -> dict[str, Any]:
    """Of each day how many are right, in the words that were read and in others; what was chosen; the mother tongue."""
    found: dict[str, Any] = {"mother_tongue": bits(logits)}
    for name, facts in days.items():
        chosen = {fact.name: choice(logits, fact) for fact in facts}
        reworded = [choice(logits, fact, True) == fact.value for fact in facts]
        found[name] = {
            "right": sum(chosen[fact.name] == fact.value for fact in facts),
            "reworded": sum(reworded),
            "of": len(facts),
            "chosen": chosen,
        }
    return found


class Naive:
    """All weights of a copy of the base, one AdamW step on each chunk as it comes."""

    def __init__(self, base: Any, chunk: int, rate: float) -> None:
        self.model, self.chunk = copy.deepcopy(base).eval(), chunk
        for p in self.model.parameters():
            p.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate)

    def read(self, text: str) -> None:
        """Once."""
        self.model.train()
        for chunk in torch.tensor(list(text.encode())).split(self.chunk):
            if chunk.numel() < 2:
                continue
            loss = F.cross_entropy(self.model(chunk[None, :-1], use_cache=False).logits[0], chunk[1:])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.model.eval()

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=False).logits
