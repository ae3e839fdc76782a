"""Documents of perplexity and of common sense, turned into requests as the tasks of lm-evaluation-harness do."""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Choice:
    """Contexts and continuations that are compared, the right one, and the texts whose lengths norm them."""

    requests: list[tuple[str, str]]
    gold: int
    choices: list[str]


# Task -> the file in commonsense/, without .gz, and the accuracy that the paper shows.
CHOICES = {
    "piqa": ("piqa_valid.jsonl", "acc"),
    "hellaswag": ("hellaswag_val_*.jsonl", "acc_norm"),
    "winogrande": ("winogrande_dev.jsonl", "acc"),
    "arc_easy": ("arc_easy_test.jsonl", "acc"),
    "arc_challenge": ("arc_challenge_test.jsonl", "acc_norm"),
    "siqa": ("siqa_dev.jsonl", "acc"),
    "boolq": ("boolq_dev*.jsonl", "acc"),
}


def choice(task: str, doc: dict[str, Any]) -> Choice:
    """One document; choices stand after a space."""
    if task == "winogrande":  # the same end after both contexts
        contexts = doc["context_options"]
        return Choice([(one, " " + doc["continuation"]) for one in contexts], int(doc["gold"]), contexts)
    if task == "piqa":
        context, choices, gold = f"Question: {doc['goal']}\nAnswer:", [doc["sol1"], doc["sol2"]], int(doc["label"])
    elif task == "hellaswag":
        context = _clean(f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}")
        choices, gold = [_clean(one) for one in doc["endings"]], int(doc["label"])
    elif task == "siqa":
        context = f"Q: {doc['context']} {doc['question']}\nA:"
        choices, gold = doc["options"], doc["options"].index(doc["answer"])
    elif task == "boolq":
        context = f"{doc['passage']}\nQuestion: {doc['question']}?\nAnswer:"
        choices, gold = ["no", "yes"], int(doc["answer"])
    else:
        context = f"Question: {doc['question']}\nAnswer:"
        choices, gold = doc["choices"], doc["labels"].index(doc["answer"])
    return Choice([(context, " " + one) for one in choices], gold, choices)


def _clean(text: str) -> str:
    """Without the marks of WikiHow."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub("\\[.*?\\]", "", text).replace("  ", " ")


def pages(text: str) -> list[str]:
    """Wikitext by its first headings: " = Title = "."""
    starts = [m.start() for m in re.finditer(r"^ = [^=\n]+ = ?$", text, re.M)]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)])] or [text]


def detokenized(page: str) -> str:
    """The text as it was before it was cut into tokens."""
    page = re.sub(r"/' [0-9]/", r"/'[0-9]/", page.replace("s '", "s'"))
    for old, new in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" : ", ": "), (" ; ", "; "), (" . ", ". "),
                     (" ! ", "! "), (" ? ", "? "), (" , ", ", ")):  # fmt: skip
        page = page.replace(old, new)
    for old, new in ((r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
                     (r"{\s*([^}]*?)\s*}", r"{\1}"), (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
                     (r"'\s*([^']*?)\s*'", r"'\1'")):  # fmt: skip
        page = re.sub(old, new, page)
    for old, new in (("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" " + chr(176) + " ", chr(176)),
                     (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")):  # fmt: skip
        page = page.replace(old, new)
    return page


def last_word(text: str) -> tuple[str, str]:
    """LAMBADA: all words but the last one, and that."""
    words = text.split(" ")
    return " ".join(words[:-1]), " " + words[-1]


def lines(folder: Path, pattern: str) -> Iterator[str]:
    """Lines of the first file of that name, packed or not."""
    found = sorted([*folder.glob(pattern), *folder.glob(pattern + ".gz")])
    if not found:
        raise ValueError(f"{folder}: there is no {pattern} or {pattern}.gz in it")
    raw = found[0].read_bytes()
    text = (gzip.decompress(raw) if found[0].suffix == ".gz" else raw).decode("utf-8")
    yield from text.splitlines()


def documents(folder: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(folder, CHOICES[task][0]) if line.strip()]
