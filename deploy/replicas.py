"""One address for several servers: ``python deploy/replicas.py http://127.0.0.1:8001 http://127.0.0.1:8002``.

A learner lives on the server that its name chooses (highest random weight: another server more takes 1/N of the names;
move those with export and import). The name is in the path, or in the model `base@NAME`; what names no learner goes to
the first server, and lists are put together. Listens on port 8000. It needs httpx beside circadia[serve].
"""

import contextlib
import hashlib
import json
import re
import sys

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

HOP = {"host", "content-length", "connection", "transfer-encoding", "keep-alive"}  # headers of one connection


def place(learner: str, servers: int) -> int:
    """The number of its server."""
    return max(range(servers), key=lambda i: hashlib.sha256(f"{learner} {i}".encode()).digest())


def learner_of(request: Request, body: bytes) -> str | None:
    """Whom a request is about."""
    if found := re.match(r"/v1/learners/(?!import)([^/]+)|/v1/models/[^@]+@([^/:]+)", request.url.path):
        return found[1] or found[2]
    try:
        given = json.loads(body or b"{}")
        model = f"@{given['name']}" if request.url.path == "/v1/learners" else given["model"]
        return model.partition("@")[2].partition(":")[0] or None
    except (ValueError, KeyError, TypeError, AttributeError):
        return request.query_params.get("name")  # of an import


def front(urls: list[str]) -> Starlette:
    """Hands requests on as they came. It reads a body whole, to see its model."""
    servers = [httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) for url in urls]

    @contextlib.asynccontextmanager
    async def life(app: Starlette):
        yield
        for server in servers:
            await server.aclose()

    async def handle(request: Request) -> Response:
        body, path = await request.body(), request.url.path
        learner, listed = learner_of(request, body), request.method == "GET" and path in ("/v1/learners", "/v1/models")
        everyone = listed or path.startswith("/v1/jobs/")  # a job is known to one of them
        data: dict[str, dict] = {}
        for server in servers if everyone else [servers[place(learner, len(urls)) if learner else 0]]:
            headers = [(name, value) for name, value in request.headers.items() if name not in HOP]
            target = httpx.URL(path=path, query=request.url.query.encode())
            made = server.build_request(request.method, target, headers=headers, content=body)
            reply = await server.send(made, stream=True)
            if not listed and (not everyone or reply.status_code != 404):
                kept = {name: value for name, value in reply.headers.items() if name not in HOP}
                end = BackgroundTask(reply.aclose)
                return StreamingResponse(reply.aiter_raw(), reply.status_code, kept, background=end)
            told = json.loads(await reply.aread())
            data |= {one.get("id") or one["name"]: one for one in told.get("data", ())}
        return JSONResponse(told | {"data": list(data.values())} if listed else told, reply.status_code)

    return Starlette(routes=[Route("/{path:path}", handle, methods=["GET", "POST", "PATCH", "DELETE"])], lifespan=life)


if __name__ == "__main__":
    uvicorn.run(front(sys.argv[1:]), port=8000)
