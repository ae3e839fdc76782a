"""bAbI questions in book text, in the form of BABILong (Kuratov et al. 2024), as a stream of any length.

The facts of a question stand, in order, at random gaps between the sentences of a book; the question follows the text.
Sentences end at . ! or ? here, where the authors split with NLTK; as there, only those of ten tokens or more are used.
"""

import gzip
import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
LABELS = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), ROOMS),
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
}
SHORTEST = 10  # tokens of a sentence of the background
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Question:
    """The facts before a question, as words."""

    facts: tuple[tuple[str, ...], ...]
    question: tuple[str, ...]
    answer: str


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[A-Za-z]+|[.,;:?!]", text))


def questions(text: str) -> list[Question]:
    """A file of bAbI: numbered lines, 1 begins a story; a question has its answer after a tab."""
    found: list[Question] = []
    facts: list[tuple[str, ...]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        number, rest = line.split(" ", 1)
        if number == "1":
            facts = []
        if "\t" in rest:
            question, answer, *_ = rest.split("\t")
            found.append(Question(tuple(facts), words(question), answer.strip()))
        else:
            facts.append(words(rest))
    return found


def allowed(task: str, question: Question) -> list[str]:
    """Labels that could be the answer: not those that the question names."""
    return [label for label in LABELS[task] if label not in question.question]


def correct(task: str, question: Question, output: str) -> bool:
    """As BABILong scores: of the labels that the question does not name, the target alone is in the first sentence."""
    said = set(re.findall(r"[a-z]+", output.split(".")[0].lower()))
    return {label.lower() for label in allowed(task, question)} & said == {question.answer.lower()}


class Background:
    """Sentences of books as one circle of tokens."""

    def __init__(self, texts: Sequence[str], number: dict[str, int]) -> None:
        tokens: list[int] = []
        self.ends: list[int] = [0]
        for text in texts:
            for sentence in re.split(r"(?<=[.!?])\s+", text):
                if len(coded := words(sentence)) >= SHORTEST:
                    tokens += [number.get(word, 0) for word in coded]
                    self.ends.append(len(tokens))
        if not tokens:
            raise ValueError(f"the books have no sentence of {SHORTEST} words or more: add a book")
        self.tokens = torch.tensor(tokens)

    def piece(self, start: int, length: int) -> Iterator[Tensor]:
        """From some place on, around the circle."""
        while length:
            start %= len(self.tokens)
            part = self.tokens[start : start + length]
            yield part
            start, length = start + len(part), length - len(part)

    def gaps(self, start: int, length: int, count: int, rng: random.Random) -> list[int]:
        """Sorted places between sentences (or at either end), for ``count`` facts."""
        size = len(self.tokens)
        first = bisect_left(self.ends, start % size)
        per = len(self.ends) - 1
        # The number of sentence ends up to `length` after the start, around the circle.
        turns, rest = divmod(start % size + length, size)
        inside = turns * per + bisect_left(self.ends, rest + 1) - first
        chosen = sorted(rng.randrange(max(1, inside)) for _ in range(count))
        places = (divmod(first + i, per) for i in chosen)
        return [turn * size + self.ends[at] - start % size for turn, at in places]


class Book:
    """The vocabulary of bAbI and of the books, the questions, and backgrounds for training and for tests."""

    def __init__(self, task: str, train: str, test: str, books: tuple[list[str], list[str]], frequent: int) -> None:
        self.task = task
        self.test = questions(test)
        held = set(self.test)
        self.train = [one for one in dict.fromkeys(questions(train)) if one not in held]
        if not self.train or not self.test:
            raise ValueError(f"{task}: there are {len(self.train)} questions to train on and {len(self.test)} to test")
        own = sorted({w for q in self.train + self.test for line in (*q.facts, q.question) for w in line})
        known = Counter(word for text in books[0] for word in words(text))
        listed = [UNKNOWN, *own, *LABELS[task], *(word for word, _ in known.most_common(frequent))]
        self.number = {word: i for i, word in enumerate(dict.fromkeys(listed))}
        self.words = list(self.number)
        self.background = tuple(Background(texts, self.number) for texts in books)

    def shortest(self, question: Question) -> int:
        return sum(map(len, question.facts)) + len(question.question)

    def stream(self, question: Question, length: int, piece: int, rng: random.Random, test: bool) -> Iterator[Tensor]:
        """The sample in pieces of at most that many tokens, ``length`` in all; 0: without background."""
        code = [torch.tensor([self.number[w] for w in line]) for line in question.facts]
        tail = torch.tensor([self.number[w] for w in question.question])
        room = max(0, length - self.shortest(question))
        background = self.background[test]
        start = rng.choice(background.ends[:-1])
        places = background.gaps(start, room, len(code), rng)

        def parts() -> Iterator[Tensor]:
            done = 0
            for place, fact in zip(places, code):
                yield from background.piece(start + done, place - done)
                yield fact
                done = place
            yield from background.piece(start + done, room - done)
            yield tail

        held: list[Tensor] = []
        count = 0
        for part in parts():
            while count + len(part) > piece:
                yield torch.cat([*held, part[: piece - count]])
                part, held, count = part[piece - count :], [], 0
            held.append(part)
            count += len(part)
        if count:
            yield torch.cat(held)

    def sample(self, question: Question, length: int, rng: random.Random, test: bool) -> Tensor:
        """All of it at once."""
        return torch.cat(list(self.stream(question, length, max(length, self.shortest(question)), rng, test)))


@lru_cache(maxsize=1)
def load(babi: Path, books: Path, task: str, frequent: int) -> Book:
    """Questions from en-10k if it is there, else en; of the books the last fifth is for tests."""
    train = _first(babi, [f"en-10k/{task}_*_train.txt*", f"en/{task}_*_train.txt*"])
    test = _first(babi, [f"en/{task}_*_test.txt*", f"en-10k/{task}_*_test.txt*"])
    paths = sorted([*books.glob("*.txt"), *books.glob("*.txt.gz")])
    if len(paths) < 2:
        raise ValueError(f"{books}: two books or more are needed (*.txt or *.txt.gz), found {len(paths)}")
    texts = [_text(path) for path in paths]
    held = max(1, len(texts) // 5)
    return Book(task, _text(train), _text(test), (texts[:-held], texts[-held:]), frequent)


def _first(folder: Path, patterns: list[str]) -> Path:
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise ValueError(f"{folder}: there is no {patterns[-1]} in it")


def _text(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
