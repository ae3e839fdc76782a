"""Who may read when: so many at once, so many waiting, of them so many of one owner.

A learner is an owner, and those who ask it take one turn. The frozen base belongs to nobody: were it one turn among
those of twenty learners, whoever asks it would wait for twenty answers. So a key that asks it is an owner, and its
users have turns of their own; without key and user each request has one.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable

from circadia.serve.errors import Refused


class Slots:
    """Of one event loop. Those that wait take turns, so that a busy one does not hold up the others."""

    def __init__(self, slots: int, queue: int, queue_one: int) -> None:
        self.free, self.queue, self.queue_one = slots, queue, queue_one
        self.slots = slots
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        self._of: Counter[Hashable] = Counter()
        self._mean = 1.0  # seconds of one answer, of the last ones

    @property
    def waiting(self) -> int:
        """How many have no slot yet."""
        return sum(len(line) for line in self._waiting.values())

    def _refuse(self, what: str) -> None:
        wait = max(1.0, self._mean * (1 + self.waiting) / self.slots)
        raise Refused(429, f"{what}: try again in {wait:.0f} seconds", "queue_full", retry=wait)

    @contextlib.asynccontextmanager
    async def slot(self, owner: Hashable, seconds: float, turn: Hashable = None) -> AsyncIterator[None]:
        """One, for as long as the block; or 429. `turn`: with whom it waits in line, default all of its owner."""
        if self._of[owner] >= self.queue_one:
            what = "of this learner" if isinstance(owner, str) else "to the base"
            self._refuse(f"{self.queue_one} requests {what} are in work or wait already")
        if not self.free and self.waiting >= self.queue:
            self._refuse(f"{self.queue} requests wait already")
        self._of[owner] += 1
        try:
            await self._wait(owner if turn is None else turn, seconds)
            begin = time.monotonic()
            try:
                yield
            finally:
                self._mean += 0.1 * (time.monotonic() - begin - self._mean)
                self._next()
        finally:
            self._of[owner] -= 1
            if not self._of[owner]:
                del self._of[owner]

    async def _wait(self, turn: Hashable, seconds: float) -> None:
        if self.free:
            self.free -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(turn, deque()).append(mine)
        try:
            await asyncio.wait_for(asyncio.shield(mine), seconds)
        except TimeoutError:
            if not self._left(turn, mine):
                return  # its turn came at the same moment
            self._refuse(f"no slot within {seconds:.0f} seconds")
        except BaseException:
            if not self._left(turn, mine):
                self._next()  # the slot that it had just been given
            raise

    def _left(self, turn: Hashable, mine: "asyncio.Future[None]") -> bool:
        """Out of the line, unless its turn has come."""
        if mine.done():
            return False
        line = self._waiting[turn]
        line.remove(mine)
        if not line:
            del self._waiting[turn]
        return True

    def _next(self) -> None:
        """A slot is free: the first in the line that has waited longest for a turn."""
        if not self._waiting:
            self.free += 1
            return
        turn, line = next(iter(self._waiting.items()))
        line.popleft().set_result(None)
        if line:
            self._waiting.move_to_end(turn)
        else:
            del self._waiting[turn]
