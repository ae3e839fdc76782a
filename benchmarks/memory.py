"""Speed of every memory rule: against its own loop, against attention, and against other packages.

    python -m benchmarks.memory --quick                          a try-out, under a minute
    python -m benchmarks.memory --rules dgd,titans --sweep       two rules, and their ratio to attention by length

A ratio says how many times as fast as the other one our fast form is, at the same task and length. Rules whose equality
tests are red get none. The exit code is 1 if that, or a failure of ours, happened.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor

from benchmarks import harness, memory_report, verify
from benchmarks.harness import Contest, Contestant, NotMeasured, Parser, positive
from benchmarks.inputs import Inputs, Shape, draw
from benchmarks.memory_report import PASSES
from benchmarks.peers import FLA, PEERS, flash_linear_attention
from circadia.memory import RULES, Rule

OURS = "circadia"
LOOP_RUNS = 3  # repetitions in which slow contestants take part, evenly spread
SWEEP = (1024, 2048, 4096, 8192)
FEW = ("gated_deltanet", "dgd", "titans", "self_modifying")  # of the sections that take long
USUAL = {"heads": 4, "width": 64, "tokens": 2048, "loop_tokens": 512, "chunk": 64, "reps": 9, "threads": None}
QUICK = {"heads": 2, "width": 16, "tokens": 256, "loop_tokens": 32, "chunk": 32, "reps": 3, "threads": 1}
QUICK_CASES = ((65, 16),)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.memory", description=__doc__.split("\n\n")[0])
    p.add_argument("--rules", default=None, metavar="A,B", help="these rules only (default: all)")
    p.add_argument("--batch", type=positive, default=1)
    p.add_argument("--heads", type=positive, help="default 4")
    p.add_argument("--width", type=positive, help="of a head, keys and values; default 64")
    p.add_argument("--tokens", type=positive, help="length against attention; default 2048")
    p.add_argument("--loop-tokens", type=positive, help="length against the loop; default 512")
    p.add_argument("--chunk", type=positive, help="default 64")
    p.add_argument("--reps", type=positive, help=f"repetitions, {LOOP_RUNS} of them with the slow ones; default 9")
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="of q, k, v and gates; the memory is float32")
    p.add_argument("--threads", type=positive, help="of torch; default: its own choice")
    p.add_argument("--compile", action="store_true", help="also eager against torch.compile, at the loop's length")
    p.add_argument("--sweep", action="store_true", help="also the ratio to attention at 1k to 8k tokens")
    p.add_argument("--quick", action="store_true", help="tiny sizes, under a minute: to see that it works")
    p.add_argument("--out", type=Path, default=Path("runs/benchmarks/memory"), metavar="DIR")
    return p


def options(argv: Sequence[str] | None) -> dict[str, Any]:
    """The configuration, complete and checked."""
    given = vars(parser().parse_args(argv))
    config = given | {name: given[name] or size for name, size in (QUICK if given["quick"] else USUAL).items()}
    names = list(RULES) if config["rules"] is None else [name.strip() for name in config["rules"].split(",")]
    for name in names:
        if name not in RULES:
            raise ValueError(f"--rules: {name!r} is unknown: use some of {', '.join(RULES)}")
    harness.check_device(config["device"])
    try:
        config["out"].mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {config['out']} cannot be made ({error.strerror}): name a writable folder") from error
    return config | {"rules": list(dict.fromkeys(names)), "few": [n for n in names if n in FEW] or names}


def differentiate(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """A backward pass from an output, with a gradient of ones."""
    if not y.requires_grad:
        raise NotMeasured("its output carries no gradient")
    return torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)


def task(which: str, call: Callable[[Inputs], Tensor], inputs: Inputs) -> Callable[[], object]:
    """One pass through a function of inputs: the forward pass alone as in use, the other as in training."""
    if which == "forward":
        return torch.no_grad()(lambda: call(inputs))
    inputs = inputs.require_grad()
    return lambda: differentiate(call(inputs), inputs.leaves())


def layer_task(which: str, layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """The same for a module: gradients of its parameters and of what it reads."""
    if which == "forward":
        return torch.no_grad()(lambda: layer(x))
    x = x.clone().requires_grad_()
    return lambda: differentiate(layer(x), [x, *(p for p in layer.parameters() if p.requires_grad)])


def fast(rule: Rule, chunk: int) -> Callable[[Inputs], Tensor]:
    return lambda x: rule(x.q, x.k, x.v, x.gates, x.state or None, chunk=chunk)[0]


def loop(rule: Rule, chunk: int) -> Callable[[Inputs], Tensor]:
    return lambda x: rule.reference(x.q, x.k, x.v, x.gates, x.state, chunk=chunk)[0]


def attention(x: Inputs) -> Tensor:
    return F.scaled_dot_product_attention(x.q, x.k, x.v, is_causal=True)


class Programme:
    """The contests of one configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.chunk = config, config["chunk"]
        self.shape = Shape(
            config["batch"],
            config["heads"],
            config["tokens"],
            config["width"],
            DTYPES[config["dtype"]],
            config["device"],
        )
        self.seldom = -(-config["reps"] // LOOP_RUNS)
        self.short = replace(self.shape, tokens=config["loop_tokens"])
        self.contests: list[Contest] = []

    def add(
        self,
        section: str,
        rule: str,
        which: str,
        shape: Shape,
        contestants: list[Contestant],
        *,
        every: int = 1,
        absent: dict[str, str] | None = None,
        **labels: Any,
    ) -> None:
        labels = {"section": section, "rule": rule, "pass": which, "tokens": shape.tokens, **labels}
        self.contests.append(Contest(labels, contestants, shape.batch * shape.tokens, every, absent or {}))

    def against_attention(self, section: str, name: str, shape: Shape) -> None:
        rule = RULES[name]
        inputs = draw(rule, shape)
        bare = replace(inputs, gates={}, state={})
        for which in PASSES:
            ours = Contestant(OURS, task(which, fast(rule, self.chunk), inputs))
            self.add(section, name, which, shape, [ours, Contestant("attention", task(which, attention, bare))])

    def against_loop(self, name: str) -> None:
        rule = RULES[name]
        inputs = draw(rule, self.short)
        begin = inputs.first(min(8, self.short.tokens))
        for which in PASSES:
            slow = loop(rule, self.chunk)
            ours = Contestant(OURS, task(which, fast(rule, self.chunk), inputs))
            theirs = Contestant("loop", task(which, slow, inputs), warm=task(which, slow, begin))
            self.add("loop", name, which, self.short, [ours, theirs], every=self.seldom)

    def against_kernel(self, name: str) -> None:
        """In half precision and from an empty memory on both sides: the kernel knows no float32."""
        package = "flash-linear-attention"
        rule, shape = RULES[name], replace(self.shape, dtype=torch.bfloat16)
        here = torch.device(shape.device).type == "cuda"
        bare = replace(draw(rule, shape), state={}) if here else None
        for which in PASSES:
            if bare is None:
                self.add("peers", name, which, shape, [], absent={package: "needs a GPU"})
                continue
            ours = Contestant(OURS, task(which, fast(rule, self.chunk), bare))
            theirs = Contestant(package, task(which, lambda x: flash_linear_attention(name, x), bare))
            self.add("peers", name, which, shape, [ours, theirs])

    def against_peers(self, name: str) -> None:
        for peer in PEERS:
            if peer.rule != name:
                continue
            shape = self.short if peer.slow else self.shape
            torch.manual_seed(0)
            absent, theirs = {}, {}
            try:
                theirs = {n: layer.to(shape.device) for n, layer in peer.theirs(shape, self.chunk).items()}
            except Exception as error:
                absent[peer.package] = harness.reason(error)
            layers = {OURS: peer.ours(shape, self.chunk).to(shape.device), **theirs} if theirs else {}
            x = torch.randn(shape.batch, shape.tokens, shape.heads * shape.width).to(shape.device)
            for which in PASSES:
                runs = []
                for n, layer in layers.items():
                    warm = layer_task(which, layer, x[:, : self.chunk]) if peer.slow else None
                    runs.append(Contestant(n, layer_task(which, layer, x), warm))
                self.add("peers", name, which, shape, runs, every=self.seldom if peer.slow else 1, absent=absent)

    def against_eager(self, name: str, progress: Callable[[str], None]) -> None:
        """``torch.compile`` first, with its caches off: what the compiler takes is its own number."""
        rule = RULES[name]
        inputs = draw(rule, self.short)
        sync = harness.synchronizer(self.short.device)
        for which in PASSES:
            progress(f"compiling {name}, {which}")
            # fullgraph: what the compiler leaves out is an error, not a slow "compiled" run.
            call = torch.compile(fast(rule, self.chunk), dynamic=False, fullgraph=True)
            compiled = task(which, call, inputs)
            eager = Contestant("eager", task(which, fast(rule, self.chunk), inputs))
            begin = time.perf_counter()
            try:
                # All rules go through one function here: its limit on recompilations is meant for one caller.
                with dynamo.patch(recompile_limit=1000), inductor.patch(force_disable_caches=True):
                    compiled()
                    sync()
            except Exception as error:
                self.add("compile", name, which, self.short, [eager], absent={"compiled": harness.reason(error)})
                continue
            seconds = time.perf_counter() - begin
            runs = [Contestant("compiled", compiled), eager]
            self.add("compile", name, which, self.short, runs, compile_seconds=seconds)


def programme(config: dict[str, Any], rules: list[str], progress: Callable[[str], None]) -> list[Contest]:
    """Everything that is to be timed, for rules whose tests are green."""
    plan = Programme(config)
    for name in rules:
        plan.against_attention("attention", name, plan.shape)
        plan.against_loop(name)
        plan.against_peers(name)
        if name in FLA:
            plan.against_kernel(name)
    few = [name for name in config["few"] if name in rules]
    for name in few if config["sweep"] else []:
        for tokens in SWEEP:
            plan.against_attention("sweep", name, replace(plan.shape, tokens=tokens))
    for name in few if config["compile"] else []:
        plan.against_eager(name, progress)
    return plan.contests


def check(config: dict[str, Any], progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """For each rule: do its tests pass, and do its two forms agree here? Only then it is timed."""
    progress("running the rules' tests")
    cases = QUICK_CASES if config["quick"] else verify.CASES
    found = {}
    for name, verdict in verify.verdicts(config["rules"], cases=cases).items():
        found[name] = {"green": verdict.green, "tests_passed": verdict.cases, "reason": verdict.reason}
        if not verdict.green:
            continue
        progress(f"comparing the two forms of {name}")
        tokens = 2 * config["chunk"] + 1  # over two borders
        shape = Shape(config["batch"], config["heads"], tokens, config["width"], device=config["device"])
        gap = verify.disagreement(RULES[name], draw(RULES[name], shape), config["chunk"])
        if gap < verify.AGREE:
            found[name]["disagreement"] = gap
        else:  # NaN too
            found[name] |= {"green": False, "reason": f"the fast form and the loop differ by {gap:.2g} here"}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = options(argv)
        verify.tests_what_is_timed()
    except ValueError as error:
        print(f"python -m benchmarks.memory: {error}", file=sys.stderr)
        return 2
    # Before any thread of torch starts, so that all inherit it: fading memories make denormals, which are slow.
    torch.set_flush_denormal(True)
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    with Console(stderr=True).status("starting") as status:
        verified = check(config, status.update)
        green = [name for name in config["rules"] if verified[name]["green"]]
        contests = programme(config, green, status.update)
        sync = harness.synchronizer(config["device"])
        timings = harness.measure(contests, config["reps"], sync=sync, progress=status.update)
    results = [harness.result(contest, timing) for contest, timing in zip(contests, timings)]
    packages = ("titans-pytorch", "nested-learning", "flash-linear-attention")
    report = {
        "benchmark": "memory",
        "config": config | {"out": str(config["out"])},
        "machine": harness.machine(config["device"], packages),
        "verified": verified,
        "results": results,
    }
    memory_report.show(report)
    harness.write_json(config["out"] / "memory.json", report)
    memory_report.plot(report, config["out"] / "memory.png")
    print(f"\nwrote {config['out'] / 'memory.json'} and memory.png")
    ours_failed = any("not_measured" in r["contestants"].get(r["ours"], {}) for r in results)
    return 1 if ours_failed or len(green) < len(config["rules"]) else 0


if __name__ == "__main__":
    sys.exit(main())
