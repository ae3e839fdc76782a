"""A server in a process of its own, for measurements under load and kills: forked, so that it starts at once.

Fork only while this process has no other threads.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import torch

from circadia.models.retrofit import RetrofitModel, retrofit
from circadia.serve.app import Server
from circadia.serve.service import Service
from circadia.serve.settings import Settings

NIGHT = {"presentations": 4, "length": 12, "dreams": 8, "dream_length": 8}  # a short one
WORDS = ["the", "a", "fox", "dog", "jumps", "over", "lazy", "quick", "brown", "and", "then", "it", "was", "not", "here"]


def base(width: int = 32, layers: int = 2, dtype: torch.dtype = torch.float64) -> RetrofitModel:
    """Random layers over bytes. In float64 a batch and a row alone choose the same tokens; in float32 nearly always."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    return retrofit(LlamaForCausalLM(config).to(dtype).eval(), [32, 64], context=32)


class _Telling(Server):
    """Says its port when it listens."""

    def __init__(self, service: Service, pipe: int) -> None:
        super().__init__(service)
        self.pipe = pipe

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        os.write(self.pipe, str(self.servers[0].sockets[0].getsockname()[1]).encode())
        os.close(self.pipe)


class Forked:
    """One that runs until it is told to end, or killed."""

    def __init__(self, model: Any, store: Path, **settings: Any) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(read)
                _Telling(Service(Settings(base=model, store=store, port=0, **settings)), write).run()
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        with open(read, "rb") as pipe:
            port = pipe.read()
        if not port:
            raise RuntimeError(f"the server did not start: {os.waitpid(self.pid, 0)}")
        self.url = f"http://127.0.0.1:{int(port)}"

    def kill(self) -> None:
        """At once, and wait for it."""
        self.end(signal.SIGKILL)

    def end(self, how: int = signal.SIGTERM) -> int:
        """By a signal; its exit status."""
        os.kill(self.pid, how)
        return os.waitpid(self.pid, 0)[1]

    @property
    def bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


async def until(end: float, work: Callable[[], Awaitable[None]]) -> None:
    """Again and again."""
    while time.monotonic() < end:
        await work()
        await asyncio.sleep(0)
