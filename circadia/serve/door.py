"""What every request passes before anything reads it: host, origin, size; and what every reply carries.

A page of another site can make a browser on this machine call 127.0.0.1. So the Host must be one of ours (a name that
was pointed here later is not), and a request that names another origin is refused, whatever it asks for.
"""

import json
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from circadia.serve.errors import Refused, of
from circadia.serve.service import Service

log = logging.getLogger("circadia.serve")
LOCAL = {"localhost", "127.0.0.1", "::1"}


class Door:
    """ASGI middleware: streams pass through untouched."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service, self.settings = app, service, service.settings
        self.hosts = {host.lower() for host in (*self.settings.hosts, self.settings.host)} | LOCAL

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), 0

        async def sends(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        try:
            limit = self._check(scope)
            await self.app(scope, _counted(receive, limit), sends)
        except Exception as error:
            if status:
                raise  # it has begun: the connection is all that can be closed
            refused = (
                Refused(error.status_code, str(error.detail))
                if isinstance(error, HTTPException)
                else of(error, self.service.paths)
            )
            await refused.response()(scope, receive, sends)
        finally:
            self._note(scope, status, time.monotonic() - begin)

    def _check(self, scope: Any) -> int:
        """Refuse, or tell how large a body may be."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "") if _sane(host) else ""
        if (self.settings.loopback or self.settings.hosts) and name.lower() not in self.hosts:
            raise Refused(421, "this host is not served here: use the address that the server was given", "wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin not in self.settings.origins and urlsplit(origin).netloc != host:
            raise Refused(403, "pages of this origin may not call this server; --origin allows one", "wrong_origin")
        path, limit = scope["path"], self.settings.body
        if path == "/v1/learners/import":
            limit = self.settings.archive
        elif path.endswith("/files"):
            limit = self.settings.upload
        length = headers.get("content-length")
        if length is not None and (not length.isdigit() or int(length) > limit):
            raise Refused(413, f"the body is larger than {limit} bytes: send less at a time", "body_too_large")
        return limit

    def _note(self, scope: Any, status: int, seconds: float) -> None:
        """Method, path and status; no query, no body, no header."""
        metrics = self.service.metrics
        metrics.add("requests_total")
        metrics.add("errors_total", status >= 500)
        metrics.add("refused_total", status == 429)
        line = {"method": scope["method"], "path": scope["path"][:200], "status": status, "seconds": round(seconds, 4)}
        log.info(json.dumps(line))


def _sane(host: str) -> bool:
    """Whether it can be parsed at all."""
    try:
        urlsplit(f"//{host}").port  # noqa: B018
    except ValueError:
        return False
    return True


def _counted(receive: Any, limit: int) -> Any:
    """A body without a length, or with a wrong one, ends at the limit as well."""
    read = 0

    async def counted() -> Any:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise HTTPException(413, f"the body is larger than {limit} bytes: send less at a time")
        return message

    return counted
