"""A learner's whole life as a file: export and import. Names of files are made here, never taken from a request."""

import asyncio
import secrets
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from circadia.live.errors import Busy, Full, Unwritable
from circadia.serve.errors import Refused
from circadia.serve.forms import Name
from circadia.serve.jobs import Job, Work
from circadia.serve.keys import Key
from circadia.serve.learners import replied
from circadia.serve.service import Service

ROWS = 512 << 20  # bytes of learner.json, which is read as a whole


def _export(service: Service, name: str, path: Path) -> Work:
    def work(job: Job) -> dict[str, Any]:
        done = service.writes.export(name, path)
        version = service.writes.current(name)
        return {"learner": name, "version": version.number if version else None, "file": done.file, "hash": done.hash}

    return work


def _import(service: Service, name: str, path: Path) -> Work:
    def work(job: Job) -> dict[str, Any]:
        if name in service.writes.learners():
            raise Refused(409, f"there is a learner {name!r} already: take another name", "learner_exists", "name")
        if len(service.writes.learners()) >= service.settings.learners:
            raise Refused(403, "this server holds as many learners as it may", "too_many_learners")
        try:
            _bounded(path, service.settings.archive)
            life = service.writes.import_(path, name)
        except (Busy, Full, Unwritable):
            raise
        except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise Refused(
                400, f"this is no export of a learner, or it is damaged ({type(error).__name__}): send what "
                "/export gave", "bad_archive"
            ) from None  # fmt: skip
        try:
            service.base.safe(life)
            service.base.reader(life)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            service.writes.delete(name)
            raise Refused(400, f"this learner does not fit this server's base: {error}"[:300], "wrong_base") from None
        version = service.writes.current(name)
        return {"learner": name, "model": f"{service.settings.name}@{name}", "branches": life.branches,
                "version": version.number if version else None}  # fmt: skip

    return work


def _bounded(path: Path, limit: int) -> None:
    """A small file may unpack to a large one."""
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        rows = sum(one.file_size for one in members if one.filename == "learner.json")
        if sum(one.file_size for one in members) > 4 * limit or rows > min(ROWS, limit):
            raise ValueError("it unpacks to more than is allowed")


def routes(service: Service) -> APIRouter:
    """Of one service."""
    found = APIRouter(prefix="/v1")

    Who = Annotated[Key, Depends(service.who)]

    @found.get("/learners/{name}/export")
    async def export(name: Name, request: Request, key: Who) -> Any:
        service.allow(key, name, "admin")
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=service.settings.store))
        path = folder / f"{name}-{secrets.token_hex(4)}.circadia"
        try:
            job = service.jobs.submit(name, "export", _export(service, name, path), key)
            await replied(service, request, job, False, True)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, True))
            raise
        assert job.result is not None
        headers = {"X-Circadia-SHA256": job.result["hash"], "X-Circadia-Version": str(job.result["version"] or 0)}
        return FileResponse(path, media_type="application/octet-stream", filename=path.name, headers=headers,
                            background=BackgroundTask(shutil.rmtree, folder, True))  # fmt: skip

    @found.post("/learners/import", status_code=201)
    async def import_(request: Request, key: Who, name: Annotated[Name, Query()]) -> Any:
        service.allow(key, name, "admin", there=False)
        folder = Path(tempfile.mkdtemp(prefix=".import-", dir=service.settings.store))
        try:
            path = folder / "learner.circadia"
            with open(path, "wb") as file:
                async for block in request.stream():
                    await asyncio.to_thread(file.write, block)
            job = service.jobs.submit(name, "import", _import(service, name, path), key)
            await job.done.wait()
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, True))
        return await replied(service, request, job, False, True, 201)

    return found


def sweep(store: str | Path) -> None:
    """What a kill left."""
    for pattern in (".export-*", ".import-*"):
        for folder in Path(store).glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
