"""Nights over HTTP: jobs like any change, slow ones that hold up nobody, and what is left when they are stopped."""

import json
import threading

import pytest

from circadia.live import Learner, Store
from circadia.serve import Keys
from circadia.sleep.fit import Meter
from tests.live.learners import differing
from tests.serve.conftest import PATIENCE, serving
from tests.serve.test_learners import events
from tests.serve.test_many import until

TEXT = "Mira lives in Oslo. Her dog eats green apples, and nobody knows why.\n"
SHORT = {"presentations": 30, "length": 12, "dreams": 8, "dream_length": 8}
NIGHT = {"replay": {"presentations": 30, "length": 12}, "dreams": 8, "dream_length": 8}
BED = "/v1/learners/ana/sleep"


@pytest.fixture
def own(tmp_path):
    """A server with a learner that has had a day."""
    with serving(tmp_path / "store") as server:
        server.make("ana")
        server.post("/v1/learners/ana/observe", text=TEXT, source="notes")
        yield server


class Slow:
    """A night that stands still at its second step."""

    def __init__(self, monkeypatch):
        self.asleep, self.go, real = threading.Event(), threading.Event(), Meter.step

        def step(meter, what, at, of):
            if at == 1:
                self.asleep.set()
                assert self.go.wait(PATIENCE)
            real(meter, what, at, of)

        monkeypatch.setattr(Meter, "step", step)


def get(server, path):
    done = server.http.get(f"/v1/learners/ana{path}")
    assert done.status_code == 200, done.text
    return done.json()


def ended(server, job):
    until(lambda: server.http.get(f"/v1/jobs/{job}").json()["status"] not in ("queued", "running"))
    return server.http.get(f"/v1/jobs/{job}").json()


def test_a_night_fitted_to_a_price_over_http(own):
    done = own.post(BED, wait=True, fit=0.4, **SHORT)
    assert get(own, f"/nights/{done['night']['number']}")["report"]["windows"] == 0


def test_a_night_over_http_is_that_of_the_library(own, tmp_path):
    told, result = events(own, BED, seed=3, **SHORT)
    steps = [(one["part"], one["step"]) for one in told if one["event"] == "progress"]
    assert told[0]["event"] == "accepted" and ("replay", 0) in steps and ("replay", 1) in steps
    assert result["version"] == 2 and result["night"]["action"] == "accept" and result["night"]["parent"] == 1
    base = own.service.base.own
    with Learner.create(tmp_path / "other", base, "ana", gate=False) as me:
        me.observe(TEXT, "notes")
        night = me.sleep(seed=3, **NIGHT)
        with Learner.open(own.service.reads, "ana", base) as theirs:
            assert differing(me, theirs) == []
    (line,) = get(own, "/nights")["data"]
    assert (line["version"], line["number"], line["held"], line["preset"]) == (2, night.number, 0, "journal-replay")
    assert "dreams" not in line and line["bound"] == night.report["bound"]
    full = get(own, f"/nights/{night.number}")
    alike = {name: value for name, value in full["report"].items() if name not in ("cost", "sizes")}
    assert alike == json.loads(json.dumps({name: night.report[name] for name in alike})) and full["report"]["dreams"]
    page = own.http.get(f"/v1/learners/ana/nights/{night.number}/page")
    assert "Version 1 went to sleep, version 2 woke up." in page.text and "Dreams" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    status = get(own, "")
    assert status["nights"] == 1 and "report" not in status["night"]
    metrics = own.http.get("/metrics").text
    assert "circadia_sleeps_total 1\n" in metrics and "circadia_sleep_seconds_count 1\n" in metrics
    assert get(own, "/changes")["data"][0]["action"] == "sleep"
    again = own.post(BED, wait=True, **SHORT)  # nothing was observed since
    assert again["night"]["action"] == "none" and again["version"] == 2 and len(get(own, "/nights")["data"]) == 1


