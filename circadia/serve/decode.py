"""Token by token: sampling with a seed of its own, log-probabilities, stops, and an end at any token.

`say` makes one answer by itself: the base's own `generate` runs the model, so that every architecture and cache works.
The token is chosen here, by a logits processor that leaves only that one, so that the seed of one answer does not meet
those of others. Several answers in one forward pass are made in `circadia.serve.batch`; `say` is what they must equal.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from circadia.live.text import ROLES, Words
from circadia.serve.bank import Memory

Tell = Callable[["Piece"], object]
TURNS = tuple(f"\n{role}:" for role in ROLES.values())  # where a base without a template would go on with a next turn


@dataclass(frozen=True)
class Wish:
    """What is to be made."""

    ids: tuple[int, ...]
    new: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many beside the chosen one
    bias: dict[int, float] = field(default_factory=dict)
    presence: float = 0.0
    frequency: float = 0.0
    trim: bool = False  # without the white space around the answer


@dataclass(frozen=True)
class Mark:
    """The log-probability of a token, and of the likeliest in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """Text that is certain, and the tokens that were chosen since the last one."""

    text: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Said:
    """An answer."""

    text: str
    tokens: tuple[int, ...]  # without the end or a stop
    count: int  # of all that were made
    marks: tuple[Mark, ...]
    reason: str  # stop or length
    first: float  # seconds to the first token
    seconds: float


class Ended(Exception):
    """Nobody waits for the answer any more, or its time is over."""


class Call:
    """How the one who asked and the thread that answers speak to each other."""

    def __init__(self, seconds: float) -> None:
        self.until, self._over = time.monotonic() + seconds, threading.Event()
        self.memory: Memory | None = None  # that the answer is made with, once it is

    def cancel(self) -> None:
        """Stop at the next token."""
        self._over.set()

    @property
    def late(self) -> bool:
        """Is the time over?"""
        return time.monotonic() > self.until

    def check(self) -> None:
        """Before each token."""
        if self._over.is_set() or self.late:
            raise Ended


