"""Killed at any instruction: a short run of benchmarks/kills.py, and one kill at every step of every operation."""

import os
import shutil
import signal

import pytest
import torch

from benchmarks import kills
from benchmarks.kills_workload import Synthetic, hashed
from circadia.live import Store, schema
from tests.live.conftest import raw, state

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
TEXT = b"a text that is to be forgotten"


def test_ten_random_kills(tmp_path):
    found = kills.kills(tmp_path, Synthetic(), count=10, seed=1, longest=0.4)
    assert found["faults"] == []
    assert found["kills"] == 10 and found["checks"] >= 5 and sum(found["done"].values()) >= 5  # more on a free machine


def test_the_check_finds_what_is_lost(tmp_path):
    """The judge itself: told of things that are not so."""
    workload = Synthetic()
    workload.prepare(tmp_path / "store")
    end = {"step": "end"}
    told = [
        {"op": "commit", **end, "version": 1, "seed": 7},
        {"op": "observe", **end, "experience": 1, "canary": "ca11ab1e"},
    ]
    assert workload.check(tmp_path / "store", told) == [
        "version 1 was committed and is gone",
        "experience 1 was noted and is gone",
    ]
    with Store.open(tmp_path / "store") as store, store.writer("ana") as writer:
        writer.remember(b"ca11ab1e", source="s")
        version = writer.commit({"x": torch.zeros(1)}, reason="x", tokens=1)
        assert version.state != hashed(7)
    (fault,) = workload.check(tmp_path / "store", told)
    assert fault == "version 1 is another one than was committed"
    told[0] |= {"op": "forget", "experiences": [1]}
    assert "experience 1 was forgotten and is there" in workload.check(tmp_path / "store", told)
    (tmp_path / "store" / "blobs" / "left").write_bytes(b"...ca11ab1e")
    with Store.open(tmp_path / "store") as store, store.writer("ana") as writer:
        writer.erase([1])
    assert "bytes of forgotten ca11ab1e are in the files" in workload.check(tmp_path / "store", told)


def commit(store, writer):
    writer.commit(state(5, slow=5), reason="new", tokens=5)


def rollback(store, writer):
    writer.rollback(1, "back")


def gc(store, writer):
    writer.rollback(1, "back")
    writer.gc(keep=1)


def forget(store, writer):
    writer.erase([2], store.influenced("ana", [2]), move={"main": 1})


def bring(store, writer):
    store.import_(store.folder.parent / "ana.circadia", name="eva")


def write(store, writer):
    store.export("ana", store.folder.parent / "again.circadia")


def end(store, writer):
    store.delete("bea")


def prepare(folder):
    with Store.open(folder) as store:
        store.create("ana", base="w")
        store.create("bea", base="w")
        with store.writer("ana") as writer:
            for i in range(3):
                writer.remember(TEXT if i == 1 else b"another text", source="s")
                writer.commit(state(i, slow=i // 2), reason="x", tokens=i)
        with store.writer("bea") as writer:
            writer.commit(state(1), reason="x", tokens=1)
        store.export("ana", folder.parent / "ana.circadia")


def killed_at(folder, act, step):
    """Do it in a child that kills itself before that statement, or that file reaches the disk, is renamed or goes."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counting(call):
            def wrapped(*values, **more):
                nonlocal count
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return call(*values, **more)

            return wrapped

        try:
            with Store.open(folder) as store, store.writer("ana") as writer:
                for name in ("run", "many"):
                    setattr(schema.Database, name, counting(getattr(schema.Database, name)))
                for name in ("fsync", "replace", "unlink"):
                    setattr(os, name, counting(getattr(os, name)))
                act(store, writer)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("act", [commit, rollback, gc, forget, bring, write, end], ids=lambda act: act.__name__)
def test_a_kill_at_any_step_loses_nothing_that_was_committed(tmp_path, act):
    """Every third step, from a start that differs between operations; each kill is followed by a check."""
    prepare(tmp_path / "start" / "store")
    step, outcomes = len(act.__name__) % 3, set()
    while True:
        place = tmp_path / "now"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tmp_path / "start", place)
        status = killed_at(place / "store", act, step)
        with Store.open(place / "store") as store:
            assert store.verify().faults == (), step
            assert store.orphans() == [] and store.blobs.unfinished() == [], step
            versions = [v.number for v in store.versions("ana")]
            for version in store.versions("ana"):
                want = state(5, 5) if version.number == 4 else state(version.number - 1, (version.number - 1) // 2)
                assert torch.equal(store.load("ana", version.number)["fast/w"], want["fast/w"]), step
            kept = len(list(store.experiences("ana")))
            if kept == 2:
                assert TEXT not in raw(place / "store"), step
            points = store.learner("ana").branches["main"]
            outcomes.add((tuple(versions), kept, points, tuple(store.learners())))
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert any("ana: process" in text for text in store.found), step
        step += 3
    before = ((3, 2, 1), 3, 3, ("ana", "bea"))
    after = {
        "commit": ((4, 3, 2, 1), 3, 4, ("ana", "bea")),
        "rollback": ((3, 2, 1), 3, 1, ("ana", "bea")),
        "gc": ((3, 1), 3, 1, ("ana", "bea")),
        "forget": ((1,), 2, 1, ("ana", "bea")),
        "bring": ((3, 2, 1), 3, 3, ("ana", "bea", "eva")),
        "write": before,
        "end": ((3, 2, 1), 3, 3, ("ana",)),
    }[act.__name__]
    between = {((3, 2, 1), 3, 1, ("ana", "bea"))} if act is gc else set()  # rolled back, but nothing removed
    assert step > 6 and {before, after} <= outcomes | {before} and outcomes <= {before, after} | between


def test_two_processes_never_write_at_once(tmp_path):
    found = kills.rivals(tmp_path, rounds=6)
    assert found["faults"] == []
    assert [r["made"] for r in found["rivals"]] == [6, 6] and sum(r["refused"] for r in found["rivals"]) > 0


def test_too_little_room_loses_nothing(tmp_path):
    found = kills.no_room(tmp_path, seed=3, rounds=3, size=300_000)
    assert found["faults"] == [] and found["full"] == 3


@pytest.mark.parametrize("kind", ["Living", "LivingTitans"])
def test_a_real_learner_survives_kills(tmp_path, kind):
    """A short run of ``python -m benchmarks.kills --workload benchmarks.learner_kills:Living``."""
    from benchmarks import learner_kills

    found = kills.kills(tmp_path, getattr(learner_kills, kind)(), count=4, seed=3, longest=0.5)
    assert found["faults"] == [] and found["checks"] >= 2


def test_the_learners_check_finds_another_state(tmp_path):
    """The judge itself: a version that its experiences do not make."""
    from benchmarks.learner_kills import Living

    workload = Living()
    workload.prepare(tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        from circadia.live import Learner

        with Learner.open(store, "ana", workload.base) as me:
            me.observe("the quick brown fox jumps over it", source="s1")
            odd = {**me.state, "clock/tokens": me.state["clock/tokens"] + 1}
            with me.writing() as writer:
                writer.commit(odd, reason="odd", tokens=1)
    assert any("is not what its experiences make" in fault for fault in workload.check(tmp_path / "store", []))
