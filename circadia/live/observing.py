"""Observing a stream of any length: piece by piece into the journal, then into the memory, with versions on the way."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from circadia.live import commits
from circadia.live.policy import Watch
from circadia.live.reader import Tally, tail_of
from circadia.live.text import pieces
from circadia.models.retrofit import ChunkReport, LevelReport

if TYPE_CHECKING:
    from circadia.live.learner import Learner
    from circadia.live.sleeping import Night


@dataclass(frozen=True)
class Progress:
    """After each chunk."""

    tokens: int  # scored in this call
    surprise: float  # of the chunk, before it was learned
    weight: float
    seconds: float


@dataclass
class Observed:
    """What one call of `observe` did."""

    tokens: int = 0  # read
    surprise: float | None = None  # mean before learning, nats a token; None where no chunk ended
    chunks: int = 0
    weight: float | None = None  # mean factor of the gate
    gate: dict[str, float] = field(default_factory=dict)  # its parts, each the mean over chunks
    refused: int = 0  # chunks whose loss or gradient was not finite
    levels: list[LevelReport] = field(default_factory=list)
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # position, surprise, weight
    seconds: float = 0.0
    versions: list[int] = field(default_factory=list)  # committed
    held: list[str] = field(default_factory=list)  # what the guard said against others
    experiences: tuple[int, int] | None = None  # first and last number in the journal
    pending: int = 0  # tokens that wait for the end of their chunk
    waiting: int = 0  # characters that wait for the end of their segment
    interrupted: bool = False
    nights: list["Night"] = field(default_factory=list)  # slept on the way, by the learner's policy


def observe(
    me: "Learner", what: Any, source: str, trust: float, commit: bool, progress: bool | Callable[[Progress], None],
    stop: Callable[[], bool] | None = None,
) -> Observed:  # fmt: skip
    """`Learner.observe`."""
    from circadia.live.journal import checked

    checked(source, trust, 0, 0, "text", b"")
    begin, done, tally = time.perf_counter(), Observed(), Tally()
    with me.writing() as writer, _stoppable() as hit, _shown(progress, begin) as tell:
        since = 0

        def stopped() -> bool:
            return hit() or (stop is not None and stop())

        watch = None if me.policy is None else Watch(me, stopped)
        for form, data in pieces(what):
            if watch is not None and not watch.before(form, data, source, float(trust)):
                done.interrupted = True
                break
            number, read = _piece(me, writer, form, data, source, float(trust), tally, tell)
            done.experiences = (done.experiences[0] if done.experiences else number, number)
            since += read
            if stopped():
                done.interrupted = True
                break
            if commit and since >= me.config["every"]:
                _settle(me, done)
                since = 0
                if watch is not None:
                    watch.settled()
        if commit:
            _settle(me, done)
        done.nights = watch.nights if watch is not None else []
        state = me.state
        done.pending, done.waiting = state["stream/pending"].numel(), len(tail_of(state))
    told = tally.told()
    done.tokens, done.surprise, done.chunks = tally.tokens, tally.surprise, tally.chunks
    done.weight, done.gate, done.refused = told["weight"], told["gate"], tally.refused
    done.levels, done.curve, done.seconds = tally.levels, tally.curve, time.perf_counter() - begin
    return done


def _piece(
    me: "Learner", writer: Any, form: str, data: Any, source: str, trust: float, tally: Tally, tell: Any,
    extra: dict[str, Any] | None = None,
) -> tuple[int, int]:  # fmt: skip
    """One piece into the journal and the memory; its number and how many tokens it brought."""
    plan = me.reader.plan(me.state, form, data, source, trust)
    payload = commits.pack({"op": "observe", "form": form, "data": data, **(extra or {})})
    kind = {"text": "text", "tokens": "tokens", "chat": "chat"}[form]
    found = writer.remember(payload, source, trust, plan.start, plan.start + plan.tokens, kind)
    me.unsaved.torn = True
    both = _Both(me.unsaved.tally, tally)
    me._state = me.reader.learn(me.state, plan, both, tell)  # type: ignore[arg-type]
    me.unsaved.experiences.append(found.number)
    me.unsaved.dirty, me.unsaved.torn = True, False
    return found.number, plan.tokens


class _Both:
    """Adds up twice: since the last commit, and in this call."""

    def __init__(self, *tallies: Tally) -> None:
        self.tallies, self._tokens, self._seconds = tallies, 0, 0.0

    def add(self, *values: Any) -> None:
        for tally in self.tallies:
            tally.add(*values)

    @property
    def tokens(self) -> int:
        return self._tokens

    @tokens.setter
    def tokens(self, value: int) -> None:
        for tally in self.tallies:
            tally.tokens += value - self._tokens
        self._tokens = value

    @property
    def seconds(self) -> float:
        return self._seconds

    @seconds.setter
    def seconds(self, value: float) -> None:
        for tally in self.tallies:
            tally.seconds += value - self._seconds
        self._seconds = value


def _settle(me: "Learner", done: Observed) -> None:
    outcome = commits.commit(me, "observe")
    if outcome.action == "accept" and outcome.version:
        done.versions.append(outcome.version.number)
    elif outcome.action in ("hold", "rollback"):
        where = f"version {outcome.version.number} is held" if outcome.version else "rolled back"
        done.held.append(f"{where}: {'; '.join(outcome.reasons)}")


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted and obeyed at the next border; the second one at once."""
    hit = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        nonlocal hit
        if hit:
            raise KeyboardInterrupt
        hit = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: hit
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _shown(progress: bool | Callable[[Progress], None], begin: float) -> Iterator[Callable[[ChunkReport], None] | None]:
    """What is to be told after each chunk."""
    if not progress:
        yield None
        return
    count = 0

    def progressed(chunk: ChunkReport) -> Progress:
        nonlocal count
        count += chunk.tokens
        return Progress(count, chunk.surprise, chunk.weight, time.perf_counter() - begin)

    if callable(progress):
        tell = progress
        yield lambda chunk: tell(progressed(chunk))
        return
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, transient=True) as bar:
        task = bar.add_task("reading")

        def show(chunk: ChunkReport) -> None:
            now = progressed(chunk)
            text = f"{now.tokens:,} tokens, surprise {now.surprise:.3f}, weight {now.weight:.2f}"
            bar.update(task, description=text)

        yield show
