"""The six tasks of MAD (Poli et al. 2024), drawn by us from their definitions.

Where those leave something open: a fuzzy sequence has six pairs of motifs, two of each length in training.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from circadia.evals.sequences import NOTHING, Sequences, following


@dataclass(frozen=True)
class Setting:
    """One task with its difficulty."""

    task: str
    vocabulary: int
    length: int
    train: int  # sequences
    noise: float = 0.0  # share of pairs in "noisy" that are noise
    copy: int = 16  # tokens to copy

    @property
    def values(self) -> int:
        """Answers that are possible."""
        half = {"noisy": 16, "fuzzy": self.vocabulary - 1, "memorization": self.vocabulary - 1}
        if self.task in ("selective-copying", "compression"):
            return self.vocabulary - (2 if self.task == "selective-copying" else 1)
        pairs = half.get(self.task, self.vocabulary)
        return pairs - pairs // 2


BASE = {
    "in-context-recall": Setting("in-context-recall", 16, 128, 12_800),
    "noisy": Setting("noisy", 32, 128, 12_800, noise=0.2),
    "fuzzy": Setting("fuzzy", 16, 128, 12_800),
    "selective-copying": Setting("selective-copying", 16, 256, 12_800),
    "compression": Setting("compression", 16, 32, 12_800),
    "memorization": Setting("memorization", 256, 32, 256),
}


def draw(setting: Setting, n: int, generator: torch.Generator, test: bool) -> Sequences:
    """``test``: fuzzy keys have all their three tokens. Nothing else depends on it."""
    if setting.task in ("in-context-recall", "noisy"):
        return _recall(setting, n, generator)
    if setting.task == "fuzzy":
        return _fuzzy(setting, n, generator, test)
    return {"selective-copying": _copying, "compression": _compression, "memorization": _memorization}[setting.task](
        setting, n, generator
    )


def _recall(setting: Setting, n: int, generator: torch.Generator) -> Sequences:
    """Keys are the first half of the vocabulary, values the second; the last key has been seen."""
    half = (16 if setting.task == "noisy" else setting.vocabulary) // 2
    pairs = setting.length // 2
    table = torch.randint(half, 2 * half, (n, half), generator=generator)
    keys = torch.randint(half, (n, pairs), generator=generator)
    noisy = torch.rand(n, pairs, generator=generator) < setting.noise
    noisy[:, 0] = noisy[:, -1] = False  # one pair to ask for at the end
    # The last key is one of those before it.
    place = torch.rand(n, pairs - 1, generator=generator).masked_fill(noisy[:, :-1], -1.0).argmax(1, keepdim=True)
    keys[:, -1:] = keys.gather(1, place)
    values = table.gather(1, keys)
    seen = _seen_before(keys.masked_fill(noisy, -1))
    if bool(noisy.any()):
        other = torch.randint(2 * half, setting.vocabulary, (2, n, pairs), generator=generator)
        keys, values = torch.where(noisy, other[0], keys), torch.where(noisy, other[1], values)
    tokens = torch.stack((keys, values), 2).flatten(1)
    asked = torch.stack((values.masked_fill(~seen | noisy, NOTHING), torch.full_like(values, NOTHING)), 2).flatten(1)
    return Sequences(tokens, following(tokens), asked)


def _seen_before(keys: Tensor) -> Tensor:
    """Which keys have come before in their row."""
    return (keys[:, :, None] == keys[:, None, :]).tril(-1).any(-1)


def _fuzzy(setting: Setting, n: int, generator: torch.Generator, test: bool) -> Sequences:
    """Keys and values of one to three different tokens; padding, the last token, stands on the left."""
    usable = setting.vocabulary - 1
    half = usable // 2

    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    tokens = torch.full((n, setting.length), usable)
    asked = torch.full((n, setting.length), NOTHING)
    for row in range(n):
        table: dict[tuple[int, ...], tuple[int, ...]] = {}
        while len(table) < 6:
            key = tuple(rng.sample(range(half), 3 if test else 1 + len(table) // 2))
            table.setdefault(key, tuple(rng.sample(range(half, usable), rng.randint(1, 3))))
        text: list[int] = []
        answers: list[int] = []
        keys, seen = list(table), set()
        while True:
            key = rng.choice(keys)
            value = table[key]
            if len(text) + len(key) + len(value) > setting.length:
                break
            asks = value if key in seen else (NOTHING,) * len(value)
            answers += [*[NOTHING] * (len(key) - 1), *asks, NOTHING]
            text += [*key, *value]
            seen.add(key)
        tokens[row, setting.length - len(text) :] = torch.tensor(text)
        asked[row, setting.length - len(text) :] = torch.tensor(answers)
    labels = following(tokens)
    return Sequences(tokens, labels.masked_fill(labels == usable, NOTHING), asked)


def _copying(setting: Setting, n: int, generator: torch.Generator) -> Sequences:
    """Tokens among blanks, a mark, and as many blanks: there they are to be given back in order."""
    blank, mark = setting.vocabulary - 2, setting.vocabulary - 1
    front = setting.length - setting.copy - 1
    data = torch.randint(blank, (n, setting.copy), generator=generator)
    places = torch.rand(n, front, generator=generator).argsort(1)[:, : setting.copy].sort(1).values
    before = torch.full((n, front), blank).scatter(1, places, data)
    tokens = torch.cat((before, torch.full((n, 1), mark), torch.full((n, setting.copy), blank)), 1)
    asked = torch.full_like(tokens, NOTHING)
    asked[:, -setting.copy :] = data
    return Sequences(tokens, asked, asked)


def _compression(setting: Setting, n: int, generator: torch.Generator) -> Sequences:
    """Random tokens and a mark at the end. What is asked at each place is its own token, from the mark's state."""
    mark = setting.vocabulary - 1
    data = torch.randint(mark, (n, setting.length - 1), generator=generator)
    tokens = torch.cat((data, torch.full((n, 1), mark)), 1)
    asked = torch.cat((data, torch.full((n, 1), NOTHING)), 1)
    return Sequences(tokens, asked, asked)


def _memorization(setting: Setting, n: int, generator: torch.Generator) -> Sequences:
    """A key, then a mark at which its value is asked: the same table for the whole data set."""
    mark = setting.vocabulary - 1
    half = mark // 2
    table = torch.randint(half, mark, (half,), generator=torch.Generator().manual_seed(12345))
    keys = torch.randint(half, (n, setting.length // 2), generator=generator)
    tokens = torch.stack((keys, torch.full_like(keys, mark)), 2).flatten(1)
    asked = torch.stack((torch.full_like(keys, NOTHING), table[keys]), 2).flatten(1)
    return Sequences(tokens, asked, asked)
