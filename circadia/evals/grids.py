"""ARC's grids: as tokens, turned and recoloured, and which tasks are taken for what.

A task is a few pairs of grids that are shown, and others whose outputs are asked for. As tokens:

    TASK  (IN grid OUT grid END) ...        a grid is its rows, each with ROW after its colours
"""

import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLOURS = 10
ROW, IN, OUT, TASK, END = range(COLOURS, COLOURS + 5)
VOCABULARY = COLOURS + 6  # even

Grid = tuple[tuple[int, ...], ...]
Pair = tuple[Grid, Grid]


@dataclass(frozen=True)
class Puzzle:
    """A task of ARC."""

    name: str
    shown: tuple[Pair, ...]
    asked: tuple[Pair, ...]


def encode(grid: Grid) -> list[int]:
    return [token for row in grid for token in (*row, ROW)]


def decode(tokens: Sequence[int]) -> Grid | None:
    """The grid up to END. None of all else: no END, no rows, rows of several lengths, a token that is no colour."""
    if END not in tokens:
        return None
    rows: list[list[int]] = [[]]
    for token in tokens[: list(tokens).index(END)]:
        if token == ROW:
            rows.append([])
        elif 0 <= token < COLOURS:
            rows[-1].append(token)
        else:
            return None
    if rows.pop() or not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        return None  # something after the last ROW, nothing at all, or ragged
    return tuple(tuple(row) for row in rows)


def question(shown: Sequence[Pair], grid: Grid) -> list[int]:
    """What stands before an answer."""
    return [*written(shown), IN, *encode(grid), OUT]


def answer(grid: Grid) -> list[int]:
    return [*encode(grid), END]


def written(pairs: Sequence[Pair]) -> list[int]:
    found = [TASK]
    for before, after in pairs:
        found += [IN, *encode(before), OUT, *answer(after)]
    return found


def outputs(tokens: Sequence[int]) -> list[bool]:
    """Which tokens of `written` belong to an output, its END included."""
    found, inside = [], False
    for token in tokens:
        found.append(inside)
        inside = (inside or token == OUT) and token != END
    return found


def turned(grid: Grid, turn: int) -> Grid:
    """The eight of the square: 0 to 3 quarter turns clockwise; 4 to 7 transposed first."""
    if turn >= 4:
        grid = tuple(zip(*grid))
    for _ in range(turn % 4):
        grid = tuple(zip(*grid[::-1]))
    return grid


@dataclass(frozen=True)
class View:
    """A task seen otherwise: turned, with other colours."""

    turn: int = 0
    colours: tuple[int, ...] = tuple(range(COLOURS))

    def seen(self, grid: Grid) -> Grid:
        return tuple(tuple(self.colours[x] for x in row) for row in turned(grid, self.turn))

    def back(self, grid: Grid) -> Grid:
        """What was seen as this. The four that are reflections undo themselves."""
        plain = tuple(tuple(self.colours.index(x) for x in row) for row in grid)
        return turned(plain, self.turn if self.turn >= 4 else -self.turn % 4)

    def pairs(self, given: Sequence[Pair]) -> list[Pair]:
        return [(self.seen(a), self.seen(b)) for a, b in given]


def view(chance: random.Random, turns: bool = True, colours: bool = True) -> View:
    """One of all. Black stays black: in most tasks it is the ground."""
    others = list(range(1, COLOURS))
    if colours:
        chance.shuffle(others)
    return View(chance.randrange(8) if turns else 0, (0, *others))


def canonical(pair: Pair) -> Pair:
    """The same for all views of a pair, black or not."""

    def named(own: Pair) -> Pair:
        names: dict[int, int] = {}
        before, after = (tuple(tuple(names.setdefault(x, len(names)) for x in row) for row in grid) for grid in own)
        return before, after

    return min(named((turned(pair[0], turn), turned(pair[1], turn))) for turn in range(8))


def majority(task: Puzzle, grid: Grid) -> Grid:
    """Who looks at nothing: the commonest colour of the outputs shown; as large as most of them, or as the input."""
    sizes = Counter((len(after), len(after[0])) for _, after in task.shown)
    size, often = sizes.most_common(1)[0]
    if often == 1 and len(task.shown) > 1:
        size = (len(grid), len(grid[0]))
    colour = Counter(x for _, after in task.shown for row in after for x in row).most_common(1)[0][0]
    return ((colour,) * size[1],) * size[0]


def cells(said: Grid | None, wanted: Grid) -> float | None:
    """The share of right cells; None of another size."""
    if said is None or (len(said), len(said[0])) != (len(wanted), len(wanted[0])):
        return None
    right = [a == b for one, other in zip(said, wanted) for a, b in zip(one, other)]
    return sum(right) / len(right)


FILES = ("arc_agi1_training.jsonl.gz", "seal_arc-agi_training_challenges_filtered_1B_training_set.json.gz")


def read(folder: Path) -> tuple[dict[str, Puzzle], list[str]]:
    """All tasks by name, and the names that SEAL lists among them."""
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: no such file; it comes from fchollet/ARC-AGI, or from SEAL's few-shot/")
    with gzip.open(folder / FILES[0], "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    with gzip.open(folder / FILES[1], "rt", encoding="utf-8") as file:
        listed = sorted(json.load(file))
    return {row["id"]: Puzzle(row["id"], _pairs(row["train"]), _pairs(row["test"])) for row in rows}, listed


def _pairs(rows: list[dict]) -> tuple[Pair, ...]:
    return tuple((_grid(row["input"]), _grid(row["output"])) for row in rows)


def _grid(rows: list[list[int]]) -> Grid:
    return tuple(tuple(row) for row in rows)


def fits(task: Puzzle, side: int, tokens: int) -> bool:
    """The rule: no grid is wider or higher than `side`; the whole task with its longest question has that many tokens;
    of two demonstrations at least one can be left out.
    """
    grids = [grid for pair in (*task.shown, *task.asked) for grid in pair]
    longest = max(len(written([*task.shown, pair])) for pair in task.asked)
    return len(task.shown) > 1 and longest <= tokens and all(max(len(g), len(g[0])) <= side for g in grids)


def split(
    tasks: dict[str, Puzzle], listed: Sequence[str], side: int, tokens: int, tested: int, practice: int
) -> dict[str, list[str]]:
    """Names: `test`, SEAL's first; `practice`, to learn a policy and rates on; `base`, to train on.

    What is in one part is in no other, nor is a task that shares a pair with it, turned or recoloured. Not by chance:
    the order is that of sha256, so that seeds share it.
    """
    rule = {name for name, task in tasks.items() if fits(task, side, tokens)}
    order = sorted(rule, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    order = [name for name in listed if name in rule] + [name for name in order if name not in listed]
    if len(order) < tested + practice + 1:
        raise ValueError(
            f"arc_agi: {len(order)} tasks have grids of {side} x {side} at most and {tokens} tokens, and {tested} to "
            f"test, {practice} for practice and some to train on are asked for: give more tasks"
        )
    found: dict[str, list[str]] = {"test": [], "practice": [], "base": []}
    taken: dict[Pair, str] = {}
    for name in order:
        own = {canonical(pair) for pair in (*tasks[name].shown, *tasks[name].asked)}
        part = "practice" if len(found["practice"]) < practice else "base"
        if name in listed or len(found["test"]) < tested:
            part = "test"
        if all(taken.get(pair, part) == part for pair in own):
            found[part].append(name)
            taken |= dict.fromkeys(own, part)
    return found
