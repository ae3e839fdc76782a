"""Errors in OpenAI's form, and which failure of the library is which.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from circadia.live.errors import Busy, Damaged, Full, Unwritable

log = logging.getLogger("circadia.serve")
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class Refused(Exception):
    """What a client is told."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, retry: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry = status, message, code, param, retry

    def body(self) -> dict[str, Any]:
        """In OpenAI's form."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        said, param = (None if x is None else x.encode("utf-8", "replace").decode() for x in (self.message, self.param))
        return {"error": {"message": said, "type": kind, "param": param, "code": self.code}}

    def bare(self) -> "Refused":
        """To be kept or raised anew: without the frames that it went through, which hold texts and memories."""
        return Refused(self.status, self.message, self.code, self.param, self.retry)

    def response(self) -> JSONResponse:
        """With Retry-After, where it is worth trying again."""
        headers = {} if self.retry is None else {"Retry-After": str(max(1, round(self.retry)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def missing(name: str) -> Refused:
    """The same for a learner that is not there and for one that is somebody else's."""
    return Refused(404, f"there is no learner {name!r}, or this key has no right to it", "learner_not_found", "learner")


def of(error: BaseException, paths: Mapping[str, str]) -> Refused:
    """What a failure means to a client; `paths` of this machine are replaced by words."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(
            409, "another process is writing this learner or the store: try again later", "learner_busy", retry=5
        )
    if isinstance(error, (Full, Unwritable)):
        log.error("the store cannot be written: %s", error)
        return Refused(507, "the server cannot write its store; every committed version is still there", "store_full")
    if isinstance(error, Damaged):
        log.error("damaged: %s", error)
        return Refused(500, "what is stored is damaged: whoever runs the server finds more in its log", "damaged")
    if isinstance(error, ValueError):
        text = " ".join(str(error).split())
        if "this store has no learner of this name" in text:  # it goes on with the names of others
            return Refused(404, "there is no such learner", "learner_not_found")
        for path, word in paths.items():
            text = text.replace(path, word)
        return Refused(400, text[:500], "invalid_value")
    # Type and place only: the message of an unknown error may hold a user's words.
    log.error("internal error: %s in %s", type(error).__name__, _place(error))
    return Refused(500, f"internal error ({type(error).__name__})", "internal_error")


def _place(error: BaseException) -> str:
    trace, found = error.__traceback__, "?"
    while trace is not None:
        code = trace.tb_frame.f_code
        found, trace = f"{code.co_filename}:{trace.tb_lineno} ({code.co_qualname})", trace.tb_next
    return found


def install(app: FastAPI, paths: Mapping[str, str]) -> None:
    """Every error that leaves the application has this form."""

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
        said = first["msg"].removeprefix("Value error, ")
        param = ".".join(where)[:100] or None
        return Refused(400, f"{param or 'body'}: {said}"[:500], "invalid_value", param).response()

    async def plain(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        texts = {404: f"there is no {request.method} {request.url.path[:200]}",
                 405: f"{request.method} is not possible here"}  # fmt: skip
        return Refused(error.status_code, texts.get(error.status_code, str(error.detail))).response()

    async def other(request: Request, error: Exception) -> JSONResponse:
        return of(error, paths).response()

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    for kind in (Refused, ValueError, OSError):
        app.add_exception_handler(kind, other)
