"""Versions, branches, the journal and who may write."""

import multiprocessing
import os
import threading
import time

import pytest
import torch

from circadia.live import Busy, Store, StoreError
from tests.live.conftest import raw, state

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def same(a, b):
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_a_state_comes_back_as_it_was_also_after_reopening(store, folder):
    given = {
        "z": torch.randn(3, 5, dtype=torch.float64).t(),  # not in order in memory
        "a": torch.randn(7).bfloat16(),
        "clock": torch.tensor(2**60),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 4),
        "half": torch.full((2,), torch.inf, dtype=torch.float16),
    }
    given["again"] = given["a"]
    with store.writer("ana") as writer:
        version = writer.commit(given, reason="observe", tokens=5, probes={"loss": 1.5}, notes="first")
        given["a"] += 1  # the version keeps its own
    store.close()
    with Store.open(folder, create=False) as again:
        assert again.found == []
        found = again.load("ana")
        assert list(found) == list(given)
        assert same(
            {n: x for n, x in found.items() if n not in ("a", "again")},
            {n: x for n, x in given.items() if n not in ("a", "again")},
        )
        assert torch.equal(found["a"] + 1, given["a"]) and torch.equal(found["again"], found["a"])
        found["a"] += 1
        assert not torch.equal(found["again"], found["a"])  # equal tensors come back apart
        assert again.current("ana") == version
        assert (version.number, version.parent, version.probes, version.tokens) == (1, None, {"loss": 1.5}, 5)
        assert again.learner("ana").config == {"period": 512}


def test_tensors_that_did_not_change_are_not_written_again(store, folder):
    def sizes():
        return sum(path.stat().st_size for path in (folder / "blobs").iterdir())

    big = torch.randn(100_000)
    with store.writer("ana") as writer:
        writer.commit({"big": big, "small": torch.zeros(10)}, reason="x", tokens=1)
        before = sizes()
        assert before > 400_000
        writer.commit({"big": big.clone(), "small": torch.ones(10)}, reason="x", tokens=2)
        assert sizes() - before < 500
        writer.commit({"big": big, "small": torch.zeros(10)}, reason="x", tokens=3)
    assert len(list((folder / "blobs").iterdir())) == 2
    assert torch.equal(store.load("ana", 2)["big"], big)
    assert store.version("ana", 1).state == store.version("ana", 3).state != store.version("ana", 2).state


