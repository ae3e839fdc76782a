"""What can go wrong with a store, in words that say what to do."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StoreError(ValueError):
    """The store cannot do what was asked."""


class Busy(StoreError):
    """Somebody else holds what this needs."""


class Damaged(StoreError):
    """A file or a row is not what was written."""


class Full(OSError):
    """No room is left, or a limit on the size of files is reached."""


class Unwritable(OSError):
    """The folder or one of its files cannot be written."""


_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
_SAFE = "every version that was committed is still there"


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the operating system into the ones above."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(error, folder) from error
    except (Full, Unwritable):
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise Full(
                error.errno, f"no room to write ({error.strerror}): free some and try again; {_SAFE}", str(folder)
            ) from error
        if error.errno in _UNWRITABLE:
            text = f"cannot be written ({error.strerror}): give this user the right to write, or copy the store"
            raise Unwritable(error.errno, text, str(error.filename or folder)) from error
        raise


def _explain(error: sqlite3.Error, folder: Path) -> Exception:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith("SQLITE_FULL") or name == "SQLITE_IOERR_WRITE" or name == "SQLITE_IOERR_SHMSIZE":
        return Full(errno.ENOSPC, f"no room to write ({error}): free some and try again; {_SAFE}", str(folder))
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        text = f"cannot be written ({error}): give this user the right to write, or copy the store"
        return Unwritable(errno.EACCES, text, str(folder))
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Busy(f"{folder}: another process is writing to the database ({error}): try again")
    if name.startswith("SQLITE_IOERR"):
        return OSError(
            errno.EIO, f"the disk does not do its work ({error}): check it; {_SAFE} if it can be read", str(folder)
        )
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)
    ):
        return Damaged(
            f"{folder}: the database is damaged or none ({error}): restore store.db from a backup or an export"
        )
    return error
