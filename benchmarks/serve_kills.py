"""Is a change that was answered ever lost? ``python -m benchmarks.serve_kills``.

A server under load is killed by SIGKILL at a random moment, again and again, and started anew on the same store. Each
learner has one client that changes it (observations with a canary, conversations that teach, nights, rollbacks) and
others that only read. After a kill the store is looked into: what was answered is there; of what was not answered, the
text is whole or not there, and the state is what the journal's texts and nights make, to the bit.
"""

import asyncio
import contextlib
import json
import random
import secrets
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.harness import Parser, machine, positive, write_json
from benchmarks.learner_kills import compare
from benchmarks.serving import NIGHT, WORDS, Forked, base
from circadia.live import Learner, Store

# Beside a conversation that was learned, the journal has the answer in it by itself; a night's report quotes its day.
QUOTES = (b'{"op": "answer"', b'{"op": "report"')


@dataclass
class Told:
    """What a client knows of its learner."""

    canaries: dict[str, str] = field(default_factory=dict)  # answered: canary -> the text
    open: dict[str, str] = field(default_factory=dict)  # not answered, ever
    versions: set[int] = field(default_factory=set)
    last: int = 0  # version after the last answered change
    sure: bool = True  # nothing was asked for after it


async def changes(http: httpx.AsyncClient, name: str, told: Told, chance: random.Random, done: Counter[str]) -> None:
    """One after another, until the connection breaks."""
    while True:
        op = chance.choices(["observe", "learn", "sleep", "rollback"], [6, 2, 2, 1])[0]
        canary = secrets.token_hex(8)
        text = f"{canary} {' '.join(chance.choices(WORDS, k=chance.randint(3, 60)))}.\n"
        path, body = f"/v1/learners/{name}/observe", dict[str, Any](text=text, source="s")
        if op == "learn":
            turns = [{"role": "user", "content": text}]
            body = {"model": f"base@{name}", "messages": turns, "max_tokens": 4, "learn": True}
            path = "/v1/chat/completions"
        elif op == "rollback":
            if not told.versions:
                continue
            path, body = f"/v1/learners/{name}/rollback", {"version": chance.choice(sorted(told.versions))}
        elif op == "sleep":
            path, body = f"/v1/learners/{name}/sleep", {**NIGHT, "wait": True}
        teaches = op in ("observe", "learn")
        if teaches:
            told.open[canary] = text
        told.sure = False
        reply = await http.post(path, json=body)
        if reply.status_code == 429:
            told.open.pop(canary, None)
            await asyncio.sleep(0.1)
            continue
        reply.raise_for_status()
        found = reply.json()
        version = found["circadia"]["new_version"] if op == "learn" else found["version"]
        told.last, told.sure = version or 0, True
        if version:
            told.versions.add(version)
        if teaches:
            told.canaries[canary] = told.open.pop(canary)
        done[op] += 1


async def reads(http: httpx.AsyncClient, names: list[str], chance: random.Random, done: Counter[str]) -> None:
    """Answers that nobody learns."""
    while True:
        body = {"model": f"base@{chance.choice(names)}", "prompt": chance.choice(WORDS), "max_tokens": 8}
        reply = await http.post("/v1/completions", json=body)
        done["read" if reply.status_code == 200 else str(reply.status_code)] += 1


async def life(server: Forked, told: dict[str, Told], seed: int, longest: float, done: Counter[str]) -> None:
    """Work, until the server is killed."""
    chance = random.Random(seed)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        there = {one["name"] for one in (await http.get("/v1/learners")).json()["data"]}
        for name in told:
            if name not in there:
                (await http.post("/v1/learners", json={"name": name, "gate": False})).raise_for_status()

        async def shown(work: Any) -> None:
            with contextlib.suppress(httpx.TransportError):  # the kill
                await work

        tasks = [shown(changes(http, name, own, random.Random(f"{seed} {name}"), done)) for name, own in told.items()]
        tasks += [shown(reads(http, list(told), random.Random(f"{seed} reader {i}"), done)) for i in range(4)]
        everything = asyncio.gather(*tasks)
        waiting = asyncio.ensure_future(asyncio.sleep(chance.uniform(0.05, longest)))
        await asyncio.wait({waiting, asyncio.ensure_future(everything)}, return_when=asyncio.FIRST_COMPLETED)
        server.kill()
        await everything


def check(folder: Path, model: Any, told: dict[str, Told]) -> list[str]:
    """What is wrong after a kill, in words."""
    faults: list[str] = []
    with Store.open(folder) as store:
        faults += store.verify().faults
        for name, own in told.items():
            if name not in store.learners():
                faults += [f"{name} is gone"] if own.versions else []
                continue
            current = store.current(name)
            number = current.number if current else 0
            if own.sure and number != own.last:
                faults.append(f"{name}: version {own.last} was answered, {number} is current")
            kept = {version.number for version in store.versions(name, limit=100_000)}
            faults += [f"{name}: version {n} was answered and is gone" for n in own.versions - kept]
            payloads = [e.payload or b"" for e in store.experiences(name, payload=True)]
            payloads = [payload for payload in payloads if not payload.startswith(QUOTES)]
            for canary, text in own.canaries.items():
                found = sum(_text(text) in payload for payload in payloads)
                if found != 1:
                    faults.append(f"{name}: {canary} was answered and is there {found} times")
            for canary, text in own.open.items():
                held = [payload for payload in payloads if canary.encode() in payload]
                if len(held) > 1 or any(_text(text) not in payload for payload in held):
                    faults.append(f"{name}: {canary} was not answered and is half there")
            with Learner.open(store, name, model) as me:
                me.commit()
                faults += [f"{name}: {fault}" for fault in compare(store, me, model, gate=False)]
                own.last, own.sure = me.version.number if me.version else 0, True
        faults += store.verify().faults
    return faults


def _text(text: str) -> bytes:
    """As it stands in the journal: as it is, or in JSON."""
    return text.strip().encode()


def kills(folder: Path, count: int, seed: int, longest: float, learners: int = 3) -> dict[str, Any]:
    """That many."""
    model, told = base(width=16, layers=1), {f"user{i}": Told() for i in range(learners)}
    done: Counter[str] = Counter()
    faults: list[str] = []
    checks, chance = 0, random.Random(seed)
    for number in range(count):
        server = Forked(model, folder)
        asyncio.run(life(server, told, seed + number, longest, done))
        if number == count - 1 or chance.random() < 0.5:  # else the next server finds what this one left
            checks += 1
            faults += [f"kill {number}: {fault}" for fault in check(folder, model, told)]
    unanswered = sum(len(own.open) for own in told.values())
    return {"kills": count, "checks": checks, "answered": dict(done), "unanswered": unanswered, "faults": faults}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="serve_kills", description="Kill a server under load; look for what was answered.")
    parser.add_argument("--kills", type=positive, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=2.0, help="seconds until a kill, at most")
    parser.add_argument("--json", type=Path, help="write what was found here")
    args = parser.parse_args(argv)
    if not args.longest > 0.05:
        parser.error(f"--longest={args.longest} must be above 0.05")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = kills(Path(folder) / "store", args.kills, args.seed, args.longest)
    print(json.dumps({name: value for name, value in found.items() if name != "faults"}))
    print(f"{len(found['faults'])} faults", *found["faults"][:20], sep="\n")
    if args.json:
        write_json(args.json, {"machine": machine("cpu", ("fastapi", "uvicorn")), **found})
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
