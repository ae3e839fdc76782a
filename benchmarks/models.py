"""Speed and memory of whole models against a transformer++ of the same size, in the same process.

    python -m benchmarks.models --quick                       a try-out
    python -m benchmarks.models --presets titans-lmm,ttt --compile --decode --memory

A step is the forward pass, the backward pass and AdamW. Ratios say how many times the transformer's tokens per second;
each is taken within a repetition. Memory is the growth of the resident set over one step, in a process of its own.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import harness, models_report
from benchmarks.harness import Contest, Contestant, Parser, positive
from circadia.models.cache import HopeCache
from circadia.models.model import HopeForCausalLM
from circadia.models.presets import ARCHITECTURES, SIZES, preset

RIVAL = "transformer++"
USUAL = {"tokens": "2048,8192", "reps": 7, "contexts": "1000,100000"}
QUICK = {"tokens": "128", "reps": 2, "contexts": "64,256"}
DECODED = 64  # tokens timed one by one
RIVAL_CONTEXT = 512


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.models", description=__doc__.split("\n\n")[0])
    p.add_argument("--presets", metavar="A,B", help=f"default: all but {RIVAL}")
    p.add_argument("--size", choices=SIZES, default="tiny")
    p.add_argument("--tokens", metavar="N,N", help="lengths of a step; default 2048,8192")
    p.add_argument("--batch", type=positive, default=1)
    p.add_argument("--reps", type=positive, help="default 7")
    p.add_argument("--threads", type=positive, help="of torch; default: its own choice")
    p.add_argument("--compile", action="store_true", help="also with the memories compiled, where they can be")
    p.add_argument("--recompute", action="store_true", help="blocks are computed again in the backward pass")
    p.add_argument("--memory", action="store_true", help="also the memory of a step, at the longest length")
    p.add_argument("--decode", action="store_true", help="also the time per generated token")
    p.add_argument("--contexts", metavar="N,N", help="tokens read before; default 1000,100000")
    p.add_argument("--quick", action="store_true", help="short sequences: to see that it works")
    p.add_argument("--out", type=Path, default=Path("runs/benchmarks/models"), metavar="DIR")
    p.add_argument("--resident", metavar="PRESET,N", help="only print the bytes that one step adds, and stop")
    return p


def options(argv: Sequence[str] | None) -> dict[str, Any]:
    """The configuration, complete and checked."""
    given = vars(parser().parse_args(argv))
    config = given | {n: given[n] or usual for n, usual in (QUICK if given["quick"] else USUAL).items()}
    for name in ("tokens", "contexts"):
        if not all(part.isdecimal() and int(part) > 1 for part in config[name].split(",")):
            raise ValueError(f"--{name} {config[name]!r}: give lengths of at least 2 tokens, like 2048,8192")
        config[name] = [int(part) for part in config[name].split(",")]
    names = [n for n in ARCHITECTURES if n != RIVAL] if given["presets"] is None else given["presets"].split(",")
    for name in names:
        if name not in ARCHITECTURES:
            raise ValueError(f"--presets: {name!r} is unknown: use some of {', '.join(ARCHITECTURES)}")
    try:
        config["out"].mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {config['out']} cannot be made ({error.strerror}): name a writable folder") from error
    return config | {"presets": names}


def build(name: str, size: str) -> HopeForCausalLM:
    torch.manual_seed(0)
    return HopeForCausalLM(preset(name, size))


def stepper(model: nn.Module, loss: Callable[[Tensor], Tensor], ids: Tensor) -> Callable[[], None]:
    """One step of training; a rate of zero keeps the weights, so that all repetitions do the same work."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def run() -> None:
        loss(ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def step_of(
    name: str, size: str, batch: int, tokens: int, *, compiled: bool = False, recompute: bool = False
) -> Callable[[], None]:
    model = build(name, size)
    if recompute:
        model.train().activation_checkpointing_enable()
    if compiled:
        model.compile_memories()
    ids = torch.randint(model.config.vocab_size, (batch, tokens))
    return stepper(model, lambda x: model(x, labels=x, use_cache=False).loss, ids)


def steps(config: dict[str, Any], progress: Callable[[str], None]) -> list[Contest]:
    """A contest for each preset and length: ours first, then the transformer."""
    contests = []
    size, batch = config["size"], config["batch"]
    for tokens in config["tokens"]:
        rival = Contestant(RIVAL, step_of(RIVAL, size, batch, tokens))
        for name in config["presets"]:
            labels = {"section": "step", "preset": name, "tokens": tokens}
            ours = Contestant(name, step_of(name, size, batch, tokens, recompute=config["recompute"]))
            contests.append(Contest({**labels, "form": "eager"}, [ours, rival], batch * tokens))
            if config["compile"] and can_compile(name, size):
                progress(f"compiling {name}")
                run = step_of(name, size, batch, tokens, compiled=True)
                begin = time.perf_counter()
                run()
                labels |= {"form": "compiled", "first_step_seconds": time.perf_counter() - begin}
                contests.append(Contest(labels, [Contestant(name, run), rival], batch * tokens))
    return contests


def can_compile(name: str, size: str) -> bool:
    with torch.device("meta"):
        model = HopeForCausalLM(preset(name, size)).compile_memories()
    return any(getattr(getattr(m, "rule", None), "compiled", False) for m in model.modules())


def decode(name: str, size: str, context: int) -> Callable[[], None]:
    """After ``context`` tokens, some more one by one. Every run goes on where the last one stopped."""
    model = build(name, size).eval()
    cache = HopeCache(model.config.num_hidden_layers)
    ids = torch.randint(model.config.vocab_size, (1, context))
    with torch.no_grad():
        for part in ids.split(2048, 1):
            model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def run() -> None:
        for _ in range(DECODED):
            model(ids[:, :1], past_key_values=cache, use_cache=True)

    return run


def decoding(config: dict[str, Any], progress: Callable[[str], None]) -> list[Contest]:
    """One contest for each preset: after a short context, after a long one, the transformer after a short one."""
    contests = []
    for name in config["presets"]:
        if any(mixer == "attention" for mixer in preset(name, config["size"]).mixers):
            continue  # reads everything again: nothing to show
        progress(f"reading {name}'s contexts")
        runs = [Contestant(f"{n} tokens", decode(name, config["size"], n)) for n in config["contexts"]]
        runs.append(Contestant(f"{RIVAL}, {RIVAL_CONTEXT} tokens", decode(RIVAL, config["size"], RIVAL_CONTEXT)))
        contests.append(Contest({"section": "decode", "preset": name}, runs, DECODED))
    return contests


def resident(name: str, size: str, batch: int, tokens: int, recompute: bool = False) -> int:
    """Bytes by which the resident set of this process grows in a step at most, after a step of two chunks.

    From Linux's own mark of the highest set, put back before the step. ``ru_maxrss`` would not do: a process takes its
    parent's over.
    """
    step_of(name, size, batch, 2 * preset(name, size).chunk, recompute=recompute)()
    run = step_of(name, size, batch, tokens, recompute=recompute)
    Path("/proc/self/clear_refs").write_text("5")
    before = _highest()
    run()
    return _highest() - before


def _highest() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def memory(config: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """The same for every preset, each in a process of its own."""
    found: dict[str, Any] = {}
    for name in (RIVAL, *config["presets"]):
        progress(f"memory of {name}")
        command = [sys.executable, "-m", "benchmarks.models", "--resident", f"{name},{max(config['tokens'])}"]
        command += ["--size", config["size"], "--batch", str(config["batch"])]
        command += ["--recompute"] * (config["recompute"] and name != RIVAL)
        done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True)
        lines = done.stderr.strip().splitlines() or ["nothing was printed"]
        found[name] = json.loads(done.stdout) if done.returncode == 0 else {"not_measured": lines[-1]}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = options(argv)
    except ValueError as error:
        print(f"python -m benchmarks.models: {error}", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)  # before any thread of torch starts, so that all inherit it
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    if config["resident"]:
        name, tokens = config["resident"].rsplit(",", 1)
        print(json.dumps({"bytes": resident(name, config["size"], config["batch"], int(tokens), config["recompute"])}))
        return 0
    with Console(stderr=True).status("starting") as status:
        contests = steps(config, status.update)
        if config["decode"]:
            contests += decoding(config, status.update)
        timings = harness.measure(contests, config["reps"], progress=status.update)
        grown = memory(config, status.update) if config["memory"] else {}
    results = [harness.result(contest, timing) for contest, timing in zip(contests, timings)]
    report = {
        "benchmark": "models",
        "config": config | {"out": str(config["out"])},
        "machine": harness.machine("cpu", ("transformers",)),
        "results": results,
        "memory": grown,
    }
    harness.write_json(config["out"] / "models.json", report)
    text = models_report.markdown(report)
    (config["out"] / "models.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if any("not_measured" in r["contestants"].get(r["ours"], {}) for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
