"""What learning costs beside reading: time as a ratio, and the peak of memory against its bound.

    python -m benchmarks.retrofit --quick             a try-out
    python -m benchmarks.retrofit --hidden 512        a larger base

Time is that of one thread's processor, so that other work on the machine does not count; learning and reading take
turns, and a ratio is taken within a repetition. Peaks are Linux's own mark of the resident set, each setting in a
process of its own. The bound is the base, twice the deltas, and what one chunk keeps for its backward pass.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Contest, Contestant, Parser, positive
from circadia.models.retrofit import RetrofitModel, retrofit

CHUNK = 256
# What `circadia.retrofit` is given, and how many times as long as reading it may take.
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "one level": ({"periods": [1]}, 3.2),
    "three levels stacked": ({"periods": [1, 4, 16]}, 3.2),
    "every parameter": ({"periods": [1], "target": "all"}, 3.2),
    "three levels of low rank": ({"periods": [1, 4, 16], "capacity": "lowrank", "rank": 8}, 3.2),
    "last quarter of the layers": ({"periods": [1], "layers": "last quarter"}, 2.0),
    "only the slowest level due": ({"periods": [8], "listen": 1}, 1.3),
}


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.retrofit", description=__doc__.split("\n\n")[0])
    p.add_argument("--hidden", type=positive, default=256, help="width of the base, a multiple of 64")
    p.add_argument("--layers", type=positive, default=8)
    p.add_argument("--chunk", type=positive, default=CHUNK)
    p.add_argument("--chunks", type=positive, help="of a repetition; default 16")
    p.add_argument("--reps", type=positive, help="default 5")
    p.add_argument("--only", metavar="A,B", help=f"some of: {', '.join(SETTINGS)}")
    p.add_argument("--quick", action="store_true", help="to see that it works")
    p.add_argument("--out", type=Path, default=Path("runs/benchmarks/retrofit"), metavar="DIR")
    p.add_argument("--peak", metavar="NAME", help="only print what one setting holds at most, and stop")
    return p


def options(argv: Sequence[str] | None) -> dict[str, Any]:
    """The configuration, complete and checked."""
    given = vars(parser().parse_args(argv))
    usual = {"chunks": 8, "reps": 2} if given["quick"] else {"chunks": 16, "reps": 5}
    config = given | {name: given[name] or value for name, value in usual.items()}
    if config["hidden"] % 64:
        raise ValueError(f"--hidden {config['hidden']} is no multiple of 64: give one, such as 256")
    config["only"] = list(SETTINGS) if given["only"] is None else given["only"].split(",")
    for name in [*config["only"], *filter(None, [given["peak"]])]:
        if name not in SETTINGS:
            raise ValueError(f"{name!r} is no setting: use some of {', '.join(SETTINGS)}")
    return config


def build(name: str, config: dict[str, Any]) -> RetrofitModel:
    """A Llama of random weights in float32, retrofitted. Periods are in chunks in `SETTINGS`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden, chunk = config["hidden"], config["chunk"]
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 16 * 16,
            num_hidden_layers=config["layers"], num_attention_heads=hidden // 32, max_position_embeddings=2 * chunk,
        )
    )  # fmt: skip
    settings = dict(SETTINGS[name][0])
    settings["periods"] = [chunk * n for n in settings["periods"]]
    if "listen" in settings:
        settings["listen"] *= chunk
    if "layers" in settings:
        settings["layers"] = f"last:{max(1, config['layers'] // 4)}"
    return retrofit(base, chunk=chunk, context=0, rate=0.1, **settings)


def stream(model: RetrofitModel, chunks: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 512, (chunks * model.settings.chunk,), generator=generator)


