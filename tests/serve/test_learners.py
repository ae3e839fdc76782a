"""A life over HTTP."""

import json

import pytest

from circadia.live import Learner
from circadia.serve import learn
from tests.live.conftest import raw
from tests.live.learners import differing, model
from tests.serve.conftest import serving

TEXT = "Mira lives in Oslo, by the sea.\n" * 40
CANARY = "canary-91c4 zebra secrets.\n" * 12


def events(server, path, **json_):
    """Of a stream: all but the end, and the end."""
    with server.http.stream("POST", path, json={**json_, "stream": True}) as reply:
        lines = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    found = [json.loads(line) for line in lines[:-1]]
    return found[:-1], found[-1]


@pytest.fixture
def own(tmp_path):
    """A server with a learner, and its folder."""
    with serving(tmp_path / "store") as server:
        server.make("ana")
        yield server, tmp_path / "store"


def test_what_is_observed_over_http_is_what_the_library_learns(own, tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "BLOCK", 300)  # read in several blocks
    server, _ = own
    told, result = events(server, "/v1/learners/ana/observe", text=TEXT, source="notes")
    progress = [one for one in told if one["event"] == "progress"]
    assert told[0]["event"] == "accepted" and len(progress) == result["chunks"] > 100
    assert [p["tokens"] for p in progress] == sorted(p["tokens"] for p in progress)
    assert result["event"] == "result" and result["version"] == 1 and result["tokens"] == len(TEXT)
    file = server.http.post("/v1/learners/ana/files?source=book", content="Grüße, ña.\n".encode() * 9)
    assert file.json()["version"] == 2
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]}]
    assert server.post("/v1/learners/ana/observe", messages=turns, source="talk")["version"] == 3
    base = server.service.base.own
    with Learner.create(tmp_path / "other", base, "ana", gate=False) as me:
        me.observe(TEXT, "notes")
        me.observe("Grüße, ña.\n" * 9, "book")
        me.observe([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}], "talk")
        with Learner.open(server.service.reads, "ana", base) as theirs:
            assert differing(me, theirs) == []
    status = server.http.get("/v1/learners/ana").json()
    assert status["version"] == 3 and set(status["sources"]) == {"notes", "book", "talk"} and not status["busy"]


def test_a_conversation_teaches_only_when_asked_to(own):
    server, folder = own
    reply = server.chat("ana", "I am Mira canary-1a.")
    assert server.http.get("/v1/learners/ana").json()["tokens"] == 0 and b"canary-1a" not in raw(folder)
    reply = server.chat("ana", "I am Mira canary-1b.", learn=True)
    assert reply["circadia"] == {
        "learner": "ana", "branch": "main", "version": None, "learned": True, "new_version": 1
    }  # fmt: skip
    assert b"canary-1b" in raw(folder) and server.http.get("/v1/learners/ana").json()["tokens"] > 20
    body = {
        "model": "base@ana",
        "messages": [{"role": "user", "content": "More."}],
        "max_tokens": 3,
        "learn": True,
        "logit_bias": {"2": -100},
    }
    told, end = events(server, "/v1/chat/completions", **body)
    assert end["circadia"]["new_version"] == 2 and end["choices"][0]["finish_reason"] == "length" and told
    text = server.post("/v1/completions", model="base@ana", prompt="Once", max_tokens=3, learn=True)
    assert text["circadia"]["new_version"] == 3


