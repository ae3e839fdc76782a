"""How much does noise in its stream harm a learner? ``python -m benchmarks.learner_noise --base DIR --data FILE ...``.

Of each text a learner reads the first part in pieces of one chunk; in the noisy streams a fifth of the pieces is
replaced by random bytes, by one sentence repeated, or by sentences of the text with words exchanged and denied, from a
source of trust 0.2 (all others have trust 1). Then it is scored, without learning, on the next part of the same text,
which nobody read. Every stream is read with the gate and without it. All arms of a text read the same pieces in the
same order, and noise stands in the same places.
"""

import argparse
import gzip
import json
import math
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from circadia.live import Learner, Store
from circadia.models.retrofit import retrofit

SHARE = 0.2
NOISES = ("none", "random bytes", "one sentence", "contradictions")


def text_of(path: Path, skip: int, count: int) -> str:
    """A piece of a text file, gzipped or not."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        file.seek(skip)
        return file.read(count).decode("utf-8", "ignore")


def contradict(piece: str, words: list[str], chance: random.Random) -> str:
    """The same words' shapes with other words: every third one is exchanged, and `is` is denied."""
    found = re.split(r"(\W+)", piece)
    for i in range(0, len(found), 6):
        if found[i].isalpha():
            found[i] = chance.choice(words)
    return re.sub(r"\b(is|was|are|were|shall|may)\b", r"\1 not", "".join(found))


def stream(text: str, noise: str, size: int, seed: int) -> list[tuple[list[int], str, float]]:
    """Pieces of `size` bytes with source and trust."""
    raw = text.encode()
    words = sorted(set(re.findall(r"[A-Za-z]{4,}", text)))
    sentence = b"Buy the new golden kettle today, it sings while it boils. "
    count = len(raw) // size
    places = set(random.Random(seed).sample(range(count), round(SHARE * count)))
    found: list[tuple[list[int], str, float]] = []
    for i in range(count):
        piece, own, source, trust = raw[i * size : (i + 1) * size], random.Random(f"{seed} {i}"), "text", 1.0
        if i in places and noise == "random bytes":
            piece = own.randbytes(size)
        elif i in places and noise == "one sentence":
            piece = (sentence * (size // len(sentence) + 1))[:size]
        elif i in places and noise == "contradictions":
            changed = contradict(piece.decode("utf-8", "ignore"), words, own).encode()
            piece, source, trust = (changed + piece)[:size], "stranger", 0.2
        found.append((list(piece), source, trust))
    return found


def arm(store: Store, model: Any, name: str, pieces: Any, gate: bool, held: list[int]) -> dict[str, float]:
    """One life; bits per byte on what nobody read."""
    me = Learner.create(store, model, name, gate=gate)
    begin, weights = time.perf_counter(), {"text": [0.0, 0.0], "stranger": [0.0, 0.0]}
    for piece, source, trust in pieces:
        done = me.observe(piece, source, trust, commit=False)
        if done.chunks:
            weights[source][0] += done.chunks * (done.weight or 0.0)
            weights[source][1] += done.chunks
    bits = me.score(held) / math.log(2)
    seconds = time.perf_counter() - begin
    me.close()
    total = sum(w for w, _ in weights.values()), sum(n for _, n in weights.values())
    return {"bits": bits, "weight": total[0] / max(1, total[1]), "seconds": seconds}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", required=True, help="a byte-level model's folder")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--read", type=int, default=32768, help="bytes of each text that are read")
    parser.add_argument("--held", type=int, default=16384, help="bytes after them that are scored")
    parser.add_argument("--skip", type=int, default=20000, help="bytes at the head of each text that are left out")
    parser.add_argument("--periods", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/learner_noise"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    model = retrofit(given.base, given.periods, rate=given.rate)
    rows = []
    with tempfile.TemporaryDirectory() as folder, Store.open(folder) as store:
        for number, path in enumerate(given.data):
            text = text_of(path, given.skip, given.read)
            held = list(text_of(path, given.skip + given.read, given.held).encode())
            base = model.score(held).surprise / math.log(2)
            rows.append({"text": path.name, "noise": "nothing read", "gate": None, "bits": base})
            for noise in NOISES:
                for gate in (True, False):
                    pieces = stream(text, noise, given.periods[0], number)
                    found = arm(store, model, f"{number}-{noise[:3]}-{gate}".replace(" ", ""), pieces, gate, held)
                    rows.append({"text": path.name, "noise": noise, "gate": gate, **found})
                    print(json.dumps(rows[-1]), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    harness.write_json(given.out / "learner_noise.json", {"machine": harness.machine("cpu"), "rows": rows})
    table(rows)
    return 0


def table(rows: list[dict[str, Any]]) -> None:
    """Bits per byte on held-out text, and how much more than after the clean stream with the same gate."""
    print("| text | noise | with gate | against clean | mean weight | without gate | against clean |")
    print("|---|---|---|---|---|---|---|")
    for text in dict.fromkeys(row["text"] for row in rows):
        own = {(row["noise"], row["gate"]): row for row in rows if row["text"] == text}
        print(f"| {text} | nothing read | {own['nothing read', None]['bits']:.4f} | | | | |")
        for noise in NOISES:
            on, off = own[noise, True], own[noise, False]
            more = [x["bits"] / own["none", x["gate"]]["bits"] - 1 for x in (on, off)]
            print(
                f"| | {noise} | {on['bits']:.4f} | {more[0]:+.2%} | {on['weight']:.2f} | {off['bits']:.4f} "
                f"| {more[1]:+.2%} |"
            )


if __name__ == "__main__":
    raise SystemExit(main())
