"""How long does a store take with 10,000 versions and a memory of 20 MB? ``python -m benchmarks.store``."""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from circadia.live import Store

LEVELS = 4
BOUNDS = {"open and load": 1.0, "commit, all changed": 0.3, "commit, one level changed": 0.3, "rollback": 0.5}


def memory(megabytes: float, layers: int) -> dict[str, torch.Tensor]:
    """Four levels of as many tensors, and a clock each."""
    size = int(megabytes * 1e6 / 4 / LEVELS / layers)
    state = {f"level{i}/layer{j}/w": torch.randn(size) for i in range(LEVELS) for j in range(layers)}
    return state | {f"level{i}/clock": torch.tensor(0) for i in range(LEVELS)}


def change(state: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """A new state in which the first levels moved."""
    moved = tuple(f"level{i}/" for i in range(levels))
    return {name: x + 1 if name.startswith(moved) else x for name, x in state.items()}


def build(store: Store, count: int, layers: int) -> None:
    """That many versions of small tensors, as many as the memory has; without waiting for the disk, for speed."""
    store.create("ana", base="none")
    state, sync = memory(0.002, layers), os.fsync
    store.db.run("PRAGMA synchronous=OFF")
    os.fsync = lambda handle: None
    try:
        with store.writer("ana") as writer:
            for i in range(count):
                state = change(state, 1)
                writer.remember(b"some text", source=f"s{i % 10}")
                writer.commit(state, reason="build", tokens=i, probes={"loss": 1.0})
    finally:
        os.fsync = sync
        store.db.run("PRAGMA synchronous=FULL")


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(folder: Path, versions: int, megabytes: float, layers: int, reps: int) -> dict[str, Any]:
    """Everything that a learner does with its store."""
    times: dict[str, list[float]] = {}
    work: dict[str, list[float]] = {}
    with Store.open(folder) as store:
        made = seconds(lambda: build(store, versions, layers))
    state = memory(megabytes, layers)

    def open_and_load() -> None:
        with Store.open(folder) as store:
            assert len(store.load("ana")) == len(state)

    def note(name: str, run: Callable[..., Any], *values: Any) -> None:
        cpu = time.process_time()
        times.setdefault(name, []).append(seconds(lambda: run(*values)))
        work.setdefault(name, []).append(time.process_time() - cpu)

    with Store.open(folder) as store, store.writer("ana") as writer:
        for _ in range(reps):
            state = change(state, LEVELS)
            note("commit, all changed", writer.commit, state, "all", 1)
            state = change(state, 1)
            note("commit, one level changed", writer.commit, state, "one", 1)
            note("observe", lambda: writer.remember(b"text " * 400, source="notes"))
            note("rollback", lambda: writer.rollback(store.history("ana", limit=2)[-1].number, "back"))
            note("load", lambda: store.load("ana"))
            note("versions, the newest 100", lambda: store.versions("ana", limit=100))
            note("history, all", lambda: store.history("ana"))
    for _ in range(reps):
        note("open and load", open_and_load)
    size = {
        "database": (folder / "store.db").stat().st_size,
        "blobs": sum(p.stat().st_size for p in folder.glob("blobs/*")),
    }
    with Store.open(folder) as store:
        note("verify", lambda: store.verify())
        with store.writer("ana") as writer:
            note("gc, nothing to do", lambda: writer.gc())
            last = writer.remember(b"to be forgotten", source="mail").number
            note("erase one experience", lambda: writer.erase([last]))
            note("gc to 100 versions", lambda: writer.gc(keep=100))
        assert store.verify().ok
    rows = {
        name: {"median": statistics.median(x), "max": max(x), "cpu": statistics.median(work[name]), "runs": len(x)}
        for name, x in times.items()
    }
    return {"versions": versions, "megabytes": megabytes, "built_s": made, "bytes": size, "seconds": rows}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/store"))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "store", given.versions, given.megabytes, given.layers, given.reps)
    given.out.mkdir(parents=True, exist_ok=True)
    harness.write_json(given.out / "store.json", {"machine": harness.machine("cpu"), **found})
    late = []
    print("| what | median s | max s | of a processor s | bound s |\n|---|---|---|---|---|")
    for name, row in found["seconds"].items():
        bound = BOUNDS.get(name)
        print(f"| {name} | {row['median']:.4f} | {row['max']:.4f} | {row['cpu']:.4f} | {bound or ''} |")
        if bound is not None and row["median"] > bound:
            late.append(name)
    print(f"late: {', '.join(late)}" if late else "within the bounds")
    return 1 if late else 0


if __name__ == "__main__":
    raise SystemExit(main())
