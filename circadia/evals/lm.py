"""Language modelling and common sense (Table 2 of the paper) of any causal model, by lm-eval's conventions, offline."""

import json
import math
import re
from pathlib import Path
from typing import Any

from circadia.evals import lm_tasks, plots
from circadia.evals.likelihood import Scorer, fingerprint, load
from circadia.evals.lm_tasks import CHOICES
from circadia.evals.metrics import bits, majority, mean, percent
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group

TASKS = ("wikitext", "lambada", *CHOICES)
# Table 2: wiki and LAMBADA perplexity, LAMBADA accuracy, the tasks of CHOICES in their order, and the average.
PUBLISHED = {
    "Transformer++ 760M": (24.18, 24.27, 37.1, 67.2, 43.8, 53.0, 65.6, 33.4, 39.1, 61.7, 50.11),
    "DeltaNet 760M": (24.52, 24.38, 36.8, 67.3, 44.5, 51.8, 64.2, 32.7, 39.6, 60.1, 49.63),
    "Titans 760M": (20.08, 21.52, 38.1, 69.1, 48.5, 52.7, 66.2, 35.7, 40.3, 62.8, 51.68),
    "Hope 760M": (18.68, 20.07, 38.8, 69.2, 49.1, 53.6, 66.8, 36.1, 41.2, 63.4, 52.28),
    "Transformer++ 1.3B": (17.92, 17.73, 42.6, 71.4, 52.3, 54.1, 69.9, 36.5, 41.8, 58.4, 53.38),
    "Titans 1.3B": (15.60, 11.41, 49.1, 73.1, 56.3, 59.8, 72.4, 40.8, 42.1, 61.0, 56.82),
    "Hope 1.3B": (14.39, 10.08, 51.0, 73.9, 57.5, 61.2, 73.8, 42.7, 42.8, 61.4, 58.04),
}


def runs(options: Options, done: list[Record]) -> list[Run]:
    if not options.models:
        raise ValueError("this suite scores trained models: give --models FOLDER (or several, with commas, or Hub ids)")
    options.folder("lm")
    options.folder("commonsense")
    limit = options.pick(50, 500, None)  # documents of each task
    return [
        {"model": model, "weights": fingerprint(model), "task": task, "limit": limit}
        for model in dict.fromkeys(options.models)
        for task in TASKS
    ]


