"""The shapes of OpenAI's replies: a chat and a completion, whole and in pieces."""

import secrets
from collections.abc import Sequence
from typing import Any

from circadia.live.text import Words
from circadia.serve.decode import Call, Mark, Piece, Said, Wish


class Shape:
    """Of one reply."""

    def __init__(self, chat: bool, model: str, created: int, words: Words, wish: Wish, call: Call) -> None:
        self.chat, self.model, self.created = chat, model, created
        self.words, self.wish, self.call = words, wish, call
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._offset = 0

    def _of(self, part: bool, choices: list[dict[str, Any]]) -> dict[str, Any]:
        version = self.call.memory.version if self.call.memory else None
        kind = "text_completion" if not self.chat else "chat.completion.chunk" if part else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model,
                "system_fingerprint": f"v{version or 0}", "choices": choices}  # fmt: skip

    def whole(self, said: Said, told: dict[str, Any] | None) -> dict[str, Any]:
        """Of an answer that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": said.reason, "logprobs": self._marks(said.marks)}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": said.text, "refusal": None}
        else:
            choice["text"] = said.text
        found = self._of(False, [choice]) | {"usage": self._usage(said)}
        return found if told is None else found | {"circadia": told}

    def begin(self) -> dict[str, Any]:
        """The first event of a chat."""
        return self._part({"role": "assistant", "content": ""}, "", None, None)

    def part(self, piece: Piece) -> dict[str, Any]:
        """Some text."""
        return self._part({"content": piece.text}, piece.text, self._marks(piece.marks), None)

    def end(self, said: Said, told: dict[str, Any] | None) -> dict[str, Any]:
        """Why it ended."""
        found = self._part({}, "", None, said.reason)
        return found if told is None else found | {"circadia": told}

    def usage_alone(self, said: Said) -> dict[str, Any]:
        """The last event, where it was asked for."""
        return self._of(True, []) | {"usage": self._usage(said)}

    def _part(self, delta: dict[str, Any], text: str, marks: Any, reason: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": marks}
        return self._of(True, [choice | ({"delta": delta} if self.chat else {"text": text})])

    def _usage(self, said: Said) -> dict[str, int]:
        read = len(self.wish.ids)
        return {"prompt_tokens": read, "completion_tokens": said.count, "total_tokens": read + said.count}

    def _marks(self, marks: Sequence[Mark]) -> dict[str, Any] | None:
        if self.wish.logprobs is None:
            return None
        if self.chat:
            content = [self._token(m.token, m.logprob) | {"top_logprobs": [self._token(*one) for one in m.top]}
                       for m in marks]  # fmt: skip
            return {"content": content, "refusal": None}
        texts, offsets = [self.words.decode([m.token]) for m in marks], []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        top = [{self.words.decode([token]): value for token, value in m.top} for m in marks]
        return {"tokens": texts, "token_logprobs": [m.logprob for m in marks], "top_logprobs": top,
                "text_offset": offsets}  # fmt: skip

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.words.decode([token])
        raw = [token] if self.words.bytes else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": raw}
