"""What a server holds has a number that it does not grow beyond, however long it runs."""

import asyncio
import gc

import pytest

from circadia.live import Learner
from circadia.serve import bank, jobs
from circadia.serve.keys import ANYONE
from tests.live.learners import model
from tests.serve.conftest import serving

TEXT = "Mira lives in Oslo, by the sea.\n"


@pytest.fixture
def own(tmp_path):
    with serving(tmp_path / "store", completions=4, completion_tokens=180) as server:
        server.make("ana")
        yield server


def alive():
    gc.collect()
    return sum(type(one) is Learner for one in gc.get_objects())


def test_jobs_that_ended_hold_neither_what_was_sent_nor_a_memory(own, monkeypatch):
    monkeypatch.setattr(jobs, "FINISHED", 6)
    before = alive()
    for i in range(5):
        own.post("/v1/learners/ana/observe", text=TEXT)
        wrong = own.http.post(
            "/v1/learners/ana/feedback", json={"completion": f"none-{i}", "good": True, "wait": False}
        )
        assert wrong.status_code == 202
    own.chat("ana", learn=True)
    held = list(own.service.jobs.all.values())
    assert [job.action for job in held] == ["feedback", "observe", "feedback", "observe", "feedback", "learn"]
    assert all(job.work is None and not job.listeners for job in held)
    errors = [job.error for job in held if job.error is not None]
    assert len(errors) == 3 and all(error.__traceback__ is error.__context__ is None for error in errors)
    assert alive() == before
    assert own.http.get(f"/v1/jobs/{held[0].id}").json()["error"]["code"] == "completion_not_found"


def test_replies_that_feedback_may_come_on_are_bounded_by_number_and_by_tokens(own):
    def held():
        found = own.service.completions
        assert own.service._tokens == sum(one.size for one in found.values())
        assert all(one.said.marks == () for one in found.values())
        return list(found)

    said = [own.chat("ana", logprobs=True, top_logprobs=3, max_tokens=2) for _ in range(6)]
    assert said[0]["choices"][0]["logprobs"]["content"] and held() == [one["id"] for one in said[2:]]
    long = own.chat("ana", "x" * 100)["id"]  # as long as several of the others
    assert held()[-1] == long and 2 <= len(held()) < 4
    kept = own.post("/v1/learners/ana/feedback", completion=long, good=True)
    assert kept["version"] == 1
    own.post("/v1/learners/ana/forget", all=True)
    assert held() == [] and own.service._tokens == 0


def test_learners_that_come_and_go_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(bank, "KINDS", 2)
    monkeypatch.setattr(bank, "FORGOT", 2)
    with serving(tmp_path / "store", base=model(vocab=256).base) as server:
        base, memories = server.service.base, server.service.memories
        names = [f"user{i}" for i in range(4)]
        for i, name in enumerate(names):
            server.make(name, periods=[8, 16], context=8, rate=0.1 + 0.1 * i)
            server.post(f"/v1/learners/{name}/observe", text=TEXT * 2)
            said = server.chat(name)
            assert len(base._readers) <= 2 and len(base._models) <= 2
            server.post(f"/v1/learners/{name}/feedback", completion=said["id"], good=True)
        for name in names:
            server.post(f"/v1/learners/{name}/forget", source="feedback")
        assert len(memories._epochs) == 2
        for name in names:  # also those whose count was let go
            said = server.chat(name)
            assert server.post(f"/v1/learners/{name}/feedback", completion=said["id"], good=True)["version"]
        for name in names:
            assert server.http.delete(f"/v1/learners/{name}").status_code == 200
        assert not memories._loading and not len(memories) and not server.service.completions
        assert not server.service.slots._of and not server.service.jobs._lines and not server.service.watchers


def test_a_disk_without_room_for_the_log_of_changes_keeps_nobody_waiting(own, monkeypatch):
    def full(*values):
        raise OSError(28, "no room")

    monkeypatch.setattr(own.service.keys, "note", full)
    done = [own.http.post("/v1/learners/ana/observe", json={"text": TEXT}, timeout=60) for _ in range(2)]
    assert [one.json()["version"] for one in done] == [1, 2]


def test_a_client_that_does_not_listen_misses_the_oldest(own):
    with own.service.watching("ana") as queue:
        for i in range(300):
            own.service.publish("ana", {"number": i})
        own.service.halt()
        told = [queue.get_nowait() for _ in range(queue.qsize())]
    assert [told[0], *told[-2:]] == [{"number": 45}, {"number": 299}, None]

    async def told():
        job = jobs.Job("ana", "observe", lambda job: {}, ANYONE, 1.0)
        queue = asyncio.Queue(3)
        job.listeners.add(queue)
        for i in range(9):
            job._told({"tokens": i})
        job.listen(None)
        return [queue.get_nowait() for _ in range(queue.qsize())]

    assert asyncio.run(told()) == [{"tokens": 7}, {"tokens": 8}, None]
