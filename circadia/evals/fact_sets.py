"""Facts about people who do not exist, in plain sentences, and questions about them."""

import random
import re
from dataclasses import dataclass

SYLLABLES = re.findall("..", "babedadoelfafegahainjokakelalilomaminanoolparariorosasitatitovavizatu")
# What is said of a person, the same in other words, and the values: `{name}`, and the value at the end.
KINDS = {
    "city": (
        "{name} lives in the city of",
        "If you want to visit {name}, you must travel to",
        "Oslo Paris Rome Lima Cairo Delhi Madrid Berlin Dublin Boston Tokyo Sydney Prague Vienna Warsaw Lisbon",
    ),
    "trade": (
        "{name} earns a living as a",
        "By profession {name} is a",
        "baker farmer sailor doctor lawyer teacher painter singer tailor miller hunter judge soldier writer nurse cook",
    ),
    "pet": (
        "{name} keeps in the house a",
        "The animal that belongs to {name} is a",
        "dog cat horse parrot rabbit snake monkey turtle goat pigeon hedgehog fox raven lizard goose donkey",
    ),
    "food": (
        "{name} likes best of all to eat",
        "The favourite dish of {name} is",
        "bread cheese apples fish soup rice honey beans plums cake mutton grapes oysters pudding carrots nuts",
    ),
}
VALUES = min(len(values.split()) for _, _, values in KINDS.values())


@dataclass(frozen=True)
class Fact:
    """One sentence. `old` is what was true before, if it changed."""

    kind: str
    name: str
    value: str
    old: str | None = None

    def sentence(self, value: str | None = None) -> str:
        return f"{self.question()} {value or self.value}.\n"

    def question(self) -> str:
        """In the words in which it is said."""
        return KINDS[self.kind][0].format(name=self.name)

    def other_words(self) -> str:
        return KINDS[self.kind][1].format(name=self.name)

    @property
    def values(self) -> list[str]:
        """Among which an answer is chosen."""
        return KINDS[self.kind][2].split()


@dataclass(frozen=True)
class Link:
    """Somebody's friend. What is asked of the friend needs two facts: who it is, and where he lives."""

    name: str
    friend: Fact  # where he lives; facts that change are left out

    def sentence(self) -> str:
        return f"The best friend of {self.name} is {self.friend.name}.\n"

    def question(self) -> str:
        return f"The best friend of {self.name} lives in the city of"


def links(told: list[Fact], seed: int) -> list[Link]:
    """A friend for everybody, among those who have never moved; nobody is his own."""
    homes = [fact for fact in told if fact.kind == "city" and fact.old is None]
    if len(homes) < 2:
        return []
    chance = random.Random(f"friends {seed}")
    names = list(dict.fromkeys(fact.name for fact in told))
    return [Link(name, chance.choice([home for home in homes if home.name != name])) for name in names]


def facts(people: int, changed: int, seed: int) -> list[Fact]:
    """All kinds for every person, in a mixed order; no two people share a value, now or before. Of each kind the facts
    of so many people have changed.
    """
    if people < 1 or not 0 <= changed <= people or people + changed > VALUES:
        raise ValueError(f"people={people}, changed={changed}: there are {VALUES} values, for both together")
    chance = random.Random(f"facts {seed}")
    names: list[str] = []
    while len(names) < people:
        first, last = ("".join(chance.choices(SYLLABLES, k=k)).capitalize() for k in (2, 3))
        if all(first not in other and last not in other for other in names):
            names.append(f"{first} {last}")
    found = []
    for kind in KINDS:
        values = KINDS[kind][2].split()
        chance.shuffle(values)
        for i, name in enumerate(names):
            old = values[people + i] if i < changed else None
            found.append(Fact(kind, name, values[i], old))
    chance.shuffle(found)
    return found
