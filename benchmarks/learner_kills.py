"""A real learner, killed: ``python -m benchmarks.learner_kills``, with ``--asleep`` (or ``--asleep qwen3``) mostly in
its nights.

The child observes, answers, takes feedback, rolls back, branches, collects garbage and forgets on a tiny random base,
and asleep it goes over its days, rehearses awake, and lets quarantined experiences pass or drops them.
After each kill the store is verified, the learner opened, what was left is caught up with, and its state compared with
that of a second learner that lives through what the journal says, without a kill. `LivingTitans` does the same on a
model with memories of its own.
"""

import random
import secrets
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from circadia.live import Learner, Store, commits, sleeping
from circadia.live.forgetting import Line
from circadia.models import HopeConfig, HopeForCausalLM
from circadia.models.native import NativeModel, native
from circadia.models.retrofit import RetrofitModel, retrofit
from circadia.sleep import Replay, Settings

Say = Callable[[dict[str, Any]], None]
WEIGHTS = {"observe": 8, "ask": 2, "judge": 2, "commit": 2, "rollback": 2, "branch": 1, "gc": 2, "forget": 3}
WORDS = ["the", "a", "fox", "dog", "jumps", "over", "lazy", "quick", "brown", "and", "then", "it", "was", "not", "here"]
GATE = {"noise": (3.0, 4.0), "remember": 256, "ngram": 4, "window": 4, "warmup": 2}


ASLEEP = {"observe": 8, "sleep": 6, "decide": 2, "ask": 1, "judge": 1, "rollback": 2, "branch": 1, "gc": 2, "forget": 3}
NIGHT = Settings(
    name="short", dreams=8, dream_length=8,
    replay=Replay(length=12, presentations=4, rows=4, answer=3, every=4, dreams=1, rate=5e-3),
).but(filter={"wrong": 1.0, "trial": 0, "trust": 0.6})  # fmt: skip


