"""Sleeping over HTTP: nights as jobs, what they tell, quarantine, when one is due, and the guard's probes.

A night is read and lived on a copy, and is one new version at its end: until then everybody reads the version that went
to sleep. Stopped by its client, the end of the server or a kill it has changed nothing, and can be taken up again.
"""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import HTMLResponse

from circadia.live import Learner
from circadia.live.guard import Guard, read
from circadia.live.sleeping import Night, asked_for, nights, stopped
from circadia.serve.errors import Refused
from circadia.serve.forms import PROBES, Change, Decision, Name, Probes, Sleep
from circadia.serve.jobs import Job, Result, Work
from circadia.serve.keys import Key
from circadia.serve.learn import current, slept
from circadia.serve.learners import replied, watched
from circadia.serve.reply import plain, unless_gone
from circadia.serve.service import Service

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
SHARE = 0.8  # of a job's time that a night may learn for: what it learned by then must still be judged and written
NUMBERS = ("preset", "seed", "refused", "entries", "windows", "bound", "older", "cost", "stopped_by_budget")


def sleep(service: Service, name: str, form: Sleep) -> Work:
    """One night."""
    longest = SHARE * service.settings.job_seconds / 60

    def work(job: Job) -> Result:
        def tell(part: str, at: int, of: int) -> None:
            job.tell({"part": part, "step": at, "of": of})

        with service.changing(name, form.branch) as me:
            night = me.sleep(
                form.preset, minutes=min(longest, form.minutes or longest), compute=form.compute, seed=form.seed,
                days=form.days, progress=tell, stop=job.stopped, resume=form.resume, fit=form.fit, **form.changes(),
            )  # fmt: skip
            slept(service, night)
            return current(me, interrupted=night.action == "stopped", night=_line(night))

    return work


def decide(service: Service, name: str, what: str, form: Decision) -> Work:
    """`admit` or `drop`."""

    def work(job: Job) -> Result:
        with service.changing(name, form.branch) as me:
            decided = (me.admit if what == "admit" else me.drop)(*form.numbers)
            return current(me, data=decided)

    return work


def ask(service: Service, name: str, form: Probes) -> Work:
    """Probes that cannot be asked of the learner as it is are not taken: each later change would fail on them."""

    def work(job: Job) -> Result:
        with service.changing(name, form.branch) as me:
            found = read(_wanted(me, form))
            verdict = Guard(me.reader, found).judge(me.state)
            me.probes(found)
            return current(me, **asdict(verdict))

    return work


def _wanted(me: Learner, form: Probes) -> list[Any]:
    there = {probe.name: probe for probe in me.guard.probes}
    if unknown := [name for name in form.remove if name not in there]:
        raise ValueError(f"remove: there is no probe {unknown[0]!r}; there is {', '.join(there) or 'none'}")
    kept = [] if form.probes is not None else [one for name, one in there.items() if name not in form.remove]
    found = [*kept, *(one.model_dump() for one in (form.probes or form.add))]
    if len(found) > PROBES:
        raise ValueError(f"add: {len(found)} probes are too many, {PROBES} may be set: remove some")
    return found


def _line(night: Night) -> dict[str, Any]:
    """Without words of the day."""
    told = {name: value for name, value in asdict(night).items() if name != "report"}
    if night.report:
        told |= {name: night.report[name] for name in NUMBERS} | {"held": len(night.report["quarantined"])}
    return plain(told)