def test_while_a_night_runs_everybody_reads_the_evening_and_others_learn(own, monkeypatch):
    own.make("bob")
    evening, slow = own.chat("ana"), Slow(monkeypatch)
    job = own.http.post(BED, json=SHORT)
    assert job.status_code == 202 and slow.asleep.wait(PATIENCE)
    during = own.chat("ana")
    assert during["circadia"]["version"] == 1 and during["choices"] == evening["choices"]
    assert get(own, "")["version"] == 1 and not get(own, "/due")["due"]
    assert get(own, "/nights") == {"object": "list", "unfinished": False, "data": []}
    assert own.post("/v1/learners/bob/observe", text=TEXT)["version"] == 1  # one writer is left for all others
    mine = own.http.post("/v1/learners/ana/observe", json={"text": TEXT, "wait": False}).json()["id"]
    now = own.http.get(f"/v1/jobs/{job.json()['id']}").json()
    assert now["status"] == "running" and now["progress"]["part"] and now["progress"]["of"] > 1
    assert own.http.get(f"/v1/jobs/{mine}").json()["status"] == "queued"
    assert "circadia_sleeps_working 1\n" in own.http.get("/metrics").text
    slow.go.set()
    assert ended(own, job.json()["id"])["result"]["version"] == 2
    assert ended(own, mine)["result"]["version"] == 3
    assert own.chat("ana")["circadia"]["version"] == 3


def test_a_night_that_is_cancelled_changes_nothing_and_can_be_taken_up_again(own, monkeypatch):
    with monkeypatch.context() as patched:
        slow = Slow(patched)
        job = own.http.post(BED, json={**SHORT, "seed": 1}).json()["id"]
        assert slow.asleep.wait(20)
        assert own.http.delete(f"/v1/jobs/{job}").json()["status"] == "running"  # until its next step
        slow.go.set()
        result = ended(own, job)["result"]
    assert result["interrupted"] and result["night"]["action"] == "stopped" and result["version"] == 1
    listed = get(own, "/nights")
    assert listed["unfinished"] and listed["data"] == [] and own.chat("ana")["circadia"]["version"] == 1
    assert "circadia_sleeps_stopped_total 1\n" in own.http.get("/metrics").text
    done = own.post(BED, wait=True, resume=True)
    assert done["version"] == 2 and done["night"]["seed"] == 1 and not get(own, "/nights")["unfinished"]
    refused = own.http.post(BED, json={"resume": True, "wait": True})
    assert refused.status_code == 400 and "no night" in refused.json()["error"]["message"]


def test_a_server_that_stops_in_mid_sleep_leaves_the_waking_version(tmp_path, monkeypatch):
    with serving(tmp_path / "store") as server, monkeypatch.context() as patched:
        server.make("ana")
        server.post("/v1/learners/ana/observe", text=TEXT)
        slow = Slow(patched)
        server.http.post(BED, json=SHORT)
        assert slow.asleep.wait(20)
        server.server.should_exit = True
        until(lambda: server.service.stopping)
        slow.go.set()
        server.thread.join(PATIENCE)
    with Keys(tmp_path / "store") as keys, Store.open(tmp_path / "store") as store:
        assert keys.changes("ana")[0]["action"] == "sleep" and keys.changes("ana")[0]["version"] == 1
        assert store.current("ana").number == 1 and not store.verify().faults
    with serving(tmp_path / "store") as server:
        assert server.chat("ana")["circadia"]["version"] == 1 and get(server, "/nights")["unfinished"]
        assert server.post(BED, wait=True, resume=True)["version"] == 2


