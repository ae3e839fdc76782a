"""The application, and the server that runs it."""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from circadia import __version__
from circadia.serve import chat, errors, files, learners, nights
from circadia.serve.clock import Clockwork
from circadia.serve.door import Door
from circadia.serve.errors import Refused
from circadia.serve.keys import Key
from circadia.serve.service import Service
from circadia.serve.settings import Settings

PAGE = Path(__file__).parent / "page.html"


def policy(page: str) -> str:
    """The page brings everything that it needs: only its own script runs, and speaks to this server alone."""
    script = page[page.index("<script>") + len("<script>") : page.index("</script>")]
    seal = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{seal}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def application(service: Service) -> FastAPI:
    """What an ASGI server runs; the end of its life ends the service."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        files.sweep(service.settings.store)
        clock = Clockwork(service)
        watch = asyncio.create_task(clock.run())
        yield
        service.halt()
        clock.over.set()
        await watch
        await service.jobs.closing(service.settings.grace)
        service.pool.shutdown(wait=True)
        service.close()

    # FastAPI's own pages for the OpenAPI document load scripts from another host.
    app = FastAPI(title="Circadia", version=__version__, docs_url=None, redoc_url=None, lifespan=life)
    app.state.service = service
    errors.install(app, service.paths)
    for part in (chat, files, learners, nights):
        app.include_router(part.routes(service))
    if service.settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(service.settings.origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"], allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    app.add_middleware(Door, service=service)

    @app.get("/", include_in_schema=False)
    async def page() -> Any:
        text = PAGE.read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": policy(text)})

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok", "version": __version__}

    @app.get("/ready")
    async def ready() -> Any:
        full = not service.slots.free and service.slots.waiting >= service.settings.queue
        ok = not (service.stopping or full)
        return JSONResponse({"ready": ok, "stopping": service.stopping, "full": full}, 200 if ok else 503)

    def who(key: Key = Depends(service.who)) -> Key:  # noqa: B008
        if not (key.may("admin") and "*" in key.learners):
            raise Refused(403, "metrics tell of all learners together: an admin key for all is needed", "scope")
        return key

    @app.get("/metrics", dependencies=[Depends(who)])
    async def metrics() -> Any:
        return PlainTextResponse(service.metrics.text(service), media_type="text/plain; version=0.0.4")

    return app


class Server(uvicorn.Server):
    """Streams that never end by themselves are let go before uvicorn waits for them."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self.service = service
        super().__init__(
            uvicorn.Config(
                application(service), host=settings.host, port=settings.port, log_config=None, access_log=False,
                server_header=False, timeout_graceful_shutdown=int(settings.grace), ws="none",
            )
        )  # fmt: skip

    async def shutdown(self, sockets: Any = None) -> None:
        """Graceful: what is at work ends at a border."""
        self.service.halt()
        await super().shutdown(sockets)


def run(settings: Settings, key: str | bytes | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    Server(Service(settings, key)).run()
