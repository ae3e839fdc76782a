"""Days for the suite `sleep`: plain sentences about invented people inside other text, and how they are asked about."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circadia.evals.bases import Base, answers
from circadia.evals.metrics import mean

PLACES = (
    "Berlin Boston Canton Dublin Durham Exeter Geneva Havana Kildare London Madrid Malta Naples Norwich Oxford Paris "
    "Sweden Turin Venice Warsaw"
)
TRADES = (
    "actor baker banker brewer butcher clerk cooper doctor farmer fisher hunter judge lawyer miller painter priest "
    "sailor soldier tailor weaver"
)
CHOICES = (PLACES.split(), TRADES.split())
ONSETS = "b d f g k l m n p r s t v z br dr gr kr tr st"
ENDS = ("n", "l", "r", "s", "x", "th")
# Of each kind: three wordings to read. The first two are also asked for, with the answer at their end, and one more
# that is never said.
WORDINGS = (
    (
        "{name} was born in {it}.",
        "The birthplace of {name} was {it}.",
        "When {name} was a child, the family of {name} lived in {it}. So {name} was born in {it}.",
    ),
    (
        "{name} worked as a {it}.",
        "The trade of {name} was that of a {it}.",
        "Everybody knew that {name} worked as a {it}.",
    ),
)
UNHEARD = ("{name} came into the world in {it}.", "{name} earned his bread as a {it}.")
ASKED = {
    "verbatim": (WORDINGS[0][0], WORDINGS[1][0]),
    "reworded": (WORDINGS[0][1], WORDINGS[1][1]),
    "unheard": UNHEARD,
}


@dataclass(frozen=True)
class Fact:
    """Who, which kind, and the number of the answer."""

    name: str
    kind: int
    answer: int

    def say(self, wording: str) -> str:
        return wording.format(name=self.name, it=CHOICES[self.kind][self.answer])


def facts(count: int, seed: int) -> list[Fact]:
    """Invented people; all names differ."""
    draw, names = random.Random(100 + seed), set[str]()
    found: list[Fact] = []

    def word() -> str:
        return (
            "".join(draw.choice(ONSETS.split()) + draw.choice("aeiou") for _ in range(2)) + draw.choice(ENDS)
        ).capitalize()

    while len(found) < count:
        name = f"{word()} {word()}"
        if name not in names:
            names.add(name)
            found.append(Fact(name, len(found) % 2, draw.randrange(20)))
    return found


def day(base: Base, told: Sequence[Fact], repeats: int, other: int, text: str, chunk: int, seed: int) -> list[Tensor]:
    """Chunks of text: each fact `repeats` times, one in the first half of a chunk, and `other` chunks without any for
    each one that has one.
    """
    draw = random.Random(7 + seed)
    # Characters of a chunk, a little more than enough: the rest is cut off.
    sample = text[: 16 * chunk]
    width = int(1.3 * chunk * len(sample) / max(1, len(base.encode(sample)))) + 1
    at = draw.randrange(len(text))
    found: list[Tensor] = []
    for _ in range(repeats):
        for fact in draw.sample(list(told), len(told)):
            for said in (fact.say(draw.choice(WORDINGS[fact.kind])), *[""] * other):
                if at + width > len(text):
                    at = 0
                around, place = text[at : at + width], draw.randrange(width // 8, width // 3)
                at += width
                whole = f"{around[:place]} {said} {around[place:]}" if said else around
                found.append(torch.tensor(base.encode(whole)[:chunk]))
    return found


def asked(base: Base, module: Any, told: Sequence[Fact], wordings: tuple[str, str]) -> dict[str, float]:
    """Share of the facts whose answer is the likeliest of 20, and its mean rank: 1 is best, 10.5 is chance."""
    ranks = []
    for fact in told:
        before, after = wordings[fact.kind].format(name=fact.name, it="{it}").split("{it}")
        pairs = [(before.rstrip(), f" {each}{after}") for each in CHOICES[fact.kind]]
        nats = [one.nats for one in answers(base, module, pairs)]
        ranks.append(1 + sum(x < nats[fact.answer] for x in nats))
    return {"right": mean([float(rank == 1) for rank in ranks]), "rank": mean(ranks)}
