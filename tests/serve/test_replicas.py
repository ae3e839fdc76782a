"""Two servers behind the front of deploy/replicas.py: each learner lives on one of them."""

import importlib.util
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from tests.serve.conftest import PATIENCE, serving

FRONT = Path(__file__).parents[2] / "deploy" / "replicas.py"
spec = importlib.util.spec_from_file_location("replicas", FRONT)
replicas = importlib.util.module_from_spec(spec)
spec.loader.exec_module(replicas)


def test_names_are_shared_out_evenly_and_few_move():
    names = [f"user{i}" for i in range(600)]
    two, three = ([replicas.place(name, n) for name in names] for n in (2, 3))
    assert 240 < sum(two) < 360
    assert all(new in (old, 2) for old, new in zip(two, three)) and 150 < three.count(2) < 250


@pytest.fixture
def both(tmp_path):
    """Two servers and a client of their front."""
    with serving(tmp_path / "a") as first, serving(tmp_path / "b") as second:
        server = uvicorn.Server(
            uvicorn.Config(replicas.front([first.url, second.url]), port=0, log_config=None, ws="none")
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        end = time.monotonic() + PATIENCE
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as http:
            yield http, first, second
        server.should_exit = True
        thread.join(PATIENCE)


def test_one_address_for_two_servers(both):
    http, *servers = both
    names = ["ana", "bob", "eve", "mira"]
    where = {name: replicas.place(name, 2) for name in names}
    assert set(where.values()) == {0, 1}
    for name in names:
        assert http.post("/v1/learners", json={"name": name, "gate": False}).status_code == 201
        done = http.post(f"/v1/learners/{name}/files?source=notes", content=b"Mira lives in Oslo.\n" * 9)
        assert done.json()["version"] == 1, done.text
        asked = {"model": f"base@{name}", "prompt": "Where?", "max_tokens": 6, "temperature": 0}
        said = http.post("/v1/completions", json=asked).json()
        assert said["circadia"]["learner"] == name and said["circadia"]["version"] == 1
        own = servers[where[name]].post("/v1/completions", **asked)
        assert own["choices"] == said["choices"]
        with http.stream("POST", "/v1/completions", json={**asked, "stream": True}) as reply:
            lines = [line for line in reply.iter_lines() if line]
        assert lines[-1] == "data: [DONE]" and len(lines) > 2
        assert http.get(f"/v1/models/base@{name}").status_code == 200
        job = http.post(f"/v1/learners/{name}/rollback", json={"version": 0, "wait": False}).json()["id"]
        assert http.get(f"/v1/jobs/{job}").json()["learner"] == name
    for i, server in enumerate(servers):
        here = {one["name"] for one in server.http.get("/v1/learners").json()["data"]}
        assert here == {name for name in names if where[name] == i}
    assert sorted(one["name"] for one in http.get("/v1/learners").json()["data"]) == names
    models = [one["id"] for one in http.get("/v1/models").json()["data"]]
    assert sorted(models) == ["base", *(f"base@{name}" for name in names)]
    moved = http.get("/v1/learners/ana/export").content  # to a name that may live elsewhere
    assert http.post("/v1/learners/import?name=ana2", content=moved).json()["learner"] == "ana2"
    assert "ana2" in servers[replicas.place("ana2", 2)].service.reads.learners()
    assert http.get("/v1/learners/nobody").status_code == http.get("/v1/jobs/job-x").status_code == 404
    assert http.post("/v1/completions", json={"model": "base", "prompt": "x", "max_tokens": 1}).status_code == 200
    assert http.post("/v1/completions", content=b"[").status_code == 400