def base(seed: int = 0, family: str = "llama") -> RetrofitModel:
    """One random layer over bytes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family, vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    return retrofit(AutoModelForCausalLM.from_config(config).eval(), [8, 16], context=8)


def titans(seed: int = 0) -> NativeModel:
    """One random Titans block over bytes, that learns with its own memory."""
    torch.manual_seed(seed)
    config = HopeConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, mixers=["titans"], chunk=8,
        initializer_range=0.2,
    )  # fmt: skip
    return native(HopeForCausalLM(config))


class Living:
    """The three methods that benchmarks/kills.py asks for."""

    learner, family, weights = "ana", "llama", WEIGHTS
    given: ClassVar[dict[str, Any]] = {"gate": GATE}

    def __init__(self, model: RetrofitModel | NativeModel | None = None) -> None:
        self.base = base(family=self.family) if model is None else model

    def prepare(self, folder: Path) -> None:
        """Once, before the first child."""
        with Store.open(folder) as store:
            Learner.create(store, self.base, self.learner, **self.given).close()

    def work(self, folder: Path, seed: int, say: Say, steps: int | None = None) -> None:
        """In the child, until it is killed."""
        chance = random.Random(seed)
        say({"op": "open", "step": "begin"})
        with Store.open(folder) as store, Learner.open(store, self.learner, self.base) as me:
            me.commit()
            say({"op": "open", "step": "end"})
            while steps is None or steps > 0:
                steps = None if steps is None else steps - 1
                op = chance.choices(list(self.weights), list(self.weights.values()))[0]
                say({"op": op, "step": "begin"})
                told = getattr(self, op)(me, chance) or {}
                if op == "forget" and told:
                    say({"op": op, "step": "begin", **told})
                    me.forget(source=told["source"])
                say({"op": op, "step": "end", **told})

    def observe(self, me: Learner, chance: random.Random) -> dict[str, Any]:
        """Text with a canary that can be found in raw files."""
        canary = secrets.token_hex(8)
        text = f"{canary} {' '.join(chance.choices(WORDS, k=chance.randint(3, 40)))}.\n"
        source = f"s{chance.randint(0, 3)}"
        done = me.observe(text, source, chance.choice([1.0, 0.5]), commit=chance.random() < 0.7)
        return {"canary": canary, "source": source, "experience": (done.experiences or (0, 0))[1]}

    def ask(self, me: Learner, chance: random.Random) -> None:
        """An answer that is kept."""
        me.generate(chance.choice(WORDS), max_new_tokens=3)

    def judge(self, me: Learner, chance: random.Random) -> None:
        """Feedback on an answer that is there."""
        noted = me.store.experiences(me.name, payload=True)
        known = [e.number for e in noted if e.payload and e.payload.startswith(b'{"op": "answer"')]
        if known:
            given = chance.choice([{"good": True}, {"good": False}, {"correction": " the fox"}])
            me.feedback(chance.choice(known), **given)  # type: ignore[arg-type]

    def commit(self, me: Learner, chance: random.Random) -> dict[str, Any]:
        """What is open becomes a version."""
        version = me.commit()
        return {"version": version.number if version else None}

    def rollback(self, me: Learner, chance: random.Random) -> None:
        """To any version."""
        me.rollback(chance.choice([None, *(v.number for v in me.versions(6))]))

    def branch(self, me: Learner, chance: random.Random) -> None:
        """Another way to go on."""
        if len(me.store.learner(me.name).branches) < 4:
            me.branch(f"b{secrets.token_hex(3)}")

    def gc(self, me: Learner, chance: random.Random) -> None:
        """Keeps few, so that there is something to do."""
        me.gc(keep=chance.randint(1, 6))

    def forget(self, me: Learner, chance: random.Random) -> dict[str, Any]:
        """One source with all its effect; `work` does it, when it is said what goes."""
        sources = sorted({e.source for e in me.store.experiences(me.name) if e.source.startswith("s")})
        return {"source": chance.choice(sources)} if sources else {}

    def check(self, folder: Path, told: list[dict[str, Any]]) -> list[str]:
        """What is wrong after a kill, in words."""
        faults: list[str] = []
        with Store.open(folder) as store:
            faults += store.verify().faults
            for version in store.versions(self.learner):
                store.load(self.learner, version.number)
            with Learner.open(store, self.learner, self.base) as me:
                me.commit()
                faults += self.compare(store, me)
            left = {e.number for e in store.experiences(self.learner)}
            begun = any(t["op"] == "forget" and "source" in t for t in told)
            noted = {t["experience"]: t for t in told if t["op"] == "observe" and t["step"] == "end"}
            if not begun:
                faults += [f"experience {n} was noted and is gone" for n in sorted(set(noted) - left)]
            faults += store.verify().faults
        raw = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        gone = [t["canary"] for n, t in noted.items() if n not in left]
        faults += [f"bytes of forgotten {canary} are in the files" for canary in gone if canary.encode() in raw]
        return faults

    def compare(self, store: Store, me: Learner) -> list[str]:
        """With another life."""
        return compare(store, me, self.base, **self.given)


def compare(store: Store, me: Learner, base: Any, **given: Any) -> list[str]:
    """Live through what leads to the current version, elsewhere, and compare the bits."""
    version, line = me.version, Line.of(me.store, me.name)
    way = [e for v in line.way(version.number if version else None) for e in line.brought[v]]
    there = {e.number: e for e in store.experiences(me.name, payload=True)}
    twin = Learner.create(store, base, f"twin-{secrets.token_hex(4)}", **given)
    try:
        missing = [n for n in way if n not in there]
        if missing:
            return [f"experience {missing[0]} is in version {version and version.number} and gone"]
        relive(twin, [there[n] for n in way])
        wrong = [n for n in me.state if n not in twin.state or not torch.equal(me.state[n], twin.state[n])]
        what = f"version {version and version.number} is not what its experiences make"
        return [f"{what}: {wrong[:3]}"] if wrong else []
    finally:
        twin.delete()


class LivingTitans(Living):
    """The same on a model of our own."""

    def __init__(self) -> None:
        super().__init__(titans())


def relive(twin: Learner, experiences: list[Any]) -> None:
    """Experiences of another learner, in their order, nights too; a decision names them by their numbers here."""
    numbers: dict[int, int] = {}
    with twin.writing() as writer:
        for one in experiences:
            told = commits.header(one.payload)
            if told["op"] in commits.IDLE:
                continue
            if told["op"] in ("admit", "drop"):
                told["numbers"] = [numbers[n] for n in told["numbers"] if n in numbers]
            payload = commits.pack(told)
            noted = writer.remember(payload, one.source, one.trust, one.start, one.stop, one.kind)
            numbers[one.number] = noted.number
            commits.replay(twin, replace(noted, payload=payload))


class Sleeping(Living):
    """Mostly nights, with rehearsal on the days after them."""

    weights = ASLEEP
    given: ClassVar[dict[str, Any]] = {"gate": GATE, "rehearse": {"every": 2, "count": 2}}

    def sleep(self, me: Learner, chance: random.Random) -> dict[str, Any]:
        """What a kill stopped is taken up again."""
        resume = bool(me.events("night")) and sleeping.unfinished(me) is not None
        night = me.sleep(resume=True) if resume else me.sleep(NIGHT, seed=chance.randint(0, 9))
        return {"version": night.version, "ended": night.action, "resumed": resume}

    def decide(self, me: Learner, chance: random.Random) -> None:
        """About something in quarantine."""
        held = [one.number for one in me.quarantine()]
        if held:
            chance.choice([me.admit, me.drop])(chance.choice(held))


class SleepingQwen(Sleeping):
    """The same on a Qwen-like base."""

    family = "qwen3"


if __name__ == "__main__":
    from benchmarks.kills import main

    rest, name = sys.argv[1:], "Living"
    if "--asleep" in rest:
        at = rest.index("--asleep")
        given = rest[at + 1 : at + 2] if rest[at + 1 : at + 2] in (["llama"], ["qwen3"]) else []
        name, rest = "SleepingQwen" if given == ["qwen3"] else "Sleeping", rest[:at] + rest[at + 1 + len(given) :]
    raise SystemExit(main(["--workload", f"benchmarks.learner_kills:{name}", "--longest", "2.0", *rest]))
