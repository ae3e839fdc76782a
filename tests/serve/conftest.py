"""Real servers on 127.0.0.1, on a free port, in a thread of the test; each ends with its test."""

import contextlib
import threading
import time

import httpx
import pytest

from circadia.serve import Service, Settings
from circadia.serve.app import Server
from tests.live.learners import model

PATIENCE = 120.0  # seconds: the machine may be busy


class Running:
    """A server and a client of it."""

    def __init__(self, service, headers=None):
        self.service, self.server = service, Server(service)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        end = time.monotonic() + PATIENCE
        while not self.server.started:
            assert self.thread.is_alive() and time.monotonic() < end
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE, headers=headers, trust_env=False)

    def make(self, name, **given):
        """A learner with short periods; random weights are worse than a guess, which the gate would take for noise."""
        done = self.http.post("/v1/learners", json={"name": name, "gate": False, **given})
        assert done.status_code == 201, done.text
        return done.json()

    def post(self, path, **json):
        done = self.http.post(path, json=json)
        assert done.status_code == 200, done.text
        return done.json()

    def chat(self, who, text="Hello?", **given):
        turns = [{"role": "user", "content": text}]
        asked = {"max_tokens": 8, "temperature": 0, **given}
        return self.post("/v1/chat/completions", model=f"base@{who}" if who else "base", messages=turns, **asked)

    def stop(self):
        self.http.close()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def serving(folder, base=None, key=None, **settings):
    given = {"base": base or model(vocab=256), "store": folder, "port": 0, "grace": 20.0, **settings}
    running = Running(Service(Settings(**given)), {"Authorization": f"Bearer {key}"} if key else None)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("serve") / "store") as running:
        yield running
