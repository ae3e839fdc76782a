"""What was said about an answer changes the fast memory now, by one step of the fastest level (`RetrofitModel.teach`).

    good        L = -1/n sum log p(y | x)                          likelihood of the answer
    bad         L = 1 - sigmoid(-r),  r = beta (log p(y | x) - log p_base(y | x))
                KTO (Ethayarajh et al. 2024, eq. 8) for an undesirable answer, with reference point 0: there is no batch
                to estimate it from. Its slope falls to 0 as the answer becomes unlikely, so that a push is bounded
    correction  likelihood of the right answer in place of the answer
    about       half a push away from the answer, and the likelihood of the sentence as the user's next turn

The step is clipped like every step of the level.

A model of our own has memories that learn by reading, and no loss is defined on them from outside. There it is read:

    good        the answer behind its prompt: M <- M + weight (M(x, y) - M(x))
    correction  the right answer in place of the answer
    about       the sentence as the user's next turn, behind prompt and answer: what these write is left out
    bad         nothing changes. To read with a negative rate would not unlearn: it writes something else, without a
                bound, over whatever lies beside it. The experience is kept in the journal, for sleep
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circadia.live.guard import answer_nats, nats_of
from circadia.live.reader import Reader
from circadia.models.native import NativeModel
from circadia.models.retrofit.state import State

BETA = 0.1
KINDS = ("good", "bad", "correction", "about")


@dataclass(frozen=True)
class Changed:
    """What a feedback did: nats a token of what it was about, before and after."""

    kind: str
    answer: int
    experience: int
    before: float
    after: float
    version: int | None
    held: str = ""  # why the guard did not let it become current


def apply(
    reader: Reader, state: State, kind: str, prompt: Sequence[int], answer: Sequence[int], text: str, weight: float
) -> tuple[State, float, float]:
    """The state after a feedback, and nats a token of its subject before and after."""
    model = reader.model
    about: list[tuple[Sequence[int], Sequence[int]]] = []
    if kind in ("good", "bad"):
        about.append((prompt, answer))
    elif kind == "correction":
        about.append((prompt, reader.words.encode(text)))
    else:
        spoken = reader.words.chat([{"role": "user", "content": text}])
        said = reader.words.encode(spoken) if isinstance(spoken, str) else spoken
        about += [([*prompt, *answer], said)]

    def likely(base: Any) -> Tensor:
        given, said = about[0]
        return answer_nats(base, model, given, said) / len(said)

    if isinstance(model, NativeModel):
        before = _nats(reader, about[0], state)
        if kind != "bad":
            state = model.read(*about[0], state, weight)
        return state, before, _nats(reader, about[0], state)

    with torch.no_grad():
        base_nats = float(nats_of(model, prompt, answer, None)) if kind in ("bad", "about") else 0.0

    def unlikely(base: Any) -> Tensor:
        r = BETA * (base_nats - answer_nats(base, model, prompt, answer))
        return 1 - torch.sigmoid(-r)

    before = _nats(reader, about[0], state)
    if kind in ("bad", "about"):
        _, state = model.teach(unlikely, state, weight=weight if kind == "bad" else weight / 2)
    if kind != "bad":
        _, state = model.teach(likely, state, weight=weight)
    return state, before, _nats(reader, about[0], state)


@torch.no_grad()
def _nats(reader: Reader, pair: tuple[Sequence[int], Sequence[int]], state: State) -> float:
    given, said = pair
    return float(nats_of(reader.model, given, said, state)) / len(said)


def named(good: bool | None, correction: str | None, about: str | None) -> tuple[str, str]:
    """Which of the four it is, and its text."""
    given: Mapping[str, Any] = {"good": good, "correction": correction, "about": about}
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError("feedback: give one of good=True, good=False, correction='...' and about='...'")
    if good is not None:
        return ("good" if good else "bad"), ""
    kind = "correction" if correction is not None else "about"
    text = correction if correction is not None else about
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{kind}={text!r}: give a sentence")
    return kind, text
