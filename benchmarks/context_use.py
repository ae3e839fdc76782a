"""Does a model use its context? The loss by position in the context, over 0 to 8,192 tokens (Fig. 10 of the paper).

    python -m benchmarks.context_use runs/a/model hope=runs/b/model --data novels.jsonl.xz --out runs/context_use

Text is cut from held-out documents (those of `configs/novels-tiny.yaml`, or --heldout) into windows, the same ones for
all models. They are read in segments with the state carried on, every token scored before it is learned, so that memory
does not grow with the context (but for attention, which keeps its keys).
"""

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import harness
from benchmarks.grid import BASE
from benchmarks.harness import Parser, positive
from benchmarks.language import COLORS
from circadia.models import HopeCache, HopeForCausalLM
from circadia.train import load
from circadia.train.corpus import encoded
from circadia.train.sources import HeldOut, Source
from circadia.train.tokens import Tokenizer

BIN = 64  # tokens of a point of the curve


def windows(source: Source, tokenizer: Tokenizer, rule: float | list[str], length: int, count: int) -> Tensor:
    """Up to so many pieces [count, length + 1] of held-out documents, none of them twice, spread over all."""
    found: list[np.ndarray] = []
    for one in encoded(source, tokenizer, HeldOut(rule)):
        if one.held_out:
            whole = len(one.tokens) // (length + 1) * (length + 1)
            found += list(one.tokens[:whole].reshape(-1, length + 1))
    if not found:
        raise ValueError(
            f"--data: no held-out document has {length + 1:,} tokens: give longer ones, or a lower --length"
        )
    chosen = [found[i * len(found) // min(count, len(found))] for i in range(min(count, len(found)))]
    return torch.from_numpy(np.stack(chosen).astype(np.int64))


@torch.no_grad()
def losses(
    net: HopeForCausalLM, tokens: Tensor, segment: int, batch: int, progress: Callable[[str], None] = lambda text: None
) -> Tensor:
    """Nats [windows, length] of every token, each predicted from all tokens of its window before it."""
    net.eval()
    rows = []
    for begin in range(0, len(tokens), batch):
        part, cache, row = tokens[begin : begin + batch], HopeCache(net.config.num_hidden_layers), []
        for at in range(0, part.shape[1] - 1, segment):
            ids, labels = part[:, at : at + segment], part[:, at + 1 : at + 1 + segment]
            ids = ids[:, : labels.shape[1]]
            logits = net(ids, past_key_values=cache, use_cache=True).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
            row.append(loss.view(labels.shape))
        rows.append(torch.cat(row, 1))
        progress(f"{min(begin + batch, len(tokens))} of {len(tokens)} windows")
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


def table(results: list[dict[str, Any]]) -> list[str]:
    """In Markdown."""
    parts = [f"{a:,} to {b:,}" for a, b, _ in results[0]["spans"]]
    lines = ["| model | " + " | ".join(parts) + " | second quarter - last half |", "|---|" + "---|" * (len(parts) + 1)]
    for one in results:
        gain = one["gain_of_last_half"]
        error = "" if gain["standard_error"] is None else f" ± {gain['standard_error']:.4f}"
        cells = [f"{value:.4f}" for _, _, value in one["spans"]]
        lines.append(f"| {one['name']} | {' | '.join(cells)} | {gain['mean']:+.4f}{error} |")
    return lines


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """One line for each model: means of 64 positions, thin, and their running mean over eight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for one, color in zip(results, COLORS * 4):
        curve = np.array(one["curve"])
        at = BIN * (np.arange(len(curve)) + 0.5)
        axes.plot(at, curve, lw=0.5, alpha=0.35, color=color)
        wide = min(8, len(curve))
        smooth = np.convolve(curve, np.ones(wide) / wide, "valid")
        axes.plot(np.convolve(at, np.ones(wide) / wide, "valid"), smooth, lw=1.8, color=color, label=one["name"])
        if one["trained_length"]:
            axes.axvline(one["trained_length"], color=color, lw=0.6, ls=":")
    axes.set(xlabel="position in the context (dotted: rows of training)", ylabel="nats a token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def trained_length(folder: Path) -> int | None:
    """Tokens of a row in the run that a model came from, where its folder is still in the run."""
    path = folder.parent / "config.yaml"
    return load(path).data.length if path.exists() else None


def measure(given: Any, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """All models, each with its own tokenizer."""
    base = load(BASE)
    source = Source((given.data or str(base.data.path),), base.data.text, base.data.split)
    rule: Any = given.heldout or base.data.heldout
    cut: dict[str, Tensor] = {}
    results = []
    for text in given.models:
        name, _, path = text.rpartition("=")
        folder = Path(path)
        if not (folder / "config.json").exists():
            raise ValueError(f"{folder}: no model there; give a folder of save_pretrained, such as runs/mine/model")
        net = HopeForCausalLM.from_pretrained(folder, dtype=torch.float32)
        kind = str(folder) if (folder / "tokenizer.json").exists() else "bytes"
        tokenizer = Tokenizer(kind)
        key = tokenizer.fingerprint()
        if key not in cut:
            cut[key] = windows(source, tokenizer, rule, given.length, given.windows)
        found = losses(net, cut[key], given.segment, given.batch, lambda line, n=name or path: progress(f"{n}: {line}"))  # type: ignore[misc]
        about = {"name": name or path, "model": str(folder), "trained_length": trained_length(folder)}
        results.append({**about, **summary(found)})
    return results


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m benchmarks.context_use", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("models", nargs="+", metavar="[NAME=]FOLDER", help="folders of save_pretrained")
    parser.add_argument("--data", help="text; else that of configs/novels-tiny.yaml")
    parser.add_argument("--heldout", nargs="*", help='patterns of held-out documents, such as "author=Conrad" or "*"')
    parser.add_argument("--length", type=positive, default=8192, help="tokens of a context")
    parser.add_argument("--windows", type=positive, default=64)
    parser.add_argument("--segment", type=positive, default=512, help="tokens read at once")
    parser.add_argument("--batch", type=positive, default=8, help="windows read side by side")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/context_use"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    try:
        results = measure(given, lambda line: print(f"\r{line}\x1b[K", end="", file=sys.stderr))
    except ValueError as error:
        parser.error(str(error))
    print("\r\x1b[K", end="", file=sys.stderr)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(given, name) for name in ("length", "segment", "heldout")}
    found = {**settings, "bin": BIN, "models": results, "machine": harness.machine("cpu")}
    harness.write_json(given.out / "context_use.json", found)
    picture(results, given.out / "context_use.png")
    text = [
        f"# Loss by position in the context (nats a token, {results[0]['windows']} windows of {given.length:,} tokens)",
        "",
        *table(results),
        "",
        "Last column: the loss of the second quarter of the context minus that of its last half, in the same windows,",
        "with the standard error over windows: above zero the model still gains from a longer context.",
        "",
        "![Loss by position](context_use.png)",
        "",
    ]
    (given.out / "context_use.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
