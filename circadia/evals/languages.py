"""Formal languages: strings with what is asked at each of their symbols.

Table 5 of the paper after Irie et al. 2023 and Bhattamishra et al. 2020: for a regular language, is the prefix in it;
for the others, which symbols may come next, the end among them. Word problems of groups (Merrill et al. 2024): the
product of the elements so far. Tasks of Deletang et al. 2023: one answer after the last symbol.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = -100  # no question at this symbol

# A string and what is asked at each symbol: a class, NOTHING, or the set of symbols that may come next.
Answer = int | frozenset[int]
String = tuple[int, ...]


@dataclass(frozen=True)
class Language:
    """``draw(length, rng)`` gives a string of about that length, ``label`` its answers."""

    name: str
    symbols: int
    classes: int  # of answers, or symbols that may come next
    sets: bool  # are answers sets?
    draw: Callable[[int, random.Random], String]
    label: Callable[[String], Sequence[Answer]]
    few: bool = False  # one string a length: there is nothing to hold back among lengths seen in training
    last: bool = False  # one answer, after the last symbol


@dataclass(frozen=True)
class Pool:
    """Strings padded on the right, [N, T]; ``answers`` [N, T] of classes or [N, T, classes] of sets."""

    tokens: Tensor
    answers: Tensor
    asked: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> "Pool":
        """Some of them, cut to the longest."""
        asked = self.asked[index]
        longest = int(asked.any(0).nonzero().max()) + 1
        return Pool(self.tokens[index, :longest], self.answers[index, :longest], asked[:, :longest])

    def to(self, device: str) -> "Pool":
        return Pool(self.tokens.to(device), self.answers.to(device), self.asked.to(device))


def strings(
    language: Language, n: int, low: int, high: int, seed: int, without: frozenset[String] = frozenset()
) -> list[String]:
    """Strings with lengths from low to high, none of them in ``without``. Of a language with few strings, all."""
    rng = random.Random(f"{language.name} {seed} {low} {high}")
    if language.few:
        every = {language.draw(length, rng) for length in range(low, high + 1)}
        return sorted((s for s in every if low <= len(s) <= high and s not in without), key=len)
    found: list[String] = []
    for _ in range(1000 * n):
        one = language.draw(rng.randint(low, high), rng)
        if low <= len(one) <= high and one not in without:
            found.append(one)
            if len(found) == n:
                return found
    raise ValueError(f"{language.name}: {n} strings of {low} to {high} symbols cannot be found; ask for fewer")


def pool(language: Language, words: list[String]) -> Pool:
    """Strings as tensors."""
    longest = max(map(len, words))
    labels = [language.label(word) for word in words]
    empty = [0.0] * language.classes if language.sets else 0
    tokens = [[*word, *[0] * (longest - len(word))] for word in words]
    asked = [[x != NOTHING for x in own] + [False] * (longest - len(own)) for own in labels]
    answers = [[_cell(x, language) for x in own] + [empty] * (longest - len(own)) for own in labels]
    return Pool(torch.tensor(tokens), torch.tensor(answers), torch.tensor(asked))


def _cell(answer: Answer, language: Language) -> int | list[float]:
    if isinstance(answer, frozenset):
        return [float(i in answer) for i in range(language.classes)]
    return max(answer, 0)


def _bits(length: int, rng: random.Random) -> String:
    return tuple(rng.choices((0, 1), k=length))


def _running(step: Callable[[int, int], int], state: int = 0) -> Callable[[String], Sequence[Answer]]:
    """The state of an automaton after each symbol."""
    return lambda word: list(itertools.accumulate(word, step, initial=state))[1:]


def _blocks(letters: int) -> Callable[[int, random.Random], String]:
    """a^n b^n ... of about that length."""
    return lambda length, rng: tuple(x for x in range(letters) for _ in range(max(1, length // letters)))


def _next_in_blocks(letters: int) -> Callable[[String], Sequence[Answer]]:
    """After the first a: more a or b. Then the number is known. The end is the symbol after the last."""

    def label(word: String) -> list[Answer]:
        n = len(word) // letters
        sets: list[Answer] = [frozenset((0, 1))] * n
        return sets + [frozenset((i // n,)) for i in range(n + 1, letters * n + 1)]

    return label


def _dyck(rng: random.Random, longest: int) -> String | None:
    """One word of S -> ( S ) with 0.5, S S with 0.25, nothing with 0.25; None if it grows too long."""
    open_, word = ["S"], []
    while open_:
        top = open_.pop()
        if top == ")":
            word.append(1)
            continue
        x = rng.random()
        if x < 0.5:
            word.append(0)
            open_ += [")", "S"]
        elif x < 0.75:
            open_ += ["S", "S"]
        if len(word) > longest or len(open_) > 2 * longest:
            return None
    return tuple(word)


def _shuffle(length: int, rng: random.Random) -> String:
    """Two words of brackets, ( ) and [ ], with their order kept; of any length up to the one given."""
    one, two = _dyck(rng, length), _dyck(rng, length)
    if one is None or two is None:
        return ()
    turns = [0] * len(one) + [1] * len(two)
    rng.shuffle(turns)
    left = [iter(one), iter(two)]
    return tuple(2 * turn + next(left[turn]) for turn in turns)


def _next_in_shuffle(word: String) -> list[Answer]:
    """Both may open; each may close if it is open; the end (4) may come if none is."""
    sets: list[Answer] = []
    depth = [0, 0]
    for x in word:
        depth[x // 2] += 1 - 2 * (x % 2)
        may = {0, 2} | {2 * i + 1 for i in (0, 1) if depth[i]} | ({4} if depth == [0, 0] else set())
        sets.append(frozenset(may))
    return sets


def _group(elements: list[tuple[int, ...]]) -> tuple[int, Callable[[int, int], int], int]:
    """Size, product and unit of a group of permutations."""
    place = {p: i for i, p in enumerate(elements)}
    product = [[place[tuple(a[i] for i in b)] for b in elements] for a in elements]
    return len(elements), lambda state, x: product[state][x], place[tuple(range(len(elements[0])))]


def _even(p: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(p, 2)) % 2 == 0


def _word_problem(name: str, elements: list[tuple[int, ...]]) -> Language:
    n, product, unit = _group(elements)
    return Language(name, n, n, False, lambda k, rng: tuple(rng.choices(range(n), k=k)), _running(product, unit))


def _at_end(answer: Callable[[String], int]) -> Callable[[String], Sequence[Answer]]:
    return lambda word: [NOTHING] * (len(word) - 1) + [answer(word)]


def _sum(length: int, rng: random.Random) -> String:
    """Numbers 0 to 4 with + (5), - (6) or x (7) between them."""
    places = range(length - (length + 1) % 2)
    return tuple(rng.randrange(5) if i % 2 == 0 else rng.randrange(5, 8) for i in places)


def _value(word: String) -> int:
    """Of a sum modulo 5; x binds more tightly."""
    total, term, sign = 0, word[0], 1
    for op, x in zip(word[1::2], word[2::2]):
        if op == 7:
            term *= x
        else:
            total, term, sign = total + sign * term, x, 1 if op == 5 else -1
    return (total + sign * term) % 5


LANGUAGES = {
    one.name: one
    for one in [
        Language("parity", 2, 2, False, _bits, _running(lambda s, x: s ^ x)),
        Language(
            "(aa)*", 1, 2, False, lambda n, rng: (0,) * n,
            lambda w: [int((t + 1) % 2 == 0) for t in range(len(w))], few=True,
        ),
        Language(
            "(abab)*", 2, 2, False, lambda n, rng: tuple(t % 2 for t in range(n)),
            lambda w: [int((t + 1) % 4 == 0) for t in range(len(w))], few=True,
        ),
        Language("a^n b^n", 2, 3, True, _blocks(2), _next_in_blocks(2), few=True),
        Language("a^n b^n c^n", 3, 4, True, _blocks(3), _next_in_blocks(3), few=True),
        Language("shuffle-2", 4, 5, True, _shuffle, _next_in_shuffle),
        _word_problem("S3", list(itertools.permutations(range(3)))),
        _word_problem("A5", [p for p in itertools.permutations(range(5)) if _even(p)]),
        Language("even pairs", 2, 2, False, _bits, _at_end(lambda w: int(w[0] == w[-1])), last=True),
        Language("parity check", 2, 2, False, _bits, _at_end(lambda w: sum(w) % 2), last=True),
        Language(
            "cycle navigation", 3, 5, False, lambda n, rng: tuple(rng.choices((0, 1, 2), k=n)),
            _at_end(lambda w: sum((0, 1, -1)[x] for x in w) % 5), last=True,
        ),
        Language("modular arithmetic", 8, 5, False, _sum, _at_end(_value), last=True),
    ]
}  # fmt: skip
