"""Changes: one at a time for each learner, in the order in which they were asked for; so many waiting.

Nights have workers of their own, so that nobody's change waits for another's night.

A job that waits can be cancelled at once; one at work stops at the next border that it looks for (`Job.stopped`).
"""

import asyncio
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from circadia.serve.errors import Refused, of
from circadia.serve.keys import Key, Keys

Result = dict[str, Any]
Work = Callable[["Job"], Result]
FINISHED = 1000  # jobs whose end can still be asked for
LISTENED = 4096  # events of a job that wait for a client


class Job:
    """One change of one learner."""

    def __init__(
        self, learner: str, action: str, work: Work, key: Key, seconds: float, night: bool = False
    ) -> None:  # fmt: skip
        self.night = night
        self.id = f"job-{secrets.token_hex(12)}"
        self.learner, self.action, self.key, self.seconds = learner, action, key, seconds
        self.work: Work | None = work  # it holds what was sent, and is let go at the end
        self.state = "queued"
        self.result: Result | None = None
        self.error: Refused | None = None
        self.progress: Result = {}
        self.created, self.until = time.time(), 0.0
        self.done = asyncio.Event()
        self.stop = threading.Event()
        self.loop = asyncio.get_running_loop()
        self.listeners: set[asyncio.Queue[Result | None]] = set()

    def stopped(self) -> bool:
        """At a border: shall it end here?"""
        return self.stop.is_set() or time.monotonic() > self.until

    def tell(self, progress: Result) -> None:
        """From the thread at work."""
        self.loop.call_soon_threadsafe(self._told, progress)

    def _told(self, progress: Result) -> None:
        self.progress = progress
        self.listen(progress)

    def listen(self, told: Result | None) -> None:
        """To everybody who listens; one who does not keep up misses the oldest."""
        for queue in self.listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(told)

    def shown(self) -> Result:
        """For clients."""
        found: Result = {"id": self.id, "object": "job", "learner": self.learner, "action": self.action}
        found |= {"status": self.state, "created": int(self.created), "progress": self.progress or None}
        return found | {"result": self.result, "error": self.error.body()["error"] if self.error else None}


class Jobs:
    """Of one event loop."""

    def __init__(
        self, workers: int, sleepers: int, limit: int, limit_one: int, seconds: float, keys: Keys,
        paths: Mapping[str, str], publish: Callable[[str, Result], None],
    ) -> None:  # fmt: skip
        self.workers = {False: workers, True: sleepers}
        self.limit, self.limit_one, self.seconds = limit, limit_one, seconds
        self.keys, self.paths, self.publish = keys, paths, publish
        self.pool = ThreadPoolExecutor(workers + sleepers, "circadia-teacher")
        self._lines: OrderedDict[str, deque[Job]] = OrderedDict()
        self._busy: dict[str, Job] = {}
        self.all: OrderedDict[str, Job] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False

    @property
    def waiting(self) -> int:
        """How many have not begun."""
        return sum(len(line) for line in self._lines.values())

    @property
    def working(self) -> int:
        """How many are at work."""
        return len(self._busy)

    @property
    def asleep(self) -> int:
        """How many of these are nights."""
        return sum(job.night for job in self._busy.values())

    @property
    def beds(self) -> int:
        """Workers for nights that nobody has and nobody waits for."""
        return self.workers[True] - self.asleep - sum(job.night for line in self._lines.values() for job in line)

    def busy(self, learner: str) -> bool:
        """Is it changed now, or soon?"""
        return learner in self._busy or learner in self._lines

    def submit(self, learner: str, action: str, work: Work, key: Key, night: bool = False) -> Job:
        """Into the learner's line, or 429."""
        if self.closed:
            raise Refused(503, "the server is stopping", "stopping", retry=10)
        own = len(self._lines.get(learner, ())) + (learner in self._busy)
        waiting = sum(job.night == night for line in self._lines.values() for job in line)
        if own >= self.limit_one or waiting >= self.limit:
            what = "changes of this learner wait" if own >= self.limit_one else "changes wait"
            raise Refused(429, f"too many {what} already: try again later", "queue_full", retry=2.0 * (1 + own))
        job = Job(learner, action, work, key, self.seconds, night)
        self.all[job.id] = job
        self._lines.setdefault(learner, deque()).append(job)
        self._next()
        return job

    def cancel(self, job: Job) -> None:
        """At once where it waits, else at its next border."""
        job.stop.set()
        line = self._lines.get(job.learner)
        if line and job in line:
            line.remove(job)
            if not line:
                del self._lines[job.learner]
            job.error = Refused(409, "cancelled before it began", "cancelled")
            self._end(job, "cancelled")

    def _next(self) -> None:
        for learner in list(self._lines):
            night = self._lines[learner][0].night
            working = self.asleep if night else self.working - self.asleep
            if learner in self._busy or working >= self.workers[night]:
                continue
            job = self._lines[learner].popleft()
            if self._lines[learner]:
                self._lines.move_to_end(learner)
            else:
                del self._lines[learner]
            self._busy[learner] = job
            task = asyncio.get_running_loop().create_task(self._run(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, job: Job) -> None:
        job.state, job.until = "running", time.monotonic() + job.seconds
        self.publish(job.learner, {"event": "job", "action": job.action, "status": "running"})
        assert job.work is not None
        try:
            job.result = await asyncio.get_running_loop().run_in_executor(self.pool, job.work, job)
            state = "done"
        except BaseException as error:
            job.error, state = of(error, self.paths).bare(), "failed"
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            del self._busy[job.learner]
            self._end(job, state)
            self._next()

    def _end(self, job: Job, state: str) -> None:
        job.state, job.work = state, None
        version = (job.result or {}).get("version")
        try:
            self.keys.note(job.key, job.learner, job.action, state, version)
        except Exception as error:  # such as a full disk: whoever waits is to hear how it ended all the same
            of(error, self.paths)
        self.publish(job.learner, {"event": "job", "action": job.action, "status": state, "version": version})
        job.done.set()
        job.listen(None)
        ended = [key for key, one in self.all.items() if one.done.is_set()]
        for key in ended[: max(0, len(ended) - FINISHED)]:
            del self.all[key]

    def close(self) -> None:
        """No more jobs; those that wait are refused, those at work stop at their next border."""
        self.closed = True
        for job in list(self.all.values()):
            if not job.done.is_set():
                self.cancel(job)

    async def closing(self, seconds: float) -> bool:
        """Wait for those at work; whether all ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        self.pool.shutdown(wait=False)
        return not self._busy
