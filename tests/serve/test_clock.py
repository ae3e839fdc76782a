"""Nights that nobody asks for: a server looks at the clock for learners whose policy wants it."""

import asyncio
import datetime
from types import SimpleNamespace

import pytest

from circadia.live import Learner, Store, policy
from circadia.serve import Service, Settings, clock
from circadia.serve.clock import Clockwork
from circadia.serve.errors import Refused
from tests.live.learners import model
from tests.serve.conftest import PATIENCE, serving
from tests.serve.test_many import until
from tests.serve.test_nights import TEXT, Slow, ended, get

FAST = "preset=inner-steps"


def nights(server):
    return [job for job in server.service.jobs.all.values() if job.action == "sleep"]


def test_idle_learners_sleep_once_each_and_wait_for_a_bed(tmp_path, monkeypatch):
    slow = Slow(monkeypatch)
    with serving(tmp_path / "store", watch=0.05) as server:
        for name in ("ana", "bob"):
            server.make(name, sleep=f"idle=0.4,{FAST}")
            server.post(f"/v1/learners/{name}/observe", text=TEXT)
        server.make("eve")
        server.post("/v1/learners/eve/observe", text=TEXT)
        assert slow.asleep.wait(PATIENCE)
        (job,) = nights(server)  # the other one is due as well, and is not put into the line
        mine = server.http.post("/v1/learners/eve/sleep", json={"preset": "inner-steps"}).json()["id"]
        server.http.delete(f"/v1/jobs/{job.id}")
        slow.go.set()
        assert ended(server, job.id)["result"]["interrupted"] and ended(server, mine)["result"]["version"] == 2
        until(lambda: len(nights(server)) == 3 and all(one.done.is_set() for one in nights(server)))
        first, other = job.learner, nights(server)[2].learner
        assert {first, other} == {"ana", "bob"} and nights(server)[1].learner == "eve"
        assert server.chat(other)["circadia"]["version"] == 2 and server.chat(first)["circadia"]["version"] == 1
        looks = []
        monkeypatch.setattr(Clockwork, "due", lambda self, real=Clockwork.due: looks.append(0) or real(self))
        until(lambda: len(looks) > 3)
        assert len(nights(server)) == 3  # neither the one that was told to wake up, nor the one that slept
        server.post(f"/v1/learners/{first}/observe", text=TEXT)
        until(lambda: len(nights(server)) == 4 and nights(server)[3].done.is_set())
        assert server.chat(first)["circadia"]["version"] == 4  # the observation has slept, too: it was idle before
        change = server.http.get(f"/v1/learners/{other}/changes").json()["data"][0]
        assert (change["key"], change["action"], change["version"]) == ("policy", "sleep", 2)


@pytest.fixture
def service(tmp_path):
    made = Service(Settings(base=model(vocab=256), store=tmp_path / "store", watch=0))
    yield made
    made.close()


def learner(service, name, when, text=TEXT):
    with Learner.create(service.writes, service.base.own, name, gate=False, sleep=when) as me:
        if text:
            me.observe(text)


def at(monkeypatch, moment):
    for module in (policy, clock):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: moment))


def test_a_look_reads_no_memory_and_only_what_has_changed(service, monkeypatch):
    for name, when in (("ana", "idle=100000"), ("bob", "hour=3"), ("cat", "tokens=1"), ("dan", None)):
        learner(service, name, when)
    learner(service, "eve", "idle=0.001", "")  # nothing to sleep on
    with Learner.open(service.writes, "ana", service.base.own) as me:
        me.branch("side")
    read, real = [], policy.Clock.of.__func__

    def of(cls, store, name, branch):
        read.append((name, branch))
        return real(cls, store, name, branch)

    monkeypatch.setattr(policy.Clock, "of", classmethod(of))
    monkeypatch.setattr(Store, "load", lambda *given, **named: pytest.fail("a memory was read"))
    watch = Clockwork(service)
    assert watch.due() == [] == watch.due()
    assert sorted(read) == [("ana", "main"), ("ana", "side"), ("bob", "main"), ("eve", "main")]
    monkeypatch.undo()
    with Learner.open(service.writes, "bob", service.base.own) as me:
        me.observe(TEXT)
        slow = policy.Since.of(me)
        found = policy.Clock.of(service.reads, "bob", "main")
        assert (found.tokens, found.slept, found.active) == (me.tokens - slow.start, slow.slept, slow.active)
        me.sleep("inner-steps")
        me.observe(TEXT)
        found, slow = policy.Clock.of(service.reads, "bob", "main"), policy.Since.of(me)
        assert slow.start > 0 and found.tokens == me.tokens - slow.start == len(TEXT) and found.slept == slow.slept
    service.writes.delete("ana")
    watch.due()
    assert {place for place, _ in watch._seen} == {service.reads.learner(name).uid for name in ("bob", "eve")}


def test_an_hour_comes_once_a_day(service, monkeypatch):
    learner(service, "ana", "hour=3")
    watch, today = Clockwork(service), datetime.datetime.now().replace(hour=2, minute=59, second=0)
    counted = []
    for days, hours in ((1, 0), (1, 1), (1, 20), (2, 0), (2, 1), (2, 2)):
        at(monkeypatch, (today + datetime.timedelta(days=days, hours=hours)).timestamp())
        found = watch.due()
        counted.append(len(found))
        for one in found:
            watch._begun[one.place] = one.cause  # and it came to nothing
    # The first is due by the hour of the day before, which is after it was made, if that was before three.
    assert counted[1:] == [1, 0, 0, 1, 0]


def test_a_full_line_is_no_cause_and_a_busy_learner_is_not_idle(service, monkeypatch):
    for name in ("ana", "bob"):
        learner(service, name, f"idle=0.001,{FAST}")
    asked, watch = [], Clockwork(service)

    def full(name, *given, **named):
        asked.append(name)
        raise Refused(429, "too many", "queue_full")

    monkeypatch.setattr(service.jobs, "submit", full)
    for _ in range(2):
        asyncio.run(watch.look())
    assert asked == ["ana", "ana"] and not watch._begun
    monkeypatch.setattr(service.jobs, "busy", lambda name: name == "ana")
    asyncio.run(watch.look())
    assert asked[2:] == ["bob"]
    service.jobs.workers[True] = 0
    asyncio.run(watch.look())
    assert len(asked) == 3
    asyncio.run(asyncio.wait_for(watch.run(), 5))  # watch=0: it never looks
    assert len(asked) == 3


def test_a_server_that_stops_is_not_held_up_and_the_next_one_goes_on(tmp_path, monkeypatch):
    with serving(tmp_path / "store", watch=0.05) as server, monkeypatch.context() as patched:
        server.make("ana", sleep=f"idle=0.2,{FAST}")
        slow = Slow(patched)
        server.post("/v1/learners/ana/observe", text=TEXT)
        assert slow.asleep.wait(PATIENCE)
        server.server.should_exit = True
        until(lambda: server.service.stopping)
        slow.go.set()
        server.thread.join(PATIENCE)
    with Store.open(tmp_path / "store") as store:
        assert store.current("ana").number == 1 and not store.verify().faults
    with serving(tmp_path / "store", watch=0.05) as server:
        until(lambda: server.chat("ana")["circadia"]["version"] == 2)
        (line,) = get(server, "/nights")["data"]
        assert line["action"] == "accept" and len(nights(server)) == 1