def test_rollback_branch_history_and_diff(store):
    with store.writer("ana") as writer:
        for i in range(3):
            writer.commit(state(i, slow=i // 2), reason=f"step {i}", tokens=i, probes={"loss": i, "same": 0})
        assert writer.rollback(1, "worse").number == 1
        other = writer.commit(state(9), reason="again", tokens=9)
        assert (other.number, other.parent) == (4, 1)
        writer.branch("side", 3)
        with pytest.raises(StoreError, match="'side'"):
            writer.branch("side")
        writer.rollback(None, "from the start")
    assert store.load("ana") == {} and store.current("ana") is None
    assert same(store.load("ana", branch="side"), state(2, slow=1))
    assert [v.number for v in store.history("ana", 4)] == [4, 1]
    assert [v.number for v in store.history("ana", branch="side", limit=2)] == [3, 2]
    assert [v.number for v in store.versions("ana", limit=2, before=4)] == [3, 2]
    found = store.diff("ana", 2, 3)
    a, b = state(1, slow=0), state(2, slow=1)
    moved = {n: (b[n].double() - a[n].double()).norm() for n in a}
    assert found.groups["fast"].moved == pytest.approx(float((moved["fast/w"] ** 2 + 1).sqrt()))
    assert found.groups["slow"].moved == pytest.approx(float(moved["slow/w"]))
    assert found.groups["slow"].norm == pytest.approx(float(a["slow/w"].double().norm()))
    assert found.groups["fast"].changed == ("fast/w", "fast/clock")
    assert found.probes == {"loss": (1, 2)}
    assert store.diff("ana", 1, 2).groups["slow"].changed == ()
    assert store.verify().ok


def test_a_held_version_is_accepted_with_what_it_learned(store):
    with store.writer("ana") as writer:
        writer.remember(b"one", source="s")
        held = writer.commit(state(1), reason="observe", tokens=1, current=False)
        assert writer.current is None and [e.number for e in writer.pending()] == [1]
        assert store.influenced("ana", [1]) == [1]
        writer.record("hold", {"why": "drift"}, version=held.number)
        writer.accept(held.number, "looked at")
        assert writer.current == held and writer.pending() == []
        with pytest.raises(StoreError, match="rollback"):
            writer.accept(held.number, "twice")
    assert [e.version for e in store.experiences("ana")] == [1]
    assert [e.kind for e in store.events("ana", after=0)] == ["observe", "commit", "hold", "accept"]
    assert store.verify().ok


def test_the_journal_says_what_a_version_learned(store):
    with store.writer("ana") as writer:
        for i in range(6):
            writer.remember(f"text {i}".encode(), source="ab"[i % 2], start=i, stop=i + 1, time=100.0 + i)
            if i in (1, 3):
                writer.commit(state(i), reason="observe", tokens=i)
        writer.branch("side", 1)
        assert [e.payload for e in writer.pending(payload=True)] == [b"text 4", b"text 5"]
        assert [e.number for e in store.experiences("ana", after=1)] == [3, 4, 5, 6]
        writer.rollback(1, "no")
        assert writer.pending() == []
        writer.remember(b"later", source="a", time=200.0, kind="feedback")
        writer.commit(state(7), reason="observe", tokens=7)
    assert [e.number for e in store.experiences("ana", source="a")] == [1, 3, 5, 7]
    assert [e.number for e in store.experiences("ana", since=102, until=104)] == [3, 4]
    assert [e.version for e in store.experiences("ana")] == [1, 1, 2, 2, None, None, 3]
    assert [e.number for e in store.experiences("ana", after=0)] == [1, 2, 7]  # the rest was rolled back
    assert [e.number for e in store.experiences("ana", after=0, branch="side")] == [1, 2]
    assert store.influenced("ana", [3]) == [2] and store.influenced("ana", [2]) == [1, 2, 3]
    assert store.payload("ana", 7) == b"later" and [e.kind for e in store.events("ana")].count("feedback") == 1
    with pytest.raises(StoreError, match="side"):
        list(store.experiences("ana", after=3, branch="side"))


def test_a_learner_without_a_journal_notes_only_that_it_observed(store, folder):
    store.create("bea", base="weights", journal=False)
    with store.writer("bea") as writer:
        assert not writer.remember(b"a text that nobody keeps", source="s", stop=9).kept
        writer.commit(state(1), reason="observe", tokens=9)
    (found,) = store.experiences("bea", payload=True)
    assert (found.source, found.stop, found.payload, found.version) == ("s", 9, None, 1)
    with pytest.raises(StoreError, match="journal"):
        store.payload("bea", 1)
    assert store.verify().ok
    assert b"nobody keeps" not in raw(folder)


def test_gc_keeps_the_newest_and_what_branches_point_to(store, folder):
    with store.writer("ana") as writer:
        for i in range(6):
            writer.commit(state(i, slow=0), reason="x", tokens=i)
            if i == 1:
                writer.branch("named")
        writer.rollback(4, "back")
        done = writer.gc(keep=1)
        assert done.versions == (1, 3, 5) and len(done.blobs) == 3
    assert [v.number for v in store.versions("ana")] == [6, 4, 2]
    for number in (6, 4, 2):
        assert same(store.load("ana", number), state(number - 1))
    assert len(list((folder / "blobs").iterdir())) == 4  # the slow level is in the first of its own
    with pytest.raises(StoreError, match="removed"):
        store.load("ana", 5)
    with store.writer("ana") as writer:
        assert writer.commit(state(8), reason="x", tokens=8).number == 7
        with pytest.raises(StoreError, match="keep=0"):
            writer.gc(keep=0)
    assert store.verify().ok


def test_learners_share_what_is_equal_and_lose_only_their_own(store):
    store.create("bea", base="weights")
    for name in ("ana", "bea"):
        with store.writer(name) as writer:
            writer.commit(state(1), reason="x", tokens=1)
    with store.writer("ana") as writer:
        writer.commit(state(2), reason="x", tokens=1)
    report = store.delete("ana")
    assert report.versions == (1, 2) and report.shared == 3
    assert store.learners() == ["bea"] and same(store.load("bea"), state(1))
    assert store.verify().ok
    store.create("ana", base="weights")
    assert store.versions("ana") == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.create("a/b", base="w"), "name='a/b'"),
        (lambda s: s.create("ana", base="w"), "has a learner of this name"),
        (lambda s: s.create("b", base=""), "base=''"),
        (lambda s: s.create("b", base="w", config={"x": object()}), "config="),
        (lambda s: s.load("bob"), "'bob'.*ana"),
        (lambda s: s.load("ana", 3), "version=3"),
        (lambda s: s.load("ana", branch="x"), "branch='x'.*main"),
        (lambda s: s.writer("ana", "x").__enter__(), "branch='x'"),
    ],
)
def test_wrong_calls_say_what_to_do(store, call, words):
    with pytest.raises(StoreError, match=words):
        call(store)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: w.commit({}, "x", 1), "state is empty"),
        (lambda w: w.commit({"a": torch.tensor([1.0, torch.nan])}, "x", 1), "NaN"),
        (lambda w: w.commit({"a": torch.tensor([torch.nan]).bfloat16()}, "x", 1), "NaN"),
        (lambda w: w.commit({"a": 3}, "x", 1), "'a'"),
        (lambda w: w.commit(state(1), "x", -1), "tokens=-1"),
        (lambda w: w.commit(state(1), "x", 1, probes={"p": float("nan")}), "probes"),
        (lambda w: w.remember(b"x", ""), "source"),
        (lambda w: w.remember(b"x", "s", trust=2), "trust=2"),
        (lambda w: w.remember("x", "s"), "bytes"),
        (lambda w: w.remember(b"x", "s", kind="dream"), "kind='dream'"),
        (lambda w: w.remember(b"x", "s", start=3, stop=1), "start=3"),
        (lambda w: w.record("commit", {}), "kind='commit'"),
        (lambda w: w.record("sleep", {}, version=4), "version=4"),
        (lambda w: w.rollback(4, "x"), "version=4"),
        (lambda w: w.drop("main"), "main"),
        (lambda w: w.erase([7]), "there is no 7"),
    ],
)
def test_wrong_writes_change_nothing(store, call, words):
    with store.writer("ana") as writer:
        with pytest.raises(StoreError, match=words):
            call(writer)
        assert store.head("ana")[0] == 0 and store.versions("ana") == []
    with pytest.raises(StoreError, match="closed"):
        writer.commit(state(1), "x", 1)


