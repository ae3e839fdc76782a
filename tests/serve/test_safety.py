"""What must not happen: wrong hosts and origins, others' learners, large and broken bodies, paths."""

import hashlib
import io
import json
import logging
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from circadia.serve import Keys, Service, Settings, files
from tests.live.conftest import raw
from tests.live.learners import model
from tests.serve.conftest import serving

SHORT = {"dreams": 4, "dream_length": 4, "presentations": 1, "length": 12}
CHAT = {"model": "base@ana", "messages": [{"role": "user", "content": "?"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def open_(tmp_path_factory):
    """A server without keys, with small limits."""
    with serving(tmp_path_factory.mktemp("safety") / "store", body=20_000, upload=40_000, archive=60_000) as server:
        server.make("ana")
        yield server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": "localhost:1234"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({}, 200),
    ],
)
def test_other_sites_cannot_use_the_browser_of_this_machine(open_, headers, status):
    assert open_.http.get("/v1/models", headers=headers).status_code == status
    own = open_.http.get("/v1/models", headers={"Origin": open_.url})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


def test_an_origin_can_be_allowed(tmp_path):
    with serving(tmp_path / "store", origins=("https://app.example",)) as server:
        found = server.http.get("/v1/models", headers={"Origin": "https://app.example"})
        assert found.headers["access-control-allow-origin"] == "https://app.example"
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        assert server.http.options("/v1/learners", headers=asked).status_code == 200
        assert server.http.get("/v1/models", headers={"Origin": "https://other.example"}).status_code == 403


DEEP = "[" * 9000 + "]" * 9000
BAD = [
    ("POST", "/v1/chat/completions", b"{"),
    ("POST", "/v1/chat/completions", b'{"model": "\xff\xfe"}'),
    ("POST", "/v1/chat/completions", DEEP.encode()),
    ("POST", "/v1/chat/completions", b"1" * 5000),
    ("POST", "/v1/chat/completions", b"[]"),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "messages": []}).encode()),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "messages": [{"role": "x", "content": "?"}]}).encode()),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "messages": [{"role": "user", "content": [{}]}]}).encode()),
    (
        "POST",
        "/v1/chat/completions",
        json.dumps({**CHAT, "messages": [{"role": "user", "content": "\ud800"}]}).encode(),
    ),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "temperature": float("nan")}).encode()),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "temperature": -1}).encode()),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "max_tokens": 0}).encode()),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "stop": ["a"] * 5}).encode()),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "stop": [""]}).encode()),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "logit_bias": {"999": 1}}).encode()),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "n": 2}).encode()),
    ("POST", "/v1/chat/completions", json.dumps({**CHAT, "source": "x" * 999, "learn": True}).encode()),
    ("POST", "/v1/completions", json.dumps({"model": "base", "prompt": [300]}).encode()),
    ("POST", "/v1/completions", json.dumps({"model": "base", "prompt": [-1]}).encode()),
    ("POST", "/v1/completions", json.dumps({"model": "base", "prompt": ""}).encode()),
    ("POST", "/v1/completions", json.dumps({"model": "base", "prompt": ["a", "b"]}).encode()),
    ("POST", "/v1/learners", json.dumps({"name": "../../etc"}).encode()),
    ("POST", "/v1/learners", json.dumps({"name": "a/b"}).encode()),
    ("POST", "/v1/learners", json.dumps({"name": "x", "tokenizer": "/etc"}).encode()),
    ("POST", "/v1/learners", json.dumps({"name": "x", "\ud800": 1}).encode()),
    ("POST", "/v1/learners", json.dumps({"name": "x", "periods": [7, 9]}).encode()),
    ("POST", "/v1/learners", json.dumps({"name": "x", "periods": [0]}).encode()),
    ("POST", "/v1/learners/ana/observe", json.dumps({"text": "a", "messages": []}).encode()),
    ("POST", "/v1/learners/ana/observe", json.dumps({"text": "a", "branch": "../x"}).encode()),
    ("POST", "/v1/learners/ana/observe", json.dumps({"text": "a", "branch": "none"}).encode()),
    ("POST", "/v1/learners/ana/observe", json.dumps({"text": "a", "trust": 2}).encode()),
    ("POST", "/v1/learners/ana/files", b"\xff\xfe\x00binary"),
    ("POST", "/v1/learners/ana/files", b"zero\0byte"),
    ("POST", "/v1/learners/ana/files?trust=7", b"x"),
    ("POST", "/v1/learners/ana/rollback", json.dumps({"version": 10**30}).encode()),
    ("POST", "/v1/learners/ana/forget", b"{}"),
    ("POST", "/v1/learners/ana/forget", json.dumps({"since": "yesterday"}).encode()),
    ("POST", "/v1/learners/ana/feedback", json.dumps({"answer": 10**20, "good": True}).encode()),
    *(
        ("POST", "/v1/learners/ana/sleep", json.dumps(body).encode())
        for body in (
            {"preset": "long"},
            {"dreams": 10**9},
            {"presentations": 0},
            {"minutes": -1},
            {"compute": "some days"},
            {"compute": "nan days"},
            {"fit": 0},
            {"fit": 2, "preset": "inner-steps"},
            {"seed": -1},
            {"days": 0},
            {"branch": "none", "wait": True},
            {"replay": {"rows": 1}},
        )
    ),
    ("GET", "/v1/learners/ana/nights/99", b""),
    ("GET", "/v1/learners/ana/nights/0/page", b""),
    ("GET", "/v1/learners/ana/nights?branch=none", b""),
    ("GET", "/v1/learners/ana/due?branch=..%2Fx", b""),
    ("POST", "/v1/learners/ana/quarantine/admit", json.dumps({"numbers": [99]}).encode()),
    ("POST", "/v1/learners/ana/quarantine/drop", json.dumps({"numbers": []}).encode()),
    *(
        ("POST", "/v1/learners/ana/probes", json.dumps({"probes": body}).encode())
        for body in (
            [{"kind": "text", "max": 1}],
            [{"kind": "qa", "question": "a", "answer": "b"}],
            [{"kind": "x"}],
            [{"kind": "text", "text": 5, "max": 1}],
            [{"kind": "norm", "max": 1, "name": "a"}] * 2,
            [{"kind": "norm", "max": float("inf")}],
        )
    ),
    ("POST", "/v1/learners/import?name=..%2Fx", b"PK"),
    ("GET", "/v1/learners/..%2F..%2Fetc", b""),
    ("GET", "/v1/learners/%FF", b""),
    ("GET", "/v1/learners/ana/diff?a=1&b=99999999999999999999999", b""),
    ("GET", "/v1/learners/ana/versions?limit=0", b""),
    ("GET", "/v1/learners/nobody", b""),
    ("GET", "/nowhere", b""),
    ("PUT", "/v1/learners", b""),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_is_the_clients_fault_and_says_so(open_, number):
    method, path, content = BAD[number]
    done = open_.http.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= done.status_code < 500, done.text
    error = done.json()["error"]
    assert (
        len(error["message"]) > 5
        and "Traceback" not in done.text
        and str(open_.service.settings.store) not in done.text
    )
    assert open_.http.get("/v1/learners").json()["data"][0]["name"] == "ana"


