"""What a server is told: where base and store are, and every limit."""

import ipaddress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Sizes are in bytes, times in seconds. Every limit is one that a request can reach."""

    base: Any  # a folder, a Hub id, or a model in memory
    store: str | Path
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "base"  # of the frozen model; a learner is NAME@LEARNER
    tokenizer: str | None = None  # default the base's
    by_user: bool = False  # the field `user` chooses the learner where the model is the base
    hosts: tuple[str, ...] = ()  # further values of Host that are answered
    origins: tuple[str, ...] = ()  # web pages of other origins that may call
    cache: int = 4 << 30  # memories of learners that are held for reading
    batch: int = 8  # answers that are made in one forward pass, where the base allows it; 1: each by itself
    readers: int = 2  # answers that are made at once where each is made by itself
    teachers: int = 1  # learners that are written at once
    sleepers: int = 1  # nights at once, beside these
    watch: float = 60.0  # between two looks at the clock, for nights by `hour` and `idle`; 0: none begins by itself
    queue: int = 64  # requests that wait for an answer, of all
    queue_one: int = 16  # of one learner, with those at work
    jobs: int = 64  # changes that wait, of all; and as many nights
    jobs_one: int = 8  # of one learner, with the one at work
    seconds: float = 300.0  # of one answer, with its waiting
    job_seconds: float = 3600.0  # of one change, from when it begins; of a night most of that is its budget
    body: int = 4 << 20  # of a JSON body
    upload: int = 64 << 20  # of a text file to observe
    archive: int = 2 << 30  # of a file to import
    context: int = 32768  # tokens of a prompt and its answer, where the base has no limit of its own
    tokens: int = 256  # of an answer, by default
    most_tokens: int = 8192  # of an answer, at most
    learners: int = 1000
    completions: int = 2000  # that feedback can still be given on
    completion_tokens: int = 4 << 20  # of these at most, with their prompts
    rate: int = 0  # requests a minute of one key; 0: no limit
    grace: float = 30.0  # at the end, for changes to reach a border

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("port", "rate", "cache", "watch") else 1
            if field.type in (int, float) and (isinstance(value, bool) or not value >= least):
                raise ValueError(f"{field.name}={value!r} must be at least {least}")
        if not self.name or "@" in self.name:
            raise ValueError(f"name={self.name!r}: give a name without '@', which stands before a learner's name")

    @property
    def loopback(self) -> bool:
        """Can only this machine reach it?"""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