def run(run: Run, options: Options) -> dict[str, Any]:
    scorer = load(run["model"], options.device)
    task, limit = run["task"], run["limit"]
    sizes = {"parameters": sum(p.numel() for p in scorer.model.parameters())}
    if task == "wikitext":
        folder = options.folder("lm")
        text = "\n".join(lm_tasks.lines(folder, "wikitext2_*.txt"))
        return sizes | wikitext(scorer, lm_tasks.pages(text)[: None if limit is None else max(1, limit // 10)])
    if task == "lambada":
        return sizes | lambada(scorer, list(lambada_texts(options.folder("lm")))[:limit])
    docs = lm_tasks.documents(options.folder("commonsense"), task)[:limit]
    return sizes | choices(scorer, [lm_tasks.choice(task, doc) for doc in docs])


def lambada_texts(folder: Path) -> list[str]:
    """OpenAI's test texts if they are there, else the development texts in their tokens."""
    if any(folder.glob("lambada_openai_test.jsonl*")):
        return [json.loads(line)["text"] for line in lm_tasks.lines(folder, "lambada_openai_test.jsonl")]
    return [line.strip() for line in lm_tasks.lines(folder, "lambada_*.txt") if line.strip()]


def wikitext(scorer: Scorer, texts: list[str]) -> dict[str, Any]:
    """Over the words and bytes of the original text, whatever the tokens are."""
    nats = -sum(scorer.rolling(lm_tasks.detokenized(text)) for text in texts)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    return {
        "documents": len(texts),
        "nats": nats,
        "word_perplexity": math.exp(min(700.0, nats / words)),
        "byte_perplexity": math.exp(min(700.0, nats / size)),
        "bits_per_byte": bits(nats, size),
    }


def lambada(scorer: Scorer, texts: list[str]) -> dict[str, Any]:
    found = scorer.scores([scorer.pair(*lm_tasks.last_word(text)) for text in texts])
    return {
        "documents": len(texts),
        "perplexity": math.exp(min(700.0, -mean([nats for nats, _ in found]))),
        "acc": mean([float(greedy) for _, greedy in found]),
        "majority": majority(text.split(" ")[-1] for text in texts),
    }


def choices(scorer: Scorer, docs: list[lm_tasks.Choice]) -> dict[str, Any]:
    """acc: the likeliest choice; acc_norm: the likeliest by the character."""
    found = scorer.scores([scorer.pair(*request) for doc in docs for request in doc.requests])
    plain, normed, at = [], [], 0
    for doc in docs:
        nats = [x for x, _ in found[at : at + len(doc.requests)]]
        at += len(nats)
        plain.append(_best(nats) == doc.gold)
        normed.append(_best([x / len(text) for x, text in zip(nats, doc.choices)]) == doc.gold)
    return {
        "documents": len(docs),
        "acc": mean([float(x) for x in plain]),
        "acc_norm": mean([float(x) for x in normed]),
        "majority": majority(doc.gold for doc in docs),
        "chance": mean([1 / len(doc.choices) for doc in docs]),
    }


def _best(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def table(records: list[Record]) -> list[Table]:
    columns = ("model", "parameters", "documents, at most", "wikitext bits/byte", "wikitext word ppl", "LAMBADA ppl",
               "LAMBADA acc", *(f"{task} {kind}" for task, (_, kind) in CHOICES.items()), "average")  # fmt: skip
    rows = []
    for (model,), own in group(records, "model").items():
        by_task = {one.run["task"]: one.scores for one in own}
        wiki, last = by_task.get("wikitext", {}), by_task.get("lambada", {})
        shares = [last.get("acc"), *(by_task.get(task, {}).get(kind) for task, (_, kind) in CHOICES.items())]
        known = [x for x in shares if x is not None]
        average = percent([mean(known)]) if len(known) == len(shares) else "-"
        limit = own[0].run["limit"]
        name = Path(model).name if Path(model).is_dir() else model
        rows.append((name, f"{own[0].scores['parameters']:,}", "all" if limit is None else str(limit),
                     _number(wiki.get("bits_per_byte")), _number(wiki.get("word_perplexity")),
                     _number(last.get("perplexity")), *(percent([x] if x is not None else []) for x in shares),
                     average))  # fmt: skip
    for floor in ("majority", "chance"):
        cells = []
        for task in ("lambada", *CHOICES):
            each = [one.scores[floor] for one in records if one.run["task"] == task and floor in one.scores]
            cells.append(percent(each[:1]))
        rows.append((f"({floor})", *["-"] * 5, *cells, "-"))
    for name, (wiki_ppl, *rest) in PUBLISHED.items():
        rows.append((f"Table 2: {name}", "-", "all", "-", f"{wiki_ppl:g}", *(f"{x:g}" for x in rest)))
    notes = (
        "By lm-evaluation-harness's conventions; accuracies in per cent. Our wikitext is the part of wikitext-2 that "
        "--data has, with its <unk>, over the original text's words and bytes; the paper's is wikitext-103's test set "
        "without. LAMBADA is OpenAI's test set if --data has it, else the development set. Small models are at chance "
        "in common sense: these columns show then that the harness runs, and nothing else.",
    )
    return [Table("Language modelling and common sense", columns, rows, notes)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def plot(records: list[Record], path: Path) -> None:
    groups: dict[str, dict[str, list[float]]] = {}
    for one in records:
        kind = "acc" if one.run["task"] == "lambada" else CHOICES.get(one.run["task"], ("", ""))[1]
        if kind:
            groups.setdefault(one.run["task"], {})[Path(one.run["model"]).name] = [100 * one.scores[kind]]
    if groups:
        plots.bars(groups, "accuracy, %", path)


SUITE = Suite(
    name="lm",
    summary="bits per byte and perplexity (wikitext, LAMBADA), seven common-sense tasks (Table 2), of trained models",
    needs=Needs(
        data=("lm", "commonsense"),
        time={"quick": "2 minutes for 1M parameters", "default": "20 minutes", "full": "an hour (not timed)"},
        models=("any folder or Hub id, by --models",),
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
