"""How replies leave: plain JSON, events, and the end of work that nobody waits for."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from circadia.serve.errors import Refused

T = TypeVar("T")
GONE = 499  # as web servers log it; nobody reads it


def plain(value: Any) -> Any:
    """What JSON can hold; numbers that are none become null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def event(value: Any) -> str:
    """One event of a stream. In ASCII: many clients end a line at U+0085 and U+2028, too."""
    return f"data: {value if isinstance(value, str) else json.dumps(plain(value))}\n\n"


def stream(events: AsyncIterator[str]) -> StreamingResponse:
    """Server-sent events; nothing on the way shall hold them back."""
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result, or the end of the work when the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refused(GONE, "the client has gone", "gone")
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