def test_what_a_night_held_back_is_admitted_or_dropped(own):
    own.post("/v1/learners/ana/observe", text="The moon is made of cheese.\n" * 3, source="rumour", trust=0.1)
    own.post("/v1/learners/ana/observe", text="Cats can read minds.\n" * 3, source="web", trust=0.2)
    done = own.post(BED, wait=True, filter=True, **SHORT)
    held = {one["source"]: one for one in get(own, "/quarantine")["data"]}
    assert {"rumour", "web"} <= set(held) and held["web"]["reason"] == "low trust" and done["night"]["held"] >= 2
    assert {one["status"] for one in held.values()} == {"held"}
    path, numbers = "/v1/learners/ana/quarantine", {name: one["number"] for name, one in held.items()}
    admitted = own.post(f"{path}/admit", numbers=[numbers["web"]])
    assert admitted["data"][0]["status"] == "admitted" and admitted["version"] == done["version"] + 1
    dropped = own.post(f"{path}/drop", numbers=[numbers["rumour"]])
    assert dropped["data"][0]["status"] == "dropped"
    now = {one["source"]: one["status"] for one in get(own, "/quarantine")["data"]}
    assert (now["web"], now["rumour"]) == ("admitted", "dropped")
    assert own.http.post(f"{path}/drop", json={"numbers": [1, 999]}).status_code == 400
    night = own.post(BED, wait=True, filter=True, **SHORT)["night"]
    assert night["action"] == "accept" and night["entries"] == 1  # the one that was let out
    assert [one["action"] for one in get(own, "/changes")["data"]][:4] == ["sleep", "drop", "drop", "admit"]


def test_a_policy_says_when_and_a_night_inside_an_observation_can_be_stopped(tmp_path, monkeypatch):
    with serving(tmp_path / "store") as server:
        server.make("ana", sleep="tokens=60", rehearse=True)
        server.post("/v1/learners/ana/observe", text=TEXT)
        due = get(server, "/due")
        assert due["due"] and due["tokens"] == len(TEXT) and "60" in due["reasons"][0] and due["policy"]["tokens"] == 60
        slow = Slow(monkeypatch)
        job = server.http.post("/v1/learners/ana/observe", json={"text": TEXT, "wait": False}).json()["id"]
        assert slow.asleep.wait(20)
        server.http.delete(f"/v1/jobs/{job}")
        slow.go.set()
        result = ended(server, job)["result"]
        assert result["interrupted"] and result["tokens"] == 0 and result["version"] == 1
        bad = server.http.post("/v1/learners", json={"name": "bob", "sleep": "tomorrow"})
        assert bad.status_code == 400 and "is not understood" in bad.json()["error"]["message"]


def test_probes_and_their_scores_over_the_versions(own):
    asked = [{"kind": "text", "name": "fox", "text": "The quick brown fox.", "max": 99},
             {"kind": "qa", "name": "where", "question": "Mira lives in", "answer": " Oslo", "max": 99}]  # fmt: skip
    done = own.post("/v1/learners/ana/probes", probes=asked)
    assert done["action"] == "accept" and set(done["scores"]) == {"fox", "where"}
    own.post("/v1/learners/ana/observe", text=TEXT * 2)
    told = get(own, "/probes")
    assert [one["name"] for one in told["probes"]] == ["fox", "where"] and "text" not in told["probes"][0]
    now, before = told["data"]
    assert before["scores"] == {} and (now["version"], before["version"]) == (2, 1)
    more = {"kind": "drift", "name": "away", "text": "The sea.", "max": 99}
    assert set(own.post("/v1/learners/ana/probes", add=[more], remove=["fox"])["scores"]) == {"where", "away"}
    assert [one["name"] for one in get(own, "/probes")["probes"]] == ["where", "away"]
    assert get(own, "/probes")["probes"][1]["max"] == 99
    for body, said in (
        ({"add": [more]}, "the same name"),
        ({"remove": ["fox"]}, "no probe 'fox'; there is where, away"),
        ({"add": [{**more, "name": str(i)} for i in range(49)]}, "51 probes are too many"),
        ({"probes": [], "add": [more]}, "either probes"),
        ({}, "either probes"),
    ):
        refused = own.http.post("/v1/learners/ana/probes", json=body)
        assert refused.status_code == 400 and said in refused.json()["error"]["message"], refused.text
    assert set(own.post("/v1/learners/ana/probes", remove=["where", "away"])["scores"]) == set()
    assert now["scores"]["where"] != done["scores"]["where"] and now["scores"]["where"] > 0
