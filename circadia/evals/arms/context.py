"""Nothing is learned into weights: what was read stands in the context again when a question comes."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from circadia.evals.arms.arm import Arm, Example
from circadia.evals.bases import Base


class Sliding(Arm):
    """The last examples, as many as the window takes in."""

    def __init__(self, base: Base, seed: int = 0, window: int = 512) -> None:
        super().__init__(base, seed)
        self.window = min(window, base.window)
        self.kept: list[tuple[str, int]] = []  # text and its tokens, oldest first

    def learn(self, examples: Sequence[Example]) -> None:
        self.kept += [(one.text, len(self.base.encode(one.text))) for one in examples[-self.window :]]
        room, first = self.window, len(self.kept)
        while first and room >= self.kept[first - 1][1]:
            first -= 1
            room -= self.kept[first][1]
        self.kept = self.kept[first:]

    def prompt(self, text: str) -> str:
        return "".join(old for old, _ in self.kept) + text

    @property
    def bytes(self) -> int:
        return sum(len(old.encode()) for old, _ in self.kept)


class Retrieved(Arm):
    """In-context learning from the examples that are most like the question, the most alike last.

    Alike: the cosine of counts of words, weighted by log(N / number of examples that have the word).
    """

    def __init__(self, base: Base, seed: int = 0, count: int = 8, window: int = 512) -> None:
        super().__init__(base, seed)
        self.count, self.window = count, min(window, base.window)
        self.texts: list[str] = []
        self.known: set[str] = set()  # a second reading brings nothing new
        self.words: list[Counter[str]] = []
        self.having: dict[str, list[int]] = defaultdict(list)

    def learn(self, examples: Sequence[Example]) -> None:
        for one in examples:
            if one.text not in self.known:
                self.known.add(one.text)
                words = Counter(_words(one.text))
                for word in words:
                    self.having[word].append(len(self.texts))
                self.texts.append(one.text)
                self.words.append(words)

    def nearest(self, text: str) -> list[int]:
        """The most alike first; of equals the later one."""
        dots: dict[int, float] = defaultdict(float)
        for word, times in Counter(_words(text)).items():
            for i in self.having.get(word, ()):
                dots[i] += times * self.words[i][word] * self._weight(word) ** 2
        norms = {i: math.sqrt(sum((n * self._weight(w)) ** 2 for w, n in self.words[i].items())) for i in dots}
        alike = {i: dot / norms[i] for i, dot in dots.items() if norms[i] > 0}
        return sorted(alike, key=lambda i: (-alike[i], -i))[: self.count]

    def _weight(self, word: str) -> float:
        return math.log(len(self.texts) / len(self.having[word])) if word in self.having else 0.0

    def prompt(self, text: str) -> str:
        before, room = "", self.window
        for i in self.nearest(text):
            room -= len(self.base.encode(self.texts[i]))
            if room < 0:
                break
            before = self.texts[i] + before
        return before + text

    @property
    def bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
