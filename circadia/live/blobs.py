"""Tensors on disk: immutable safetensors files, each named by the SHA-256 of its bytes.

A file holds the tensors that one commit changed, each under its own hash; what did not change stays in the files of
earlier commits.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from circadia.files import sync, write_whole
from circadia.live.errors import Damaged, StoreError
from circadia.live.packed import NAMES, pack, pick, raw

SUFFIX = ".safetensors"
BLOCK = 1 << 20
_NUMPY = {torch.float16, torch.float32, torch.float64}


def digest(x: Tensor) -> bytes:
    """SHA-256 of type, shape and bytes."""
    found = hashlib.sha256(f"{x.dtype} {tuple(x.shape)};".encode())
    found.update(raw(x).data)
    return found.digest()


def copy(x: Tensor) -> Tensor:
    """In memory of its own, by one thread: torch's own way waits for its threads, which is slow on a busy machine."""
    own = torch.empty(x.shape, dtype=x.dtype)
    raw(own)[:] = raw(x)
    return own


def plain(name: str, x: Tensor) -> Tensor:
    """As it is stored: a copy on the CPU, in order, without a graph."""
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_complex() or x.is_quantized or x.is_meta:
        raise StoreError(f"state[{name!r}] is {x!r:.80}: a state holds dense real tensors only")
    if x.dtype not in NAMES:
        raise StoreError(f"state[{name!r}] is {x.dtype}, which no safetensors file holds: give it another type")
    x = copy(x.detach().cpu().contiguous())  # what is hashed is written, whatever the caller does to his meanwhile
    if x.is_floating_point() and np.isnan(x.numpy() if x.dtype in _NUMPY else x.float().numpy()).any():
        raise StoreError(f"state[{name!r}] holds NaN: it is not stored; go back to the version before")
    return x


class Blobs:
    """The folder. Whoever writes or removes holds the lock of the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where the blob of a hash lies."""
        return self.folder / f"{name}{SUFFIX}"

    def write(self, tensors: dict[bytes, Tensor]) -> tuple[str, int]:
        """Name and size of the file that now holds them; a kill leaves the whole file or a temporary one."""
        content = pack({key.hex(): x for key, x in tensors.items()})
        name = hashlib.sha256(content).hexdigest()
        write_whole(self.path(name), content)
        return name, len(content)

    def read(self, name: str, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Tensors of one file, each as it was written or an error."""
        path = self.path(name)
        found = {}
        try:
            for text, x in pick(path, [key.hex() for key in keys]):
                if digest(x) != (key := bytes.fromhex(text)):
                    raise Damaged(f"{path} is damaged (a tensor has changed): {FIX}")
                found[key] = x
        except FileNotFoundError:
            raise Damaged(f"{path} is missing: {FIX}") from None
        except Damaged:
            raise
        except (ValueError, OSError) as error:
            raise Damaged(f"{path} is damaged ({error}): {FIX}") from None
        return found

    def fault(self, name: str) -> str | None:
        """What is wrong with the bytes of a file."""
        found = hashlib.sha256()
        try:
            with open(self.path(name), "rb") as file:
                while block := file.read(BLOCK):
                    found.update(block)
        except FileNotFoundError:
            return f"{self.path(name)} is missing"
        except OSError as error:
            return f"{self.path(name)} cannot be read ({error.strerror})"
        return None if found.hexdigest() == name else f"{self.path(name)} is damaged (its bytes have another hash)"

    def names(self) -> set[str]:
        """The blobs that lie in the folder."""
        with os.scandir(self.folder) as entries:
            return {e.name.removesuffix(SUFFIX) for e in entries if e.name.endswith(SUFFIX) and e.name[0] != "."}

    def unfinished(self) -> list[Path]:
        """Temporary files; nobody writes now, so they were left behind."""
        return sorted(self.folder.glob(".*.tmp"))

    def remove(self, names: Iterable[str], wipe: bool) -> None:
        """Unlink files that may be gone already; overwritten first, if what they held must not be found again."""
        for name in names:
            path = self.path(name)
            if path.exists():
                discard(path, wipe)
        sync(self.folder)


FIX = "restore it from a backup or an export, or roll back; `verify` lists what else is damaged"


def discard(path: Path, wipe: bool) -> None:
    """Unlink one file."""
    if wipe:
        with open(path, "r+b") as file:
            left = os.fstat(file.fileno()).st_size
            while left > 0:
                left -= file.write(bytes(min(left, BLOCK)))
            file.flush()
            os.fsync(file.fileno())
    path.unlink()
