"""`circadia serve` and `circadia key`, as a process of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from circadia.cli import app
from circadia.live import Store
from tests.models.retrofit.conftest import base_of
from tests.serve.conftest import PATIENCE, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    base_of("llama", vocab_size=256, num_hidden_layers=1, max_position_embeddings=2048).save_pretrained(folder)
    return folder


def started(base, store, said):
    """The process and its address, which it says in a file."""
    command = [sys.executable, "-m", "circadia", "serve", "--base", base, "--store", store, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(said, "w") as file:
        process = subprocess.Popen(list(map(str, command)), stderr=file, env=environment)
    end = time.monotonic() + PATIENCE
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", said.read_text())):
        assert process.poll() is None and time.monotonic() < end, said.read_text()
        time.sleep(0.1)
    return process, found[0]


def test_a_kill_loses_nothing_that_was_answered_and_the_next_server_goes_on(base, tmp_path):
    store = tmp_path / "store"
    process, url = started(base, store, tmp_path / "said")
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as http:
            made = http.post("/v1/learners", json={"name": "ana", "gate": False, "periods": [64]})
            assert made.status_code == 201, made.text
            done = http.post("/v1/learners/ana/observe", json={"text": "Mira lives in Oslo.\n" * 20}).json()
            http.post("/v1/learners/ana/observe", json={"text": "Never answered.\n" * 4000, "wait": False})
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    with Store.open(store, create=False) as found:
        assert found.current("ana").number == done["version"] == 1 and not found.verify().faults
    with serving(store, base=str(base)) as server:
        assert server.http.get("/health").json()["status"] == "ok" and server.http.get("/ready").status_code == 200
        assert server.chat("ana")["circadia"]["version"] == 1
        # What the journal holds was not answered, and is learned before the next change: nothing is half there.
        assert server.post("/v1/learners/ana/observe", text="And so on.\n")["version"] >= 2
        assert not server.service.writes.verify().faults


def test_mistakes_are_one_line(base, tmp_path):
    runner, store = CliRunner(), tmp_path / "store"
    (tmp_path / "odd" / "serve.db").mkdir(parents=True)
    for args in (
        ["serve", "--base", base, "--store", store, "--host", "0.0.0.0"],
        ["serve", "--base", tmp_path / "none", "--store", store],
        ["serve", "--base", base, "--store", store, "--readers", "0"],
        ["serve", "--base", base, "--store", store, "--cache", "inf"],
        ["serve", "--base", base, "--store", store, "--cache", "-1"],
        ["key", "list", "--store", tmp_path / "odd"],
        ["key", "new", "--scope", "all", "--learner", "ana", "--store", store],
        ["key", "new", "--scope", "read", "--store", store],
        ["key", "new", "--learner", "../x", "--store", store],
        ["key", "revoke", "none", "--store", store],
        ["key", "list", "--store", tmp_path / "none"],
    ):
        done = runner.invoke(app, list(map(str, args)))
        assert done.exit_code == 2 and done.stderr.startswith("circadia: ") and done.stderr.count("\n") == 1, (
            done.output
        )


def test_keys_are_made_listed_and_revoked(tmp_path):
    runner, store = CliRunner(), str(tmp_path)
    number, key = runner.invoke(app, ["key", "new", "--learner", "ana", "--store", store]).stdout.split()
    listed = runner.invoke(app, ["key", "list", "--store", store]).stdout
    assert number in listed and "valid" in listed and "ana" in listed and key not in listed
    assert runner.invoke(app, ["key", "revoke", number, "--store", store]).exit_code == 0
    assert "revoked" in runner.invoke(app, ["key", "list", "--store", store]).stdout
