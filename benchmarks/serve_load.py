"""Many clients on one server: ``python -m benchmarks.serve_load --minutes 5``.

Clients stream answers of learners and of the frozen base while others teach, and learners sleep. Nothing but 429 may be
refused, no event may be out of form, and memory may not grow. Afterwards each learner is rolled back to the versions
that answers came from, and the same is asked alone, with the same seed: every text must be what was streamed.
"""

import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.harness import Parser, machine, positive, write_json
from benchmarks.serving import NIGHT, WORDS, Forked, base, until

GROWTH, SLACK = 1.1, 32 << 20  # what memory may grow by, from the second fifth of the time to the last


@dataclass
class Answer:
    """What was asked, and what came."""

    who: str
    asked: dict[str, Any]
    version: int | None
    text: str
    tokens: int
    first: float
    seconds: float


@dataclass
class Seen:
    """Of a run."""

    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    nights: list[float] = field(default_factory=list)  # seconds of each, with its waiting


def request(chance: random.Random, who: str) -> dict[str, Any]:
    """A completion."""
    words = " ".join(chance.choices(WORDS, k=chance.randint(1, 20)))
    return {"model": f"base@{who}" if who else "base", "prompt": words, "max_tokens": chance.randint(8, 48),
            "seed": chance.randrange(2**31), "temperature": chance.choice([0.0, 1.0])}  # fmt: skip


async def streamed(http: httpx.AsyncClient, who: str, asked: dict[str, Any]) -> Answer | str | None:
    """One answer; None where the server had no room; what was wrong, in words."""
    begin, first, pieces, told, ids, ended = time.monotonic(), 0.0, [], [], set(), False
    body = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", "/v1/completions", json=body) as reply:
        if reply.status_code == 429:
            await asyncio.sleep(min(1.0, float(reply.headers["retry-after"])))
            return None
        if reply.status_code != 200:
            return f"{reply.status_code}: {(await reply.aread())[:200]!r}"
        async for line in reply.aiter_lines():
            if not line:
                continue
            if ended or not line.startswith("data: "):
                return f"out of form: {line[:100]!r}"
            if line == "data: [DONE]":
                ended = True
                continue
            now = json.loads(line[6:])
            if "error" in now:
                return f"an error in the stream: {now['error']['message']}"
            ids.add(now["id"])
            told.append(now)
            if now["choices"] and now["choices"][0]["text"]:
                first = first or time.monotonic() - begin
                pieces.append(now["choices"][0]["text"])
    if not ended or len(ids) != 1 or "usage" not in told[-1]:
        return "the stream ended before its end"
    if told[-2]["choices"][0]["finish_reason"] not in ("stop", "length"):
        return "no reason at the end of the stream"
    version = (told[-2].get("circadia") or {}).get("version")
    seconds, made = time.monotonic() - begin, told[-1]["usage"]["completion_tokens"]
    return Answer(who, asked, version, "".join(pieces), made, first or seconds, seconds)


async def load(server: Forked, args: Any) -> Seen:
    """Everything at once, until the time is over."""
    seen, end = Seen(), time.monotonic() + args.minutes * 60
    names = [f"user{i:02}" for i in range(args.learners)]
    async with httpx.AsyncClient(
        base_url=server.url, timeout=120, trust_env=False, limits=httpx.Limits(max_connections=None)
    ) as http:
        for name in names:
            made = await http.post("/v1/learners", json={"name": name, "gate": False})
            made.raise_for_status()
            await teach(http, name, seen, random.Random(name))
        end = time.monotonic() + args.minutes * 60

        async def client(number: int) -> None:
            chance = random.Random(number)

            async def one() -> None:
                who = chance.choice(names) if chance.random() < 0.8 else ""
                seen.counts["asked"] += 1
                found = await streamed(http, who, request(chance, who))
                if isinstance(found, Answer):
                    seen.answers.append(found)
                elif found is None:
                    seen.counts["429"] += 1
                else:
                    seen.faults.append(found)

            await until(end, one)

        async def teacher(number: int) -> None:
            chance = random.Random(f"teacher {number}")

            async def one() -> None:
                await teach(http, chance.choice(names), seen, chance)
                await asyncio.sleep(args.pause)

            await until(end, one)

        async def sleeper(number: int) -> None:
            chance = random.Random(f"sleeper {number}")

            async def one() -> None:
                await sleep(http, chance.choice(names), seen)
                await asyncio.sleep(args.pause)

            await until(end, one)

        async def watch() -> None:
            async def one() -> None:
                seen.memory.append(server.bytes)
                await asyncio.sleep(max(0.2, args.minutes * 60 / 100))

            await until(end, one)

        rest = [*map(teacher, range(args.teachers)), *map(sleeper, range(args.sleepers))]
        await asyncio.gather(*map(client, range(args.clients)), *rest, watch())
        await again(http, seen, args.compare)
    return seen