def routes(service: Service) -> APIRouter:
    """Of one service."""
    found = APIRouter(prefix="/v1/learners/{name}")
    Who = Annotated[Key, Depends(service.who)]
    Number = Annotated[int, Path(ge=1, lt=2**62)]

    async def change(request: Request, key: Key, name: str, action: str, work: Work, form: Change) -> Any:
        job = service.jobs.submit(name, action, work, key, night=action == "sleep")
        return await replied(service, request, job, form.stream, form.wait)

    @found.post("/sleep")
    async def to_bed(name: Name, form: Sleep, request: Request, key: Who) -> Any:
        service.allow(key, name, "teach")
        # What cannot be is said now: who does not wait would have to ask the job.
        asked_for(form.preset, form.minutes, form.compute, form.seed, form.days, form.fit, form.changes())
        service.reads.current(name, form.branch)
        work = watched(service, name, sleep(service, name, form), "night")
        return await change(request, key, name, "sleep", work, form)

    @found.get("/nights")
    async def listed(name: Name, request: Request, key: Who, branch: Name = "main") -> Any:
        service.allow(key, name, "read")

        def work() -> dict[str, Any]:
            with service.looking(name, branch) as me:
                told = [_line(night) for night in me.nights()]
                return {"object": "list", "unfinished": stopped(me), "data": told}

        return await unless_gone(request, service.read(name, work))

    async def one(request: Request, key: Key, name: str, number: int, branch: str) -> Night:
        service.allow(key, name, "teach")  # a report quotes what was observed and dreamed

        def work() -> Night:
            service.reads.current(name, branch)
            told = {night.number: night for night in nights(service.reads, name, branch)}
            if number not in told:
                there = ", ".join(map(str, told)) or "none"
                raise Refused(404, f"there is no night {number}; there is {there}", "night_not_found", "number")
            return told[number]

        return await unless_gone(request, service.read(name, work))

    @found.get("/nights/{number}")
    async def report(name: Name, number: Number, request: Request, key: Who, branch: Name = "main") -> Any:
        return plain({"object": "night", **asdict(await one(request, key, name, number, branch))})

    @found.get("/nights/{number}/page")
    async def page(name: Name, number: Number, request: Request, key: Who, branch: Name = "main") -> Any:
        night = await one(request, key, name, number, branch)
        return HTMLResponse(night.html(), headers={"Content-Security-Policy": POLICY})

    @found.get("/quarantine")
    async def quarantine(name: Name, request: Request, key: Who, branch: Name = "main") -> Any:
        service.allow(key, name, "read")

        def work() -> dict[str, Any]:
            with service.looking(name, branch) as me:
                return plain({"object": "list", "data": me.quarantine()})

        return await unless_gone(request, service.read(name, work))

    @found.post("/quarantine/admit")
    async def admit(name: Name, form: Decision, request: Request, key: Who) -> Any:
        service.allow(key, name, "teach")
        return await change(request, key, name, "admit", decide(service, name, "admit", form), form)

    @found.post("/quarantine/drop")
    async def drop(name: Name, form: Decision, request: Request, key: Who) -> Any:
        service.allow(key, name, "teach")
        return await change(request, key, name, "drop", decide(service, name, "drop", form), form)

    @found.get("/due")
    async def due(name: Name, request: Request, key: Who, branch: Name = "main") -> Any:
        service.allow(key, name, "read")

        def work() -> dict[str, Any]:
            with service.looking(name, branch) as me:
                policy, now = me.policy, me.due()
                return plain({"object": "due", "due": bool(now), "policy": policy, **asdict(now)})

        return await unless_gone(request, service.read(name, work))

    @found.get("/probes")
    async def probes(name: Name, request: Request, key: Who, branch: Name = "main") -> Any:
        service.allow(key, name, "read")

        def work() -> dict[str, Any]:
            with service.looking(name, branch) as me:
                asked = [{"name": p.name, "kind": p.kind, "max": p.max, "rise": p.rise, "action": p.action}
                         for p in me.guard.probes]  # fmt: skip
                told = [{"version": v.number, "parent": v.parent, "reason": v.reason, "scores": v.probes}
                        for v in me.versions(100)]  # fmt: skip
                return plain({"object": "probes", "probes": asked, "data": told})

        return await unless_gone(request, service.read(name, work))

    @found.post("/probes")
    async def asked(name: Name, form: Probes, request: Request, key: Who) -> Any:
        service.allow(key, name, "admin")
        return await change(request, key, name, "probes", ask(service, name, form), form)

    return found
