"""Sources one after another, learned by every arm: what is left of the earlier ones, and what they do for later ones.

    domains   law, medicine, code, maths, a novel
    genesis   one book of the Bible in five languages: the same content again, the words new
    authors   novels of four authors, so that nothing is new but the hand

Nobody is told where a source ends. A score is bits per byte of text of the source that is never learned, in windows
that see nothing before them but what an arm puts there. `read` compares arms at equal gain, and scores text before it
is learned; here the matrix of all scores is kept, and arms that keep old text take part.
"""

import gzip
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from circadia.evals import arms, continual, continual_report, streams
from circadia.evals.arms import CHUNK, Arm, Example
from circadia.evals.bases import BATCH, Base
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested

# Retrieval needs a question; a window of text is none.
ARMS = tuple(name for name in arms.ARMS if name != "retrieval")
QUICK = ("frozen", "full", "MLPs", "MLPs + decay")
GENESIS = ("english-kjv", "english-web", "french", "german", "swedish")
STREAMS = {
    "domains": ("legal", "medical", "code", "maths", "novel"),
    "genesis": GENESIS,
    "authors": streams.HELD_OUT,
}
UNSEEN = 16  # kilobytes of each source that nobody learns
PARTS = 4  # of a source: how fast is it learned?


def runs(options: Options, done: list[Record]) -> list[Run]:
    for folder in ("domains", "novels100"):
        options.folder(folder)
    default, full = (tuple(name for name in own if name in ARMS) for own in (arms.DEFAULT, arms.FULL))
    shown = options.pick(QUICK, default, full)
    cells = [
        {"base": base, "stream": name, "arm": arm, "kilobytes": options.pick(8, 64, 200)}
        for name in tuple(STREAMS)[: options.pick(1, None, None)]
        for base, arm in arms.pairs(options, ARMS, shown)
    ]
    seeds = options.seeds or options.pick(1, 3, 3)
    return continual_report.planned(options, cells, arms.rates, seeds, done, goal)


def goal(scores: dict[str, Any]) -> float:
    """Over all sources so far, after each of them: who learns nothing is no good, and who forgets all is none."""
    found = scores["metrics"]["bits"]
    if len(found["matrix"]) == 1:
        return -sum(found["matrix"][0]) / len(found["start"])
    value = continual.measures(continual.flipped(found["matrix"]))["AIA"].value
    assert value is not None
    return value


def sources(data: Path, name: str, kilobytes: int, seed: int) -> list[tuple[str, str, str]]:
    """Of each source its name, text to learn, and text that is not; the seed says where in it, and in which order."""
    chance = random.Random(f"stream {seed}")
    names = list(STREAMS[name])
    if name != "domains":
        chance.shuffle(names)
    found = []
    for each in names:
        text = _genesis(data, each) if name == "genesis" else streams.source_text(data, _author(each, chance))
        length, tested = 1024 * kilobytes, 1024 * UNSEEN
        length = min(length, len(text) - tested)  # a book of the Bible is not long
        if length < tested:
            raise ValueError(f"--data: {each} has {len(text):,} bytes, and at least {2 * tested:,} are needed")
        start = chance.randrange(len(text))
        turned = (text[start:] + text[:start])[: length + tested].decode("utf-8", "ignore").encode()
        parts = turned[:length], turned[length:]
        found.append((each, parts[0].decode("utf-8", "ignore"), parts[1].decode("utf-8", "ignore")))
    return found


def _author(name: str, chance: random.Random) -> str:
    return chance.choice(streams.HELD_OUT) if name == "novel" else name


def _genesis(data: Path, version: str) -> bytes:
    path = data / "domains" / "genesis" / f"{version}.txt.gz"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; stream genesis reads {', '.join(GENESIS)}")
    with gzip.open(path, "rb") as file:
        return file.read()


def run(run: Run, options: Options) -> dict[str, Any]:
    base = Base.load(options.model_folder(run["base"]), options.device)
    found = sources(options.folder("domains").parent, run["stream"], run["kilobytes"], run["seed"])
    tasks = [[Example("", text[at : at + 1024]) for at in range(0, len(text), 1024)] for _, text, _ in found]
    own = streams.own_text(options.folder("novels100").parent, UNSEEN).decode("utf-8", "ignore")
    arm = arms.make(run["arm"], base, run["rate"], run["seed"])
    asking = 0.0

    def score(i: int, j: int) -> dict[str, float]:
        nonlocal asking
        began = time.perf_counter()
        value = {"bits": bits(arm, base, found[j][2])}
        asking += time.perf_counter() - began
        return value

    before, began = bits(arm, base, own), time.perf_counter()
    metrics = continual.in_turn(arm, tasks, score, PARTS)
    whole = time.perf_counter() - began
    return {
        "tasks": [name for name, _, _ in found],
        "metrics": metrics,
        "own": {"before": before, "after": bits(arm, base, own)},
        "cost": {"seconds": round(whole - asking, 2), "asking": round(asking, 2), **arm.cost()},
    }


def bits(arm: Arm, base: Base, text: str) -> float:
    """Per byte, of text that an arm reads."""
    before = base.encode(arm.prompt(""))[-max(0, base.window - CHUNK) :] if base.window > CHUNK else []
    with arm.reading() as module:
        return text_bits(base, module, text, before)


@torch.no_grad()
def text_bits(base: Base, module: Any, text: str, before: list[int]) -> float:
    """Bits per byte in windows of CHUNK tokens, after the first of each, with some tokens before every window."""
    tokens = base.encode(text)
    rows = [before + tokens[at : at + CHUNK + 1] for at in range(0, len(tokens) - CHUNK, CHUNK)]
    nats = 0.0
    for at in range(0, len(rows), BATCH):
        ids = torch.tensor(rows[at : at + BATCH], device=next(module.parameters()).device)
        logits = module(ids[:, :-1], use_cache=False, logits_to_keep=CHUNK).logits[:, -CHUNK:].float()
        nats += float(F.cross_entropy(logits.flatten(0, 1), ids[:, -CHUNK:].flatten(), reduction="sum"))
    return nats / math.log(2) / (len(rows) * CHUNK) * len(tokens) / len(text.encode())


def table(records: list[Record]) -> list[Table]:
    tables = []
    for (name,), own in group(tested(records), "stream").items():
        harm = []
        for (base, arm), each in group(own, "base", "arm").items():
            rises = [one.scores["own"]["after"] - one.scores["own"]["before"] for one in each]
            harm.append(f"{base}, {arm}: {sum(rises) / len(rises):+.3f}")
        notes = (
            "Bits per byte of text that is not learned. Rise on text of the kind that the base was trained on, "
            "after all: " + "; ".join(harm) + ".",
        )
        by = ("base", "arm")
        tables.append(continual_report.table(own, by, "bits", f"Stream, {name}", 1.0, True, 3, notes))
        tables.append(continual_report.matrices(own, by, "bits", f"Stream, {name}", 1.0, 3))
    return tables


def plot(records: list[Record], path: Path) -> None:
    continual_report.plot(records, "stream", "bits", "bits per byte over the sources so far", 1.0, path)


SUITE = Suite(
    name="stream",
    summary="sources one after another, by every arm: domains, one book in five languages, authors; the whole matrix",
    needs=Needs(
        data=("domains", "novels100"),
        time={
            "quick": "5 minutes (1M parameters)",
            "default": "10 hours, 8 more for arms that sleep (estimated)",
            "full": "days (not timed)",
        },
        models=ARMS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
