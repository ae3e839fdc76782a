"""The demo with few rounds: its numbers are those of its run, its page stands alone and opens in a browser."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from typer.testing import CliRunner

from circadia.cli import app
from circadia.demo import facts
from circadia.demo.measure import Naive
from tests.models.retrofit.conftest import base_of

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a demo") / "out"
    done = CliRunner().invoke(app, ["demo", "--out", str(folder), "--rounds", "5"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert str(folder / "demo.html") in done.output
    return folder


@pytest.fixture(scope="module")
def found(out):
    return json.loads((out / "demo.json").read_text())


def test_it_learns_what_it_reads(found):
    curve = [surprise for _, surprise in found["curve of last week"]]
    assert sum(curve[-5:]) < 0.6 * sum(curve[:5])
    after = found["after today"]
    assert after["frozen"]["today"]["right"] <= 1 < 4 <= after["learner"]["today"]["right"]
    assert (
        after["frozen"]["mother_tongue"]
        < after["learner"]["mother_tongue"]
        < after["fine-tuned, 0.001"]["mother_tongue"]
    )
    assert after["frozen"] == {**found["after last week"]["frozen"]}
    said = [one["said"].strip() == one["value"] for one in found["asked"]]
    assert sum(said) >= 2


def test_it_is_corrected_forgets_and_goes_back(found):
    before, after = (found["correction"]["nats"][i] for i in (0, -1))
    assert after[1] < after[0] and before[0] < before[1]
    forgot = found["forgot"]
    assert forgot["same bits as a life without it"] and forgot["tensors compared"] > 20
    assert forgot["files with its words, before"] and not forgot["files with its words"]
    assert forgot["nats after"] > forgot["nats before"] + 3
    back = found["rolled back"]["known"]
    assert back["today"] == found["after last week"]["learner"]["today"]
    assert back["last week"] == found["after last week"]["learner"]["last week"]
    assert found["mother tongue, and forth again"] == found["after forgetting"]["learner"]["mother_tongue"]


def test_it_sleeps_and_the_forgetting_goes_across_the_night(found):
    night, forgot = found["night"], found["forgot"]
    assert night["action"] == "accept" and night["version"] > night["parent"]
    assert night["cost"]["learned"] > 3 * night["tokens read by day"] and len(night["dreams"]) == 3
    (_, *fast), (_, *slow) = night["levels"]
    assert fast[0] == fast[1] and slow[0] < slow[1]  # replay writes into the slowest level alone
    evening, morning = found["evening"]["learner"], found["after the night"]["learner"]
    assert morning["last week"]["right"] > evening["last week"]["right"]  # what today had wiped comes back
    assert morning["mother_tongue"] < evening["mother_tongue"]
    assert {arm: x for arm, x in found["evening"].items() if arm != "learner"} == {
        arm: x for arm, x in found["after the night"].items() if arm != "learner"
    }
    assert sum(one["said"].strip() == one["value"] for one in found["asked after the night"]) >= 3
    assert forgot["nights compared"] == 1


def test_the_page_brings_everything(out, found):
    text = (out / "demo.html").read_text()
    assert not re.search(r"(src|href)=|<script|<link|@import|url\(", text) and text.count("<svg") == 2
    old, new = found["correction"]["after the night"]
    assert ("The correction did NOT outlive the night" in text) == (old <= new)
    assert found["night"]["dreams"][0]["text"].split()[1] in text and "in the evening" in text
    assert [facts.CORRECTION in one["now"] for one in found["night"]["superseded"]] == [True] and "Left out: " in text
    assert facts.TODAY[0].prompt in text and f"{found['forgot']['nats before']:.2f}" in text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_it(out, tmp_path):
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         f"--user-data-dir={tmp_path}", "--window-size=1100,3200", f"--screenshot={tmp_path / 'page.png'}",
         (out / "demo.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    assert (tmp_path / "page.png").stat().st_size > 50_000  # an empty page is a tenth of that


def test_what_is_fine_tuned_is_asked_without_dropout():
    arm = Naive(base_of("gpt2", vocab_size=256, n_layer=1).train(), 8, 1e-3)
    ids, seen = torch.tensor([list(b"a word")]), []
    for _ in range(2):
        seen += [arm.logits(ids).detach() for _ in range(2)]
        arm.read("some words that are new")
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3]) and not torch.equal(seen[0], seen[2])


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "file")])
    assert done.exit_code == 2 and "--out" in done.output and "Traceback" not in done.output
    (tmp_path / "demo.json").write_text("of an earlier run")
    done = CliRunner().invoke(app, ["demo", "--base", str(tmp_path / "none"), "--out", str(tmp_path)])
    assert done.exit_code == 2 and "no such folder" in done.output
    assert (tmp_path / "demo.json").read_text() == "of an earlier run"
    assert CliRunner().invoke(app, ["demo", "--rounds", "0", "--out", str(tmp_path)]).exit_code == 2
