"""An arm with nights: what was read since the last one is gone over again, by the rule that a learner sleeps by.

Nobody tells it what a task is. A suite says "it is night now" where other arms hear that a task is over, and what is
gone over is only what the journal holds: every example that was read since the last night, an entry each, as often as
it was read. The night knows neither which of them are questions nor what will be asked.
"""

from collections.abc import Sequence
from typing import Any

import torch

from circadia.evals.arms.arm import Example, size
from circadia.evals.arms.streamed import CHUNK, Streamed
from circadia.evals.bases import Base
from circadia.live.awake import Awake
from circadia.models.retrofit.state import State
from circadia.sleep import Entry, Window, preset, sleep

WINDOWS = 512  # gone over in a night at most, the most surprising: a long day must not make a night without end
AWAKE = "awake/"  # entries of the state that a night must not see


class Asleep(Streamed):
    """A retrofit that reads by day and sleeps by the default preset when it is told to.

    rehearse  steps on windows of earlier nights between chunks, as a learner does with `rehearse=True`
    latest, replay   changes of the preset
    """

    sleeps = True

    def __init__(self, base: Base, seed: int, settings: dict[str, Any], rehearse: bool = False, latest: bool = True,
                 **replay: Any) -> None:  # fmt: skip
        super().__init__(base, seed, settings)
        self.settings = preset().but(latest=latest, replay={"windows": WINDOWS, **replay})
        self.awake = Awake() if rehearse else None
        self.journal: list[Entry] = []
        self.read_so_far = 0  # examples
        self.slept: State | None = None
        self.kept: list[list[Window]] = []  # of earlier nights
        self.nights: list[dict[str, Any]] = []
        self.longest = 0  # tokens of the longest journal

    def learn(self, examples: Sequence[Example]) -> None:
        for one in examples:
            tokens = self.base.encode(one.text)
            self.journal.append(Entry(torch.tensor(tokens, dtype=torch.int64), number=self.read_so_far))
            self.read_so_far += 1
        super().learn(examples)

    def read(self, tokens: list[int]) -> None:
        if self.awake is None:
            super().read(tokens)
            return
        at = 0
        while at < len(tokens):
            room = CHUNK - self.state["stream/pending"].numel()
            super().read(tokens[at : at + room])
            at += room
            if not self.state["stream/pending"].numel():
                self.state = self.awake.after(self.model, self.state, CHUNK)

    def finish(self) -> None:
        """The night. After a day without anything there is none."""
        if not self.journal:
            return
        kept = {name: x for name, x in self.state.items() if name.startswith(AWAKE)}
        bare = {name: x for name, x in self.state.items() if not name.startswith(AWAKE)}
        seed = 1000 * self.seed + len(self.nights)
        state, report = sleep(
            self.model, bare, self.journal, self.settings, seed=seed, slept=self.slept, earlier=self.kept,
            decode=self.base.decode,
        )  # fmt: skip
        self.slept, self.state, again = state, {**state, **kept}, sum(map(len, self.kept))
        self.kept = report.kept
        if self.awake is not None:
            self.state = self.awake.renewed(self.state, self.kept)
        cost = {name: int(report.cost[name]) for name in ("learned", "read", "made")}
        self.nights.append({"windows": report.windows, "earlier": again, "bound": list(report.bound), **cost,
                            "superseded": len(report.superseded)})  # fmt: skip
        self.longest = max(self.longest, sum(one.tokens.numel() for one in self.journal))
        self.journal = []

    @property
    def bytes(self) -> int:
        """With the self of the last night; and the longest journal and earlier windows as tokens of four bytes."""
        held = 0 if self.slept is None else size(list(self.slept.values()))
        now = sum(one.tokens.numel() for one in self.journal)
        kept = sum(window.tokens.numel() for night in self.kept for window in night)
        return super().bytes + held + 4 * (max(self.longest, now) + kept)

    def cost(self) -> dict[str, Any]:
        """Tokens learned by day, in rehearsal and by night; those that a night only reads or makes cost a third."""
        rehearsed = int(self.state[AWAKE + "counts"][2]) if AWAKE + "counts" in self.state else 0
        learned = rehearsed + sum(night["learned"] for night in self.nights)
        passed = sum(night["read"] + night["made"] for night in self.nights)
        found = super().cost()
        found["tokens"] += learned
        found["flops"] += self.base.parameters * (6 * learned + 2 * passed)
        return {**found, "rehearsed": rehearsed, "nights": self.nights}