class Chooser:
    """Of one answer: takes logits, gives the next token and tells the text that is certain."""

    def __init__(self, wish: Wish, words: Words, ends: Sequence[int], call: Call, tell: Tell | None) -> None:
        self.wish, self.words, self.ends, self.call, self.tell = wish, words, set(ends), call, tell
        self.random, self.begin = torch.Generator().manual_seed(wish.seed), time.perf_counter()
        self.tokens, self.marks, self._new = list[int](), list[Mark](), list[Mark]()
        self.counts: dict[int, int] = {}
        self.text, self._sent, self._clean, self._done = "", 0, 0, 0
        self._lead = 0  # characters of white space before the text, which the tokens have
        self.reason, self.made, self.first = "length", 0, 0.0

    def next(self, logits: Tensor) -> int:
        """From those of one place [vocabulary], on the CPU in float32."""
        self.call.check()
        if torch.isnan(logits).any():
            raise ValueError("the model gives no numbers here (NaN): roll this learner back to a version before")
        if self.wish.bias or (self.counts and (self.wish.presence or self.wish.frequency)):
            logits = logits.clone()
        for token, value in self.wish.bias.items():
            logits[token] += value
        if self.wish.presence or self.wish.frequency:
            for token, count in self.counts.items():
                logits[token] -= self.wish.presence + self.wish.frequency * count
        token = self._choose(logits)
        self.made += 1
        if not self.first:
            self.first = time.perf_counter()
        if self.wish.logprobs is not None:
            self._mark(logits, token)
        self._take(token)
        return token

    @property
    def over(self) -> bool:
        """Is nothing more to be made?"""
        return self.reason == "stop" or self.made >= self.wish.new

    def _choose(self, logits: Tensor) -> int:
        if self.wish.temperature == 0:
            return int(logits.argmax())
        p = torch.softmax((logits.double() - logits.max()) / self.wish.temperature, -1)
        if self.wish.top_p < 1:
            order = p.argsort(descending=True, stable=True)
            before = p[order].cumsum(0) - p[order]  # the first one always stays
            p[order[before >= self.wish.top_p]] = 0.0
        return int(torch.multinomial(p, 1, generator=self.random))

    def _mark(self, logits: Tensor, token: int) -> None:
        likely = torch.log_softmax(logits, -1)
        best = likely.topk(min(self.wish.logprobs or 0, likely.numel()))
        top = tuple((int(i), _finite(float(v))) for v, i in zip(*best))
        self._new.append(Mark(token, _finite(float(likely[token])), top))

    def _take(self, token: int) -> None:
        """Into the text, as far as it is certain: half a character waits for the next token."""
        self.counts[token] = self.counts.get(token, 0) + 1
        if token in self.ends:
            self.reason = "stop"
            self._new.clear()
            self._flush(True)
            return
        self.tokens.append(token)
        before = self.words.decode(self.tokens[self._clean : self._done])
        now = self.words.decode(self.tokens[self._clean :])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self.text += now[len(before) :]
            self._clean, self._done = self._done, len(self.tokens)
            self._stop()
        self._flush(self.reason == "stop")

    def _stop(self) -> None:
        found = [at for at in (self.text.find(stop) for stop in self.wish.stop) if at >= 0]
        if found:
            self.reason, self.text = "stop", self.text[: min(found)]
            # Tokens whose text goes on behind the cut are not part of the answer.
            while self.tokens and len(self.words.decode(self.tokens)) > self._lead + len(self.text):
                self.tokens.pop()

    def _flush(self, last: bool) -> None:
        """Tell what can no longer turn out to be part of a stop, or white space at an end."""
        if self.wish.trim and not self._sent:
            self._lead += len(self.text) - len(self.text.lstrip())
            self.text = self.text.lstrip()
        sure = len(self.text)
        if self.wish.trim:
            sure = len(self.text.rstrip())
        if not last:
            for stop in self.wish.stop:
                held = next((n for n in range(len(stop) - 1, 0, -1) if self.text.endswith(stop[:n])), 0)
                sure = min(sure, len(self.text) - held)
        if sure <= self._sent and not (last and self._new):
            return
        piece = Piece(self.text[self._sent : sure], tuple(self._new))
        self._sent = max(self._sent, sure)
        self.marks += self._new
        self._new = []
        if self.tell is not None:
            self.tell(piece)

    def finish(self) -> Said:
        """After the last token: what waited for more, and the whole."""
        if self.reason != "stop":
            before = self.words.decode(self.tokens[self._clean : self._done])
            self.text += self.words.decode(self.tokens[self._clean :])[len(before) :]
            self._stop()
            self._flush(True)
        self.text = self.text[: self._sent]
        now = time.perf_counter()
        return Said(self.text, tuple(self.tokens), self.made, tuple(self.marks), self.reason,
                    (self.first or now) - self.begin, now - self.begin)  # fmt: skip


def say(base: Any, memory: Memory, wish: Wish, ends: Sequence[int], call: Call, tell: Tell | None = None) -> Said:
    """An answer by itself, in this thread."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria
    from transformers import StoppingCriteriaList as Criteria

    chooser = Chooser(wish, memory.words, ends, call, tell)

    class Choose(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            only = torch.full_like(scores, -math.inf)
            only[0, chooser.next(scores[0].detach().float().cpu())] = 0.0
            return only

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **given: Any) -> Any:
            return torch.full((input_ids.shape[0],), chooser.over, dtype=torch.bool, device=input_ids.device)

    row = torch.tensor(wish.ids, device=next(iter(base.parameters())).device)[None]
    # Greedy: what is chosen is the only token that the chooser leaves.
    settings = GenerationConfig(
        max_new_tokens=wish.new, do_sample=False, num_beams=1, pad_token_id=ends[0] if ends else 0, eos_token_id=None
    )
    call.check()
    reads = base if memory.worn is None else memory.worn
    with torch.no_grad(), memory.on():
        reads.generate(
            row, attention_mask=torch.ones_like(row), generation_config=settings,
            logits_processor=LogitsProcessorList([Choose()]), stopping_criteria=Criteria([Stop()]),
        )  # fmt: skip
    return chooser.finish()


def _finite(value: float) -> float:
    """JSON knows no infinity; OpenAI writes this number for it."""
    return max(value, -9999.0)
