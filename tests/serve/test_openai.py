"""What OpenAI's clients see: with the real SDK and with httpx."""

import json
import re
from pathlib import Path

import httpx
import openai
import pytest
import torch

from circadia.live import Learner
from circadia.serve.reply import event
from tests.serve.conftest import PATIENCE, serving


@pytest.fixture(scope="module")
def sdk(server):
    """And a learner that knows something."""
    server.make("ana")
    server.post("/v1/learners/ana/observe", text="Mira lives in Oslo. " * 10)
    http = httpx.Client(trust_env=False, timeout=PATIENCE)
    with openai.OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0, http_client=http) as client:
        yield client


ASK = {"messages": [{"role": "user", "content": "Where?"}], "max_tokens": 12, "temperature": 0}


def test_the_base_alone_is_frozen_and_a_learner_answers_as_the_library_does(server, sdk):
    frozen = sdk.chat.completions.create(model="base", **ASK)
    model, words = server.service.base.own, server.service.base.words
    ids = words.encode("User: Where?\nAssistant:")
    made = model.base.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None)[
        0, len(ids) :
    ]
    assert frozen.choices[0].message.content == words.decode(made.tolist()).strip()
    assert (frozen.usage.prompt_tokens, frozen.usage.completion_tokens) == (len(ids), 12)
    assert frozen.choices[0].finish_reason == "length"

    mine = sdk.chat.completions.create(model="base@ana", **ASK)
    with Learner.open(server.service.reads, "ana", model) as me:
        assert mine.choices[0].message.content == me.chat("Where?", max_new_tokens=12, keep=False).text
    assert mine.choices[0].message.content != frozen.choices[0].message.content
    assert mine.model_extra["circadia"] == {"learner": "ana", "branch": "main", "version": 1}


def test_streamed_pieces_are_the_whole_answer(sdk):
    asked = {**ASK, "temperature": 1.5, "seed": 7, "model": "base@ana", "max_tokens": 30}
    whole = sdk.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    chunks = list(
        sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}, logprobs=True)
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content and len(chunks) > 3
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "length"
    marks = [m for c in chunks if c.choices and c.choices[0].logprobs for m in c.choices[0].logprobs.content]
    assert [m.logprob for m in marks] == [m.logprob for m in whole.choices[0].logprobs.content]
    other = sdk.chat.completions.create(**{**asked, "seed": 8})
    assert other.choices[0].message.content != whole.choices[0].message.content


def test_completions_take_tokens_and_their_logprobs_are_the_models(server, sdk):
    prompt = [72, 101, 108, 108]
    done = sdk.completions.create(model="base", prompt=prompt, max_tokens=5, temperature=0, logprobs=3)
    found = done.choices[0].logprobs
    ids = torch.tensor([prompt])
    for i, value in enumerate(found.token_logprobs):
        likely = server.service.base.own.base(ids).logits[0, -1].log_softmax(-1)
        assert value == pytest.approx(float(likely.max()), abs=1e-4)
        assert len(found.top_logprobs[i]) >= 1 and max(found.top_logprobs[i].values()) == value
        ids = torch.cat((ids, likely.argmax()[None, None]), 1)
    same = sdk.completions.create(model="base", prompt=bytes(prompt).decode(), max_tokens=5, temperature=0)
    assert same.choices[0].text == done.choices[0].text
    assert "".join(c.choices[0].text for c in sdk.completions.create(
        model="base", prompt=prompt, max_tokens=5, temperature=0, stream=True)) == done.choices[0].text  # fmt: skip


def test_a_stop_ends_the_text_before_it(sdk):
    def ask(**more):
        return sdk.completions.create(model="base", prompt="Hello", max_tokens=40, temperature=0, **more)

    text = ask().choices[0].text
    stop = text[5:7]
    done = ask(stop=[stop, "never"])
    assert done.choices[0].text == text[: text.index(stop)] and done.choices[0].finish_reason == "stop"
    assert done.usage.completion_tokens < 40
    assert "".join(c.choices[0].text for c in ask(stop=stop, stream=True)) == text[: text.index(stop)]


def test_a_bias_decides_and_a_penalty_ends_repetition(sdk):
    def ask(**more):
        return sdk.completions.create(model="base", prompt="Hello", max_tokens=6, temperature=0, **more).choices[0].text

    assert ask(logit_bias={"65": 100}) == "AAAAAA"
    assert ask(logit_bias={"65": 60}, frequency_penalty=2, presence_penalty=2) == "AAAAAA"
    assert ask(logit_bias={"65": 8.0, "66": 7.5}, presence_penalty=2)[:2] in ("AB", "BA")


def test_models_and_errors_in_openais_form(sdk):
    assert [m.id for m in sdk.models.list()][:2] == ["base", "base@ana"]
    assert sdk.models.retrieve("base@ana").owned_by == "circadia"
    for name in ("base@nobody", "gpt-4", "base@", "base@ana:none", "base@../x"):
        with pytest.raises(openai.NotFoundError) as found:
            sdk.chat.completions.create(model=name, **ASK)
        assert found.value.code == "model_not_found" and "ana" not in found.value.message.replace(name, "")
    with pytest.raises(openai.BadRequestError) as found:
        sdk.embeddings.create(model="base", input="x")
    assert found.value.code == "unsupported"
    with pytest.raises(openai.BadRequestError) as found:
        sdk.chat.completions.create(model="base", **{**ASK, "max_tokens": 1000})
    assert found.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        sdk.chat.completions.create(model="base", **ASK, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.BadRequestError, match="the base does not learn"):
        sdk.chat.completions.create(model="base", **ASK, extra_body={"learn": True})


def test_events_are_what_the_standard_asks_for(server, sdk):
    with server.http.stream("POST", "/v1/chat/completions", json={"model": "base", **ASK, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    first = json.loads(lines[0][6:])
    assert first["object"] == "chat.completion.chunk" and first["choices"][0]["delta"]["role"] == "assistant"


def test_no_character_of_an_answer_ends_a_line_of_its_event():
    text = "a\u2028b\u2029c\x85d\re\x0bü"
    (line, rest) = event({"text": text}).splitlines()
    assert json.loads(line[6:]) == {"text": text} and rest == ""


def test_the_user_field_chooses_where_the_server_is_told_so(tmp_path):
    with serving(tmp_path / "store", by_user=True) as server:
        server.make("ana")
        assert server.chat(None, user="ana")["circadia"]["learner"] == "ana"
        assert "circadia" not in server.chat(None)
        asked = {"model": "base", "user": "eve", **ASK}
        assert server.http.post("/v1/chat/completions", json=asked).status_code == 404


def test_the_example_of_the_docs_runs(server, sdk, capsys, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```py\n(.*?)```", text, re.S)
    exec(compile(block.replace("http://127.0.0.1:8000", server.url), "docs/serving.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert "'learned': True, 'new_version': 2" in first and second.startswith("3 ")


def test_transformers_chat_is_told_that_nothing_is_left_to_load(server):
    found = server.http.post("/load_model", json={"model": "base"})
    told = [json.loads(line.removeprefix("data: ")) for line in found.text.splitlines() if line.startswith("data: ")]
    assert told == [{"status": "ready", "model": "base", "cached": True}]
    assert server.http.post("/load_model", json={"model": "base@nobody"}).status_code == 404
    assert server.http.post("/load_model", json={}).status_code == 400
