"""The page: of one piece, and served under a policy that keeps it so. What it looks like is for a browser to tell."""

import base64
import hashlib
import re
import shutil
import subprocess

import pytest

from circadia.serve.app import PAGE

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def test_the_page_brings_everything_and_no_other_script_runs(server):
    reply = server.http.get("/")
    assert reply.text == PAGE.read_text(encoding="utf-8") and "//" not in re.sub(
        r"http://www\.w3\.org\S+", "", reply.text
    )
    assert not re.search(r"\s(src|href|action|on\w+)=[\"']", reply.text) and "innerHTML" not in reply.text
    script = re.search(r"<script>(.*?)</script>", reply.text, re.S)[1]
    seal = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in reply.headers["content-security-policy"].split(";"))
    assert rules["script-src"] == f"'sha256-{seal}'" and rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'" and rules["frame-ancestors"] == "'none'"
    ids = set(re.findall(r'\bid="(\w+)"', reply.text))
    assert set(re.findall(r'\$\("(\w+)"\)', script)) <= ids


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_a_life(server, tmp_path):
    server.make("pia")
    server.post("/v1/learners/pia/observe", text="Mira lives in Oslo.\n" * 20, source="notes")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000", "--dump-dom", server.url],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    for text in ("1 from the base: observe, 400 tokens", "notes: 400 tokens", "every 8", "50 ticks", "<polyline"):
        assert text in done.stdout, done.stdout[-3000:]