def _hold(folder, pipe):
    with Store.open(folder) as store, store.writer("ana") as writer:
        writer.remember(b"not committed", source="s")
        pipe.send(os.getpid())
        time.sleep(60)


def test_one_writer_in_all_processes_until_it_dies(store, folder):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_hold, args=(folder, theirs))
    child.start()
    pid = ours.recv()
    with pytest.raises(Busy, match=f"'ana': process {pid} on .* is writing"), store.writer("ana"):
        pass
    assert f"process {pid}" in store.learner("ana").writer
    with Store.open(folder) as other:
        assert other.found == []  # it is alive
    child.kill()
    child.join()
    with Store.open(folder) as other:
        assert len(other.found) == 1 and "ana" in other.found[0] and "1 on 'main'" in other.found[0]
    with store.writer("ana") as writer:
        assert [e.number for e in writer.pending()] == [1]
        assert writer.discard("lost") == [1]
        assert writer.pending() == []
    assert [e.kind for e in store.events("ana")] == ["create", "observe", "interrupted", "discard"]
    assert store.verify().ok


def test_one_writer_in_all_threads(store):
    inside, most, done, refused = 0, 0, [], []
    lock = threading.Lock()

    def work():
        nonlocal inside, most
        while True:
            try:
                with store.writer("ana") as writer:
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    done.append(writer.commit(state(len(done)), reason="x", tokens=1).number)
                    time.sleep(0.35)
                    with lock:
                        inside -= 1
                return
            except Busy as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and sorted(done) == [1, 2, 3]
    assert refused and "thread Thread-" in refused[0]


def test_a_lock_does_not_live_on_in_a_forked_child(store):
    context = multiprocessing.get_context("fork")
    with store.writer("ana"):
        child = context.Process(target=time.sleep, args=(30,))
        child.start()
    try:
        assert child.is_alive()
        with store.writer("ana") as writer:
            assert writer.commit({"x": torch.ones(2)}, "after the fork", 1).number == store.current("ana").number
    finally:
        child.kill()
        child.join()


def _use(store, pipe):
    try:
        store.learners()
    except StoreError as error:
        pipe.send(str(error))


def test_a_forked_child_must_open_the_store_again(store):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_use, args=(store, theirs))
    child.start()
    assert "open it again in the child" in ours.recv()
    child.join()
