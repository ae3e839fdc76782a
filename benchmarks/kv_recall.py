"""Do models recall what was written 1,500 tokens before? ``python -m benchmarks.kv_recall --out DIR``.

A sequence has four pairs of a key and a value, a stretch of filler, and keys again in random order, each followed by
its value: the values are asked for. In training there are 16 questions, in the test one for each key, so that none can
be answered from an earlier one. Every architecture has the same width, depth and number of parameters, sees the same
sequences and is trained on stretches of up to 256 tokens, then tested on longer ones.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circadia.models import HopeConfig, HopeForCausalLM
from circadia.models.presets import ARCHITECTURES, count

PAIRS, ASKED, KEYS, VALUES, FILLER = 4, 16, 16, 16, 16
SYMBOLS = KEYS + VALUES + FILLER
TRAINED, TESTED, WINDOW = 256, (64, 256, 1500), 128
BATCH, WARM = 16, 50
RATES = {"hope": 2e-3}  # learning rates other than the common one
MODELS = ("hope", "gated-deltanet", "titans-lmm", "sliding-attention")


def config(name: str) -> HopeConfig:
    """Two blocks of width 64, at the parameters of plain attention."""
    shape = {"vocab_size": SYMBOLS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    own = {"mixers": ["sliding_attention"], "sliding_window": WINDOW}
    if name != "sliding-attention":
        own = dict(ARCHITECTURES[name])
    if own.pop("levels", False):
        own["periods"] = [64, 256]
    base = HopeConfig(**shape, mixers=["attention"])
    made = HopeConfig(**shape, **own, intermediate_size=base.intermediate_size)
    step = 8 * len(made.periods)
    spare = (count(base) - count(made)) / (3 * 64 * 2)
    made.intermediate_size = max(step, round((made.intermediate_size + spare) / step) * step)
    return made


def sample(size: int, stretch: int, generator: torch.Generator, asked: int = PAIRS) -> tuple[Tensor, Tensor]:
    """Tokens [size, 2 PAIRS + stretch + 2 asked], and the values that are asked for [size, asked]."""
    draw = lambda high, *shape: torch.randint(high, shape, generator=generator)  # noqa: E731
    keys = torch.rand(size, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = KEYS + draw(VALUES, size, PAIRS)
    rounds = [torch.rand(size, PAIRS, generator=generator).argsort(1) for _ in range(asked // PAIRS)]
    order = torch.cat(rounds, 1)
    again = torch.stack((keys.gather(1, order), values.gather(1, order)), 2)
    filler = KEYS + VALUES + draw(FILLER, size, stretch)
    return torch.cat((torch.stack((keys, values), 2).flatten(1), filler, again.flatten(1)), 1), again[:, :, 1]


def answers(model: HopeForCausalLM, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the keys of the questions; only the end of the sequence goes through the head."""
    logits = model(tokens, use_cache=False, logits_to_keep=2 * wanted.shape[1]).logits[:, ::2]
    return logits.flatten(0, 1), wanted.flatten()


@torch.no_grad()
def score(model: HopeForCausalLM, stretch: int, sequences: int, seed: int) -> float:
    """Share of right values on fresh sequences."""
    generator, right = torch.Generator().manual_seed(seed), 0
    for _ in range(sequences // BATCH):
        logits, wanted = answers(model, *sample(BATCH, stretch, generator))
        right += int((logits.argmax(-1) == wanted).sum())
    return right / (sequences // BATCH * BATCH * PAIRS)


def train(name: str, seed: int, steps: int, sequences: int) -> dict:
    torch.manual_seed(seed)
    model, generator = HopeForCausalLM(config(name)), torch.Generator().manual_seed(seed)
    lr, began = RATES.get(name, 3e-3), time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = (
            lr * min(1.0, step / WARM) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
        )
        # Short stretches first: what is written must be found before it can be kept.
        top = TRAINED * min(1.0, 0.1 + step / (0.6 * steps))
        stretch = int(torch.randint(1, int(top) + 1, (), generator=generator))
        logits, wanted = answers(model, *sample(BATCH, stretch, generator, ASKED))
        loss = F.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        if step % 50 == 0:
            print(f"{name}, seed {seed}, step {step}: loss {loss.item():.3f}", flush=True)
    trained = time.perf_counter() - began
    found = {str(s): score(model, s, sequences, 10_000 + seed) for s in TESTED}
    parameters = sum(p.numel() for p in model.parameters())
    row = {"model": name, "seed": seed, "steps": steps, "parameters": parameters, "train_s": round(trained), **found}
    print(json.dumps(row), flush=True)
    return row


def report(rows: list[dict]) -> str:
    """One line a model: mean over the seeds, and the lowest and highest at the longest stretch."""
    lines = [
        f"Accuracy by the length of the stretch between writing and asking; chance {1 / VALUES:.2%}; trained on up to "
        f"{TRAINED} tokens",
        "",
        "| model | parameters | seeds | "
        + " | ".join(str(s) for s in TESTED)
        + " | range at the longest | s to train |",
        "|---|---|---|" + "---|" * (len(TESTED) + 2),
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        cells = [f"{sum(r[str(s)] for r in own) / len(own):.1%}" for s in TESTED]
        last = sorted(r[str(TESTED[-1])] for r in own)
        seconds = sum(r["train_s"] for r in own) / len(own)
        lines.append(
            f"| {name} | {own[0]['parameters']:,} | {len(own)} | {' | '.join(cells)} | {last[0]:.1%} to {last[-1]:.1%} "
            f"| {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/kv_recall"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--sequences", type=int, default=256, help="tested, for each stretch")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    given.out.mkdir(parents=True, exist_ok=True)
    rows = [train(name, seed, given.steps, given.sequences) for name in given.models for seed in range(given.seeds)]
    (given.out / "kv_recall.json").write_text(json.dumps(rows, indent=1) + "\n")
    (given.out / "kv_recall.md").write_text(report(rows))
    print(report(rows))


if __name__ == "__main__":
    main()
