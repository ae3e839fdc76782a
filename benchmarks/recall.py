"""What each memory rule remembers: ``python -m benchmarks.recall --out DIR``.

Nothing is trained. N unit keys are written with values from a codebook in one stream, then every key is asked for; an
answer counts if the stored value is the nearest entry of the codebook. Every memory has a state of the same size. Four
tasks:

pairs    random keys: accuracy against the number of stored pairs
alike    the same with keys that share a direction
long     the longest stream of ``pairs``: accuracy against how long ago a pair was stored
again    every key stored twice: is the newer value returned?

Every rule gets one grid of rates, retentions and momenta, deep memories also of the gain and the step of their last
matrix, and takes the best of it for each task on a tuning seed that is not used again.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from circadia import __version__
from circadia.memory import RULES
from circadia.memory.closed import unit
from circadia.memory.deep import Deep, plain
from circadia.memory.linear import Hebbian
from circadia.memory.rule import Rule
from circadia.memory.selfmod import SelfModifying
from circadia.memory.state import State, state_bytes, weights_only

TASKS = ("pairs", "alike", "long", "again")
TUNING_SEED = 1000  # test seeds are 0, 1, 2, ...
FEATURE_SEED = 1_000_000  # added for the random features of deep memories
CHUNK = 16
ENTRIES = 64  # of the codebook
ALIKE = 0.5  # mean cosine of two keys that share a direction
NOISY = 0.8  # mean cosine of a noisy query with its key

# The grid of every rule; a rule leaves out what it has no gate for, and rates outside its range.
GRID = {"eta": (1 / 16, 1 / 4, 1 / 2, 1.0, 2.0, 4.0), "alpha": (1.0, 0.99, 0.97), "beta": (0.0, 0.5, 0.9)}
RETNET_HEADS = 4  # its decays are those of its heads: 31/32, 63/64, ...
GAINS = (0.5, 1.0, 4.0)  # of the last matrix of a deep memory
OUTPUT_SCALES = (1.0, None)  # of the step of that matrix; None is 1 / chunk

LEFT_OUT = {"dgd_dot_literal": "stores the negated value, so its answers are those of dgd with the other sign"}

Setting = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """One run of the benchmark."""

    width: int = 64  # d_k = d_v
    pairs: int = 512  # of the longest stream
    seeds: int = 5
    streams: int = 8  # of a test seed
    tuning_streams: int = 3

    @property
    def counts(self) -> list[int]:
        """Numbers of stored pairs at which all of them are asked for."""
        marks = [self.width * 2**i // 8 for i in range(12)]
        return [n for n in marks if n < self.pairs] + [self.pairs]

    @property
    def newest(self) -> int:
        """Length of the newest and the oldest part of a long stream."""
        return max(1, self.width // 4)


@dataclass(frozen=True)
class Contestant:
    """A rule with the width that makes its state the right size."""

    label: str
    rule: Rule
    hidden: int | None  # None: a matrix memory

    def start(self, plan: Plan, streams: int, gain: float, seed: int) -> State:
        """A bare state [streams, 1, ...], its random features different in every stream."""
        if self.hidden is None:
            return self.rule.init(streams, 1, plan.width)
        assert isinstance(self.rule, Deep | SelfModifying)
        # Not the numbers of the stream: its codebook would be the features.
        generator = torch.Generator().manual_seed(FEATURE_SEED + seed)
        made = self.rule.init(1, streams, plan.width, hidden=self.hidden, gain=gain, generator=generator)
        if isinstance(self.rule, SelfModifying):
            # The projections begin near the identity; the gain is that of the memory that is read.
            near = self.rule.init(1, streams, plan.width, hidden=self.hidden, generator=generator)
            made = {name: x if name.startswith("memory.") else near[name] for name, x in made.items()}
        return {name: x.transpose(0, 1) for name, x in made.items()}


@dataclass(frozen=True)
class Stream:
    """What is stored, [streams, N, ...], and what it is compared with."""

    codebook: Tensor  # [entries, d]
    keys: Tensor
    values: Tensor  # entries of the codebook
    noisy: Tensor  # a noisy query for every key


def contestants(width: int) -> list[Contestant]:
    """All rules at the number of weights of a matrix memory, and self-modifying with its projections on top."""
    budget = 4 * width**2
    found = []
    for name, rule in RULES.items():
        if name in LEFT_OUT:
            continue
        hidden = None
        if isinstance(rule, Deep | SelfModifying):
            sizes = {h: state_bytes(rule.init(1, 1, width, hidden=h)) for h in range(1, width + 1)}
            hidden = min(sizes, key=lambda h: abs(sizes[h] - budget))
        found.append(Contestant(name, rule, hidden))
    return [*found, Contestant("self_modifying, large", RULES["self_modifying"], width // 2)]


def stream(plan: Plan, streams: int, seed: int, *, alike: bool = False, again: bool = False) -> Stream:
    """Random pairs; ``again``: half as many keys as the width, and all of them a second time with another value."""
    generator = torch.Generator().manual_seed(seed)
    codebook = unit(torch.randn(ENTRIES, plan.width, generator=generator))
    n = max(1, plan.width // 2) if again else plan.pairs
    keys = unit(torch.randn(streams, n, plan.width, generator=generator))
    noise = unit(torch.randn(streams, n, plan.width, generator=generator))
    if alike:
        shared = unit(torch.randn(streams, 1, plan.width, generator=generator))
        keys = unit(ALIKE**0.5 * shared + (1 - ALIKE) ** 0.5 * keys)
    values = torch.randint(ENTRIES, (streams, n), generator=generator)
    if again:
        order = torch.rand(streams, n, generator=generator).argsort(1)
        other = torch.randint(1, ENTRIES, (streams, n), generator=generator)
        keys = torch.cat((keys, keys.take_along_dim(order[..., None], 1)), 1)
        values = torch.cat((values, (values.take_along_dim(order, 1) + other) % ENTRIES), 1)
        noise = noise.repeat(1, 2, 1)
    return Stream(codebook, keys, values, unit(NOISY * keys + (1 - NOISY**2) ** 0.5 * noise))


def settings_of(rule: Rule) -> list[Setting]:
    """The part of the grid that a rule has."""
    if isinstance(rule, Hebbian) and rule.decay == "fixed":
        return [{"head": float(head)} for head in range(RETNET_HEADS)]
    names = [name for name in GRID if name in rule.needs + rule.takes]
    return [one for c in product(*(GRID[name] for name in names)) if _allowed(rule, one := dict(zip(names, c)))]


def _allowed(rule: Rule, setting: Setting) -> bool:
    if isinstance(rule, SelfModifying):
        return setting["eta"] < rule.top_rate
    x = torch.ones(1, 1, 1, 1)
    gates = {name: torch.full((1, 1, 1), value) for name, value in setting.items()}
    return all(low <= float(got) <= high for got, low, high in rule.ranges(x, x, gates).values())


def treatments_of(rule: Rule) -> list[dict[str, Any]]:
    """What is tried on the untrained deep memories besides the grid."""
    if not isinstance(rule, Deep | SelfModifying):
        return [{}]
    return [{"gain": gain, "output_scale": scale} for gain, scale in product(GAINS, OUTPUT_SCALES)]


def treated(contestant: Contestant, treatment: dict[str, Any]) -> Contestant:
    if not treatment:
        return contestant
    rule: Any = contestant.rule
    return replace(contestant, rule=replace(rule, output_scale=treatment["output_scale"]))


def gates_of(rule: Rule, settings: list[Setting], keys: Tensor) -> dict[str, Tensor]:
    """Constant gates, one setting a head. keys [streams, settings, T, d]."""
    gates = {}
    for name in rule.needs + rule.takes:
        if name == "x":
            gates["x"] = keys
            continue
        values = torch.tensor([setting[name] for setting in settings])
        if isinstance(rule, SelfModifying):  # its gates are logits
            values = torch.logit(values / rule.top_rate if name == "eta" else values, eps=1e-6)
        gates[name] = values.view(1, -1, 1).expand(keys.shape[:3])
    return gates


def ask(rule: Rule, state: State, queries: Tensor) -> Tensor:
    """What a memory answers [streams, settings, N, d], and nothing else.

    A state is a value: the queries are given as tokens that all read it as it is (``read="chunk"``: from before any
    write), and the state that comes back is dropped. So it is exact for rules that cannot switch their writes off, too.
    """
    bare = weights_only(state)
    answers = []
    for q in queries.split(2 * CHUNK, 2):
        gates = {name: q if name == "x" else torch.zeros_like(q[..., 0]) for name in rule.needs}
        answers.append(rule(q, q, torch.zeros_like(q), gates, bare, chunk=2 * CHUNK, read="chunk")[0])
    return torch.cat(answers, 2)


def entries_as_stored(rule: Rule, start: State, codebook: Tensor) -> Tensor:
    """The codebook [streams, 1, entries, d] in the code in which a memory stores it.

    Self-modifying memories store targets of their own, M(M_v(v)) (eq. 84, 87): those of the start stand for what a
    trained read-out would know.
    """
    entries = codebook.expand(next(iter(start.values())).shape[0], 1, -1, -1)
    if not isinstance(rule, SelfModifying):
        return entries
    columns = entries.mT
    value = unit(plain([start["v.w0"], start["v.w1"]], columns, columns), -2)
    return unit(plain([start["memory.w0"], start["memory.w1"]], value, value), -2).mT


def states(rule: Rule, settings: list[Setting], start: State, s: Stream, counts: list[int]) -> Iterator[State]:
    """Write a stream under all settings side by side; the state after each number of pairs."""
    many = (-1, len(settings), -1, -1)
    state = {name: x.expand(-1, len(settings), *[-1] * (x.ndim - 2)) for name, x in start.items()}
    keys, values = s.keys[:, None].expand(many), s.codebook[s.values][:, None].expand(many)
    done = 0
    for count in counts:
        k, v = keys[:, :, done:count], values[:, :, done:count]
        _, state = rule(k, k, v, gates_of(rule, settings, k), state, chunk=CHUNK)
        done = count
        yield state


def measure(
    plan: Plan,
    contestant: Contestant,
    settings: list[Setting],
    gain: float,
    seed: int,
    streams: int,
    tasks: tuple[str, ...] = TASKS,
) -> dict[str, Tensor]:
    """Some tasks under all settings: name -> [settings, ...] shares of right answers."""
    rule = contestant.rule
    start = contestant.start(plan, streams, gain, seed)
    found: dict[str, Tensor] = {}

    def answers(s: Stream, state: State, queries: Tensor) -> Tensor:
        y = ask(rule, state, queries[:, None].expand(-1, len(settings), -1, -1))
        return (y @ entries_as_stored(rule, start, s.codebook).mT).argmax(-1)

    for task in ("pairs", "long", "alike"):
        if task not in tasks or (task == "long" and "pairs" in tasks):
            continue
        s = stream(plan, streams, seed, alike=task == "alike")
        counts = [plan.pairs] if task == "long" else plan.counts
        curve = []
        for count, state in zip(counts, states(rule, settings, start, s, counts)):
            right = (answers(s, state, s.keys[:, :count]) == s.values[:, None, :count]).float().mean(0)
            curve.append(right.mean(-1))
            if task == "pairs" and 2 * count == plan.width:
                noisy = answers(s, state, s.noisy[:, :count]) == s.values[:, None, :count]
                found["noisy"] = noisy.float().mean((0, 2))
        if task != "alike":  # at the end of the stream every pair has its age
            found["long"] = right
        if task != "long":
            found[task] = torch.stack(curve, -1)
    if "again" in tasks:
        s = stream(plan, streams, seed, again=True)
        (state,) = states(rule, settings, start, s, [s.keys.shape[1]])
        n = s.keys.shape[1] // 2
        got = answers(s, state, s.keys[:, n:])
        # The older value of each key, in the order of the second round.
        older = s.values[:, :n].take_along_dim((s.keys[:, n:] @ s.keys[:, :n].mT).argmax(-1), 1)
        shares = [(got == x[:, None]).float().mean((0, 2)) for x in (s.values[:, n:], older)]
        found["again"] = torch.stack([*shares, 1 - shares[0] - shares[1]], -1)  # newer, older, neither
    return found


def goal(plan: Plan, task: str, found: dict[str, Tensor]) -> Tensor:
    """What is tuned for, [settings]."""
    if task == "long":
        return found["long"][:, -plan.width :].mean(-1)
    return found["again"][:, 0] if task == "again" else found[task].mean(-1)


def tune(plan: Plan, contestant: Contestant) -> dict[str, dict[str, Any]]:
    """For each task the best setting and treatment on the tuning seed; of equals the first."""
    settings = settings_of(contestant.rule)
    best: dict[str, dict[str, Any]] = {}
    for treatment in treatments_of(contestant.rule):
        changed = treated(contestant, treatment)
        found = measure(plan, changed, settings, treatment.get("gain", 1.0), TUNING_SEED, plan.tuning_streams)
        for task in TASKS:
            scores = goal(plan, task, found)
            i = int(scores.argmax())
            if task not in best or scores[i] > best[task]["score"]:
                best[task] = {"score": float(scores[i]), "setting": settings[i], "treatment": treatment}
    return best


def assess(plan: Plan, contestant: Contestant, tuned: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """Each task at its tuned setting: name -> one entry a seed."""
    results: dict[str, list[Any]] = {name: [] for name in (*TASKS, "noisy")}
    every = settings_of(contestant.rule)
    for seed in range(plan.seeds):
        for task in TASKS:
            chosen = tuned[task]
            changed = treated(contestant, chosen["treatment"])
            # RetNet's decay belongs to the head, so all of its heads have to be there.
            settings = every if "head" in chosen["setting"] else [chosen["setting"]]
            gain = chosen["treatment"].get("gain", 1.0)
            found = measure(plan, changed, settings, gain, seed, plan.streams, (task,))
            i = settings.index(chosen["setting"])
            results[task].append(found[task][i].tolist())
            if task == "pairs":
                results["noisy"].append(found["noisy"][i].item())
    return results


def study(plan: Plan, contestant: Contestant) -> dict[str, Any]:
    """Everything about one contestant."""
    # The tensors are small: more threads only wait for each other, and decayed states are full of denormal numbers.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        with torch.no_grad():
            state = contestant.start(plan, 1, 1.0, 0)
            read = {name: x for name, x in state.items() if name.startswith("memory.")} or state
            tuned = tune(plan, contestant)
            return {
                "rule": contestant.rule.name,
                "family": contestant.rule.family,
                "hidden": contestant.hidden,
                "state_bytes": state_bytes(state),
                "memory_bytes": state_bytes(read),
                "tuned": tuned,
                "per_seed": assess(plan, contestant, tuned),
            }
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


def run(plan: Plan, jobs: int = 1, tick: Any = lambda: None) -> dict[str, Any]:
    """The whole benchmark as one JSON-able dict."""
    many = contestants(plan.width)
    rules: dict[str, Any] = {}
    if jobs == 1:
        for one in many:
            rules[one.label] = study(plan, one)
            tick()
    else:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            # The costly ones stand at the end of the table; begun first, they leave no worker without work.
            waiting = {pool.submit(study, plan, one): one.label for one in reversed(many)}
            for done in as_completed(waiting):
                rules[waiting[done]] = done.result()
                tick()
    rules = {one.label: rules[one.label] for one in many}
    config = {**asdict(plan), "counts": plan.counts, "newest": plan.newest, "chunk": CHUNK, "entries": ENTRIES}
    config |= {"chance": 1 / ENTRIES, "alike": ALIKE, "noisy": NOISY, "grid": GRID, "gains": GAINS}
    config |= {"output_scales": OUTPUT_SCALES, "retnet_heads": RETNET_HEADS}
    return {
        "benchmark": "recall",
        "config": config,
        "seeds": {"tuning": TUNING_SEED, "test": list(range(plan.seeds))},
        "versions": {"circadia": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "left_out": LEFT_OUT,
        "rules": rules,
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"recall: {message}", file=sys.stderr)
        raise SystemExit(2)


def options(argv: list[str] | None) -> tuple[Plan, Path]:
    parser = _Parser(prog="python -m benchmarks.recall", description="What each memory rule remembers, untrained.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the picture and the numbers")
    parser.add_argument("--quick", action="store_true", help="a small version, for trying it out")
    parser.add_argument("--seeds", type=int, help="test seeds (5; quick: 3)")
    parser.add_argument("--width", type=int, help="width of keys and values, a multiple of 16 (64; quick: 32)")
    parser.add_argument("--pairs", type=int, help="pairs in the longest stream (8 times the width; quick: 4 times)")
    args = parser.parse_args(argv)
    width = args.width if args.width is not None else 32 if args.quick else 64
    if width < 16 or width % 16 or width > 256:
        parser.error(f"--width {width}: give a multiple of 16 from 16 to 256")
    pairs = args.pairs if args.pairs is not None else (4 if args.quick else 8) * width
    if pairs < 2 * width or pairs > 4096:
        parser.error(f"--pairs {pairs}: the curves need 2 times the width, so give {2 * width} to 4096")
    seeds = args.seeds if args.seeds is not None else 3 if args.quick else 5
    if not 1 <= seeds <= 100:
        parser.error(f"--seeds {seeds}: give 1 to 100")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out} cannot be made ({error.strerror}): give another folder")
    if find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: pip install 'circadia[eval]'")
    few = {"streams": 4, "tuning_streams": 2} if args.quick else {}
    return Plan(width=width, pairs=pairs, seeds=seeds, **few), args.out


def main(argv: list[str] | None = None) -> None:
    plan, out = options(argv)
    # Imported here so that a wrong option is answered at once.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from benchmarks.recall_picture import draw
    from benchmarks.recall_report import WIDE, show

    console = Console()
    if not console.is_terminal:  # a file has room for the whole table
        console = Console(width=WIDE)
    many = len(contestants(plan.width))
    console.print(
        f"Store up to {plan.pairs} pairs in {many} memories of {4 * plan.width**2:,} bytes, ask for each pair, tune on "
        f"1 seed and test on {plan.seeds}: {estimate(plan)}.",
        soft_wrap=True,
    )
    began = time.perf_counter()
    jobs = 1 if plan.width < 64 else min(2, os.cpu_count() or 1)
    columns = (TextColumn("memories"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=many)
        results = run(plan, jobs, lambda: progress.advance(bar))
    results["seconds"] = round(time.perf_counter() - began, 1)
    (out / "recall.json").write_text(json.dumps(results, indent=1) + "\n")
    show(results, console)
    png = draw(results, out)
    console.print(f"\nPicture: [bold]{png}[/] (and .svg); all numbers: {out / 'recall.json'}", soft_wrap=True)


def estimate(plan: Plan) -> str:
    """A rough time, from runs on two ordinary cores."""
    share = plan.pairs / 512 * plan.width / 64 * (3 * plan.tuning_streams * 8 + plan.seeds * plan.streams) / 112
    seconds = 90 * share + 5
    return f"about {round(seconds / 60)} min" if seconds > 80 else f"about {round(seconds / 5) * 5} s"


if __name__ == "__main__":
    main()
