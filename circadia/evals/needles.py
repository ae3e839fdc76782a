"""Needles in a haystack in the form of RULER (Hsieh et al. 2024), over books or noise, on a vocabulary of words.

A haystack is a piece of a book (its frequent words, all others one symbol), the noise sentences, or needles alone.
Numbers and uuids are spelled out by digits.
"""

import gzip
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

NOISE = "The grass is green . The sky is blue . The sun is yellow . Here we go . There and back again ."
NEEDLE = "One of the special magic {kind} for {key} is : {value} ."
QUESTION = "What {are} the special magic {kind} for {keys} mentioned in the provided text ? {are} {keys} :"
ADJECTIVES = """amber brave calm dusty eager faint gentle hollow icy jolly keen lucid mellow noble odd pale quiet rapid
silent tidy urban vivid weary young"""
NOUNS = """anchor basket candle dragon engine falcon garden hammer island jacket kettle ladder meadow needle orchard
pillow quarry ribbon saddle temple umbrella violin window yarrow"""
KEYS = tuple(
    f"{a}-{n}" for turn in range(3) for a, n in zip(ADJECTIVES.split(), NOUNS.split()[turn:] + NOUNS.split()[:turn])
)
DIGITS = tuple(f"<{x}>" for x in "0123456789abcdef")
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Task:
    """One row of RULER's table; ``haystack`` is noise, books or needles."""

    name: str
    haystack: str = "books"
    uuids: bool = False
    keys: int = 1  # in the text
    values: int = 1  # of each
    queries: int = 1


TASKS = {
    one.name: one
    for one in (
        Task("S-NIAH-1", "noise"),
        Task("S-NIAH-2"),
        Task("S-NIAH-3", uuids=True),
        Task("MK-NIAH-1", keys=4),
        Task("MQ-NIAH", keys=4, queries=4),
        Task("MV-NIAH", values=4),
    )
}


@dataclass(frozen=True)
class Prompt:
    """Tokens up to the answer, and the values that it must hold."""

    tokens: list[int]
    values: list[tuple[int, ...]]

    @property
    def answer(self) -> list[int]:
        return [x for value in self.values for x in value]


class Haystack:
    """Books as numbers: those for training, and others for tests."""

    def __init__(self, train: Sequence[str], test: Sequence[str], words: int) -> None:
        split = [[word for text in texts for word in _words(text)] for texts in (train, test)]
        fixed = dict.fromkeys(
            [UNKNOWN, *DIGITS, *KEYS, *_fixed(), *(w for w, _ in Counter(split[0]).most_common(words))]
        )
        self.number = {word: i for i, word in enumerate(fixed)}
        self.train, self.test = map(self.read, split)
        self.noise = self.read(NOISE.split())

    @property
    def size(self) -> int:
        return len(self.number)

    def read(self, words: Sequence[str]) -> list[int]:
        return [self.number.get(word, 0) for word in words]

    def draw(self, task: Task, length: int, digits: int, rng: random.Random, test: bool) -> Prompt:
        """A prompt that has ``length`` tokens together with its answer."""
        kind = "uuids" if task.uuids else "numbers"
        keys = rng.sample(KEYS, task.keys)
        written = [(key, self._value(task, digits, rng)) for key in keys for _ in range(task.values)]
        asked = sorted(keys[: task.queries], key=keys.index)
        rng.shuffle(written)
        needles = [self._needle(kind, key, value) for key, value in written]
        are = "are" if task.queries * task.values > 1 else "is"
        question = _fill(QUESTION, {"{are}": [are], "{kind}": [kind], "{keys}": asked})
        # The values of one key in the order of the text, those of several in the order of the question.
        values = [value for key in asked for own, value in written if own == key]
        tail = self.read(question)
        room = length - len(tail) - sum(map(len, needles)) - sum(map(len, values))
        if room < 0:
            raise ValueError(f"{task.name}: length={length} has no room for its needles; take {length - room} or more")
        hay = self._hay(task, room, rng, test)
        tokens: list[int] = []
        done = 0
        for place, needle in zip(sorted(rng.randint(0, room) for _ in needles), needles):
            tokens += hay[done:place] + needle
            done = place
        return Prompt(tokens + hay[done:] + tail, values)

    def _value(self, task: Task, digits: int, rng: random.Random) -> tuple[int, ...]:
        symbols = DIGITS if task.uuids else DIGITS[:10]
        # A uuid has 32 digits where a number has 7.
        count = round(digits * 32 / 7) if task.uuids else digits
        return tuple(self.number[rng.choice(symbols)] for _ in range(count))

    def _needle(self, kind: str, key: str, value: tuple[int, ...]) -> list[int]:
        before, after = NEEDLE.split("{value}")
        return [*self.read(_fill(before, {"{kind}": [kind], "{key}": [key]})), *value, *self.read(after.split())]

    def _hay(self, task: Task, room: int, rng: random.Random, test: bool) -> list[int]:
        if task.haystack == "noise":
            return (self.noise * (room // len(self.noise) + 1))[:room]
        text = self.test if test else self.train
        if room > len(text):
            raise ValueError(f"the books for {'tests' if test else 'training'} have {len(text):,} words, not {room:,}")
        start = rng.randrange(len(text) - room + 1)
        return text[start : start + room]


def found(output: Sequence[int], values: Sequence[tuple[int, ...]]) -> float:
    """RULER's string_match_all: the share of the values that stand somewhere in the output."""
    held = [any(tuple(output[i : i + len(v)]) == v for i in range(len(output) - len(v) + 1)) for v in values]
    return sum(held) / len(held)


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+|[.,;:?!]", text)


def _fill(template: str, parts: dict[str, list[str]]) -> list[str]:
    return [word for piece in template.split() for word in parts.get(piece, [piece])]


def _fixed() -> list[str]:
    text = f"{NOISE} {NEEDLE} {QUESTION} numbers uuids is are"
    return [word for word in text.split() if not word.startswith("{")]


@lru_cache(maxsize=1)
def books(folder: Path, words: int) -> Haystack:
    """Of the books in a folder, in the order of their names, the last fifth is for tests."""
    paths = sorted(folder.glob("*.txt.gz")) + sorted(folder.glob("*.txt"))
    if len(paths) < 2:
        raise ValueError(f"{folder}: two books or more are needed (*.txt or *.txt.gz), found {len(paths)}")
    texts = [_text(path) for path in paths]
    held = max(1, len(texts) // 5)
    return Haystack(texts[:-held], texts[-held:], words)


def _text(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