def test_a_policy_lets_conversations_teach_unless_the_request_says_otherwise(own):
    server, folder = own
    path = "/v1/learners/bea"
    server.make("bea", conversations=True)
    status = server.http.get(path).json()
    assert status["conversations"] and not server.http.get("/v1/learners/ana").json()["conversations"]
    told = server.chat("bea", "I am Mira.")["circadia"]
    assert (told["learned"], told["new_version"]) == (True, 1)
    assert "learned" not in server.chat("bea", "I am canary-2a.", learn=False)["circadia"]
    assert server.chat("bea", "Null is nothing said.", learn=None)["circadia"]["new_version"] == 2
    _, end = events(server, "/v1/completions", model="base@bea", prompt="Once", max_tokens=3)
    assert end["circadia"]["new_version"] == 3 and b"canary-2a" not in raw(folder)
    done = server.http.patch(path, json={"conversations": False}).json()
    assert (done["conversations"], done["version"]) == (False, 3)  # a setting makes no version
    assert "learned" not in server.chat("bea", "I am canary-2b.")["circadia"] and b"canary-2b" not in raw(folder)
    assert server.chat("bea", "Asked for.", learn=True)["circadia"]["new_version"] == 4
    server.http.patch(path, json={"conversations": True})
    server.post(f"{path}/branch", name="side")
    assert server.chat("bea:side", "Hi.")["circadia"]["new_version"] == 5
    server.post(f"{path}/rollback", version=1)
    server.post(f"{path}/forget", all=True)
    assert server.http.get(path).json()["conversations"]  # neither took it back
    noted = [one["action"] for one in server.http.get(f"{path}/changes").json()["data"]]
    assert noted[:4] == ["forget", "rollback", "learn", "branch"]
    assert [one for one in noted if "conv" in one] == ["conversations on", "conversations off"]
    file = server.http.get(f"{path}/export").content
    server.http.post("/v1/learners/import?name=cat", content=file)
    assert server.http.get("/v1/learners/cat").json()["conversations"]
    for body in ({}, {"conversations": "yes"}, {"conversations": True, "sleep": "off"}):
        assert server.http.patch(path, json=body).status_code == 400, body


def test_a_policy_that_is_taken_back_while_it_answers_teaches_nothing(own, monkeypatch):
    server, _ = own
    server.http.patch("/v1/learners/ana", json={"conversations": True})
    submit = server.service.jobs.submit

    def late(name, action, work, key, night=False):
        if action == "learn":  # a change that was answered before this one's turn came
            with Learner.open(server.service.writes, name, server.service.base.own) as me:
                me.set(conversations=False)
        return submit(name, action, work, key, night)

    monkeypatch.setattr(server.service.jobs, "submit", late)
    told = server.chat("ana", "I am Mira.")["circadia"]
    assert told["learned"] is False and "policy was changed" in told["error"]
    assert server.http.get("/v1/learners/ana").json()["tokens"] == 0


def test_feedback_is_tied_to_a_completion(own):
    server, _ = own
    server.make("bob")
    reply = server.chat("ana", "Where does Mira live?")
    done = server.post("/v1/learners/ana/feedback", completion=reply["id"], correction="Oslo.")
    assert done["version"] == 1 and done["after"] < done["before"]
    again = server.post("/v1/learners/ana/feedback", completion=reply["id"], good=False)
    assert again["version"] == 2 and again["after"] > again["before"] and again["answer"] == done["answer"]
    by_number = server.post("/v1/learners/ana/feedback", answer=done["answer"], about="Too short.")
    assert by_number["version"] == 3
    for body in ({"completion": reply["id"]}, {"completion": "chatcmpl-none"}):
        found = server.http.post("/v1/learners/bob/feedback", json={**body, "good": True})
        assert found.status_code == 404 and found.json()["error"]["code"] == "completion_not_found"
    assert server.http.post("/v1/learners/ana/feedback", json={"completion": reply["id"]}).status_code == 400


def test_versions_rollback_branch_and_diff(own):
    server, _ = own
    before = server.chat("ana")["choices"][0]["message"]["content"]
    for number in (1, 2):
        assert server.post("/v1/learners/ana/observe", text=TEXT)["version"] == number
    after = server.chat("ana")["choices"][0]["message"]["content"]
    listed = server.http.get("/v1/learners/ana/versions").json()
    assert [v["number"] for v in listed["data"]] == [2, 1] and listed["branches"] == {"main": 2}
    moved = server.http.get("/v1/learners/ana/diff", params={"a": 1, "b": 2}).json()["groups"]["level0"]
    assert moved["moved"] > 0 and moved["changed"]
    assert server.post("/v1/learners/ana/branch", name="try", version=1)["branches"] == {"main": 2, "try": 1}
    done = server.post("/v1/learners/ana/observe", text="Other words.\n" * 30, branch="try")
    assert (done["branch"], done["version"]) == ("try", 3)
    assert server.post("/v1/learners/ana/rollback", version=0)["version"] is None
    assert server.chat("ana")["choices"][0]["message"]["content"] == before != after
    tried = server.chat("ana:try")
    assert tried["circadia"]["version"] == 3 and tried["choices"][0]["message"]["content"] != before
    assert server.post("/v1/learners/ana/rollback", version=2)["version"] == 2
    assert server.chat("ana")["choices"][0]["message"]["content"] == after
    # What is learned from an answer goes to the branch that was asked, also where another one points to its version.
    server.post("/v1/learners/ana/branch", name="same")
    told = server.chat("ana:same", learn=True)["circadia"]
    assert (told["branch"], told["version"], told["new_version"]) == ("same", 2, 4)
    assert server.http.get("/v1/learners/ana").json()["branches"] == {"main": 2, "same": 4, "try": 3}
    assert server.http.post("/v1/learners/ana/rollback", json={"version": 77}).status_code == 400


