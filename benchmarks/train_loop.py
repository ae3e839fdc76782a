"""What the training loop costs on top of the bare step, and how long it waits for data.

    python -m benchmarks.train_loop [--preset gated-deltanet/tiny] [--reps 20] [--json runs/train_loop.json]

The bare step is what nobody can leave out: forward, loss, backward, clip, AdamW, on a batch that lies in memory. The
loop does the same and more: it reads batches, looks for NaN and spikes, sets the learning rate, writes the log. Both
run one after the other in each repetition, in turns forwards and backwards.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import harness
from benchmarks.harness import Contest, Contestant, Parser, positive
from circadia.train import TrainConfig, load
from circadia.train import loop as loop_file
from circadia.train.distributed import World
from circadia.train.log import read

AIM = 0.03
STEPS = 4  # of one repetition


def bare(run: loop_file.Run) -> Any:
    """The step without a loop, on a copy of the run's model and its first batch, in parts as large as the run's."""
    now, device = run.now, run.world.device
    net = loop_file.make.model(now.model, run.data.tokenizer, now.seed).to(device).train()  # type: ignore[union-attr]
    optimizer = loop_file.make.optimizer(net, now.optim)
    batch = run.data.batches(now.train.batch, (0, 1), None)  # type: ignore[union-attr]
    first = next(batch).to(device)
    half = now.train.precision == "bf16"

    def steps() -> None:
        for _ in range(STEPS):
            count = (first.labels != -100).sum()
            for tokens, labels in zip(first.tokens.split(run.micro), first.labels.split(run.micro)):
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    logits = net(input_ids=tokens, use_cache=False).logits
                loss = F.cross_entropy(
                    logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
                )
                (loss / count).backward()
            nn.utils.clip_grad_norm_(net.parameters(), now.optim.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def measure(config: TrainConfig, reps: int, progress: Any = lambda text: None) -> dict[str, Any]:
    """Overhead of the loop as a fraction of the bare step, the share of its time that it waited, one checkpoint."""
    device = torch.device(config.train.device)
    run = loop_file.Run(config, Path(config.out), World(0, 1, device), None)
    with contextlib.closing(run.log):
        run.open(0)

        def loop() -> None:
            for _ in range(STEPS):
                run.step()

        tokens = STEPS * config.train.batch * config.data.length
        contest = Contest(
            {"preset": config.model.preset}, [Contestant("loop", loop), Contestant("bare", bare(run))], tokens
        )
        sync = harness.synchronizer(config.train.device)
        (timing,) = harness.measure([contest], reps, sync=sync, progress=progress)
        if timing.failed:
            raise harness.NotMeasured(str(timing.failed))
        found = harness.result(contest, timing)
        each = [mine / theirs - 1 for mine, theirs in zip(timing.seconds["loop"], timing.seconds["bare"])]
        lines = [line for line in read(Path(config.out)) if line["kind"] == "step"][STEPS:]
        waited = sum(line["waited"] for line in lines) / sum(line["seconds"] for line in lines)
        one = Contest({}, [Contestant("checkpoint", run.save)], 1)
        saved = harness.measure([one], 3)[0].seconds["checkpoint"]
    return {**found, "overhead": harness.spread(each), "waited": waited, "checkpoint_seconds": harness.spread(saved)}


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="python -m benchmarks.train_loop", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--preset", default="gated-deltanet/tiny", help="as `circadia models` lists them")
    parser.add_argument("--reps", type=positive, default=20)
    parser.add_argument("--length", type=positive, default=1024, help="tokens of a row")
    parser.add_argument("--batch", type=positive, default=16, help="rows of a step")
    parser.add_argument("--data", help="text to read; random bytes if none is given")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        text = given.data
        if text is None:
            text = f"{folder}/text.txt"
            size = max(1_000_000, 4 * given.length * given.batch)
            Path(text).write_bytes((32 + torch.randint(95, (size,), dtype=torch.uint8)).numpy().tobytes())
            os.environ["CIRCADIA_HOME"] = folder
        try:
            harness.check_device(given.device)
            config = load(
                {
                    "model": {"preset": given.preset},
                    "data": {"path": text, "length": given.length, "heldout": 0.01},
                    "train": {"batch": given.batch, "device": given.device, "precision": given.precision},
                    "out": f"{folder}/run",
                }
            )
            found = measure(config, given.reps, lambda line: print(f"\r{line}\x1b[K", end="", file=sys.stderr))
        except (ValueError, harness.NotMeasured) as error:
            parser.error(str(error))
        print("\r\x1b[K", end="", file=sys.stderr)
    over = found["overhead"]
    print(f"overhead of the loop: {over['median']:+.2%} ({over['min']:+.2%} to {over['max']:+.2%}), aim {AIM:.0%}")
    print(f"waiting for data:     {found['waited']:.2%} of the loop's time")
    print(f"one checkpoint:       {found['checkpoint_seconds']['median']:.2f} s")
    if given.json is not None:
        harness.write_json(given.json, {"machine": harness.machine(given.device), "aim": AIM, "result": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
