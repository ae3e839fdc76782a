"""Nights by the clock: learners whose policy says `hour` or `idle` are looked at every so often.

A look reads rows of the store, and no memory: those that are due sleep in an ordinary job, if a worker for nights is
free, so that nobody's own night waits behind a line of these. What else a policy says is asked by observations.
"""

import asyncio
import time
from dataclasses import dataclass

from circadia.live.errors import StoreError
from circadia.live.policy import Clock, Policy
from circadia.live.policy import of as policy_of
from circadia.serve.errors import Refused, of
from circadia.serve.forms import Sleep
from circadia.serve.jobs import Job, Result, Work
from circadia.serve.keys import Key
from circadia.serve.learn import current
from circadia.serve.learners import watched
from circadia.serve.nights import sleep
from circadia.serve.service import Service
from circadia.sleep.schedule import last

KEY = Key("policy", "teach", ("*",))  # as the log of changes names it
Place = tuple[str, str]  # a learner's uid, and a branch


@dataclass(frozen=True)
class Due:
    """Who is to sleep. `cause` is the version, and the hour that has come: for the same there is no second night."""

    name: str
    branch: str
    policy: Policy
    place: Place
    cause: tuple[int, float]


class Clockwork:
    """Of one server; `run` lives in its event loop until `over` is set."""

    def __init__(self, service: Service) -> None:
        self.service, self.over = service, asyncio.Event()
        self.nights: list[Job] = []  # begun by it, and not ended
        self._seen: dict[Place, tuple[tuple[int, int], Clock]] = {}  # with the state of the log that it was read at
        self._begun: dict[Place, tuple[int, float]] = {}  # causes of nights, also of those that came to nothing

    async def run(self) -> None:
        """Look, and look again when the time has passed or one of its nights has ended."""
        while self.service.settings.watch and not self.over.is_set():
            try:
                await self.look()
            except Exception as error:  # such as a store that cannot be read for a moment
                of(error, self.service.paths)
            waits = [asyncio.ensure_future(one.wait()) for one in (self.over, *(job.done for job in self.nights))]
            await asyncio.wait(waits, timeout=self.service.settings.watch, return_when=asyncio.FIRST_COMPLETED)
            for one in waits:
                one.cancel()

    async def look(self) -> None:
        """Once."""
        jobs = self.service.jobs
        self.nights = [job for job in self.nights if not job.done.is_set()]
        if jobs.closed or jobs.beds <= 0:
            return
        for one in await asyncio.to_thread(self.due):
            if jobs.beds <= 0:
                return
            if jobs.busy(one.name):
                continue  # it is not idle, and its observation asks the policy itself
            try:
                job = jobs.submit(one.name, "sleep", self._night(one), KEY, night=True)
            except Refused:  # the line is full, or the server stops
                return
            self._begun[one.place] = one.cause
            self.nights.append(job)

    def due(self) -> list[Due]:
        """By their policies, in a thread."""
        store, found, places = self.service.reads, list[Due](), set[Place]()
        for name in store.learners():
            try:
                life = store.learner(name)
                policy = policy_of(life.config.get("sleep"))
                if policy is None or (policy.idle is None and policy.hour is None):
                    continue
                head = store.head(name)[0]
                hour = 0.0 if policy.hour is None else last(time.time(), policy.hour)
                for branch, version in life.branches.items():
                    place, at = (life.uid, branch), (head, version or 0)
                    places.add(place)
                    if place not in self._seen or self._seen[place][0] != at:
                        self._seen[place] = at, Clock.of(store, name, branch)
                    cause = (version or 0, hour)
                    if self._seen[place][1].why(policy) and self._begun.get(place) != cause:
                        found.append(Due(name, branch, policy, place, cause))
            except StoreError:  # deleted while it was looked at
                continue
        for held in (self._seen, self._begun):
            for gone in held.keys() - places:
                del held[gone]
        return found

    def _night(self, one: Due) -> Work:
        night = watched(
            self.service, one.name, sleep(self.service, one.name, Sleep(branch=one.branch, preset=one.policy.preset)),
            "night",
        )  # fmt: skip

        def work(job: Job) -> Result:
            with self.service.looking(one.name, one.branch) as me:
                if not me.due():  # something happened since it was looked at
                    return current(me)
            return night(job)

        return work
