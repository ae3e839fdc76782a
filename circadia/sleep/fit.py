"""Training a student in steps: Adam on a falling rate, with budgets, and stops that lose nothing."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from circadia.sleep.student import Student

BETAS = (0.9, 0.95)


class Interrupted(Exception):
    """A night was stopped. Nothing was changed; `progress` can be given back as `resume`."""

    def __init__(self, progress: dict[str, Any]) -> None:
        super().__init__("the night was stopped: the waking state is as it was, resume=error.progress goes on")
        self.progress = progress


class Stopped(Exception):
    """Between two steps."""


@dataclass
class Meter:
    """What a night has cost, and what it may cost. Work is counted in tokens read; one that is learned counts three."""

    seconds: float | None = None
    work: float | None = None
    stop: Callable[[], bool] | None = None
    tell: Callable[[str, int, int], None] | None = None
    read: int = 0
    learned: int = 0
    made: int = 0
    spent: float = 0.0  # seconds of the parts before a stop
    cut: float | None = None  # the cost at which the time was up
    asked: float = 0.0  # the cost when `over` was last asked
    ended: bool = False  # has a budget ended something?
    begin: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        return self.spent + time.perf_counter() - self.begin

    @property
    def cost(self) -> float:
        return self.read + self.made + 3.0 * self.learned

    @property
    def over(self) -> bool:
        """Is a budget used up? Then the night ends with what it has.

        It is asked only where something is left to do. Time is not the same twice. So it ends a night only where the
        cost has grown since it was last asked, and `cut` is that cost: given as `work`, it ends the same night at the
        same place.
        """
        grown, self.asked = self.cost > self.asked, self.cost
        if self.cut is None and self.seconds is not None and grown and self.elapsed >= self.seconds:
            self.cut = self.cost
        used_up = self.cut is not None or (self.work is not None and self.cost >= self.work)
        self.ended = self.ended or used_up
        return used_up

    def step(self, what: str, at: int, of: int) -> None:
        """Before each step."""
        if self.tell is not None:
            self.tell(what, at, of)
        if self.stop is not None and self.stop():
            raise Stopped

    def counts(self) -> dict[str, float]:
        """To go on from."""
        return {"read": self.read, "learned": self.learned, "made": self.made, "spent": self.elapsed}


class Fit:
    """Adam on the leaves of a student. `held` takes in what is needed to go on after a stop, and is emptied at the end.

    check    is asked every `every` steps whether it is enough
    """

    def __init__(
        self, student: Student, steps: int, rate: float, generator: torch.Generator, held: dict[str, Any],
        clip: float = 1.0,
    ) -> None:  # fmt: skip
        if not 0 < rate < math.inf:
            raise ValueError(f"rate={rate!r} must be a number above 0, such as 0.002")
        self.student, self.steps, self.rate, self.clip = student, steps, rate, clip
        self.generator, self.held, self.at, self.refused = generator, held, 0, 0
        self.optimizer = torch.optim.Adam(student.leaves, lr=rate, betas=BETAS)
        if held:
            self._restore()

    def run(
        self, loss: Callable[[], Tensor], meter: Meter, what: str, check: Callable[[], bool] | None = None,
        every: int = 50,
    ) -> None:  # fmt: skip
        """Steps until they, the check or a budget end it."""
        try:
            while self.at < self.steps and not meter.over:
                meter.step(what, self.at, self.steps)
                self._step(loss)
                self.at += 1
                if check is not None and self.at % every == 0 and check():
                    break
        except Stopped:
            self._keep()
            raise
        self.held.clear()

    def _step(self, loss: Callable[[], Tensor]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * (1 - 0.9 * self.at / self.steps)
        self.optimizer.zero_grad()
        value = loss()
        value.backward()
        size = torch.nn.utils.clip_grad_norm_(self.student.leaves, self.clip)
        if bool(torch.isfinite(size)) and bool(torch.isfinite(value.detach())):
            self.optimizer.step()
        else:
            self.refused += 1

    def _keep(self) -> None:
        self.held.update(
            at=self.at,
            refused=self.refused,
            leaves=[leaf.detach().clone() for leaf in self.student.leaves],
            optimizer=self.optimizer.state_dict(),
            generator=self.generator.get_state(),
        )

    def _restore(self) -> None:
        self.at, self.refused = self.held["at"], self.held["refused"]
        with torch.no_grad():
            for leaf, kept in zip(self.student.leaves, self.held["leaves"]):
                leaf.copy_(kept)
        self.optimizer.load_state_dict(self.held["optimizer"])
        self.generator.set_state(self.held["generator"])
