"""Answers: made with the memory worn, kept with an id, and what feedback on them does."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from circadia.live import commits
from circadia.live import feedback as rules
from circadia.live.errors import StoreError
from circadia.live.reader import position
from circadia.live.text import ROLES
from circadia.models.retrofit.find import positions
from circadia.models.retrofit.learn import tokens_of

if TYPE_CHECKING:
    from circadia.live.learner import Learner

REMEMBERED = 1000  # answers of this process; with the journal off there are no others


@dataclass(frozen=True)
class Answer:
    """What was said; `id` is its number in the journal, None where it was not kept."""

    id: int | None
    text: str
    tokens: tuple[int, ...]
    prompt: tuple[int, ...]
    version: int | None  # that gave it
    seconds: float
    quotes: bool = False  # the prompt holds answers given before


def generate(
    me: "Learner", prompt: Any, new: int, learn: bool | None, source: str, keep: bool, given: Mapping[str, Any]
) -> Answer:
    """`Learner.generate`."""
    words = me.reader.words
    ids = words.encode(prompt) if isinstance(prompt, str) else tokens_of(me.model, prompt).tolist()
    learn = _teaches(me, learn, keep)
    if not (keep or learn):
        return _say(me, ids, new, (), given)
    with me.writing():
        answer = _keep(me, _say(me, ids, new, (), given), source)
        if learn:
            _observe(me, "tokens", [*ids, *answer.tokens], source, answer)
    return answer


def chat(
    me: "Learner", messages: Any, new: int, learn: bool | None, source: str, keep: bool, given: Mapping[str, Any]
) -> Answer:
    """`Learner.chat`."""
    words = me.reader.words
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
    shown = words.chat(turns, answer=True)
    ids = words.encode(shown) if isinstance(shown, str) else shown
    stops = () if words.templated else tuple(f"\n{role}:" for role in ROLES.values())
    quotes = any(m["role"] == "assistant" for m in turns)
    learn = _teaches(me, learn, keep)
    if not (keep or learn):
        return _say(me, ids, new, stops, given, quotes)
    with me.writing():
        answer = _keep(me, _say(me, ids, new, stops, given, quotes), source)
        if learn:
            _observe(me, "chat", [*turns, {"role": "assistant", "content": answer.text}], source, answer)
    return answer


def _teaches(me: "Learner", learn: bool | None, keep: bool) -> bool:
    """What was asked for; else the learner's policy, but never for what is to leave nothing behind."""
    return keep and me.conversations if learn is None else learn


@torch.no_grad()
def _say(
    me: "Learner", ids: Sequence[int], new: int, stops: Sequence[str], given: Mapping[str, Any], quotes: bool = False
) -> Answer:
    begin, model = time.perf_counter(), me.model
    if not ids:
        raise ValueError("the prompt is empty: give at least one token")
    limit = positions(model.base)
    if limit is not None and new >= limit:
        raise ValueError(f"max_new_tokens={new}: the base knows {limit} positions in all: give less")
    ids = list(ids)[-(limit - new) :] if limit is not None else list(ids)
    row = torch.tensor(ids, device=model.device)[None]
    end = model.config.get_text_config().eos_token_id
    end = end[0] if isinstance(end, list) else end
    options = {"do_sample": False, "attention_mask": torch.ones_like(row), "pad_token_id": end or 0, **given}
    made = model.generate(row, state=me.state, max_new_tokens=new, **options)
    said = made[0, len(ids) :].tolist()
    text = me.reader.words.decode(said)
    for stop in stops:
        if stop in text:
            said = next(said[:n] for n in range(len(said) + 1) if stop in me.reader.words.decode(said[:n]))
            text = text[: text.index(stop)]
            said = said[: max(1, len(said) - len(me.reader.words.encode(stop)))]
    return Answer(None, text.strip() if stops else text, tuple(said), tuple(ids), me._at, time.perf_counter() - begin,
                  quotes)  # fmt: skip


def _keep(me: "Learner", answer: Answer, source: str) -> Answer:
    """Into the journal, where it changes nothing; with the journal off, into this process's memory alone."""
    assert me._writer is not None
    if not me.journal:
        return _held(me, replace(answer, id=min(me.answers, default=0) - 1))
    told: dict[str, Any] = {"op": "answer", "text": answer.text, "tokens": answer.tokens, "prompt": answer.prompt}
    told |= {"asked": me.reader.words.decode(answer.prompt), "version": answer.version, "quotes": answer.quotes}
    at = position(me.state)
    number = me._writer.remember(commits.pack(told), source, 1.0, at, at, "chat").number
    return _held(me, replace(answer, id=number))


def _held(me: "Learner", answer: Answer) -> Answer:
    assert answer.id is not None
    me.answers[answer.id] = answer
    if len(me.answers) > REMEMBERED:
        del me.answers[next(iter(me.answers))]
    return answer


def _observe(me: "Learner", form: str, data: Any, source: str, answer: Answer) -> None:
    """A conversation is learned like everything else, and goes with its answer."""
    from circadia.live.observing import _piece
    from circadia.live.reader import Tally

    _piece(me, me._writer, form, data, source, 1.0, Tally(), None, {"answer": answer.id})
    commits.commit(me, "conversation")


def find(me: "Learner", number: int) -> Answer:
    """An answer by its id."""
    if number in me.answers:
        return me.answers[number]
    try:
        told = commits.header(me.store.payload(me.name, number))
    except StoreError as error:
        raise ValueError(f"answer={number!r}: {error}") from None
    if told["op"] != "answer":
        raise ValueError(f"answer={number!r} is something that was observed, no answer: give an answer's id")
    return Answer(number, told["text"], tuple(told["tokens"]), tuple(told["prompt"]), told["version"], 0.0,
                  told["quotes"])  # fmt: skip


def feedback(me: "Learner", number: int, kind: str, text: str, weight: float) -> rules.Changed:
    """`Learner.feedback`: into the journal, then into the fast memory, then a version."""
    answer = find(me, number)
    if not answer.tokens and kind != "correction":
        raise ValueError(f"answer={number!r} is empty: only a correction can be given")
    told = {"op": "feedback", "kind": kind, "text": text, "weight": weight, "answer": number, "quotes": answer.quotes}
    told |= {"prompt": answer.prompt, "tokens": () if kind == "correction" else answer.tokens}
    with me.writing() as writer:
        if kind in ("correction", "about"):
            me.reader.words.encode(text)  # nothing is noted that cannot be learned
        at = position(me.state)
        me.unsaved.torn = True
        noted = writer.remember(commits.pack(told), "feedback", 1.0, at, at, "feedback")
        before, after = replay(me, told)
        me.unsaved.experiences.append(noted.number)
        outcome = commits.commit(me, "feedback")
    version = outcome.version.number if outcome.version else None
    return rules.Changed(kind, number, noted.number, before, after, version, "; ".join(outcome.reasons))


def replay(me: "Learner", told: Mapping[str, Any]) -> tuple[float, float]:
    """The effect of a feedback."""
    values = told["kind"], told["prompt"], told["tokens"], told["text"], told["weight"]
    me._state, before, after = rules.apply(me.reader, me.state, *values)
    me.unsaved.dirty, me.unsaved.torn = True, False
    return before, after


def take(me: "Learner", answer: Answer, source: str, form: str | None = None, data: Any = None) -> Answer:
    """An answer that was made elsewhere with a version of this learner: kept, and with a form learned as well."""
    with me.writing():
        answer = _keep(me, answer, source)
        if form is not None:
            _observe(me, form, data, source, answer)
    return answer
