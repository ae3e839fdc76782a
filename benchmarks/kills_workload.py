"""What the killed child does, without a model: small states that its number determines, so that each can be checked.

Another workload has the same three methods; `python -m benchmarks.kills --workload module:Class` takes it.
"""

import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from circadia.live import Full, Store, StoreError
from circadia.live.blobs import digest
from circadia.live.versions import state_hash

Say = Callable[[dict[str, Any]], None]
WEIGHTS = {"observe": 8, "commit": 8, "rollback": 2, "gc": 2, "forget": 3, "hold": 1, "branch": 1, "copy": 1}


def state(seed: int, sizes: tuple[int, ...] = (64, 256, 1024, 4096)) -> dict[str, torch.Tensor]:
    """Tensors of four levels; a slower one changes every so many numbers only, so that versions share some."""
    found = {}
    for i, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(seed // 2**i)
        found[f"level{i}/w"] = torch.randn(size, generator=generator)
        found[f"level{i}/clock"] = torch.tensor(seed)
    return found


def hashed(seed: int) -> str:
    """What the store must say of this state."""
    return state_hash([(name, digest(x)) for name, x in state(seed).items()]).hex()


class Synthetic:
    """Observes, commits, rolls back, collects garbage, forgets, holds, branches, exports and imports."""

    learner = "ana"

    def prepare(self, folder: Path) -> None:
        """Once, before the first child."""
        with Store.open(folder) as store:
            store.create(self.learner, base="none")

    def work(self, folder: Path, seed: int, say: Say, steps: int | None = None) -> None:
        """In the child, until it is killed: what it is about to do and what was done."""
        chance = random.Random(seed)
        say({"op": "open", "step": "begin"})
        with Store.open(folder) as store:
            say({"op": "open", "step": "end"})
            with store.writer(self.learner) as writer:
                while steps is None or steps > 0:
                    steps = None if steps is None else steps - 1
                    op = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
                    getattr(self, op)(store, writer, chance, say)

    def observe(self, store: Any, writer: Any, chance: random.Random, say: Say) -> None:
        """One experience that can be found again in raw files."""
        canary = secrets.token_hex(12)
        say({"op": "observe", "step": "begin"})
        found = writer.remember(
            f"canary {canary} ".encode() * chance.randint(1, 400), source=f"s{chance.randint(0, 3)}"
        )
        say({"op": "observe", "step": "end", "experience": found.number, "canary": canary})

    def commit(self, store: Any, writer: Any, chance: random.Random, say: Say, current: bool = True) -> None:
        """A version whose state its seed tells."""
        seed = chance.randint(0, 10**6)
        say({"op": "commit" if current else "hold", "step": "begin"})
        version = writer.commit(state(seed), reason="kills", tokens=1, current=current)
        say({"op": "commit" if current else "hold", "step": "end", "version": version.number, "seed": seed})

    def hold(self, store: Any, writer: Any, chance: random.Random, say: Say) -> None:
        """A version that does not become current."""
        self.commit(store, writer, chance, say, current=False)

    def rollback(self, store: Any, writer: Any, chance: random.Random, say: Say) -> None:
        """To any version."""
        target = chance.choice([None, *(v.number for v in store.versions(self.learner))])
        say({"op": "rollback", "step": "begin"})
        writer.rollback(target, "kills")
        say({"op": "rollback", "step": "end"})

    def gc(self, store: Any, writer: Any, chance: random.Random, say: Say) -> None:
        """Keeps few, so that there is something to do."""
        points = set(store.learner(self.learner).branches.values())
        keep = chance.randint(1, 6)
        numbers = [v.number for v in store.versions(self.learner)]
        doomed = [n for n in numbers[keep:] if n not in points]
        say({"op": "gc", "step": "begin", "versions": doomed})
        writer.gc(keep=keep)
        say({"op": "gc", "step": "end"})

    def branch(self, store: Any, writer: Any, chance: random.Random, say: Say) -> None:
        """Makes one or drops it."""
        say({"op": "branch", "step": "begin"})
        if "side" in store.learner(self.learner).branches:
            writer.drop("side")
        else:
            writer.branch("side")
        say({"op": "branch", "step": "end"})

    def forget(self, store: Any, writer: Any, chance: random.Random, say: Say) -> None:
        """An experience and every version that learned from it."""
        known = [e.number for e in store.experiences(self.learner)]
        if not known:
            return
        lost = chance.sample(known, min(len(known), chance.randint(1, 3)))
        gone = store.influenced(self.learner, lost)
        move = {name: None for name, at in store.learner(self.learner).branches.items() if at in gone}
        say({"op": "forget", "step": "begin", "versions": gone, "experiences": lost})
        writer.erase(lost, gone, move=move)
        say({"op": "forget", "step": "end", "experiences": lost})

    def copy(self, store: Any, writer: Any, chance: random.Random, say: Say) -> None:
        """A file, a second learner out of it, and its end."""
        path = store.folder.parent / "copy.circadia"
        say({"op": "export", "step": "begin"})
        store.export(self.learner, path)
        say({"op": "export", "step": "end"})
        if "copy" in store.learners():
            say({"op": "delete", "step": "begin"})
            store.delete("copy")
            say({"op": "delete", "step": "end"})
        say({"op": "import", "step": "begin"})
        store.import_(path, name="copy")
        say({"op": "import", "step": "end"})
        # At once, because a copy holds what the original forgets later.
        say({"op": "delete", "step": "begin"})
        store.delete("copy")
        say({"op": "delete", "step": "end"})

    def check(self, folder: Path, told: list[dict[str, Any]]) -> list[str]:
        """In the parent, after a kill: everything that was said to be done is there, or is gone."""
        faults = []
        with Store.open(folder) as store:
            if "copy" in store.learners():
                store.delete("copy")
            faults += store.verify().faults
            versions = {t["version"]: t["seed"] for t in told if t["step"] == "end" and "version" in t}
            ends = [t for t in told if t["step"] == "end"]
            doomed = {n for t in told if t["step"] == "begin" for n in t.get("versions", [])}
            for version in store.versions(self.learner):
                if version.number in versions:
                    try:
                        loaded = store.load(self.learner, version.number)
                    except (StoreError, OSError) as error:
                        faults.append(f"version {version.number} cannot be loaded: {error}")
                        continue
                    want = state(versions[version.number])
                    if list(loaded) != list(want) or any(not torch.equal(loaded[n], want[n]) for n in want):
                        faults.append(f"version {version.number} is another one than was committed")
            there = {v.number for v in store.versions(self.learner)}
            faults += [f"version {n} was committed and is gone" for n in sorted(set(versions) - there - doomed)]
            left = {e.number for e in store.experiences(self.learner)}
            begun = {n for t in told if t["step"] == "begin" for n in t.get("experiences", [])}
            done = {n for t in ends if t["op"] == "forget" for n in t["experiences"]}
            canaries = {t["experience"]: t["canary"] for t in ends if "canary" in t}
            faults += [f"experience {n} was noted and is gone" for n in sorted(set(canaries) - left - begun)]
            faults += [f"experience {n} was forgotten and is there" for n in sorted(done & left)]
        # An erasure that was begun was either finished, by the opening if need be, or never took place.
        raw = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        gone = [canaries[n] for n in canaries if n not in left]
        faults += [f"bytes of forgotten {canary} are in the files" for canary in gone if canary.encode() in raw]
        return faults


def fill(folder: Path, seed: int, say: Say) -> None:
    """In a child with too little room: works until the store says so, and does not lose its temper."""
    try:
        Synthetic().work(folder, seed, say, steps=400)
    except Full as error:
        say({"op": "full", "step": "end", "error": str(error)})
    except OSError as error:
        say({"op": "other", "step": "end", "error": repr(error)})
