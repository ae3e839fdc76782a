"""One base, many learners: turns, limits, and who waits for whom."""

import asyncio
import threading
import time

import pytest

from circadia.live import Store
from circadia.live.text import BLOCK
from circadia.serve import Keys, batch, decode, jobs, service
from circadia.serve.errors import Refused
from circadia.serve.scheduler import Slots
from tests.serve.conftest import PATIENCE, serving

TEXT = "Mira lives in Oslo, by the sea.\n" * 10


def until(true):
    """Wait for something."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class Gate:
    """Holds answers up until it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.inside = threading.Event(), 0
        real = decode.say

        def say(base, memory, wish, ends, call, tell=None):
            self.inside += 1
            try:
                while not self.open.is_set():
                    call.check()
                    time.sleep(0.005)
                return real(base, memory, wish, ends, call, tell)
            finally:
                self.inside -= 1

        monkeypatch.setattr(service, "say", say)


def asking(server, who, **given):
    """A request in a thread of its own; its status arrives in the list."""
    found = []
    body = {"model": who, "messages": [{"role": "user", "content": "?"}], "max_tokens": 2, **given}
    thread = threading.Thread(
        target=lambda: found.append(server.http.post("/v1/chat/completions", json=body)), daemon=True
    )
    thread.start()
    return thread, found


def test_memories_are_loaded_when_asked_for_and_the_oldest_goes_first(tmp_path):
    with serving(tmp_path / "store", cache=30_000) as server:  # each of these learners takes 13,824 bytes
        said = {}
        for name in ("ana", "bob", "eve"):
            server.make(name)
            server.post(f"/v1/learners/{name}/observe", text=f"{name} says: {TEXT}")
            said[name] = server.chat(name)["choices"][0]["message"]["content"]
        held = server.service.memories
        assert 0 < held.bytes <= 30_000 and len(held) == 2 and (held.loads, held.evictions) == (3, 1)
        server.chat("bob")
        assert held.loads == 3
        assert server.chat("ana")["choices"][0]["message"]["content"] == said["ana"]
        assert (held.loads, held.evictions, len(held)) == (4, 2, 2)
        server.chat("bob")
        assert held.loads == 4  # eve went, though she had come later: bob had been used since
        models = {id(r.model.base) for r in server.service.base._readers.values()}
        assert models == {id(server.service.base.module)}


def test_readers_see_the_last_version_and_do_not_wait_for_a_writer(tmp_path, monkeypatch):
    reading, go = threading.Event(), threading.Event()

    def stopped(job):
        reading.set()
        assert go.wait(PATIENCE)
        return False

    with serving(tmp_path / "store", teachers=2) as server:
        server.make("ana")
        server.post("/v1/learners/ana/observe", text=TEXT)
        before = server.chat("ana")
        monkeypatch.setattr(jobs.Job, "stopped", stopped)
        job = server.http.post("/v1/learners/ana/observe", json={"text": TEXT, "wait": False})
        assert job.status_code == 202
        assert reading.wait(PATIENCE)  # the writer is in the middle of it now
        during = server.chat("ana")
        assert during["circadia"]["version"] == 1 and during["choices"] == before["choices"]
        assert server.http.get("/v1/learners/ana").json()["version"] == 1
        # A second change waits for the first: one writer.
        second = server.http.post("/v1/learners/ana/rollback", json={"version": 1, "wait": False}).json()
        path = f"/v1/jobs/{second['id']}"
        assert server.http.get(path).json()["status"] == "queued"
        go.set()
        until(lambda: server.http.get(path).json()["status"] == "done")
        assert server.http.get(f"/v1/jobs/{job.json()['id']}").json()["result"]["version"] == 2
        assert server.chat("ana")["circadia"]["version"] == 1


