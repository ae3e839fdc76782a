"""Real text of several sources, one after another: what a model reads, and unseen text of the same source."""

import gzip
import json
import lzma
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

HELD_OUT = ("Conrad", "Cbronte", "Woolf", "Kipling")  # the authors that configs/novels-tiny.yaml leaves out
FRONT = 8_000  # bytes of title pages and contents at the head of a book


@dataclass(frozen=True)
class Passage:
    """Text of one source: a part that is read and learned, a later part that never is."""

    source: str
    read: bytes
    unseen: bytes


# A source that occurs again goes on where it stopped; with AGAIN the same text is read once more.
AGAIN = " again"
STREAMS = {
    "a": ("Conrad", "legal", "medical", "code"),
    "b": ("medical", "Cbronte", "maths", "legal"),
    "c": ("code", "Woolf", "legal", "medical"),
    "returning": ("legal", "medical", "legal", "medical", "legal", "medical"),
    "novels": ("Conrad", "Woolf", "Conrad again"),
}
PLACES = {"a": 0.0, "b": 0.3, "c": 0.6, "returning": 0.1, "novels": 0.0}  # where in a source a stream begins


def stream(data: Path, name: str, kilobytes: int, unseen: int = 16) -> list[Passage]:
    """The passages of a stream, `kilobytes` to be read of each and `unseen` kilobytes to be tested on."""
    if name not in STREAMS:
        raise ValueError(f"stream={name!r} is unknown: choose among {', '.join(STREAMS)}")
    length, tested = 1024 * kilobytes, 1024 * unseen
    names = [source.removesuffix(AGAIN) for source in STREAMS[name]]
    texts = {source: source_text(data, source) for source in set(names)}
    begin = {source: int(PLACES[name] * len(text)) for source, text in texts.items()}
    passages: list[Passage] = []
    for source, given in zip(names, STREAMS[name]):
        if given.endswith(AGAIN):
            passages.append(next(passage for passage in passages if passage.source == source))
            continue
        # A passage that would run over the end of a source goes on at its beginning: nothing is read twice as long as
        # the source is longer than what is asked for.
        text, start = texts[source], begin[source]
        needed = names.count(source) * (length + tested)
        if len(text) < needed:
            raise ValueError(
                f"{source} has {len(text):,} bytes and stream {name!r} needs {needed:,}: "
                f"read less of each source than {kilobytes} kB"
            )
        turned = (text[start:] + text[:start])[: length + tested]
        passages.append(Passage(source, turned[:length], turned[length:]))
        begin[source] = (start + length + tested) % len(text)
    return passages


def own_text(data: Path, kilobytes: int = 64) -> bytes:
    """Slices from the middle of novels by authors that the base was trained on, one of each author."""
    middles = {n["author"]: _plain(n["text"]) for n in _novels(data) if n["author"] not in HELD_OUT}
    size = 1024 * kilobytes // max(1, len(middles))
    return b"".join(text[len(text) // 2 :][:size] for _, text in sorted(middles.items()))


def own_novels(data: Path, kilobytes: int) -> list[bytes]:
    """As much of each novel of the authors that the base was trained on."""
    end = FRONT + 1024 * kilobytes
    return [_plain(n["text"][FRONT:end]) for n in _novels(data) if n["author"] not in HELD_OUT]


def source_text(data: Path, source: str) -> bytes:
    """All the text of a source."""
    if source in _READERS:
        return _READERS[source](data)
    found = [_plain(n["text"])[FRONT:] for n in _novels(data) if n["author"] == source]
    if not found:
        raise ValueError(f"source={source!r} is unknown: choose among {', '.join(_READERS)} or an author of novels100")
    return b"".join(found)


def _path(data: Path, name: str) -> Path:
    path = data / name
    if not path.is_file():
        raise ValueError(f"{path}: no such file; --data must be a folder that has {name}")
    return path


def _text(data: Path, name: str) -> str:
    with gzip.open(_path(data, name), "rt", encoding="utf-8", errors="ignore") as file:
        return file.read()


def _rows(data: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in _text(data, name).splitlines()]


@lru_cache(maxsize=1)
def _novels(data: Path) -> list[dict]:
    with lzma.open(_path(data, "novels100/novels.jsonl.xz"), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _plain(text: str) -> bytes:
    text = re.sub(r"\n\s*\n+", "\n\n", text.replace("\r", ""))
    return re.sub(r"[ \t]+", " ", text).encode("utf-8", "ignore")


def _code(data: Path) -> bytes:
    tasks = [
        f"# {row['text']}\n{row['code']}\n" + "\n".join(row["test_list"])
        for row in _rows(data, "domains/code_mbpp.jsonl.gz")
    ]
    tasks += [row["prompt"] + row["canonical_solution"] for row in _rows(data, "domains/code_HumanEval.jsonl.gz")]
    return "\n\n".join(tasks).replace("\r", "").encode()


def _maths(data: Path) -> bytes:
    rows = _rows(data, "domains/math_gsm8k_train.jsonl.gz")
    return "\n\n".join(f"{row['question']}\n{row['answer']}" for row in rows).encode()


_READERS: dict[str, Callable[[Path], bytes]] = {
    "legal": lambda data: _plain(_text(data, "domains/legal.txt.gz"))[FRONT:],
    "medical": lambda data: _plain(_text(data, "domains/medical.txt.gz")),
    "shakespeare": lambda data: _plain(_text(data, "lm/tinyshakespeare.txt.gz")),
    "code": _code,
    "maths": _maths,
}
