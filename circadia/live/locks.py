"""Locks of the operating system: they end with the process that holds them, so that a kill leaves none behind."""

import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from circadia.live.errors import Busy, StoreError, explained

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: "weakref.WeakSet[IO[str]]" = weakref.WeakSet()


@contextmanager
def held(path: Path, shared: bool = False, wait: float = 0.0) -> Iterator[IO[str]]:
    """The lock of a file, for one or shared; whoever holds it may have written into the file who they are."""
    if fcntl is None:
        raise StoreError("a store needs the file locks of Linux, macOS or another POSIX system")
    with explained(path.parent):
        opened = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    with opened as file:
        _held.add(file)  # each opening locks for itself, so that this also holds between threads
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    file.seek(0)
                    raise Busy(
                        f"{path} is held by {file.read().strip() or 'another process'}: try again later"
                    ) from None
                time.sleep(0.003)
        yield file


def _forget() -> None:
    """A forked child closes its copies: else it would hold the lock after its parent."""
    null = os.open(os.devnull, os.O_RDWR)
    for file in list(_held):
        if not file.closed:
            os.dup2(null, file.fileno(), inheritable=False)
    os.close(null)


os.register_at_fork(after_in_child=_forget)