def contest(name: str, config: dict[str, Any]) -> Contest:
    """Reading first: a ratio says how many times as long learning takes."""
    model = build(name, config)
    tokens = stream(model, config["chunks"])
    # Deltas that hold something, at a boundary of all periods.
    _, state = model.learn(stream(model, max(level.period for level in model.settings.levels) // model.settings.chunk),
                           model.start())  # fmt: skip
    read = Contestant("read", lambda: model.score(tokens, state))
    learn = Contestant("learn", lambda: model.learn(tokens, state))
    return Contest({"setting": name, "aim": SETTINGS[name][1]}, [read, learn], tokens.numel())


def slowdown(timing: dict[str, list[float]]) -> dict[str, Any]:
    """Learning over reading, repetition by repetition."""
    each = [learn / read for read, learn in zip(timing["read"], timing["learn"])]
    return {"each": each, **harness.spread(each)}


def peak(name: str, config: dict[str, Any]) -> dict[str, int]:
    """Bytes held at most while this process learns, beyond what it held without a memory, and the parts of the bound.

    The state that the caller passes in counts too: it lives on until the call returns.
    """
    model = build(name, config)
    # Every kind of pass once: libraries take memory that is no setting's.
    model.learn(stream(model, max(level.period for level in model.settings.levels) // model.settings.chunk),
                model.start())  # fmt: skip
    before = _status("VmRSS")
    state = {n: x + 0 for n, x in model.start().items()}  # written, so that its pages exist
    tokens = stream(model, config["chunks"])
    Path("/proc/self/clear_refs").write_text("5")
    _, after = model.learn(tokens, state)
    highest = _status("VmHWM") - before
    # What a memory is when it is read; sums, counts and what optimizers remember are not in the bound.
    parts = ("delta/", "a/", "b/")
    deltas = sum(x.nbytes for n, x in after.items() if n.partition("/")[2].startswith(parts))
    return {
        "peak": highest,
        "base": sum(p.nbytes for p in model.base.parameters()),
        "deltas": deltas,
        "state": sum(x.nbytes for x in after.values()),
        "activations": activations(model, state),
    }


def activations(model: RetrofitModel, state: dict[str, Tensor]) -> int:
    """Bytes that autograd keeps of one chunk, but for weights and memories, and the gradient of the logits."""
    own = {x.untyped_storage().data_ptr() for x in [*model.base.parameters(), *state.values()]}
    held: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            held[x.untyped_storage().data_ptr()] = x  # kept, so that its place is not given to another one
        return x

    model.base.requires_grad_(True)
    ids = stream(model, 1)[None]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits = model.base(ids, use_cache=False).logits
    model.base.requires_grad_(False)
    return sum(x.untyped_storage().nbytes() for x in held.values()) + 3 * logits.nbytes


def _status(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return 1024 * int(line.split()[1])


def peaks(config: dict[str, Any]) -> dict[str, Any]:
    """Of every setting, each in a process of its own that gives memory back as soon as it is free."""
    found: dict[str, Any] = {}
    given = [f"--{name}={config[name]}" for name in ("hidden", "layers", "chunk", "chunks")]
    steady = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for name in config["only"]:
        command = [sys.executable, "-m", "benchmarks.retrofit", "--peak", name, *given]
        done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, env={**os.environ, **steady})
        lines = done.stderr.strip().splitlines() or ["nothing was printed"]
        found[name] = bounded(json.loads(done.stdout)) if done.returncode == 0 else {"not_measured": lines[-1]}
    return found


def bounded(parts: dict[str, int]) -> dict[str, Any]:
    """With the bound beyond the base, and how much of it is used."""
    bound = 2 * parts["deltas"] + parts["activations"]
    return {**parts, "bound": bound, "used": parts["peak"] / bound}


def markdown(report: dict[str, Any]) -> str:
    """Both tables."""
    lines = ["| setting | time / reading | lowest to highest | at most |", "|---|---|---|---|"]
    for name, row in report["time"].items():
        kept = "yes" if row["median"] <= row["aim"] else "no"
        lines.append(
            f"| {name} | {row['median']:.2f} | {row['min']:.2f} to {row['max']:.2f} | {row['aim']:g}: {kept} |"
        )
    lines += [
        "",
        "| setting | deltas | state | one chunk | peak beside the base | bound | used |",
        "|---|" + "---|" * 6,
    ]
    for name, row in report["memory"].items():
        if "not_measured" in row:
            lines.append(f"| {name} | not measured: {row['not_measured']} |" + " |" * 5)
            continue
        cells = [f"{row[part] / 2**20:.1f}" for part in ("deltas", "state", "activations", "peak", "bound")]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['used']:.2f} |")
    return "\n".join([*lines, "", "Memory in MiB; the base is not in the peak nor in the bound."])


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = options(argv)
    except ValueError as error:
        print(f"python -m benchmarks.retrofit: {error}", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    if config["peak"]:
        print(json.dumps(peak(config["peak"], config)))
        return 0
    with Console(stderr=True).status("learning and reading") as status:
        contests = [contest(name, config) for name in config["only"]]
        timings = harness.measure(contests, config["reps"], clock=time.process_time, progress=status.update)
        status.update("memory")
        held = peaks(config)
    report = {
        "benchmark": "retrofit",
        "config": config | {"out": str(config["out"])},
        "machine": harness.machine("cpu", ("transformers",)),
        "time": {
            one.labels["setting"]: {**one.labels, **slowdown(timing.seconds), "seconds": timing.seconds}
            for one, timing in zip(contests, timings)
        },
        "memory": held,
    }
    config["out"].mkdir(parents=True, exist_ok=True)
    harness.write_json(config["out"] / "retrofit.json", report)
    text = markdown(report)
    (config["out"] / "retrofit.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
