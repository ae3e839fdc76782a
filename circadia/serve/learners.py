"""/v1/learners: their lives over HTTP. Every reply to a change names the version that is current after it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from circadia.live.status import group
from circadia.serve import learn
from circadia.serve.errors import Refused
from circadia.serve.forms import Branch, Change, Feedback, Forget, Name, NewLearner, Observe, Rollback, Set, Source
from circadia.serve.jobs import LISTENED, Job, Work
from circadia.serve.keys import Key
from circadia.serve.reply import event, plain, stream, unless_gone
from circadia.serve.service import Service


async def replied(service: Service, request: Request, job: Job, streamed: bool, wait: bool, status: int = 200) -> Any:
    """The result of a job, its progress and result as events, or only its number."""
    if streamed:
        return stream(_progress(service, job))
    if not wait:
        return JSONResponse(job.shown(), 202)
    try:
        await unless_gone(request, job.done.wait())
    except (Refused, asyncio.CancelledError):
        service.jobs.cancel(job)
        raise
    if job.error is not None:
        raise job.error.bare()
    return JSONResponse(job.result, status)


async def _progress(service: Service, job: Job) -> AsyncIterator[str]:
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(LISTENED)
    job.listeners.add(queue)
    try:
        if not job.done.is_set():
            yield event({"event": "accepted", "job": job.id})
            while (progress := await queue.get()) is not None:
                yield event({"event": "progress", **progress})
        yield event(job.error.body() if job.error else {"event": "result", **(job.result or {})})
        yield event("[DONE]")
    finally:
        job.listeners.discard(queue)
        if not job.done.is_set():
            service.jobs.cancel(job)  # nobody listens any more


def routes(service: Service) -> APIRouter:
    """Of one service."""
    found = APIRouter(prefix="/v1")

    Who = Annotated[Key, Depends(service.who)]

    async def change(request: Request, key: Key, name: str, action: str, work: Work, form: Change) -> Any:
        job = service.jobs.submit(name, action, work, key)
        return await replied(service, request, job, form.stream, form.wait)

    @found.post("/learners", status_code=201)
    async def create(form: NewLearner, request: Request, key: Who) -> Any:
        service.allow(key, form.name, "admin", there=False)
        job = service.jobs.submit(form.name, "create", learn.create(service, form), key)
        return await replied(service, request, job, False, True, 201)

    @found.get("/learners")
    async def several(key: Who) -> Any:
        lives = [service.reads.learner(name) for name in service.reads.learners() if key.sees(name)]
        entries = [{"name": life.name, "object": "learner", "model": f"{service.settings.name}@{life.name}",
                    "created": int(life.time), "branches": life.branches} for life in lives]  # fmt: skip
        return {"object": "list", "data": entries}

    @found.get("/learners/{name}")
    async def status(name: Name, request: Request, key: Who, branch: Name = "main") -> Any:
        service.allow(key, name, "read")

        def work() -> dict[str, Any]:
            with service.looking(name, branch) as me:
                told = me.status()
            told["busy"] = told.pop("writer") is not None
            del told["found"]  # for whoever runs the server
            if told["night"] is not None:
                del told["night"]["report"]  # it quotes the day, and has a route of its own
            return plain({"object": "learner", **told})

        return await unless_gone(request, service.read(name, work))

    @found.patch("/learners/{name}")
    async def settings(name: Name, form: Set, request: Request, key: Who) -> Any:
        service.allow(key, name, "admin")
        action = f"conversations {'on' if form.conversations else 'off'}"
        return await change(request, key, name, action, learn.set_(service, name, form), form)

    @found.delete("/learners/{name}")
    async def delete(name: Name, request: Request, key: Who) -> Any:
        service.allow(key, name, "admin")
        return await change(request, key, name, "delete", learn.delete(service, name), Change())

    @found.post("/learners/{name}/observe")
    async def observe(name: Name, form: Observe, request: Request, key: Who) -> Any:
        service.allow(key, name, "teach")
        what = form.text if form.text is not None else [message.plain() for message in form.messages or ()]
        work = learn.observe(service, name, form.branch, what, form.source, form.trust)
        return await change(request, key, name, "observe", watched(service, name, work), form)

    @found.post("/learners/{name}/files")
    async def file(
        name: Name, request: Request, key: Who, source: Annotated[Source, Query()] = "file",
        trust: Annotated[float, Query(ge=0, le=1)] = 1.0, branch: Name = "main", stream: bool = False,
        wait: bool = True,
    ) -> Any:  # fmt: skip
        service.allow(key, name, "teach")
        try:
            text = (await request.body()).decode()
        except UnicodeDecodeError as error:
            raise Refused(400, f"the file is no UTF-8 text (at byte {error.start}): send plain text") from None
        if "\0" in text:
            raise Refused(400, "the file holds zero bytes, which text has not: send plain text")
        work = learn.observe(service, name, branch, text.removeprefix("\ufeff"), source, trust)
        form = Change(branch=branch, stream=stream, wait=wait)
        return await change(request, key, name, "observe", watched(service, name, work), form)

    @found.post("/learners/{name}/feedback")
    async def feedback(name: Name, form: Feedback, request: Request, key: Who) -> Any:
        service.allow(key, name, "teach")
        return await change(request, key, name, "feedback", learn.feedback(service, name, form), form)

    @found.get("/learners/{name}/versions")
    async def versions(
        name: Name, request: Request, key: Who, limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=1, lt=2**62)] = None,
    ) -> Any:  # fmt: skip
        service.allow(key, name, "read")

        def work() -> dict[str, Any]:
            branches, rows = service.reads.learner(name).branches, service.reads.versions(name, limit, before)
            return plain({"object": "list", "branches": branches, "data": [asdict(row) for row in rows]})

        return await unless_gone(request, service.read(name, work))

    @found.get("/learners/{name}/diff")
    async def diff(
        name: Name, request: Request, key: Who, a: Annotated[int, Query(ge=1, lt=2**62)],
        b: Annotated[int, Query(ge=1, lt=2**62)],
    ) -> Any:  # fmt: skip
        service.allow(key, name, "read")

        def work() -> dict[str, Any]:
            return plain({"object": "diff", "a": a, "b": b, **asdict(service.reads.diff(name, a, b, group))})

        return await unless_gone(request, service.read(name, work))

    @found.post("/learners/{name}/rollback")
    async def rollback(name: Name, form: Rollback, request: Request, key: Who) -> Any:
        service.allow(key, name, "teach")
        return await change(request, key, name, "rollback", learn.rollback(service, name, form), form)

    @found.post("/learners/{name}/branch")
    async def branch(name: Name, form: Branch, request: Request, key: Who) -> Any:
        service.allow(key, name, "teach")
        return await change(request, key, name, "branch", learn.branch(service, name, form), form)

    @found.post("/learners/{name}/forget")
    async def forget(name: Name, form: Forget, request: Request, key: Who) -> Any:
        service.allow(key, name, "teach")
        return await change(request, key, name, "forget", learn.forget(service, name, form), form)

    @found.get("/learners/{name}/changes")
    async def changes(name: Name, key: Who, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Any:
        service.allow(key, name, "admin")
        return {"object": "list", "data": service.keys.changes(name, limit)}

    @found.get("/learners/{name}/events")
    async def events(name: Name, key: Who) -> Any:
        service.allow(key, name, "read")
        service.watchable()

        async def told() -> AsyncIterator[str]:
            with service.watching(name) as queue:
                yield event({"event": "watching", "learner": name})
                while True:
                    try:
                        now = await asyncio.wait_for(queue.get(), 15)
                    except TimeoutError:
                        yield ": still here\n\n"
                        continue
                    if now is None:
                        return
                    yield event(now)

        return stream(told())

    def mine(id: str, key: Key) -> Job:
        job = service.jobs.all.get(id)
        if job is None or not key.sees(job.learner):
            raise Refused(404, f"there is no job {id[:60]!r}, or this key has no right to it", "job_not_found")
        return job

    @found.get("/jobs/{id}")
    async def job(id: str, key: Who) -> Any:
        return mine(id, key).shown()

    @found.delete("/jobs/{id}")
    async def cancel(id: str, key: Who) -> Any:
        job = mine(id, key)
        if not key.may("teach"):
            raise Refused(403, f"this key has scope {key.scope!r}, 'teach' is needed", "scope")
        service.jobs.cancel(job)
        return job.shown()

    return found


def watched(service: Service, name: str, work: Work, what: str = "chunk") -> Work:
    """Progress goes to everybody who watches the learner, too."""

    def both(job: Job) -> dict[str, Any]:
        tell = job.tell

        def told(progress: dict[str, Any]) -> None:
            tell(progress)
            job.loop.call_soon_threadsafe(service.publish, name, {"event": what, **progress})

        job.tell = told  # type: ignore[method-assign]
        return work(job)

    return both
