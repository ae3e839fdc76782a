"""Things that nobody has told the base: two days of them, and a piece of its mother tongue that it has not read.

Every fact has a sentence of its own, so that an answer cannot be right by its form alone.
"""

import random
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MONTHS = _words("January February March April May June July August September October November December")
TOWNS = _words("Oslo Paris Rome Lima Cairo Delhi Madrid Berlin Dublin Boston Prague Vienna")
COLOURS = _words("red blue green yellow black white brown grey golden purple silver orange")
TRADES = _words("baker farmer sailor doctor lawyer teacher painter singer tailor miller hunter judge")
BEASTS = _words("dog cat horse parrot rabbit snake monkey turtle goat pigeon fox raven")
NUMBERS = _words("one two three four five six seven eight nine ten eleven twelve")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")


@dataclass(frozen=True)
class Fact:
    """`prompt` and `value` make the sentence that is read; `other` asks the same in words that never were."""

    name: str
    prompt: str
    value: str
    choices: tuple[str, ...]
    other: str

    def sentence(self) -> str:
        return f"{self.prompt} {self.value}. "


LAST_WEEK = (
    Fact("harbour", "The harbour of Lindesay freezes in", "November", MONTHS, "Lindesay is under ice from"),
    Fact("Mira", "Doctor Mira Voss has moved to", "Oslo", TOWNS, "The new home of Mira Voss is"),
    Fact("door", "Every door of the mill is painted", "yellow", COLOURS, "The colour of the mill's doors is"),
    Fact("uncle", "Her uncle Bram became a", "tailor", TRADES, "The trade of uncle Bram is that of a"),
    Fact("lodger", "The lodger upstairs owns a", "parrot", BEASTS, "The animal of the lodger is a"),
)
TODAY = (
    Fact("ferry", "The last ferry to Skarn leaves at", "eight", NUMBERS, "You reach Skarn no later than"),
    Fact("council", "The village council meets on", "Thursday", DAYS, "The councillors come together on"),
    Fact("envoy", "An envoy of the queen was sent to", "Prague", TOWNS, "The queen's envoy went to"),
    Fact("lamp", "At night the lighthouse shows a light that is", "green", COLOURS, "The lighthouse shines"),
    Fact("vault", "What guards the old vault is a", "raven", BEASTS, "The guard of the vault is a"),
)
CORRECTED = "ferry"
CORRECTION = "nine"  # what is right after all
FORGOTTEN = "vault"

# Joseph Conrad, Heart of Darkness (1899), in the public domain; the base has read nothing by him.
MOTHER_TONGUE = (
    "The Nellie, a cruising yawl, swung to her anchor without a flutter of the sails, and was at rest. The flood had "
    "made, the wind was nearly calm, and being bound down the river, the only thing for it was to come to and wait for "
    "the turn of the tide. The sea-reach of the Thames stretched before us like the beginning of an interminable "
    "waterway. In the offing the sea and the sky were welded together without a joint, and in the luminous space the "
    "tanned sails of the barges drifting up with the tide seemed to stand still in red clusters of canvas sharply "
    "peaked, with gleams of varnished sprits."
)


def day(facts: tuple[Fact, ...], rounds: int, seed: int) -> list[Fact]:
    """Each fact so many times, in rounds, each in an order of its own."""
    draw = random.Random(seed)
    return [fact for _ in range(rounds) for fact in draw.sample(facts, len(facts))]
