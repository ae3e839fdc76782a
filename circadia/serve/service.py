"""What a server holds, and the ways into it: to read with a learner's memory, and to change a learner."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import Request

from circadia.live import Learner, Store
from circadia.live.errors import Busy
from circadia.live.locks import held
from circadia.live.text import Words
from circadia.serve.bank import Base, Memories, Memory
from circadia.serve.batch import Engine
from circadia.serve.decode import Call, Ended, Said, Tell, Wish, say
from circadia.serve.errors import Refused, missing
from circadia.serve.jobs import Jobs
from circadia.serve.keys import ANYONE, Key, Keys, Rates
from circadia.serve.metrics import Metrics
from circadia.serve.rows import fault
from circadia.serve.scheduler import Slots
from circadia.serve.settings import Settings

log = logging.getLogger("circadia.serve")
LISTENERS = 64  # that watch at once


@dataclass
class Completion:
    """A reply that feedback may come on. It is held here alone until then."""

    learner: str
    uid: str
    branch: str
    epoch: int
    said: Said
    prompt: tuple[int, ...]
    version: int | None
    quotes: bool  # the prompt holds answers given before
    answer: int | None = None  # its number in the journal

    @property
    def size(self) -> int:
        """In tokens."""
        return len(self.prompt) + self.said.count


class Service:
    """One base, one store. `start` and `stop` belong to the event loop that serves it."""

    def __init__(self, settings: Settings, key: str | bytes | None = None) -> None:
        self.settings = settings
        if not settings.loopback:
            with Keys(settings.store) as keys:
                if not keys.needed:
                    raise ValueError(
                        f"host={settings.host!r} can be reached by others: make a key first, with `circadia key new`, "
                        "or serve on 127.0.0.1"
                    )
        self._stack = contextlib.ExitStack()
        self.base = Base(settings.base, settings.tokenizer)
        self.writes = Store.open(settings.store, key)
        self._alone()
        self.reads = Store.open(settings.store, key)  # a connection of its own: a long transaction holds up no reader
        self.keys, self.rates = Keys(settings.store), Rates(settings.rate)
        self.memories = Memories(self.base, self.reads, settings.cache)
        self.metrics = Metrics()
        self.engine = self._engine()
        at_once = settings.batch if self.engine else settings.readers
        self.pool = ThreadPoolExecutor(at_once, "circadia-reader")
        self.slots = Slots(at_once, settings.queue, settings.queue_one)
        self.completions: OrderedDict[str, Completion] = OrderedDict()
        self._tokens, self._lock = 0, threading.Lock()  # of these
        self.watchers: dict[str, set[asyncio.Queue[dict[str, Any] | None]]] = {}
        where = {str(Path(settings.store).resolve()): "the store", str(settings.store): "the store"}
        self.paths = {**where, **({self.base.source: "the base"} if self.base.source else {})}
        self.jobs = Jobs(
            settings.teachers,
            settings.sleepers,
            settings.jobs,
            settings.jobs_one,
            settings.job_seconds,
            self.keys,
            self.paths,
            self.publish,
        )
        self.stopping = False

    def _alone(self) -> None:
        """Two servers on a store would not see each other's forgettings in the memories that they hold."""
        try:
            self._stack.enter_context(held(Path(self.settings.store) / "locks" / "serve.lock"))
        except Busy:
            self.writes.close()
            raise ValueError(f"store={str(self.settings.store)!r}: another server serves this store: stop it, or give "
                             "each its own") from None  # fmt: skip

    def _engine(self) -> Engine | None:
        """What answers several at once, where the base allows it."""
        if self.settings.batch < 2:
            return None
        if why := fault(self.base.module):
            log.warning("this base answers one by one (%s)", why)
            return None
        return Engine(self.base.module, self.base.ends)

    def close(self) -> None:
        """Hand the files back."""
        if self.engine is not None:
            self.engine.close()
        for part in (self.writes, self.reads, self.keys):
            part.close()
        self._stack.close()

    def halt(self) -> None:
        """Nothing new; what is at work ends at its next border, and whoever watches is let go."""
        self.stopping = True
        self.jobs.close()
        for queues in self.watchers.values():
            for queue in queues:
                _put(queue, None)

    # Who asks

    def who(self, request: Request) -> Key:
        """By the header Authorization; 401 or 429."""
        if not self.keys.needed:
            key: Key | None = ANYONE
        else:
            kind, _, given = request.headers.get("authorization", "").partition(" ")
            key = self.keys.find(given.strip()) if kind.lower() == "bearer" else None
        if key is None:
            raise Refused(401, "this server wants a key: send 'Authorization: Bearer KEY'", "invalid_api_key")
        if wait := self.rates.take(key):
            raise Refused(429, f"this key may ask {self.rates.rate} times a minute: try again in {wait:.0f} seconds",
                          "rate_limit_exceeded", retry=wait)  # fmt: skip
        return key

    def allow(self, key: Key, name: str, scope: str, there: bool = True) -> None:
        """404 for what is not theirs, 403 for what they may not do with it."""
        if not key.sees(name) or (there and name not in self.reads.learners()):
            raise missing(name)
        if not key.may(scope):
            raise Refused(403, f"this key has scope {key.scope!r}, {scope!r} is needed", "scope")

    # To read

    async def read(
        self, owner: Hashable, work: Callable[[], Any], call: Call | None = None, turn: Hashable = None
    ) -> Any:  # fmt: skip
        """In a thread, when a slot is free. The slot is free again when the thread is: a `call` ends it early."""
        if self.stopping:
            raise Refused(503, "the server is stopping", "stopping", retry=10)
        async with self.slots.slot(owner, self.settings.seconds, turn):
            task = asyncio.get_running_loop().run_in_executor(self.pool, work)
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if call is not None:
                    call.cancel()
                while not task.done():
                    with contextlib.suppress(BaseException):
                        await asyncio.shield(task)
                raise

    async def words(self, name: str | None) -> Words:
        """Of a learner, or the base."""
        if name is None:
            return self.base.words
        return (await asyncio.to_thread(self.base.reader, self.reads.learner(name))).words

    async def say(
        self, who: tuple[str | None, str], wish: Wish, call: Call, tell: Tell | None = None,
        asks: tuple[str | None, str | None] = (None, None),
    ) -> Said:  # fmt: skip
        """An answer; cancelling ends it at the next token. `asks`: the key's id and its user."""
        name, branch = who
        begin = time.monotonic()

        def work() -> Said:
            # Only now, with a slot: those who wait hold no memory, and see what was committed meanwhile.
            call.memory = memory = self.memories.frozen() if name is None else self.memories.get(name, branch)
            if self.engine is not None:
                return self.engine.say(memory, wish, call, tell)
            return say(self.base.module, memory, wish, self.base.ends, call, tell)

        try:
            owner: Hashable = ("key", asks[0]) if name is None else name
            turn = None if name is not None else asks if any(asks) else object()
            said = await self.read(owner, work, call, turn)
        except Ended:
            raise Refused(504, f"not done within {self.settings.seconds:.0f} seconds", "timeout") from None
        finally:
            self.metrics.observe("request_seconds", time.monotonic() - begin)
        self.metrics.add("tokens_read_total", len(wish.ids))
        self.metrics.add("tokens_made_total", said.count)
        self.metrics.observe("first_token_seconds", said.first)
        return said

    @contextlib.contextmanager
    def looking(self, name: str, branch: str = "main") -> Iterator[Learner]:
        """A learner to look at, in a thread; it does not take the right to write."""
        life = self.reads.learner(name)
        with Learner(self.reads, name, self.base.reader(life), branch, False) as me:
            yield me

    # To change

    @contextlib.contextmanager
    def changing(self, name: str, branch: str = "main") -> Iterator[Learner]:
        """A learner to change, in the thread of a job."""
        self.writes.current(name, branch)
        life = self.writes.learner(name)
        with Learner(self.writes, name, self.base.reader(life), branch, False) as me:
            yield me

    def remember(self, id: str, memory: Memory, wish: Wish, said: Said, quotes: bool) -> Completion:
        """A reply, so that feedback can be given on it."""
        assert memory.learner is not None
        said = replace(said, marks=())  # many times as large as the text
        found = Completion(
            memory.learner, memory.uid, memory.branch, memory.epoch, said, wish.ids, memory.version, quotes
        )
        with self._lock:
            if memory.epoch == self.memories.epoch(memory.uid):  # else it may hold what was forgotten meanwhile
                self.completions[id] = found
                self._tokens += found.size
            while len(self.completions) > self.settings.completions or self._tokens > self.settings.completion_tokens:
                self._tokens -= self.completions.popitem(last=False)[1].size
        return found

    def lost(self, uid: str) -> None:
        """After forgetting and deleting: neither a memory nor a reply that it shaped is held any longer."""
        self.memories.drop(uid)
        with self._lock:
            for id in [id for id, one in self.completions.items() if one.uid == uid]:
                self._tokens -= self.completions.pop(id).size

    # To watch

    def publish(self, learner: str, event: dict[str, Any]) -> None:
        """To everybody who watches this learner."""
        for queue in self.watchers.get(learner, ()):
            _put(queue, event)

    def watchable(self) -> None:
        """Or 429."""
        if sum(len(queues) for queues in self.watchers.values()) >= LISTENERS:
            raise Refused(429, f"{LISTENERS} watch already: try again later", "queue_full", retry=30)

    @contextlib.contextmanager
    def watching(self, learner: str) -> Iterator["asyncio.Queue[dict[str, Any] | None]"]:
        """The events of a learner."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(256)
        self.watchers.setdefault(learner, set()).add(queue)
        try:
            yield queue
        finally:
            self.watchers[learner].discard(queue)
            if not self.watchers[learner]:
                del self.watchers[learner]


def _put(queue: "asyncio.Queue[dict[str, Any] | None]", event: dict[str, Any] | None) -> None:
    """One who does not keep up misses the oldest."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)
