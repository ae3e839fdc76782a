"""Real output for docs/sleep.md: ``python -m benchmarks.sleep_page --data DIR``.

Every console block of the page is run, in order, in a fresh folder, and its output put in place of what stands there.
The day is that of benchmarks/sleep_facts.py: a novel with one plain sentence about an invented person in every chunk.
Without --base a small model is trained first, for a minute or so.
"""

import argparse
import contextlib
import json
import lzma
import shlex
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from benchmarks.learner_page import ROOT, fill
from benchmarks.sleep_facts import data_of, day_of, facts
from circadia.cli import app

PAGE = ROOT / "docs" / "sleep.md"
RUMOUR = "A stranger on a train said that every house in the town was made of cheese, and that nobody lived there.\n"
PROBES = "- {{name: own text, kind: text, text: {own!r}, rise: 0.6}}\n- {{name: size, kind: norm, max: 0.8}}\n"


def small(folder: Path, data: Path, steps: int = 150) -> None:
    """A Llama over bytes that has read a few novels."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with lzma.open(data / "novels100" / "novels.jsonl.xz", "rt", encoding="utf-8") as lines:
        books = [json.loads(line) for line in lines]
    known = [b["text"] for b in books if b["author"] not in ("Conrad", "Cbronte", "Woolf", "Kipling")]
    text = torch.frombuffer(bytearray("".join(t[:100_000] for t in known).encode()), dtype=torch.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 20) * (1 - 0.95 * step / steps)
        starts = torch.randint(len(text) - 193, (12,))
        rows = torch.stack([text[at : at + 192] for at in starts.tolist()]).long()
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    print(
        f"base of {sum(p.numel() for p in model.parameters()):,} parameters, {loss.item():.3f} nats a byte", flush=True
    )
    model.save_pretrained(folder)


def prepare(folder: Path, base: Path | None, data: Path) -> None:
    """The files that the page speaks of."""
    if base is None:
        small(folder / "base", data)
    else:
        (folder / "base").symlink_to(base.resolve())
    found = data_of(data)
    day = day_of(facts(4, 0), 4, 0, found.novel)
    (folder / "monday.txt").write_bytes(b"".join(bytes(chunk.tolist()) for chunk in day))
    (folder / "law.txt").write_bytes(found.law[:2048])
    (folder / "web.txt").write_text(RUMOUR * 3)
    own = bytes(found.own[0, :200].tolist()).decode("utf-8", "ignore")
    (folder / "probes.yaml").write_text(PROBES.format(own=" ".join(own.replace("'", "").split())))


def run(command: str, folder: Path) -> str:
    """What the shell shows, without a process for each command."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, shlex.split(command)[1:])
    if done.exit_code not in (0, 1) or (done.exception and not isinstance(done.exception, SystemExit)):
        raise SystemExit(f"{command}: {done.output} {done.exception!r}")
    return done.output.rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", type=Path, help="a folder with a model of bytes")
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), given.base, given.data)
        fill(PAGE, Path(name), run)


if __name__ == "__main__":
    main()
