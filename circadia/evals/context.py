"""Does a model use its context? The loss by position in the context (Fig. 10 of the paper).

Text of held-out authors is cut into windows, the same ones for all models. They are read in segments with the state
carried on, every token scored before it is learned, so that memory does not grow with the context (but for attention,
which keeps its keys).
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from circadia.evals import plots
from circadia.evals.bases import Base
from circadia.evals.likelihood import fingerprint
from circadia.evals.streams import HELD_OUT
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.models import HopeCache, HopeForCausalLM
from circadia.train import load
from circadia.train.corpus import encoded
from circadia.train.sources import HeldOut, Source
from circadia.train.tokens import Tokenizer

BIN = 64  # tokens of a point of the curve
SEGMENT = 512  # tokens read at once
BATCH = 8  # windows side by side
RULE = [f"author={name}" for name in HELD_OUT]


def runs(options: Options, done: list[Record]) -> list[Run]:
    models = options.base_folders()
    options.folder("novels100")
    sizes = {"length": options.pick(1024, 8192, 8192), "windows": options.pick(8, 64, 256)}
    return [{"model": name, "weights": fingerprint(str(folder)), **sizes} for name, folder in models.items()]


def run(run: Run, options: Options) -> dict[str, Any]:
    folder = options.base_folders()[run["model"]]
    base = Base.load(folder, options.device)
    texts = sorted(options.folder("novels100").glob("*.jsonl*"))
    if not texts:
        raise ValueError(f"{options.folder('novels100')}: no .jsonl or .jsonl.xz of novels in it")
    tokens = windows(Source((str(texts[0]),)), base.tokenizer, RULE, run["length"], run["windows"])
    found = losses(base.model, tokens.to(options.device), SEGMENT, BATCH)
    return {**summary(found), "parameters": base.parameters, "trained_length": trained_length(folder)}


def windows(source: Source, tokenizer: Tokenizer, rule: Any, length: int, count: int) -> Tensor:
    """Up to so many pieces [count, length + 1] of held-out documents, none of them twice, spread over all."""
    found: list[np.ndarray] = []
    for one in encoded(source, tokenizer, HeldOut(rule)):
        if one.held_out:
            whole = len(one.tokens) // (length + 1) * (length + 1)
            found += list(one.tokens[:whole].reshape(-1, length + 1))
    if not found:
        raise ValueError(
            f"--data: no held-out document ({', '.join(rule)}) has {length + 1:,} tokens: give longer ones"
        )
    chosen = [found[i * len(found) // min(count, len(found))] for i in range(min(count, len(found)))]
    return torch.from_numpy(np.stack(chosen).astype(np.int64))


@torch.no_grad()
def losses(net: Any, tokens: Tensor, segment: int, batch: int) -> Tensor:
    """Nats [windows, length] of every token, each predicted from all tokens of its window before it."""
    net.eval()
    rows = []
    for part in tokens.split(batch):
        ours = isinstance(net, HopeForCausalLM)
        cache: Any = HopeCache(net.config.num_hidden_layers) if ours else DynamicCache()
        row = []
        for at in range(0, part.shape[1] - 1, segment):
            ids, labels = part[:, at : at + segment], part[:, at + 1 : at + 1 + segment]
            ids = ids[:, : labels.shape[1]]
            logits = net(ids, past_key_values=cache, use_cache=True).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
            row.append(loss.view(labels.shape).cpu())
        rows.append(torch.cat(row, 1))
    return torch.cat(rows)


def summary(found: Tensor) -> dict[str, Any]:
    """Curve, means over doubling parts of the context, and what the last half of it still gains."""
    length = found.shape[1]
    edges = [0]
    while edges[-1] < length:
        edges.append(min(length, max(256, 2 * edges[-1])))
    spans = [[a, b, found[:, a:b].mean().item()] for a, b in pairwise(edges)]
    # Window by window, so that what is easy or hard to predict in a text counts on both sides.
    gain = found[:, length // 4 : length // 2].mean(1) - found[:, length // 2 :].mean(1)
    error = gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else None
    return {
        "windows": len(found),
        "mean": found.mean().item(),
        "spans": spans,
        "curve": [found[:, a : a + BIN].mean().item() for a in range(0, length, BIN)],
        "gain_of_last_half": {"mean": gain.mean().item(), "standard_error": error},
    }


def trained_length(folder: Path) -> int | None:
    """Tokens of a row in the run that a model came from, where its folder is still in the run."""
    path = folder.parent / "config.yaml"
    return load(path).data.length if path.exists() else None


def table(records: list[Record]) -> list[Table]:
    if not records:
        return []
    spans = [f"{a:,} to {b:,}" for a, b, _ in records[0].scores["spans"]]
    rows = []
    for one in records:
        gain, rows_of = one.scores["gain_of_last_half"], one.scores["trained_length"]
        size, length = f"{one.scores['parameters']:,}", "-" if rows_of is None else f"{rows_of:,}"
        error = "" if gain["standard_error"] is None else f" ±{gain['standard_error']:.4f}"
        means = [f"{value:.4f}" for _, _, value in one.scores["spans"]]
        rows.append((one.run["model"], size, length, *means, f"{gain['mean']:+.4f}{error}"))
    notes = (
        f"Nats a token, {records[0].scores['windows']} windows of {records[0].run['length']:,} tokens. Last column: "
        "the loss of the second quarter of the context minus that of its last half, in the same windows, with the "
        "standard error over windows: above zero the model still gains from a longer context. The paper's Figure "
        "10 prints no numbers.",
    )
    columns = ("model", "parameters", "trained on rows of", *spans, "second quarter - last half")
    return [Table("Loss by position in the context", columns, rows, notes)]


def plot(records: list[Record], path: Path) -> None:
    """Running means over eight points."""
    curves: dict[str, dict[float, list[float]]] = {}
    for one in records:
        curve = np.array(one.scores["curve"])
        wide = np.ones(min(8, len(curve))) / min(8, len(curve))
        at = np.convolve(BIN * (np.arange(len(curve)) + 0.5), wide, "valid")
        curves[one.run["model"]] = {float(x): [float(y)] for x, y in zip(at, np.convolve(curve, wide, "valid"))}
    if curves:
        plots.lines({"held-out authors": curves}, "position in the context", "nats a token", path, log=False)


SUITE = Suite(
    name="context",
    summary="loss by position in the context (Fig. 10) of trained models, on held-out authors",
    needs=Needs(
        data=("novels100",),
        time={"quick": "2 minutes (1M parameters)", "default": "20 minutes (estimated)", "full": "an hour (not timed)"},
        models=("those of --base",),
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
