"""Whole models against those of other packages: ``python -m benchmarks.model_peers``.

nested-learning   HOPEModel, block "hope_selfmod", CMS periods 512 and 2,048, chunk 64, against our hope. A step is the
                  ordinary one and one pass of its own updates with its teach signal, as its training does it.
titans-pytorch    MemoryAsContextTransformer, a memory in every block, segments of 128, chunk 64, against our titans-mac
                  and titans-lmm.

All have 5 blocks of width 128 with 4 heads and a vocabulary of 256; the table says how many parameters that makes. A
step is forward, backward and AdamW; ratios are taken within a repetition. What is not installed is left out.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.harness import Contest, Contestant, NotMeasured
from benchmarks.models import step_of
from circadia.models.presets import count, preset

WIDTH, BLOCKS, HEADS, VOCABULARY = 128, 5, 4, 256


def nested_learning(ids: Tensor) -> tuple[Callable[[], None], int]:
    try:
        from nested_learning.levels import LevelSpec
        from nested_learning.model import HOPEModel, ModelConfig
        from nested_learning.training import compute_teach_signal
    except ImportError as error:
        raise NotMeasured(f"nested-learning is not installed ({error})") from error
    model = HOPEModel(
        ModelConfig(
            vocab_size=VOCABULARY,
            dim=WIDTH,
            num_layers=BLOCKS,
            heads=HEADS,
            titan_level=LevelSpec(name="titan", update_period=64),
            cms_levels=[LevelSpec(name="fast", update_period=512), LevelSpec(name="slow", update_period=2048)],
            block_variant="hope_selfmod",
            self_mod_chunk_size=64,
            self_mod_hidden=1,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def run() -> None:
        logits = model(ids)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model(ids, teach_signal=compute_teach_signal(model, logits.detach(), ids))

    return run, _parameters(model)


def titans_pytorch(ids: Tensor) -> tuple[Callable[[], None], int]:
    try:
        from titans_pytorch import MemoryAsContextTransformer
    except ImportError as error:
        raise NotMeasured(f"titans-pytorch is not installed ({error})") from error
    model = MemoryAsContextTransformer(
        num_tokens=VOCABULARY,
        dim=WIDTH,
        depth=BLOCKS,
        heads=HEADS,
        dim_head=WIDTH // HEADS,
        segment_len=128,
        num_persist_mem_tokens=4,
        num_longterm_mem_tokens=4,
        neural_memory_layers=tuple(range(1, BLOCKS + 1)),
        neural_memory_segment_len=64,
        neural_memory_batch_size=64,
        use_flex_attn=False,
        # Its default fails on a CPU: an expanded parameter is written in place.
        neural_memory_kwargs={"heads": HEADS, "dim_head": WIDTH // HEADS, "per_head_learned_parameters": False},
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def run() -> None:
        model(ids, return_loss=True).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run, _parameters(model)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


PAIRS = [("hope", nested_learning), ("titans-mac", titans_pytorch), ("titans-lmm", titans_pytorch)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--compile", action="store_true", help="our memories compiled, as compile_memories() does it")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/model_peers"))
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    ids = torch.randint(VOCABULARY, (1, given.tokens))
    rows = []
    for name, rival in PAIRS:
        own = Contestant(name, step_of(name, "tiny", 1, given.tokens, compiled=given.compile))
        labels = {"preset": name, "parameters": count(preset(name, "tiny")), "tokens": given.tokens}
        try:
            run, parameters = rival(ids)
            contest = Contest(
                {**labels, "their_parameters": parameters}, [own, Contestant(rival.__name__, run)], given.tokens
            )
        except NotMeasured as missing:
            contest = Contest(labels, [own], given.tokens, absent={rival.__name__: str(missing)})
        rows.append(harness.result(contest, harness.measure([contest], given.reps)[0]))
    packages = ("nested-learning", "titans-pytorch")
    harness.write_json(given.out / "model_peers.json", {"machine": harness.machine("cpu", packages), "rows": rows})
    print(
        "| ours | parameters | theirs | parameters | our tokens/s | theirs | times (least-most) |\n" + "|---" * 7 + "|"
    )
    for row in rows:
        ours = row["contestants"][row["preset"]]
        for rival, ratio in row["ratios"].items():
            theirs = row["contestants"][rival]["tokens_per_second"]
            print(
                f"| {row['preset']} | {row['parameters']:,} | {rival} | {row['their_parameters']:,} "
                f"| {ours['tokens_per_second']:,.0f} | {theirs:,.0f} "
                f"| {ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f}) |"
            )
        for rival, what in row["contestants"].items():
            if why := what.get("not_measured"):
                print(f"| {row['preset']} | {row['parameters']:,} | {rival} | | | | not measured: {why} |")


if __name__ == "__main__":
    main()
