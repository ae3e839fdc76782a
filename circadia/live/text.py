"""Text to tokens in a stream that may be cut anywhere.

What a tokenizer makes of the end of a text may change with what comes next. So the stream is cut into segments by its
characters alone, and each segment is tokenized by itself: a segment ends after a run of newlines (once the character
after them is known), or where it would be longer than `LONGEST`, at its last space. Until it ends, its text waits.
Bytes need no segments.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

LONGEST = 2048  # characters of a segment
BORDER = re.compile(r"[\r\n]+(?=[^\r\n])")
BLOCK = 1024  # characters or tokens of one entry in the journal, which Ctrl-C waits for
ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def segments(text: str) -> tuple[list[str], str]:
    """Those that have ended, and the open rest."""
    done: list[str] = []
    at = 0
    while True:
        window = text[at : at + LONGEST + 1]
        found = BORDER.search(window)
        if found and found.end() <= LONGEST:
            cut = found.end()
        elif len(window) > LONGEST:
            space = window.rfind(" ", 1, LONGEST)
            cut = space if space > 0 else LONGEST
        else:
            return done, text[at:]
        done.append(text[at : at + cut])
        at += cut


class Words:
    """The tokenizer of a base: bytes, or what lies in a folder."""

    def __init__(self, name: str | None, fast: Any = None) -> None:
        self.name, self.fast = name, fast
        self._lead = fast is not None and not self._plain()

    @classmethod
    def open(cls, name: str) -> "Words":
        """Of the name "bytes", a folder, a tokenizer.json or a Hub id."""
        from circadia.train.tokens import Tokenizer

        if name == "bytes":
            return cls(name)
        try:
            return cls(name, Tokenizer(name)._fast)
        except ValueError as error:
            raise ValueError(str(error).replace("data.tokenizer", "tokenizer")) from None

    @property
    def bytes(self) -> bool:
        """Is every byte a token?"""
        return self.name == "bytes"

    @property
    def templated(self) -> bool:
        """Does the tokenizer say how a conversation is written?"""
        return getattr(self.fast, "chat_template", None) is not None

    def _encode(self, text: str) -> list[int]:
        return self.fast(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _plain(self) -> bool:
        """Whether the start of a text leaves no trace: some tokenizers put a space before it."""
        return self._encode("a\nb") == self._encode("a\n") + self._encode("b")

    def encode(self, text: str) -> list[int]:
        """Tokens of a piece of text."""
        if self.bytes:
            return list(text.encode("utf-8", "surrogateescape"))
        if self.fast is None:
            raise ValueError("this learner has no tokenizer and takes tokens only: give tokenizer=... when it is made")
        # Bytes that are no UTF-8 came in as halves of surrogate pairs, which no tokenizer takes.
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if self._lead:  # tokenized after a newline, of which nothing is kept
            lead = self._encode("\n")
            found = self._encode("\n" + text)
            if found[: len(lead)] == lead:
                return found[len(lead) :]
        return self._encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""
        if self.bytes:
            return bytes(tokens).decode("utf-8", "replace")
        return "" if self.fast is None else self.fast.decode(list(tokens), skip_special_tokens=True)

    def feed(self, tail: str, text: str) -> tuple[list[int], str]:
        """Tokens that are certain now, and the text that waits."""
        if self.bytes:
            return self.encode(text), ""
        done, rest = segments(tail + text)
        return [token for segment in done for token in self.encode(segment)], rest

    def chat(self, messages: Sequence[Mapping[str, str]], answer: bool = False) -> str | list[int]:
        """A conversation as the tokenizer's template writes it, or as lines; `answer`: the assistant is to speak."""
        for message in messages:
            if not isinstance(message, Mapping) or message.get("role") not in ROLES or "content" not in message:
                raise ValueError(
                    f"message={message!r:.100}: give {{'role': 'user', 'content': '...'}}; roles are {', '.join(ROLES)}"
                )
        if self.templated:
            given = [dict(message) for message in messages]
            try:
                found = self.fast.apply_chat_template(given, add_generation_prompt=answer, tokenize=False)
            except Exception as error:  # templates have errors of their own
                raise ValueError(f"messages: the base's template does not take them ({error})") from None
            return self._encode(found)
        lines = "".join(f"{ROLES[m['role']]}: {m['content']}\n" for m in messages)
        return lines + "Assistant:" if answer else lines


def pieces(what: Any) -> Iterator[tuple[str, Any]]:
    """A stream as ("text", str), ("tokens", list) and ("chat", messages) of bounded size."""
    if isinstance(what, str):
        yield from (("text", what[i : i + BLOCK]) for i in range(0, len(what), BLOCK))
    elif isinstance(what, Path):
        with open(what, encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield from pieces(file)
    elif isinstance(what, (bytes, bytearray)):
        yield from pieces(bytes(what).decode("utf-8", "surrogateescape"))
    elif hasattr(what, "read"):
        while block := what.read(BLOCK):
            if not isinstance(block, str):
                raise ValueError("the file was opened in binary mode: open it as text, or give its Path")
            yield "text", block
    elif isinstance(what, Mapping):
        yield "chat", [dict(what)]
    elif hasattr(what, "tolist"):  # a tensor or an array
        flat = torch.as_tensor(what).flatten()
        yield from (("tokens", flat[i : i + BLOCK].tolist()) for i in range(0, flat.numel(), BLOCK))
    elif isinstance(what, Iterable):
        yield from _each(what)
    else:
        raise ValueError(f"observe got a {type(what).__name__}: give text, tokens, messages, a file, or an iterator")


def _each(what: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Of an iterator: tokens that follow each other together, messages of one list together."""
    tokens: list[int] = []
    if isinstance(what, Sequence) and what and all(isinstance(one, Mapping) for one in what):
        yield "chat", [dict(message) for message in what]
        return
    for one in what:
        if isinstance(one, int) and not isinstance(one, bool):
            tokens.append(one)
            if len(tokens) == BLOCK:
                yield "tokens", tokens
                tokens = []
            continue
        if tokens:
            yield "tokens", tokens
            tokens = []
        yield from pieces(one)
    if tokens:
        yield "tokens", tokens


def of_base(base: Any, given: str | None, folder: str | None) -> Words:
    """The tokenizer that was named, or the one in the base's folder, or bytes where 256 tokens are known."""
    if given is not None:
        return Words.open(given)
    where = folder or getattr(getattr(base, "config", None), "_name_or_path", "") or ""
    if where and any((Path(where) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return Words.open(where)
    if base.config.get_text_config().vocab_size == 256:
        return Words.open("bytes")
    return Words.open(where) if where and not Path(where).is_dir() else Words(None)
