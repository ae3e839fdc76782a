"""What was said otherwise later: a night goes over the latest telling alone.

A night shows all of a day, and of two tellings that contradict each other it would bind the one that is told more
often. It understands neither. But where two sentences or lines have one beginning and two ends, and the one was not
said again after the other, the later is taken for what is true now. The earlier is cut out of the windows, those of
earlier nights too:

    Mira lives in the city of Oslo.    cut out
    Mira lives in the city of Rome.    said after it

    LEAST   bytes of the beginning at least: "And he said" begins many sentences
    SHARE   of the longer one that the beginning is at least: "The best friend of Mi|ra is Tom" and "The best friend of
            Mi|nna is Eve" differ in whom they are about. In 400 kB of a novel and of law, in days of 40 kB, 5 of 11,384
            and 4 of 8,694 sentences had a later one that is so much alike

Ends that take turns, and more than two of them, are no change: several things are true, or a form is filled in. All of
them stay. What was read is no word against a correction, nor what is trusted less against what is trusted more.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from circadia.sleep.windows import BEFORE, Entry, Window

LEAST = 12
SHARE = 0.6
SHORT = 8  # tokens: what is left of a window must have more, see `surprising`
STATEMENT = re.compile("[^.!?\u3002\uff01\uff1f\n]+")
Decode = Callable[[list[int]], str]
Rank = tuple[bool, float]  # a correction? and how far it is trusted


@dataclass(frozen=True)
class Said:
    """A sentence or line of the day."""

    text: str
    number: int  # of the entry
    rank: Rank


class Latest:
    """What a day has said, in its order. `told`: what that has made out of date, and by what."""

    def __init__(self, journal: Sequence[Entry], decode: Decode) -> None:
        self.decode = decode
        self.told: dict[tuple[str, str], dict[str, Any]] = {}
        self.alike: dict[str, list[Said]] = {}
        for entry in journal:
            for _, text in statements(decode(entry.tokens.tolist())):
                said = Said(text, entry.number, (entry.correction, entry.trust))
                self.alike.setdefault(_key(text), []).append(said)

    def windows(self, given: Sequence[Window], earlier: bool = False) -> list[Window]:
        """Without what is out of date. `earlier`: of earlier nights, which were before all of the day."""
        return [piece for window in given for piece in self._left(window, earlier)]

    def otherwise(self, text: str, rank: Rank, earlier: bool = False) -> tuple[Said, int] | None:
        """What was said in its place at last, and how long their beginning is."""
        since, ends, found = earlier, set[str](), None
        for said in self.alike.get(_key(text), ()):
            k = common(text, said.text)
            if len(text[:k].encode()) < LEAST:
                continue
            if k in (len(text), len(said.text)):  # the same, or one goes on where the other ends
                if found is not None:
                    return None
                since = True
            elif k >= SHARE * max(len(text), len(said.text)) and said.rank >= rank:
                ends.add(said.text)
                found = (said, k) if since else None
        return found if len(ends) == 1 else None

    def _left(self, window: Window, earlier: bool) -> Iterator[Window]:
        """All of a window, or the pieces around what is cut out."""
        before, tokens = window.before, window.tokens
        whole = torch.cat((before, tokens))
        text, at = self._text(whole), len(self._text(before))
        cuts = []
        for start, said in statements(text):
            # The first begins before what is known of the entry, unless the entry begins here.
            if start + len(said) <= at or (text[:start].strip() == "" and window.start > before.numel()):
                continue
            found = self.otherwise(said, (window.correction, window.trust), earlier)
            if found is not None:
                cuts.append((start, start + len(said)))
                self._tell(window, said, *found)
        if not cuts:
            yield window
            return
        edges = [len(self._text(whole[:i])) for i in range(before.numel(), whole.numel() + 1)]
        out = [any(a < end and start < b for a, b in cuts) for start, end in pairwise(edges)]
        i = 0
        while i < len(out):
            j = next((j for j in range(i, len(out)) if out[j] != out[i]), len(out))
            if not out[i] and j - i > SHORT:
                own = whole[: before.numel() + i][-BEFORE:]
                yield replace(window, tokens=tokens[i:j].clone(), start=window.start + i, before=own.clone())
            i = j

    def _text(self, tokens: torch.Tensor) -> str:
        return self.decode(tokens.tolist())

    def _tell(self, window: Window, text: str, said: Said, k: int) -> None:
        one = self.told.setdefault((text[:k], said.text), {
            "entry": window.number, "by": said.number, "beginning": text[:k], "was": "", "now": said.text[k:],
            "windows": 0,
        })  # fmt: skip
        one["was"] = max(one["was"], text[k:], key=len)  # a window may end in the middle of it
        one["windows"] += 1


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Lines and sentences, without the space around them, and where they begin."""
    for found in STATEMENT.finditer(text):
        bare = found.group().strip()
        if bare:
            yield found.start() + found.group().index(bare), bare


def common(a: str, b: str) -> int:
    """Length of the beginning that two texts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _key(text: str) -> str:
    """Those with one beginning of LEAST bytes have the same; a character has at most four."""
    return text[: LEAST // 4]
