"""Is anything committed ever lost? ``python -m benchmarks.kills``.

A child works on a store and is killed by SIGKILL at a random moment, again and again; after each kill the store is
opened and everything in it compared with what the child had said was done. Some children are killed while they open a
store that another one left behind, without a check in between. Then the same with too little room (a limit on the size
of files, and a full file system of its own where one can be mounted), and with two processes that want one learner.
"""

import argparse
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.kills_workload import Synthetic, fill, state
from circadia.live import Busy, Store

Told = list[dict[str, Any]]


def child(work: Callable[[Callable[[dict[str, Any]], None]], None], delay: float | None) -> tuple[Told, int]:
    """Run it in a fork, kill it after a delay from its first word; what it said, and how it ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            work(lambda word: os.write(write, json.dumps(word).encode() + b"\n") and None)
            code = 0
        except BaseException:
            os.write(
                write, json.dumps({"op": "error", "step": "end", "error": traceback.format_exc()}).encode() + b"\n"
            )
        finally:
            os._exit(code)
    os.close(write)
    said = bytearray()
    with open(read, "rb", buffering=0) as pipe:
        if delay is not None:
            said += pipe.read(1)  # wait for the first word
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        while block := pipe.read(65536):
            said += block
    _, status = os.waitpid(pid, 0)
    whole = said[: said.rfind(b"\n") + 1]  # a kill may cut the last word
    return [json.loads(line) for line in whole.splitlines()], status


def kills(folder: Path, workload: Any, count: int, seed: int, longest: float) -> dict[str, Any]:
    """That many kills; what was hit and what was found wrong."""
    chance = random.Random(seed)
    store = folder / "store"
    workload.prepare(store)
    told: Told = []
    hit: Counter[str] = Counter()
    done: Counter[str] = Counter()
    faults: list[str] = []
    checks, start = 0, time.perf_counter()
    for i in range(count):
        at_once = chance.random() < 0.3  # within the opening, which may have to clean up after the kill before
        delay = chance.uniform(0, 0.02 if at_once else longest)
        said, status = child(lambda say, i=i: workload.work(store, seed + i, say), delay)  # type: ignore[misc]
        told += said
        if not os.WIFSIGNALED(status):
            faults.append(f"kill {i}: the child ended by itself: {said[-1:]}")
        done.update(word["op"] for word in said if word["step"] == "end")
        hit[said[-1]["op"] if said and said[-1]["step"] == "begin" else "between"] += 1
        if chance.random() < 0.75 or i + 1 == count:
            checks += 1
            faults += [f"kill {i}: {fault}" for fault in workload.check(store, told)]
    seconds = time.perf_counter() - start
    return {
        "kills": count,
        "checks": checks,
        "hit": dict(hit),
        "done": dict(done),
        "faults": faults,
        "seconds": seconds,
    }


def no_room(folder: Path, seed: int, rounds: int, size: int | None = None) -> dict[str, Any]:
    """A limit on the size of the child's files, or without `size` little room on a disk: what is left is filled up."""
    chance, faults, full = random.Random(seed), [], 0
    ballast = folder / "ballast"
    workload, store, told = Synthetic(), folder / "store", []
    workload.prepare(store)
    for i in range(rounds):

        def work(say: Any, i: int = i, limit: int = chance.randint(40_000, size or 600_000)) -> None:
            if size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            fill(store, seed + i, say)

        if size is None:
            disk = os.statvfs(folder)
            ballast.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - chance.randint(40_000, 600_000))))
        said, _ = child(work, None)
        ballast.unlink(missing_ok=True)
        told += said
        full += any(word["op"] == "full" for word in said)
        faults += [f"round {i}: {word['error']}" for word in said if word["op"] in ("error", "other")]
        faults += [f"round {i}: {fault}" for fault in workload.check(store, told)]
    return {"rounds": rounds, "full": full, "faults": faults}


def small_disk(seed: int, rounds: int, size: str = "32m") -> dict[str, Any] | None:
    """The same on a file system of its own; None where none can be mounted."""
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name]
        try:
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                return None
        except FileNotFoundError:
            return None
        try:
            return no_room(Path(name), seed, rounds)
        finally:
            subprocess.run(["umount", name], check=True)


def rivals(folder: Path, rounds: int) -> dict[str, Any]:
    """Two processes that want to write one learner; a file that only one may create shows if both do."""
    path, mark = folder / "store", folder / "mark"
    with Store.open(path) as store:
        store.create("ana", base="none")

    def work(first: int, pipe: int) -> None:
        refused = made = 0
        with Store.open(path) as store:
            while made < rounds:
                try:
                    with store.writer("ana") as writer:
                        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                        writer.remember(b"text", source=f"rival {first}")
                        writer.commit(state(first * 1000 + made), reason=f"rival {first}", tokens=1)
                        if made % 5 == 0:
                            time.sleep(0.6)  # longer than the other one waits
                        mark.unlink()
                        made += 1
                except Busy as error:
                    assert "process" in str(error), error
                    refused += 1
                time.sleep(0.01 * random.Random(refused + made + first).random())
        os.write(pipe, json.dumps({"made": made, "refused": refused}).encode())

    results, faults = [], []
    pids = []
    for first in (1, 2):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(first, write)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)
        pids.append((pid, read))
    for pid, read in pids:
        with open(read) as pipe:
            text = pipe.read()
        if os.waitpid(pid, 0)[1]:
            faults.append("a rival failed")
        else:
            results.append(json.loads(text))
    with Store.open(path) as store:
        faults += store.verify().faults
        count = len(store.versions("ana"))
        if count != 2 * rounds:
            faults.append(f"{count} versions, not {2 * rounds}")
    return {"rounds": rounds, "rivals": results, "faults": faults}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.6, help="seconds that a child lives at most")
    parser.add_argument("--workload", default="benchmarks.kills_workload:Synthetic")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/kills"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a fork must not inherit threads at work
    module, _, name = given.workload.partition(":")
    workload = getattr(importlib.import_module(module), name)()
    found: dict[str, Any] = {"machine": harness.machine("cpu")}
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b, tempfile.TemporaryDirectory() as c:
        found["kills"] = kills(Path(a), workload, given.kills, given.seed, given.longest)
        found["size limit"] = no_room(Path(b), given.seed, 20, size=300_000)
        found["small disk"] = small_disk(given.seed, 10)
        found["rivals"] = rivals(Path(c), 50)
    given.out.mkdir(parents=True, exist_ok=True)
    harness.write_json(given.out / "kills.json", found)
    k, r = found["kills"], found["rivals"]
    faults = [fault for part in found.values() if part for fault in part.get("faults", [])]
    print(json.dumps(found))
    print("| kills | checked | while | size limit: full | small disk: full | rivals: commits, refused | faults |")
    print("|---|---|---|---|---|---|---|")
    small = found["small disk"]
    print(
        f"| {k['kills']} | {k['checks']} | {', '.join(f'{op} {n}' for op, n in sorted(k['hit'].items()))} "
        f"| {found['size limit']['full']} of {found['size limit']['rounds']} "
        f"| {'not mounted' if small is None else '{full} of {rounds}'.format(**small)} "
        f"| {sum(x['made'] for x in r['rivals'])}, {sum(x['refused'] for x in r['rivals'])} | {len(faults)} |"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
