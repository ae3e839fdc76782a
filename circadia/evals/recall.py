"""In-context recall (Table 3 of the paper): what stands in a text is asked after it, and the answer must contain it.

The protocol of based-evaluation-harness: a text that ends just before the answer, greedy decoding to the end of the
line or 48 tokens, and an answer is right if it contains the gold string, whatever the case. SQuAD is read from
`squad/`, as `{title, context, questions: [{question, answer}]}`. Other sets are files `recall/NAME.jsonl(.gz)` in
--data, with the rows `{text, value}` of that harness (SWDE, FDA, and NQ, DROP, TriviaQA in its cloze form).
"""

import gzip
import json
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from circadia.evals import plots
from circadia.evals.bases import Base, written
from circadia.evals.likelihood import fingerprint
from circadia.evals.metrics import majority, mean, percent
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group

LONGEST = 48  # tokens of an answer
# Table 3, in per cent: SWDE, NQ, DROP, FDA, SQuAD, TriviaQA (the paper's "TQA").
SETS = ("swde", "nq", "drop", "fda", "squad", "tqa")
PUBLISHED = {
    "Transformer": (71.4, 22.0, 23.9, 67.3, 39.4, 59.1),
    "RWKV-7": (52.3, 17.8, 21.7, 32.8, 28.5, 56.2),
    "Comba": (53.9, 19.1, 21.9, 35.5, 30.2, 56.4),
    "Titans": (60.8, 20.3, 22.0, 37.6, 31.8, 57.5),
    "Hope": (65.9, 21.2, 22.8, 41.9, 33.0, 57.7),
}
Cloze = tuple[str, str]  # a text, and what comes next


def runs(options: Options, done: list[Record]) -> list[Run]:
    models = options.base_folders()
    options.folder("squad")
    assert options.data is not None
    limit = options.pick(10, 300, None)  # questions of each set
    return [
        {"model": name, "weights": fingerprint(str(folder)), "set": one, "limit": limit}
        for name, folder in models.items()
        for one in ("squad", *others(options.data))
    ]


def others(data: Path) -> list[str]:
    """Names of the sets in `recall/`."""
    return sorted({path.name.partition(".")[0] for path in (data / "recall").glob("*.jsonl*")} - {"squad"})


def run(run: Run, options: Options) -> dict[str, Any]:
    base = _base(options.base_folders()[run["model"]], options.device)
    data = options.folder("squad").parent
    rows = squad(data) if run["set"] == "squad" else cloze(data, run["set"])
    if run["limit"] is not None and run["limit"] < len(rows):
        rows = random.Random(0).sample(rows, run["limit"])
    return {**asked(base, rows), "parameters": base.parameters}


@lru_cache(maxsize=1)
def _base(folder: Path, device: str) -> Base:
    return Base.load(folder, device)


def documents(data: Path) -> list[dict[str, Any]]:
    """The passages of `squad/` with their questions."""
    found = [doc for path in sorted((data / "squad").glob("*.json*")) for doc in json.loads(_read(path))]
    if not found:
        raise ValueError(f"{data}/squad: no .json or .json.gz in it")
    return found


def squad(data: Path) -> list[Cloze]:
    """Passage, question, and `Answer:`."""
    return [
        (f"{doc['context']}\nQuestion: {one['question']}\nAnswer:", one["answer"])
        for doc in documents(data)
        for one in doc["questions"]
    ]


def cloze(data: Path, name: str) -> list[Cloze]:
    """Rows of based-evaluation-harness."""
    path = next(iter(sorted((data / "recall").glob(f"{name}.jsonl*"))))
    rows = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        row = json.loads(line)
        if not isinstance(row.get("text"), str) or not isinstance(row.get("value"), str):
            raise ValueError(f"{path}, line {number}: it must be an object with the strings text and value")
        rows.append((row["text"].rstrip(), row["value"]))
    return rows


def _read(path: Path) -> str:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    return path.read_text(encoding="utf-8")


def asked(base: Base, rows: Sequence[Cloze]) -> dict[str, Any]:
    """Shares of right answers: of the model, of the commonest value, and of a word of the text drawn by chance."""
    right = [contains(written(base, base.model, text, LONGEST), value) for text, value in rows]
    inside = [text for text, _ in rows if len(base.encode(text)) <= base.window - LONGEST]
    chance = random.Random(0)
    guessed = [contains(chance.choice(re.findall(r"\S+", text)), value) for text, value in rows]
    return {
        "questions": len(rows),
        "contains": mean([float(x) for x in right]),
        "majority": majority(value.lower() for _, value in rows),
        "word by chance": mean([float(x) for x in guessed]),
        "whole text read": len(inside) / len(rows),  # of others the beginning is cut off
    }


def contains(said: str, value: str) -> bool:
    """Case does not count."""
    return value.strip().lower() in said.lower()


def table(records: list[Record]) -> list[Table]:
    names = list(dict.fromkeys(("squad", *(one.run["set"] for one in records))))
    rows = []
    for (model,), own in group(records, "model").items():
        found = {one.run["set"]: one.scores for one in own}
        cells = [percent([found[name]["contains"]]) if name in found else "-" for name in names]
        limit = own[0].run["limit"]
        rows.append((model, f"{own[0].scores['parameters']:,}", "all" if limit is None else str(limit), *cells))
    for floor in ("majority", "word by chance"):
        each = {one.run["set"]: one.scores[floor] for one in records}
        rows.append((f"({floor})", "-", "-", *(percent([each[name]] if name in each else []) for name in names)))
    for name, values in PUBLISHED.items():
        shown = dict(zip(SETS, values))
        rows.append((f"Table 3: {name}", "-", "all", *(f"{shown[n]:g}" if n in shown else "-" for n in names)))
    read = percent([one.scores["whole text read"] for one in records]) if records else "-"
    notes = (
        "Per cent of answers that contain the gold string. Our SQuAD is a part of the development set in the form "
        f"passage, question, `Answer:`; the paper's is a cloze form. Texts that fit into the model's window: {read} %.",
    )
    return [Table("In-context recall", ("model", "parameters", "questions, at most", *names), rows, notes)]


def plot(records: list[Record], path: Path) -> None:
    groups: dict[str, dict[str, list[float]]] = {}
    for one in records:
        groups.setdefault(one.run["set"], {})[one.run["model"]] = [100 * one.scores["contains"]]
    if groups:
        plots.bars(groups, "answers that contain the gold string, %", path)


SUITE = Suite(
    name="recall",
    summary="in-context recall of trained models (Table 3): SQuAD, and sets in the form of based-evaluation-harness",
    needs=Needs(
        data=("squad", "recall, if it is there"),
        time={"quick": "a minute (1M parameters)", "default": "20 minutes (estimated)", "full": "hours (not timed)"},
        models=("those of --base",),
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