def test_bodies_have_a_size(open_):
    def lengthless(size):
        yield from (b" " * 1000 for _ in range(size // 1000))

    for path, limit in (("/v1/completions", 20_000), ("/v1/learners/ana/files", 40_000),
                        ("/v1/learners/import?name=x", 60_000)):  # fmt: skip
        for content in (b" " * (limit + 1000), lengthless(limit + 2000)):
            headers = {"Content-Type": "application/json"}
            done = open_.http.post(path, content=content, headers=headers)
            assert done.status_code == 413 and "larger than" in done.json()["error"]["message"], (path, done.text)


def test_an_archive_cannot_unpack_to_more_or_name_a_file_here(open_, tmp_path):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("learner.json", b" " * 10_000_000)
    done = open_.http.post("/v1/learners/import?name=x", content=bomb.getvalue())
    assert done.status_code == 400 and done.json()["error"]["code"] == "bad_archive"
    (tmp_path / "bomb").write_bytes(bomb.getvalue())
    with pytest.raises(ValueError, match="unpacks to more"):
        files._bounded(tmp_path / "bomb", 60_000)
    life = open_.service.reads.learner("ana")
    open_.service.base.safe(life)
    life.config["tokenizer"] = str(tmp_path)
    with pytest.raises(ValueError, match="tokenizer of another place"):
        open_.service.base.safe(life)


def test_nobody_listens_to_others_without_a_key(tmp_path):
    base = model(vocab=256)
    with pytest.raises(ValueError, match="make a key first"):
        Service(Settings(base=base, store=tmp_path / "store", host="0.0.0.0", port=0))
    Keys(tmp_path / "store").new("read", ["ana"])
    Service(Settings(base=base, store=tmp_path / "store", host="0.0.0.0", port=0)).close()
    first = Service(Settings(base=base, store=tmp_path / "store"))
    with pytest.raises(ValueError, match="another server serves this store"):
        Service(Settings(base=base, store=tmp_path / "store"))
    first.close()


ROUTES = [  # method, path, body, scope
    ("POST", "/v1/chat/completions", CHAT, "read"),
    ("POST", "/v1/chat/completions", {**CHAT, "learn": True}, "teach"),
    ("POST", "/v1/completions", {"model": "base@ana", "prompt": "x", "max_tokens": 2}, "read"),
    ("GET", "/v1/models/base@ana", None, "read"),
    ("POST", "/load_model", {"model": "base@ana"}, "read"),
    ("GET", "/v1/learners/ana", None, "read"),
    ("PATCH", "/v1/learners/ana", {"conversations": True}, "admin"),
    ("GET", "/v1/learners/ana/versions", None, "read"),
    ("GET", "/v1/learners/ana/diff?a=1&b=1", None, "read"),
    ("POST", "/v1/learners/ana/observe", {"text": "x"}, "teach"),
    ("POST", "/v1/learners/ana/files", {}, "teach"),
    ("POST", "/v1/learners/ana/feedback", {"answer": 99, "good": True}, "teach"),
    ("POST", "/v1/learners/ana/rollback", {"version": 1}, "teach"),
    ("POST", "/v1/learners/ana/branch", {"name": "b"}, "teach"),
    ("POST", "/v1/learners/ana/forget", {"source": "none"}, "teach"),
    ("POST", "/v1/learners/ana/sleep", {"preset": "no-sleep", **SHORT}, "teach"),
    ("GET", "/v1/learners/ana/nights", None, "read"),
    ("GET", "/v1/learners/ana/nights/2", None, "teach"),
    ("GET", "/v1/learners/ana/nights/2/page", None, "teach"),
    ("GET", "/v1/learners/ana/quarantine", None, "read"),
    ("POST", "/v1/learners/ana/quarantine/admit", {"numbers": [1]}, "teach"),
    ("POST", "/v1/learners/ana/quarantine/drop", {"numbers": [1]}, "teach"),
    ("GET", "/v1/learners/ana/due", None, "read"),
    ("GET", "/v1/learners/ana/probes", None, "read"),
    ("POST", "/v1/learners/ana/probes", {"probes": []}, "admin"),
    ("GET", "/v1/learners/ana/changes", None, "admin"),
    ("GET", "/v1/learners/ana/export", None, "admin"),
    ("POST", "/v1/learners/import?name=ana", {}, "admin"),
    ("POST", "/v1/learners", {"name": "ana"}, "admin"),
    ("DELETE", "/v1/learners/ana", None, "admin"),
]
SCOPES = ("read", "teach", "admin")


def test_every_route_asks_for_the_right_key(tmp_path):
    folder = tmp_path / "store"
    keys = Keys(folder)
    made = {scope: keys.new(scope, ["ana"]) for scope in SCOPES}
    others = keys.new("admin", ["bob"])[1]
    assert all(secret.encode() not in raw(folder) for _, secret in made.values())
    with serving(folder, key=keys.new("admin", ["*"])[1]) as server:
        for name in ("ana", "bob"):
            server.make(name)
        server.post("/v1/learners/ana/observe", text="Mira lives in Oslo.")
        assert server.post("/v1/learners/ana/sleep", wait=True, **SHORT)["night"]["number"] == 2
        for method, path, body, scope in ROUTES:

            def ask(key, method=method, path=path, body=body):
                headers = {"Authorization": f"Bearer {key}"} if key else {"Authorization": ""}
                return server.http.request(method, path, json=body, headers=headers)

            assert ask(None).status_code == 401 and ask("sk-circadia-wrong").status_code == 401, path
            mine, nobodys = ask(others), server.http.request(
                method, path.replace("ana", "zoe"), json=json.loads(json.dumps(body).replace("ana", "zoe")),
                headers={"Authorization": f"Bearer {others}"})  # fmt: skip
            assert mine.status_code == nobodys.status_code == 404, (path, mine.text, nobodys.text)
            assert mine.text.replace("ana", "zoe") == nobodys.text, path  # not even that it exists
            for has in SCOPES if method != "DELETE" else SCOPES[:2]:
                allowed = SCOPES.index(has) >= SCOPES.index(scope)
                found = ask(made[has][1])
                assert (found.status_code not in (401, 403, 404)) == allowed, (path, has, found.text)
                assert allowed or found.status_code == 403, (path, has, found.text)
        listed = server.http.get("/v1/models", headers={"Authorization": f"Bearer {others}"}).json()["data"]
        assert [m["id"] for m in listed] == ["base", "base@bob"]
        assert server.http.get("/metrics", headers={"Authorization": f"Bearer {others}"}).status_code == 403
        assert "ana" not in server.http.get("/metrics").text
        job = server.http.post("/v1/learners/ana/observe", json={"text": "x", "wait": False}).json()["id"]
        assert server.http.get(f"/v1/jobs/{job}", headers={"Authorization": f"Bearer {others}"}).status_code == 404
        keys.revoke(made["read"][0])
        revoked = {"Authorization": f"Bearer {made['read'][1]}"}
        assert server.http.get("/v1/models", headers=revoked).status_code == 401
        named = {c["key"] for c in server.http.get("/v1/learners/ana/changes").json()["data"]}
        assert made["teach"][0] in named


TAUGHT = [  # by the policy "conversations": a key's scope, what the request says, and whether that is learned
    ("read", None, False),
    ("read", False, None),
    ("read", True, 403),
    ("teach", None, True),
    ("teach", False, None),
    ("teach", True, True),
    ("admin", None, True),
]


def test_a_policy_teaches_for_no_key_that_may_only_read(tmp_path):
    keys, version = Keys(tmp_path / "store"), None
    given = {scope: {"Authorization": f"Bearer {keys.new(scope, ['ana'])[1]}"} for scope in SCOPES}
    refused = {"learned": False, "error": "this key has scope 'read', 'teach' is needed"}
    with serving(tmp_path / "store", key=keys.new("admin", ["*"])[1]) as server:
        server.make("ana", conversations=True)
        for path, stream in (("chat/completions", False), ("chat/completions", True), ("completions", False)):
            for scope, learn, wanted in TAUGHT:
                body = {**CHAT, "prompt": "Once", "stream": stream, "learn": learn}
                reply = server.http.post(f"/v1/{path}", json=body, headers=given[scope])
                assert reply.status_code == (403 if wanted == 403 else 200), (scope, learn)
                if wanted != 403:
                    text = reply.text.split("data: ")[-2] if stream else reply.text
                    told = {"learner": "ana", "branch": "main", "version": version}
                    if wanted:
                        version = 1 + (version or 0)
                    more = {True: {"learned": True, "new_version": version}, False: refused, None: {}}[wanted]
                    assert json.loads(text)["circadia"] == {**told, **more}, (scope, learn)
        changes = server.http.get("/v1/learners/ana/changes").json()["data"]
        assert [one["action"] for one in changes] == ["learn"] * version + ["create"] and version == 9


def test_a_key_has_a_rate(tmp_path):
    keys = Keys(tmp_path / "store")
    key, other = keys.new("read", ["*"])[1], keys.new("read", ["*"])[1]
    with serving(tmp_path / "store", key=key, rate=3) as server:
        found = [server.http.get("/v1/models") for _ in range(5)]
        assert [r.status_code for r in found].count(200) == 3
        assert found[-1].status_code == 429 and 1 <= int(found[-1].headers["retry-after"]) <= 20
        assert server.http.get("/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200


def test_nobodys_words_reach_others_logs_or_metrics(tmp_path, caplog):
    """20 learners know canaries by heart; all are asked at once for everybody's, in every way that may fail."""
    caplog.set_level(logging.DEBUG)
    names = [f"user{i:02}" for i in range(20)]
    canaries = {name: f"canary-{hash_of(name)}" for name in names}
    with serving(tmp_path / "store") as server:
        for name in names:
            server.make(name)
            server.post(f"/v1/learners/{name}/observe", text=f"{canaries[name]}! " * 10, source=canaries[name])

        def ask(name):
            """Its own words are found in its own replies only."""
            told = []
            for other in (name, names[0]):
                prompt = {"model": f"base@{name}", "prompt": canaries[other][:12], "max_tokens": 12, "temperature": 0}
                said = server.http.post("/v1/completions", json=prompt)
                told.append(said.text)
                done = server.http.post(f"/v1/learners/{name}/feedback", json={
                    "completion": said.json()["id"] + "x", "correction": canaries[name]})  # fmt: skip
                assert done.status_code == 404
                told.append(done.text)
            told.append(server.http.get(f"/v1/learners/{name}").text)
            told.append(server.http.get(f"/v1/learners/{name}/versions").text)
            told.append(server.http.get(f"/v1/learners/{name}/changes").text)
            for path, body in (
                ("/observe", {"text": canaries[name], "trust": 9}),
                ("/observe", {"text": canaries[name], "branch": canaries[name]}),
                ("/forget", {"source": canaries[name], "since": canaries[name]}),
                ("/rollback", {"version": 77, "reason": canaries[name]}),
            ):
                done = server.http.post(f"/v1/learners/{name}{path}", json=body)
                assert 400 <= done.status_code < 500
                told.append(done.text if path != "/observe" else done.text.replace(canaries[name], ""))
            return name, "".join(told)

        with ThreadPoolExecutor(8) as pool:
            replies = dict(pool.map(ask, names))
        shared = caplog.text + server.http.get("/metrics").text + server.http.get("/v1/models").text
        shared += server.http.get("/health").text + server.http.get("/openapi.json").text
    for name, told in replies.items():
        assert not [other for other in names if other != name and canaries[other] in told], name
    assert sum(canaries[name] in told for name, told in replies.items()) == 20  # in one's own: as the name of a source
    assert '"path": "/v1/learners/user01/observe"' in shared
    assert not [name for name in names if canaries[name] in shared]


def hash_of(name):
    return hashlib.sha256(name.encode()).hexdigest()[:10]


def test_the_table_of_rights_has_every_route(open_):
    """The others name no learner: what they show is asked for in the tests above."""
    paths = open_.http.get("/openapi.json").json()["paths"]
    there = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    table = {
        (
            m,
            p.split("?")[0]
            .replace("/ana", "/{name}")
            .replace("base@ana", "{model}")
            .replace("nights/2", "nights/{number}"),
        )
        for m, p, _, _ in ROUTES
    }
    free = {("GET", "/health"), ("GET", "/ready")}
    alone = {("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/v1/learners"), ("POST", "/v1/embeddings"),
             ("GET", "/v1/jobs/{id}"), ("DELETE", "/v1/jobs/{id}"), ("GET", "/v1/learners/{name}/events")}  # fmt: skip
    assert there == table | free | alone
    assert {(m, p) for m, p, _, _ in ALONE} == {(m, p.replace("{id}", "job-x")) for m, p in alone} - {
        ("GET", "/v1/learners/{name}/events")
    } | {("GET", "/v1/learners/ana/events")}


ALONE = [  # what a key for another learner gets, and one that may only read
    ("GET", "/metrics", 403, 403),
    ("GET", "/v1/models", 200, 200),
    ("GET", "/v1/learners", 200, 200),
    ("POST", "/v1/embeddings", 400, 400),
    ("GET", "/v1/jobs/job-x", 404, 200),
    ("DELETE", "/v1/jobs/job-x", 404, 403),
    ("GET", "/v1/learners/ana/events", 404, 200),
]


def test_routes_that_name_no_learner_show_only_what_is_ones_own(tmp_path):
    keys = Keys(tmp_path / "store")
    reader, other = keys.new("read", ["ana"])[1], keys.new("admin", ["bob"])[1]
    with serving(tmp_path / "store", key=keys.new("admin", ["*"])[1]) as server:
        for name in ("ana", "bob"):
            server.make(name)
        job = server.http.post("/v1/learners/ana/observe", json={"text": "x", "wait": False}).json()["id"]
        for method, path, others, reads in ALONE:
            for key, want in ((None, 401), ("sk-circadia-wrong", 401), (other, others), (reader, reads)):
                headers = {"Authorization": f"Bearer {key}" if key else ""}
                where = path.replace("job-x", job)
                with server.http.stream(method, where, headers=headers) as reply:
                    assert reply.status_code == want, (where, key, want)
                    if key == other and want == 200:
                        assert "ana" not in reply.read().decode()
        for path in ("/health", "/ready"):
            assert server.http.get(path, headers={"Authorization": ""}).status_code == 200