def test_full_queues_say_when_to_come_again(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    with serving(tmp_path / "store", batch=1, readers=1, queue=2, queue_one=2) as server:
        server.make("ana")
        waiting = [asking(server, "base@ana"), asking(server, "base@ana")]
        until(lambda: gate.inside == 1 and server.service.slots.waiting == 1)
        third = server.http.post("/v1/chat/completions", json={
            "model": "base@ana", "messages": [{"role": "user", "content": "?"}], "stream": True})  # fmt: skip
        assert third.status_code == 429 and int(third.headers["retry-after"]) >= 1
        assert third.json()["error"]["type"] == "rate_limit_error" and "of this learner" in third.text
        waiting.append(asking(server, "base"))
        until(lambda: server.service.slots.waiting == 2)
        _, last = asking(server, "base")
        until(lambda: last)
        assert last[0].status_code == 429 and "2 requests wait already" in last[0].text
        gate.open.set()
        for thread, found in waiting:
            thread.join(PATIENCE)
            assert found[0].status_code == 200
        assert server.service.slots.free == 1


def test_changes_have_a_limit_and_those_that_wait_can_be_cancelled(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(jobs.Job, "stopped", lambda job: not go.wait(PATIENCE) or job.stop.is_set())
    with serving(tmp_path / "store", jobs_one=3) as server:
        server.make("ana")
        path = "/v1/learners/ana/observe"
        ids = [server.http.post(path, json={"text": TEXT * 13, "wait": False}).json()["id"] for _ in range(3)]
        full = server.http.post(path, json={"text": TEXT})
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        assert server.http.delete(f"/v1/jobs/{ids[1]}").json()["status"] == "cancelled"
        assert server.http.delete(f"/v1/jobs/{ids[0]}").json()["status"] == "running"  # until its next border
        go.set()
        until(lambda: server.http.get(f"/v1/jobs/{ids[2]}").json()["status"] == "done")
        first, last = (server.http.get(f"/v1/jobs/{ids[i]}").json()["result"] for i in (0, 2))
        assert first["interrupted"] and first["version"] is None
        assert not last["interrupted"] and last["tokens"] == 13 * len(TEXT) and last["version"] == 1
        seen = [(c["action"], c["outcome"]) for c in server.http.get("/v1/learners/ana/changes").json()["data"]]
        assert sorted(seen) == [("create", "done"), ("observe", "cancelled"), ("observe", "done"), ("observe", "done")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_slot(tmp_path, monkeypatch, stream):
    gate = Gate(monkeypatch)
    with serving(tmp_path / "store", batch=1, readers=1) as server:
        body = {"model": "base", "messages": [{"role": "user", "content": "?"}], "stream": stream}
        with pytest.raises(Exception, match="timed out"):
            server.http.post("/v1/chat/completions", json=body, timeout=0.5)
        until(lambda: gate.inside == 0 and server.service.slots.free == 1)
        gate.open.set()
        assert server.chat(None)["usage"]["completion_tokens"] == 8


def test_rows_of_a_batch_come_and_go_and_do_not_meet(tmp_path, monkeypatch):
    slow, held = batch.Batch.step, threading.Event()

    def step(self):
        if not held.is_set():
            time.sleep(0.05)
        slow(self)

    with serving(tmp_path / "store") as server:
        names = ["ana", "bob", "eve"]
        for name in names:
            server.make(name)
            server.post(f"/v1/learners/{name}/observe", text=f"{name} says: {TEXT}")
        asked = [{"model": f"base@{names[i % 3]}" if i % 4 else "base", "prompt": "Hello " * (i + 1), "seed": i,
                  "max_tokens": 10 + 3 * i, "temperature": 1.0} for i in range(9)]  # fmt: skip
        alone = [server.post("/v1/completions", **one)["choices"] for one in asked]
        monkeypatch.setattr(batch.Batch, "step", step)
        found = [None] * 9

        def ask(i):
            found[i] = server.http.post("/v1/completions", json=asked[i])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(9)]
        engine = server.service.engine
        passes, made = engine.passes, engine.made
        with pytest.raises(Exception, match="timed out"):  # it is in the batch, and hangs up
            for thread in threads:
                thread.start()
            server.http.post("/v1/completions", json={**asked[0], "max_tokens": 110}, timeout=1.0)
        held.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert [reply.json()["choices"] for reply in found] == alone
        until(lambda: server.service.slots.free == 8)
        assert engine.made - made > 2 * (engine.passes - passes)
        server.service.metrics.add("tokens_learned_total", 1234567)
        shown = server.http.get("/metrics").text
        assert "circadia_batch_tokens_total" in shown
        assert (
            f"circadia_tokens_learned_total {1234567 + sum(len(f'{name} says: {TEXT}') for name in names)}\n" in shown
        )
        late = server.http.post("/v1/completions", json={**asked[1], "max_tokens": 1})
        assert late.status_code == 200


def test_an_answer_has_a_time_limit(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    with serving(tmp_path / "store", batch=1, readers=1, seconds=1.0) as server:
        _, first = asking(server, "base")
        until(lambda: gate.inside == 1)
        _, second = asking(server, "base", stream=True)
        until(lambda: first and second)
        assert first[0].status_code == 504 and first[0].json()["error"]["code"] == "timeout"
        assert second[0].status_code in (429, 504)  # no slot in time, or no answer
        until(lambda: server.service.slots.free == 1)


def test_slots_are_given_in_turns():
    async def life():
        slots, order = Slots(1, 10, 5), []

        async def one(learner):
            async with slots.slot(learner, 60):
                order.append(learner)
                await asyncio.sleep(0)

        async with slots.slot("ana", 1):
            tasks = [asyncio.ensure_future(one(name)) for name in ("bob", "bob", "bob", "eve")]
            await asyncio.sleep(0)
            gone = asyncio.ensure_future(one("ana"))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            assert slots.waiting == 4
            with pytest.raises(Refused, match="no slot within"):
                async with slots.slot("ana", 0.01):
                    pass
        await asyncio.gather(*tasks)
        return order, slots

    order, slots = asyncio.run(life())
    assert order == ["bob", "eve", "bob", "bob"] and slots.free == 1 and not slots._of and not slots.waiting


def test_many_who_ask_the_base_do_not_wait_for_every_learner_each(tmp_path, monkeypatch):
    """One answer at a time; five learners and four requests to the base wait. All of the base are among the first."""
    order, gate, keys = [], Gate(monkeypatch), Keys(tmp_path / "store")
    real = service.Service.read

    async def read(self, owner, work, call=None, turn=None):
        def noted():
            order.append(owner)
            return work()

        return await real(self, owner, noted, call, turn)

    names = ["ana", "bob", "cat", "dan", "eve"]
    with serving(tmp_path / "store", batch=1, readers=1) as server:
        for name in names:
            server.make(name)
        monkeypatch.setattr(service.Service, "read", read)

        def line(asked):
            """All wait behind one answer; who came when."""
            gate.open.clear()
            order.clear()
            threads = [asking(server, "base@ana")[0]]
            until(lambda: gate.inside == 1)
            for i, (who, more) in enumerate(asked):
                threads.append(asking(server, who, **more)[0])
                until(lambda n=i: server.service.slots.waiting == n + 1)
            gate.open.set()
            for thread in threads:
                thread.join(PATIENCE)
            return ["base" if isinstance(owner, tuple) else owner for owner in order[1:]]

        learners = [(f"base@{name}", {}) for name in names]
        assert line([*[("base", {})] * 4, *learners, *learners]) == ["base"] * 4 + names * 2
        # One who says who it is has one turn, however often it asks.
        assert line([*[("base", {"user": "x"})] * 3, ("base", {"user": "y"}), *learners]) == [
            "base", "base", *names, "base", "base"]  # fmt: skip
        server.http.headers["Authorization"] = f"Bearer {keys.new('admin', ['*'])[1]}"
        assert line([*[("base", {})] * 3, *learners]) == ["base", *names, "base", "base"]


def test_whoever_watches_sees_what_happens(tmp_path):
    with serving(tmp_path / "store") as server:
        server.make("ana")
        with server.http.stream("GET", "/v1/learners/ana/events") as reply:
            lines = (line for line in reply.iter_lines() if line.startswith("data: "))
            assert '"watching"' in next(lines)
            server.post("/v1/learners/ana/observe", text=TEXT)
            seen = []
            while '"done"' not in (seen or [""])[-1]:
                seen.append(next(lines))
        assert sum('"chunk"' in line for line in seen) == len(TEXT) // 8 and '"version": 1' in seen[-1]
        until(lambda: not server.service.watchers)


def test_the_end_comes_at_a_border_with_everything_committed(tmp_path, monkeypatch):
    begun = threading.Event()
    real = jobs.Job.stopped

    def stopped(job):  # the first block is read, then the server is told to end
        if begun.is_set():
            until(job.stop.is_set)
        begun.set()
        return real(job)

    with serving(tmp_path / "store") as server:
        server.make("ana")
        monkeypatch.setattr(jobs.Job, "stopped", stopped)
        for _ in range(2):
            server.http.post("/v1/learners/ana/observe", json={"text": "abcdefg\n" * 1000, "wait": False})
        with server.http.stream("GET", "/v1/learners/ana/events"):
            assert begun.wait(PATIENCE)
            server.server.should_exit = True
            server.thread.join(PATIENCE)
    with Store.open(tmp_path / "store") as store:
        assert store.current("ana").tokens == BLOCK and not store.verify().faults
        assert [e.version for e in store.experiences("ana")] == [1]
    with Keys(tmp_path / "store") as keys:
        assert sorted(c["outcome"] for c in keys.changes("ana")) == ["cancelled", "done", "done"]
