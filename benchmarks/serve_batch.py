"""Answers of several learners in one forward pass against one by one: ``python -m benchmarks.serve_batch``.

Each learner has a memory of its own (random, in every MLP of the base) and one greedy answer to make. Both sides make
the same tokens from the same prompts: ours with the batch of `circadia.serve`, the other with the base's own
``generate`` for one learner after another. A repetition runs both, one right after the other, in turns.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import (
    Contest,
    Contestant,
    Parser,
    check_device,
    machine,
    measure,
    positive,
    result,
    synchronizer,
    write_json,
)
from circadia.live.text import Words
from circadia.models.retrofit import RetrofitModel, retrofit
from circadia.serve.bank import Memory
from circadia.serve.batch import Batch, Row
from circadia.serve.decode import Call, Chooser, Said, Wish, say
from circadia.serve.rows import fault

CAPACITIES: dict[str, dict[str, Any]] = {"lowrank": {"capacity": "lowrank", "rank": 8}, "full": {}}
WORDS = Words("bytes")


def base_of(args: argparse.Namespace) -> Any:
    """A random Llama over bytes, or what lies in a folder."""
    if args.base is not None:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(args.base).eval().to(args.device)
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    width = args.width
    config = LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=width * 8 // 3 // 16 * 16, num_hidden_layers=args.layers,
        num_attention_heads=max(1, width // 64), num_key_value_heads=max(1, width // 128), max_position_embeddings=2048,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(args.device)


def memories(model: RetrofitModel, learners: int) -> list[Memory]:
    """Small random ones."""
    found = []
    for number in range(learners):
        torch.manual_seed(number + 1)
        state = model.start()
        for name, x in state.items():
            if name.split("/")[1] in ("delta", "a", "b"):
                state[name] = 0.01 * torch.randn_like(x)
        found.append(Memory(f"l{number}", "main", 1, f"l{number}", WORDS, model.readings(state), 0))
    return found


def wishes(learners: int, prompt: int, new: int, vocab: int) -> list[Wish]:
    """Prompts of about the same length, none of exactly the same."""
    generator = torch.Generator().manual_seed(0)
    sizes = [max(1, prompt - i) for i in range(learners)]
    return [Wish(tuple(torch.randint(0, vocab, (n,), generator=generator).tolist()), new, 0.0) for n in sizes]


def together(base: Any, asked: list[tuple[Memory, Wish]]) -> list[Said]:
    """In one batch."""
    batch = Batch(base)
    rows = [Row(memory, Chooser(wish, WORDS, (), Call(3600), None)) for memory, wish in asked]
    batch.join(rows)
    while batch.rows:
        batch.step()
    for row in rows:
        if row.error is not None:
            raise row.error
    return [row.chooser.finish() for row in rows]


def alone(base: Any, asked: list[tuple[Memory, Wish]]) -> list[Said]:
    """One after another."""
    return [say(base, memory, wish, (), Call(3600)) for memory, wish in asked]


def contest(base: Any, kind: str, learners: int, args: argparse.Namespace) -> tuple[Contest, float]:
    """And how many of the tokens are the same on both sides."""
    model = retrofit(base, **CAPACITIES[kind])
    asked = list(zip(memories(model, learners), wishes(learners, args.prompt, args.new, base.config.vocab_size)))
    pairs = list(zip(together(base, asked), alone(base, asked)))
    same = sum(a == b for x, y in pairs for a, b in zip(x.tokens, y.tokens)) / sum(len(x.tokens) for x, _ in pairs)
    both = [Contestant("together", lambda: together(base, asked)), Contestant("one by one", lambda: alone(base, asked))]
    return Contest({"memory": kind, "learners": learners}, both, learners * args.new), same


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="serve_batch", description="Reads of several learners in one pass, against one by one.")
    parser.add_argument("--base", help="a model's folder; default a random Llama over bytes")
    parser.add_argument("--width", type=positive, default=512)
    parser.add_argument("--layers", type=positive, default=8)
    parser.add_argument("--learners", type=positive, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--memory", choices=CAPACITIES, nargs="+", default=list(CAPACITIES))
    parser.add_argument("--prompt", type=positive, default=64, help="tokens")
    parser.add_argument("--new", type=positive, default=64, help="tokens of an answer")
    parser.add_argument("--reps", type=positive, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write what was measured here")
    args = parser.parse_args(argv)
    try:
        check_device(args.device)
        base = base_of(args)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    if why := fault(base):
        parser.error(f"--base={args.base!r} answers one by one only ({why}): take another base")
    rows = [contest(base, kind, learners, args) for kind in args.memory for learners in args.learners]
    timings = measure([one for one, _ in rows], args.reps, sync=synchronizer(args.device))
    found = [result(one, timing) | {"same_tokens": same} for (one, same), timing in zip(rows, timings)]
    for one in found:
        print(line(one))
    if args.json:
        write_json(args.json, {"machine": machine(args.device, ("transformers",)), "contests": found})
    return 0


def line(one: dict[str, Any]) -> str:
    """For people."""
    ours, other = (one["contestants"][name] for name in ("together", "one by one"))
    said = f"{one['memory']:8} {one['learners']:3} learners: "
    if "not_measured" in ours or "not_measured" in other:
        return said + str(ours.get("not_measured") or other.get("not_measured"))
    ratio = one["ratios"]["one by one"]
    return (
        f"{said}{ours['tokens_per_second']:8.0f} tokens/s together, {other['tokens_per_second']:8.0f} one by one: "
        f"{ratio['median']:.2f} times ({ratio['min']:.2f} to {ratio['max']:.2f}), {one['same_tokens']:.1%} same tokens"
    )


if __name__ == "__main__":
    sys.exit(main())
