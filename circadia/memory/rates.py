"""The rates that memories give to the tokens they write, for whoever listens.

    with hearing() as heard:
        model(ids)
    heard["eta"]    a tensor of every memory that has written with learned rates

"eta" are the rates of memory rules, "cms" the weights of tokens in levels of a continuum memory system.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Heard = dict[str, list[Tensor]]
_HEARD: ContextVar[Heard | None] = ContextVar("heard", default=None)


def tell(kind: str, rates: Tensor) -> None:
    """Nobody listens: nothing is done. What is compiled is silent."""
    if torch.compiler.is_compiling():
        return
    heard = _HEARD.get()
    if heard is not None:
        heard.setdefault(kind, []).append(rates.detach())


@contextmanager
def hearing() -> Iterator[Heard]:
    """What is told inside the block, in this thread."""
    heard: Heard = {}
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)