def test_what_is_forgotten_is_nowhere_any_more(own):
    server, folder = own
    server.post("/v1/learners/ana/observe", text=TEXT, source="notes")
    clean = server.chat("ana")["choices"][0]["message"]["content"]
    server.post("/v1/learners/ana/observe", text=CANARY, source="secret")
    shaped = server.chat("ana", "And?")
    assert b"canary-91c4" in raw(folder) and shaped["circadia"]["version"] == 2
    done = server.post("/v1/learners/ana/forget", source="secret")
    assert done["version"] == 1 and done["erased"]["versions"] == [2]
    assert b"canary-91c4" not in raw(folder)
    assert server.chat("ana")["choices"][0]["message"]["content"] == clean
    assert shaped["id"] not in server.service.completions
    # A reply that the forgotten words may have shaped can no longer come back by feedback.
    again = server.http.post("/v1/learners/ana/feedback", json={"completion": shaped["id"], "good": True})
    assert again.status_code == 404
    assert server.http.post("/v1/learners/ana/forget", json={"source": "secret"}).status_code == 400


def test_a_life_leaves_and_comes_back(own, tmp_path):
    server, folder = own
    server.post("/v1/learners/ana/observe", text=TEXT)
    said = server.chat("ana")["choices"][0]["message"]["content"]
    file = server.http.get("/v1/learners/ana/export")
    assert file.status_code == 200 and file.headers["x-circadia-version"] == "1"
    came = server.http.post("/v1/learners/import?name=bob", content=file.content)
    assert came.status_code == 201 and came.json()["version"] == 1
    assert server.chat("bob")["choices"][0]["message"]["content"] == said
    assert server.http.post("/v1/learners/import?name=bob", content=file.content).status_code == 409
    gone = server.http.delete("/v1/learners/ana").json()
    assert gone["deleted"] and server.http.get("/v1/learners/ana").status_code == 404
    assert server.http.get("/v1/learners").json()["data"][0]["name"] == "bob"
    for content in (b"", b"PK\x03\x04 nothing", file.content[:-500], file.content[:900] + b"x" + file.content[901:]):
        bad = server.http.post("/v1/learners/import?name=eve", content=content)
        assert bad.status_code == 400 and bad.json()["error"]["code"] == "bad_archive", bad.text
    assert not list(folder.glob(".import-*")) and not list(folder.glob(".export-*"))
    with serving(tmp_path / "third", base=model(vocab=256, family="gpt2")) as third:
        wrong = third.http.post("/v1/learners/import?name=ana", content=file.content)
        assert wrong.status_code == 400 and wrong.json()["error"]["code"] == "wrong_base"
        assert third.http.get("/v1/learners").json()["data"] == []


def test_a_base_with_memories_of_its_own(tmp_path):
    """Two learners over one Titans: each answers as the library does with its memory, and as nobody else."""
    base = model("native titans")
    with serving(tmp_path / "store", base.base) as server:
        for name, text in (("ana", TEXT[:128]), ("bea", CANARY[:128])):
            server.make(name)
            assert server.post(f"/v1/learners/{name}/observe", text=text)["levels"][0]["updates"] == 16
        found = {}
        for who in ("", "ana", "bea"):
            (mark,) = server.chat(who, max_tokens=1, logprobs=True)["choices"][0]["logprobs"]["content"]
            found[who] = mark["logprob"]
        assert len(set(found.values())) == 3
        for name in ("ana", "bea"):
            with Learner.open(server.service.reads, name, base) as me:
                likely = me.logits(list(b"User: Hello?\nAssistant:"))[0, -1].log_softmax(-1).max()
                assert found[name] == pytest.approx(float(likely), abs=1e-5)
        assert server.http.get("/v1/learners/ana").json()["levels"][0]["norm"] > 0
        refused = server.http.post("/v1/learners", json={"name": "cat", "context": 8})
        assert refused.status_code == 400 and "context=8" in refused.text
