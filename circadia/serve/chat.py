"""/v1/chat/completions, /v1/completions and /v1/models, as OpenAI's clients expect them.

Beside OpenAI's fields: `learn` lets a learner observe the conversation, or not; without it the learner's policy says. A
reply says in `circadia` who gave it, which version it came from and which one it left.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from circadia.live.text import Words
from circadia.live.writer import NAME
from circadia.serve.decode import TURNS, Call, Piece, Said, Wish
from circadia.serve.errors import Refused, of
from circadia.serve.forms import Asked, ChatAsked, Named, TextAsked
from circadia.serve.keys import Key
from circadia.serve.learn import learned
from circadia.serve.openai import Shape
from circadia.serve.reply import event, stream, unless_gone
from circadia.serve.service import Service


def routes(service: Service) -> APIRouter:
    """Of one service."""
    found, settings = APIRouter(), service.settings
    Who = Annotated[Key, Depends(service.who)]

    def chosen(body: Asked, key: Key) -> tuple[str | None, str]:
        """The learner and branch that a request means."""
        model, _, rest = body.model.partition("@")
        if model == settings.name and not rest and settings.by_user and body.user:
            rest = body.user
        name, _, branch = rest.partition(":")
        wrong = Refused(
            404, f"there is no model {body.model[:200]!r}, or this key has no right to it", "model_not_found", "model"
        )
        if model != settings.name or ("@" in body.model and not rest):
            raise wrong
        if not rest:
            if body.learn:
                raise Refused(400, f"learn: the base does not learn: ask {settings.name}@LEARNER", None, "learn")
            return None, "main"
        if not NAME.fullmatch(name) or not key.sees(name) or name not in service.reads.learners():
            raise wrong
        if branch and branch not in service.reads.learner(name).branches:
            raise wrong
        if body.learn:
            service.allow(key, name, "teach")
        return name, branch or "main"

    def wished(body: Asked, ids: list[int], new: int | None, marks: int | None, trim: bool) -> Wish:
        vocab = service.base.module.config.get_text_config().vocab_size
        if not ids:
            raise Refused(400, "the prompt is empty: give at least one token")
        if min(ids) < 0 or max(ids) >= vocab:
            raise Refused(400, f"the prompt holds a token that the base does not know; there are {vocab}")
        room = (service.base.limit or settings.context) - len(ids)
        if room < 1 or (new or 1) > room:
            said = f"the context has {room + len(ids)} tokens; the prompt has {len(ids)}, {new or 1} are to come"
            raise Refused(400, f"{said}: shorten it, or ask for less", "context_length_exceeded", "messages")
        if (new or 1) > settings.most_tokens:
            raise Refused(
                400, f"max_tokens={new}: this server makes at most {settings.most_tokens}", None, "max_tokens"
            )
        seed = secrets.randbits(62) if body.seed is None else body.seed % 2**63
        return Wish(
            tuple(ids), min(room, new or settings.tokens), 1.0 if body.temperature is None else body.temperature,
            body.top_p or 1.0, seed, body.stops() + (TURNS if trim else ()), marks, body.bias(vocab),
            body.presence_penalty or 0.0, body.frequency_penalty or 0.0, trim,
        )  # fmt: skip

    @found.post("/v1/chat/completions")
    async def chat(body: ChatAsked, request: Request, key: Who) -> Any:
        name, branch = chosen(body, key)
        words = await service.words(name)
        turns = [message.plain() for message in body.messages]

        def prompt() -> list[int]:
            shown = words.chat(turns, answer=True)
            return words.encode(shown) if isinstance(shown, str) else list(shown)

        marks = (body.top_logprobs or 0) if body.logprobs else None
        new = body.max_completion_tokens or body.max_tokens
        wish = wished(body, await asyncio.to_thread(prompt), new, marks, not words.templated)
        quotes = any(turn["role"] == "assistant" for turn in turns)
        return await answered(body, request, key, (name, branch), words, wish, quotes, turns)

    @found.post("/v1/completions")
    async def complete(body: TextAsked, request: Request, key: Who) -> Any:
        name, branch = chosen(body, key)
        words = await service.words(name)
        given = body.prompt
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], (str, list)):
            given = given[0]
        if isinstance(given, str):
            ids = await asyncio.to_thread(words.encode, given)
        elif all(isinstance(one, int) and not isinstance(one, bool) for one in given):
            ids = given
        else:
            raise Refused(400, "prompt: give one text, or one list of tokens", None, "prompt")
        wish = wished(body, ids, body.max_tokens, body.logprobs, False)
        return await answered(body, request, key, (name, branch), words, wish, False, None)

    async def answered(
        body: Asked, request: Request, key: Key, who: tuple[str | None, str], words: Words, wish: Wish, quotes: bool,
        turns: Any,
    ) -> Any:  # fmt: skip
        """The same for both: as one reply, or as events."""
        call = Call(settings.seconds)
        shape = Shape(isinstance(body, ChatAsked), body.model, int(time.time()), words, wish, call)

        async def after(said: Said) -> dict[str, Any] | None:
            """What the reply says of the learner, once it has learned."""
            memory = call.memory
            if memory is None or memory.learner is None:
                return None
            kept = service.remember(shape.id, memory, wish, said, quotes)
            told = {"learner": memory.learner, "branch": memory.branch, "version": memory.version}
            return {**told, **await learned(service, key, kept, body.source, turns, body.learn)}

        if not body.stream:
            said = await unless_gone(request, service.say(who, wish, call, None, (key.id, body.user)))
            return shape.whole(said, await after(said))
        queue: asyncio.Queue[Piece | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(
            service.say(
                who, wish, call, lambda piece: loop.call_soon_threadsafe(queue.put_nowait, piece), (key.id, body.user)
            )
        )
        task.add_done_callback(lambda done: queue.put_nowait(None))
        try:
            first = await unless_gone(request, queue.get())
            if first is None:
                task.result()  # what failed before the first token has a status of its own
        except BaseException:
            task.cancel()
            raise

        async def events() -> AsyncIterator[str]:
            try:
                if turns is not None:
                    yield event(shape.begin())
                piece = first
                while piece is not None:
                    yield event(shape.part(piece))
                    piece = await queue.get()
                said = await task
                yield event(shape.end(said, await after(said)))
                if body.stream_options and body.stream_options.include_usage:
                    yield event(shape.usage_alone(said))
                yield event("[DONE]")
            except Exception as error:  # the status has gone out already
                yield event(of(error, service.paths).body())
            finally:
                task.cancel()

        return stream(events())

    @found.get("/v1/models")
    async def models(key: Who) -> Any:
        lives = [service.reads.learner(name) for name in service.reads.learners() if key.sees(name)]
        entries = [(settings.name, 0.0), *((f"{settings.name}@{life.name}", life.time) for life in lives)]
        return {"object": "list", "data": [_model(*entry) for entry in entries]}

    @found.get("/v1/models/{model}")
    async def model(model: str, key: Who) -> Any:
        name, _ = chosen(Asked(model=model), key)
        return _model(model, service.reads.learner(name).time if name else 0.0)

    @found.post("/load_model")
    async def load_model(body: Named, key: Who) -> Any:
        """`transformers chat` asks for it before it talks; here nothing is left to be loaded."""
        chosen(Asked(model=body.model), key)

        async def events() -> AsyncIterator[str]:
            yield event({"status": "ready", "model": body.model, "cached": True})

        return stream(events())

    @found.post("/v1/embeddings")
    async def embeddings(key: Who) -> Any:
        raise Refused(400, "this server makes no embeddings: its models are trained to continue text", "unsupported")

    return found


def _model(id: str, created: float) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": int(created), "owned_by": "circadia"}
