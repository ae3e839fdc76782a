"""The page: of one piece, and served under a policy that keeps it so. What it looks like is for a browser to tell."""

import base64
import hashlib
import re
import subprocess

import pytest

from benchmarks import serve_page
from circadia.serve.app import PAGE

BROWSER = serve_page.browser()


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


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_visitor_teaches_corrects_rolls_back_and_forgets(server, tmp_path):
    pytest.importorskip("websockets")
    server.make("mira")
    with serve_page.opened(tmp_path) as page:
        seen = serve_page.walk(page, server.url, "mira")
    assert seen["errors"] == [] and seen["elsewhere"] == [] and seen["requests"] > 8
    assert seen["refused"] == "probe 1: a probe of kind 'qa' needs a bound: choices or max"
    assert seen["set"] == "where: qa, at most 99, else hold remove" and seen["left"] == [seen["set"], "setting"]
    assert seen["always True"] == [True] * 3 and seen["always False"] == [False] * 3
    fast = [ticks[0] for ticks in seen["rhythms"] if ticks]
    tokens = len(serve_page.TEXT)
    assert fast == sorted(fast) and fast[-1] == tokens // 8 and len(set(fast)) > 3  # it was seen while it happened
    assert seen["rhythms"][-1] == [tokens // 8, tokens // 16] and seen["curve"]
    assert "You: Where does Mira live?" in seen["said"] and "mira: " in seen["said"]
    before, after = (float(x) for x in re.findall(r"(\d+\.\d+) → (\d+\.\d+)", seen["down"])[0])
    assert after >= before  # less likely now
    before, after = (float(x) for x in re.findall(r"(\d+\.\d+) → (\d+\.\d+)", seen["corrected"])[0])
    assert after <= before
    assert "version 4 slept, 5 woke up" in seen["night"] and "Dreams" in seen["night"]
    assert seen["probes"][0].split() == ["version", "where"] and len(seen["probes"]) == 6
    assert "(rumour), held: low trust" in seen["held"] and seen["dropped"] == "dropped: rumour, now version 6"
    assert re.match(r"forgotten: \d+ experiences, \d+ versions erased", seen["forgot"]) and seen["phone"] <= 390
    assert server.http.get("/v1/learners/mira").json()["sources"].get("notes") is None
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(pictures) == 8 and all((tmp_path / name).stat().st_size > 5000 for name in pictures)
    assert "mira-2" in server.service.reads.learners()
