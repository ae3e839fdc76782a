"""The measurements of the server, in small: load, kills, and reads of several learners at once."""

import asyncio
import json

import pytest

from benchmarks import serve_batch, serve_kills, serve_load
from benchmarks.serving import base
from circadia.live import Learner, Store


def test_load(tmp_path, capsys):
    given = ["--minutes", "0.16", "--clients", "32", "--learners", "4", "--compare", "20"]
    assert serve_load.main([*given, "--json", str(tmp_path / "load.json")]) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "load.json").read_text())
    assert found["faults"] == [] and found["compared"] == 20 and found["taught"] >= 4
    assert found["learners"]["answers"] > 5 and found["base"]["answers"] > 0
    for who in ("learners", "base"):
        assert 0 < found[who]["first_token"]["p50"] <= found[who]["whole"]["p95"]
    assert found["answers"] + found.get("429", 0) == found["asked"]


class Replies:
    """As httpx's client, with events that are told."""

    def __init__(self, *events, status=200):
        self.events, self.status_code, self.headers = events, status, {"retry-after": "0"}

    def stream(self, *given, **more):
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def aiter_lines(self):
        for event in self.events:
            yield f"data: {event if isinstance(event, str) else json.dumps(event)}"
            yield ""


def part(text="", reason=None, **more):
    return {"id": "a", "choices": [{"text": text, "finish_reason": reason}], **more}


USAGE = {"id": "a", "choices": [], "usage": {"completion_tokens": 2}}


@pytest.mark.parametrize(
    ("events", "want"),
    [
        ([part("x"), part("y"), part(reason="stop"), USAGE, "[DONE]"], "xy"),
        ([part("x"), part(reason="stop"), USAGE], "the stream ended before its end"),
        (
            [part("x"), {**part("y"), "id": "b"}, part(reason="stop"), USAGE, "[DONE]"],
            "the stream ended before its end",
        ),
        ([part("x"), part("y"), USAGE, "[DONE]"], "no reason at the end of the stream"),
        ([part("x"), {"error": {"message": "bad"}}], "an error in the stream: bad"),
        ([part(reason="stop"), USAGE, "[DONE]", part("z")], "out of form"),
    ],
)
def test_load_sees_what_is_wrong_with_a_stream(events, want):
    found = asyncio.run(serve_load.streamed(Replies(*events), "", {}))
    assert (found.text if isinstance(found, serve_load.Answer) else found).startswith(want)


def test_load_sees_memory_that_grows():
    mega = 1 << 20
    assert serve_load.flat([100 * mega, 400 * mega, *[500 * mega] * 8])
    assert not serve_load.flat([(400 + 30 * i) * mega for i in range(10)])


def test_kills(tmp_path):
    found = serve_kills.kills(tmp_path / "store", 2, 3, 2.0, learners=2)
    assert found["faults"] == [] and found["kills"] == 2 and found["checks"] >= 1
    assert sum(found["answered"].values()) > 0


def test_kills_see_what_is_wrong(tmp_path):
    model, told = base(width=16, layers=1), serve_kills.Told()
    with Store.open(tmp_path) as store, Learner.create(store, model, "ana", gate=False) as me:
        me.observe("c0ffee the fox.\n", "s")
    told.canaries, told.versions, told.last = {"c0ffee": "c0ffee the fox.\n"}, {1}, 1
    assert serve_kills.check(tmp_path, model, {"ana": told}) == []
    told.canaries["dead"], told.versions = "dead the dog.\n", {1, 2}
    told.open = {"c0ffee": "c0ffee the fox jumps.\n"}
    told.last = 2
    found = serve_kills.check(tmp_path, model, {"ana": told})
    assert len(found) == 4
    for fault in ("version 2 was answered, 1 is current", "version 2 was answered and is gone",
                  "dead was answered and is there 0 times", "c0ffee was not answered and is half there"):  # fmt: skip
        assert any(fault in one for one in found), found


def test_batch(capsys):
    sizes = ["--width", "32", "--layers", "1", "--learners", "3", "--prompt", "5", "--new", "4", "--reps", "2"]
    assert serve_batch.main(sizes) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("3 learners" in line and "100.0% same tokens" in line for line in lines)
