"""Tensors as the bytes of a safetensors file, and one after another out of such a file.

The same bytes as `safetensors.torch.save` makes. That keeps a type for every size in bytes that it ever saw (5 kB each,
through ctypes), and `get_tensor` of a file keeps two numbers for every tensor: too much for a server that reads and
writes states of ever new sizes for weeks.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KINDS = {  # in the order in which they are stored: the widest first, so that all lie at a multiple of their size
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "U32": torch.uint32,
    "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16, "U16": torch.uint16, "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
NAMES = {kind: name for name, kind in KINDS.items()}
ORDER = {kind: i for i, kind in enumerate(NAMES)}


def raw(x: Tensor) -> Any:
    """Its bytes, as NumPy sees them: the same memory."""
    return x.reshape(-1).view(torch.uint8).numpy()


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The file; tensors are dense and on the CPU."""
    if odd := [x.dtype for x in tensors.values() if x.dtype not in NAMES]:
        raise ValueError(f"{odd[0]} cannot be stored: use one of {', '.join(str(kind) for kind in NAMES)}")
    chosen = sorted(tensors.items(), key=lambda item: (ORDER[item[1].dtype], item[0]))
    told, at = {}, 0
    for name, x in chosen:
        told[name] = {"dtype": NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    head = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *(raw(x.contiguous()).data for _, x in chosen)])


def pick(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """These of a file, each in memory of its own; ValueError where the file is not whole."""
    with open(path, "rb") as file:
        end = file.seek(0, 2)
        file.seek(0)
        begin = 8 + int.from_bytes(file.read(8), "little")
        if begin > end:
            raise ValueError("its head is cut off")
        told = json.loads(file.read(begin - 8))
        for name in names:
            try:
                kind, shape, (first, last) = (told[name][part] for part in ("dtype", "shape", "data_offsets"))
                fits = 0 <= first <= last <= end - begin and min(shape, default=0) >= 0
                if not fits or math.prod(shape) * KINDS[kind].itemsize != last - first:
                    raise ValueError(f"the place of {name} is wrong")
                x = torch.empty(shape, dtype=KINDS[kind])
            except (KeyError, TypeError) as error:
                raise ValueError(f"{name} is not in its head ({error!r})") from None
            file.seek(begin + first)
            if file.readinto(raw(x).data) != last - first:
                raise ValueError(f"{name} is cut off")
            yield name, x
