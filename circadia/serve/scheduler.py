"""Who may read when: so many at once, so many waiting, of them so many of one learner."""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator

from circadia.serve.errors import Refused


class Slots:
    """Of one event loop. The learners that wait take turns, so that a busy one does not hold up the others."""

    def __init__(self, slots: int, queue: int, queue_one: int) -> None:
        self.free, self.queue, self.queue_one = slots, queue, queue_one
        self.slots = slots
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._of: Counter[str] = Counter()
        self._mean = 1.0  # seconds of one answer, of the last ones

    @property
    def waiting(self) -> int:
        """How many have no slot yet."""
        return sum(len(line) for line in self._waiting.values())

    def _refuse(self, what: str) -> None:
        wait = max(1.0, self._mean * (1 + self.waiting) / self.slots)
        raise Refused(429, f"{what}: try again in {wait:.0f} seconds", "queue_full", retry=wait)

    @contextlib.asynccontextmanager
    async def slot(self, learner: str, seconds: float) -> AsyncIterator[None]:
        """One, for as long as the block; or 429."""
        if self._of[learner] >= self.queue_one:
            self._refuse(f"{self.queue_one} requests of this learner are in work or wait already")
        if not self.free and self.waiting >= self.queue:
            self._refuse(f"{self.queue} requests wait already")
        self._of[learner] += 1
        try:
            await self._wait(learner, seconds)
            begin = time.monotonic()
            try:
                yield
            finally:
                self._mean += 0.1 * (time.monotonic() - begin - self._mean)
                self._next()
        finally:
            self._of[learner] -= 1
            if not self._of[learner]:
                del self._of[learner]

    async def _wait(self, learner: str, seconds: float) -> None:
        if self.free:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(learner, deque()).append(turn)
        try:
            await asyncio.wait_for(asyncio.shield(turn), seconds)
        except TimeoutError:
            if not self._left(learner, turn):
                return  # its turn came at the same moment
            self._refuse(f"no slot within {seconds:.0f} seconds")
        except BaseException:
            if not self._left(learner, turn):
                self._next()  # the slot that it had just been given
            raise

    def _left(self, learner: str, turn: "asyncio.Future[None]") -> bool:
        """Out of the line, unless its turn has come."""
        if turn.done():
            return False
        line = self._waiting[learner]
        line.remove(turn)
        if not line:
            del self._waiting[learner]
        return True

    def _next(self) -> None:
        """A slot is free: the first of the learner that has waited longest for a turn."""
        if not self._waiting:
            self.free += 1
            return
        learner, line = next(iter(self._waiting.items()))
        line.popleft().set_result(None)
        if line:
            self._waiting.move_to_end(learner)
        else:
            del self._waiting[learner]