async def teach(http: httpx.AsyncClient, name: str, seen: Seen, chance: random.Random) -> None:
    """A short observation."""
    text = f"{name} says: {' '.join(chance.choices(WORDS, k=30))}.\n"
    done = await http.post(f"/v1/learners/{name}/observe", json={"text": text, "source": "load"})
    seen.counts["taught" if done.status_code == 200 else "429" if done.status_code == 429 else "wrong"] += 1
    if done.status_code not in (200, 429):
        seen.faults.append(f"observe: {done.status_code}: {done.text[:200]}")


async def sleep(http: httpx.AsyncClient, name: str, seen: Seen) -> None:
    """A short night; one that had nothing to sleep on is counted by itself."""
    begin = time.monotonic()
    done = await http.post(f"/v1/learners/{name}/sleep", json={**NIGHT, "wait": True}, timeout=600)
    if done.status_code == 200:
        action = done.json()["night"]["action"]
        seen.counts[f"night: {action}"] += 1
        if action == "accept":
            seen.nights.append(time.monotonic() - begin)
        elif action != "none":
            seen.faults.append(f"sleep: {done.text[:200]}")
    else:
        seen.counts["429" if done.status_code == 429 else "wrong"] += 1
        if done.status_code != 429:
            seen.faults.append(f"sleep: {done.status_code}: {done.text[:200]}")


async def again(http: httpx.AsyncClient, seen: Seen, most: int) -> None:
    """The same alone, from the same version."""
    chosen = random.Random(0).sample(seen.answers, min(most, len(seen.answers)))
    at: tuple[str, int | None] = ("", None)
    for one in sorted(chosen, key=lambda one: (one.who, one.version or 0)):
        if one.who and at != (one.who, one.version):
            back = await http.post(f"/v1/learners/{one.who}/rollback", json={"version": one.version or 0})
            back.raise_for_status()
            at = (one.who, one.version)
        found = await streamed(http, one.who, one.asked)
        seen.counts["compared"] += 1
        if not isinstance(found, Answer) or (found.text, found.tokens) != (one.text, one.tokens):
            seen.faults.append(f"{one.who or 'base'} at version {one.version}: {one.text!r} alone is {found!r:.300}")


def times(values: list[float]) -> dict[str, float]:
    """Seconds."""
    if len(values) < 2:
        return {}
    cut = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": statistics.median(values), "p95": cut[18], "most": max(values)}


def flat(memory: list[int]) -> bool:
    """From the second fifth of the time to the last."""
    fifth = max(1, len(memory) // 5)
    return statistics.median(memory[-fifth:]) <= GROWTH * statistics.median(memory[fifth : 2 * fifth]) + SLACK


def report(seen: Seen, minutes: float) -> dict[str, Any]:
    """All that is known."""
    found: dict[str, Any] = {"minutes": minutes, **seen.counts, "answers": len(seen.answers)}
    found["tokens_per_second"] = sum(one.tokens for one in seen.answers) / (minutes * 60)
    for name, rows in (
        ("learners", [a for a in seen.answers if a.who]),
        ("base", [a for a in seen.answers if not a.who]),
    ):
        found[name] = {"answers": len(rows), "first_token": times([a.first for a in rows]),
                       "whole": times([a.seconds for a in rows])}  # fmt: skip
    found["nights"] = {"slept": len(seen.nights), "whole": times(seen.nights)}
    faults = list(seen.faults)
    if len(seen.memory) >= 10 and not flat(seen.memory):
        faults.append("memory grows")
    return found | {"memory": seen.memory, "faults": faults}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="serve_load", description="Many streaming clients on one server, mixed with teaching and nights."
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=positive, default=32)
    parser.add_argument("--learners", type=positive, default=20)
    parser.add_argument("--teachers", type=positive, default=2)
    parser.add_argument("--sleepers", type=int, default=1, help="that send learners to bed, one after another")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two observations of a teacher")
    parser.add_argument("--compare", type=positive, default=400, help="answers that are asked for again, alone")
    parser.add_argument("--json", type=Path, help="write what was measured here")
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        parser.error(f"--minutes={args.minutes} must be above 0")
    if args.sleepers < 0:
        parser.error(f"--sleepers={args.sleepers} must not be below 0")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        server = Forked(base(), Path(folder) / "store", seconds=120.0)
        try:
            seen = asyncio.run(load(server, args))
        finally:
            status = server.end()
    found = report(seen, args.minutes)
    if status not in (0, signal.SIGTERM):  # uvicorn ends in good order, and then by the signal that it got
        found["faults"].append(f"the server ended with status {status}")
    for name in ("learners", "base"):
        one = found[name]
        print(f"{name}: {one['answers']} answers, first token {one['first_token']}, whole {one['whole']}")
    print(f"nights: {found['nights']}")
    print({name: value for name, value in found.items() if isinstance(value, (int, float))})
    print(f"memory: {[round(x / 2**20) for x in seen.memory[:: max(1, len(seen.memory) // 10)]]} MiB")
    print(f"{len(found['faults'])} faults", *found["faults"][:20], sep="\n")
    if args.json:
        write_json(args.json, {"machine": machine("cpu", ("transformers", "fastapi", "uvicorn")), **found})
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
