"""A trained base with its tokens, and what a model says with something worn: likelihoods, choices, continuations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circadia.models.retrofit.build import loaded
from circadia.models.retrofit.find import positions
from circadia.train.tokens import Tokenizer

LONGEST = 2048  # tokens that a base without a limit of its own reads at once
BATCH = 16


@dataclass(frozen=True)
class Base:
    """A causal language model in fp32, and its tokens: bytes, if it knows 256 of them."""

    model: Any
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "Base":
        model = loaded(str(folder), torch.float32).to(device).eval()
        known = model.config.get_text_config().vocab_size
        return cls(model, Tokenizer("bytes" if known == 256 else str(folder)))

    def encode(self, text: str) -> list[int]:
        """Without a token for the end."""
        tokens = self.tokenizer.encode(text)[0].tolist()
        return tokens[:-1] if self.tokenizer.end is not None and tokens[-1:] == [self.tokenizer.end] else tokens

    def decode(self, tokens: Sequence[int]) -> str:
        if self.tokenizer.bytes:
            return bytes(tokens).decode("utf-8", "replace")
        return self.tokenizer._fast.decode(list(tokens), skip_special_tokens=True)

    @property
    def window(self) -> int:
        """Tokens that it reads at once."""
        return positions(self.model) or LONGEST

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


@dataclass(frozen=True)
class Answer:
    """How a model takes to a text after another: nats of all its tokens, how many greedy decoding would give."""

    nats: float
    right: int
    tokens: int


def split(base: Base, before: str, after: str) -> tuple[list[int], list[int]]:
    """Tokens of both, encoded together; a prompt that is too long loses its beginning."""
    stem = base.encode(before.rstrip(" "))
    whole = base.encode(before + after)
    cut = len(stem) if whole[: len(stem)] == stem else len(base.encode(before))
    answer = whole[cut:][-(base.window - 1) :]
    return whole[:cut][-(base.window - len(answer)) :], answer


@torch.no_grad()
def answers(base: Base, module: Any, pairs: Sequence[tuple[str, str]]) -> list[Answer]:
    """Every second text after the first one."""
    rows = [split(base, *pair) for pair in pairs]
    found: list[Answer | None] = [None] * len(rows)
    for part, logits, first in _logits(module, [a + b[:-1] for a, b in rows], [len(b) for _, b in rows]):
        for i, row in zip(part, logits):
            wanted = torch.tensor(rows[i][1], device=row.device)
            at = len(rows[i][0]) - 1 - first
            said = row[at : at + len(wanted)].log_softmax(-1)
            nats = -float(said.gather(1, wanted[:, None]).sum())
            found[i] = Answer(nats, int((said.argmax(-1) == wanted).sum()), len(wanted))
    return [x for x in found if x is not None]


@torch.no_grad()
def chosen(base: Base, module: Any, prompts: Sequence[str], options: Sequence[str]) -> list[int]:
    """Which of the options the model writes after each prompt if it can write nothing else: token by token the
    likeliest of those that still lead to one. All options end alike, so that none is the beginning of another.
    """
    coded = [split(base, prompt, options[0])[0] for prompt in prompts]
    ways = [split(base, prompts[0], option)[1] for option in options] if prompts else []
    if len({tuple(way) for way in ways}) < len(ways):
        raise ValueError("options: two of them have the same tokens; give texts that differ")
    left = [list(range(len(ways))) for _ in prompts]
    written: list[list[int]] = [[] for _ in prompts]
    while True:
        for own, done in zip(left, written):
            # What all that are left agree on needs no question.
            while len(own) > 1 and len({ways[o][len(done)] for o in own}) == 1:
                done.append(ways[own[0]][len(done)])
        open_ = [i for i, own in enumerate(left) if len(own) > 1]
        if not open_:
            return [own[0] for own in left]
        rows = [(coded[i] + written[i])[-base.window :] for i in open_]
        for part, logits, first in _logits(module, rows, [1] * len(rows)):
            for place, row in zip(part, logits):
                i = open_[place]
                scores = row[len(rows[place]) - 1 - first]
                could = sorted({ways[o][len(written[i])] for o in left[i]})
                best = could[int(scores[torch.tensor(could, device=scores.device)].argmax())]
                left[i] = [o for o in left[i] if ways[o][len(written[i])] == best]
                written[i].append(best)


def _logits(module: Any, rows: list[list[int]], last: list[int]) -> Iterator[tuple[list[int], Tensor, int]]:
    """Which rows, their logits from position `first` on, in fp32; at least those of the `last` tokens of each row.

    Rows are filled up at their end, which what comes before does not see.
    """
    device = next(iter(module.parameters())).device
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    for at in range(0, len(order), BATCH):
        part = order[at : at + BATCH]
        longest = max(len(rows[i]) for i in part)
        first = max(0, min(len(rows[i]) - last[i] for i in part))
        ids = torch.tensor([rows[i] + [rows[i][-1]] * (longest - len(rows[i])) for i in part], device=device)
        logits = module(ids, use_cache=False, logits_to_keep=longest - first).logits.float()
        yield part, logits[:, -(longest - first) :], first


@torch.no_grad()
def written(base: Base, module: Any, prompt: str, tokens: int, end: str = "\n") -> str:
    """Greedy decoding until `end` stands in the text, or so many tokens."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    ids = base.encode(prompt)[-(base.window - tokens) :]

    class Ended(StoppingCriteria):
        def __call__(self, row: Tensor, scores: Tensor, **given: Any) -> Tensor:
            said = base.decode(row[0, len(ids) :].tolist())
            return torch.tensor([end in said], device=row.device)

    device = next(iter(module.parameters())).device
    row = torch.tensor([ids], device=device)
    out = module.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=tokens, do_sample=False,
                          stopping_criteria=StoppingCriteriaList([Ended()]), pad_token_id=0)  # fmt: skip
    return base.decode(out[0, len(ids) :].tolist()).split(end, 1)[0].strip()
