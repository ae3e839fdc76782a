"""What this machine has. Standard library only."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def home() -> Path:
    """Where what can be made again is kept: CIRCADIA_HOME, or ~/.circadia; a folder of this user's among the temporary
    files, where the home folder cannot be written or there is none.
    """
    if place := os.environ.get("CIRCADIA_HOME"):
        return Path(place).expanduser()
    found = Path(os.path.expanduser("~")) / ".circadia"  # Path.home() raises for a user without a home
    if found.is_absolute() and writable(found):
        return found
    return Path(tempfile.gettempdir()) / f"circadia-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def writable(path: Path) -> bool:
    """A folder that is not there yet is writable if its nearest existing parent is."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def memory(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Total and available bytes, without swap; None where the system does not say.

    Inside a container the limits of its control group and of all groups above it count. ``root`` is where /proc and
    /sys are looked for.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None, None
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        field = dict(line.split(":", 1) for line in lines if ":" in line)
        available = int(field["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return total, None
    for limit, used in _groups(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return total, available


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of every control group this process is under, version 1 or 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup"
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            top, names = top / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        here = top / path.lstrip("/")
        # Without a namespace of its own a container sees the host's path here, and its own group as the top.
        for folder in (here, *here.parents):
            if not folder.is_relative_to(top):
                break
            try:
                limit, used = int((folder / names[0]).read_text()), int((folder / names[1]).read_text())
                stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such group, or "max": no limit
                continue
            yield limit, used - int(stat.get(names[2], 0))
