"""Many training runs that compare variants of a model: the learning rate of each from one grid, then several seeds.

Every run is a folder of `circadia train`. A study may be killed at any time and started again with the same options:
finished runs are left alone, open ones go on from their last checkpoint. Two processes may share one study: a run
that the other one is at is left to it.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, Parser, positive
from circadia.models import HopeConfig
from circadia.train import Diverged, TrainConfig, load, train
from circadia.train.checkpoint import Busy
from circadia.train.config import changed
from circadia.train.log import read
from circadia.train.loop import MAY_CHANGE
from circadia.train.make import configured
from circadia.train.tokens import Tokenizer

BASE = ROOT / "configs" / "novels-tiny.yaml"  # text, held-out authors, optimizer, schedule
DIVERGED = "diverged.txt"
WAIT = 20.0  # seconds until runs of another process are looked at again
EVALUATIONS = 10  # in a run; a run that only tunes has the last one alone


class Stopped(Exception):
    """A signal ended a run after a whole step."""


@dataclass(frozen=True)
class Outcome:
    """What a run's folder says of it."""

    parameters: int
    bits_per_byte: float  # of the last evaluation; infinite if the run diverged
    curve: list[tuple[int, float]]  # tokens read, bits per byte
    tokens: int
    seconds: float  # in steps
    skipped: int


@dataclass(frozen=True)
class Study:
    """Variants, each a change of the base configuration, and what is done with every one."""

    out: Path
    variants: dict[str, list[str]]  # name -> overrides of the configuration
    common: list[str]
    seeds: list[int]
    rates: list[float]
    tokens: int
    tune_tokens: int
    batch: int
    length: int

    def tuning(self, name: str, rate: float) -> TrainConfig:
        """A shorter run with seed 0, to choose the learning rate."""
        return self._config(name, f"tune/{_plain(name)}/lr-{rate:g}", rate, 0, self.tune_tokens, 1)

    def final(self, name: str, rate: float, seed: int) -> TrainConfig:
        """A whole run."""
        return self._config(name, f"final/{_plain(name)}/seed-{seed}", rate, seed, self.tokens, EVALUATIONS)

    def _config(self, name: str, folder: str, rate: float, seed: int, tokens: int, evaluations: int) -> TrainConfig:
        steps = max(1, round(tokens / (self.batch * self.length)))
        own = {
            "data.length": self.length,
            "train.batch": self.batch,
            "train.tokens": tokens,
            "train.eval_every": -(-steps // evaluations),
            "train.save_minutes": 3,
            "optim.lr": rate,
            "seed": seed,
            "out": str(self.out / folder),
        }
        overrides = [f"{key}={value}" for key, value in own.items()]
        return load(BASE, [*self.common, *self.variants[name], *overrides])

    def rate(self, name: str) -> float | None:
        """The best of the grid; None while a run of it is missing."""
        if len(self.rates) == 1:
            return self.rates[0]
        found = {rate: outcome(self.tuning(name, rate)) for rate in self.rates}
        if None in found.values():
            return None
        return min(found, key=lambda rate: found[rate].bits_per_byte)  # type: ignore[union-attr]

    def open(self) -> Iterator[tuple[str, TrainConfig]]:
        """Runs that are not finished: what tunes first, then seed after seed over all variants."""
        if len(self.rates) > 1:
            for name in self.variants:
                for rate in self.rates:
                    config = self.tuning(name, rate)
                    if not finished(config):
                        yield f"tune {name} lr={rate:g}", config
        for seed in self.seeds:
            for name in self.variants:
                rate = self.rate(name)
                if rate is not None and not finished(config := self.final(name, rate, seed)):
                    yield f"{name} lr={rate:g} seed={seed}", config

    def outcomes(self, name: str) -> dict[int, Outcome]:
        """Seed -> what came out, for the finished runs."""
        rate = self.rate(name)
        if rate is None:
            return {}
        found = {seed: outcome(self.final(name, rate, seed)) for seed in self.seeds}
        return {seed: one for seed, one in found.items() if one is not None}


def run(study: Study, report: Callable[[], None], say: Callable[[str], None] = print) -> None:
    """Every run that is not finished, one after another; one line and a new report after each."""
    busy: set[str] = set()
    while True:
        left = list(study.open())
        if not left:
            return
        label, config = next(((a, b) for a, b in left if b.out not in busy), (None, None))
        if label is None or config is None:  # another process is at all of them
            time.sleep(WAIT)
            busy.clear()
            continue
        try:
            found = one(config)
        except Busy:
            busy.add(config.out)
            continue
        busy.clear()
        say(f"{label}: {found.bits_per_byte:.4f} bits per byte, {found.tokens:,} tokens in {found.seconds:,.0f} s")
        report()


def one(config: TrainConfig) -> Outcome:
    """Train to the end, or go on to it; a run that diverges is finished too."""
    try:
        result = train(config, resume=True)
    except Diverged as error:
        (Path(config.out) / DIVERGED).write_text(f"{error}\n", encoding="utf-8")
    else:
        if result.stopped.startswith("SIG"):
            raise Stopped(result.stopped)
    found = outcome(config)
    assert found is not None
    return found


def finished(config: TrainConfig) -> bool:
    """Has this very run come to its end? The report is what a run writes last."""
    folder = Path(config.out)
    if not (folder / "config.yaml").exists():
        return False
    wrong = [key for key in changed(load(folder / "config.yaml"), config) if not key.startswith(MAY_CHANGE)]
    if wrong:
        raise ValueError(f"{folder} was run with another {', '.join(wrong)}: give the same options, or another --out")
    return (folder / "report.md").exists() or (folder / DIVERGED).exists()


def outcome(config: TrainConfig) -> Outcome | None:
    """Of a finished run, from its log."""
    if not finished(config):
        return None
    folder = Path(config.out)
    lines = read(folder)
    steps = [line for line in lines if line["kind"] == "step"]
    each = config.train.batch * config.data.length
    curve = [(line["step"] * each, line["bits_per_byte"]) for line in lines if line["kind"] == "eval"]
    good = curve and curve[-1][1] is not None and not (folder / DIVERGED).exists()
    return Outcome(
        parameters=next(line["parameters"] for line in lines if line["kind"] == "stage"),
        bits_per_byte=curve[-1][1] if good else float("inf"),
        curve=[(tokens, value) for tokens, value in curve if value is not None],
        tokens=sum(line["tokens"] for line in steps),
        seconds=sum(line["seconds"] for line in steps),
        skipped=sum(line["skipped"] for line in steps),
    )


def parser(prog: str, description: str, out: str) -> Parser:
    """The options that every study has."""
    made = Parser(
        prog=f"python -m {prog}", description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--seeds", type=_numbers, default="0,1,2", help="of the whole runs")
    made.add_argument("--rates", type=_rates, default="5e-4,1e-3,2e-3,4e-3", help="learning rates to choose from")
    made.add_argument("--tokens", type=positive, default=20_000_000, help="of a whole run")
    made.add_argument("--tune-tokens", type=positive, default=4_000_000, help="of a run that chooses the rate")
    made.add_argument("--length", type=positive, default=1024, help="tokens of a row")
    made.add_argument("--batch", type=positive, default=16, help="rows of a step")
    made.add_argument("--micro", type=positive, default=4, help="rows of one forward pass")
    made.add_argument("--tokenizer", default="bytes", help="bytes, or a folder or Hub id of a tokenizer")
    made.add_argument("--data", help="text to read, if not that of the configuration")
    made.add_argument("--eval-tokens", type=positive, default=500_000, help="of the held-out text")
    made.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more changes, for all variants")
    made.add_argument("--threads", type=positive, default=torch.get_num_threads())
    made.add_argument("--out", type=Path, default=Path(out), help="folder of the runs and the report")
    made.add_argument("--report", action="store_true", help="only write the report of what is there")
    return made


def study(given: argparse.Namespace, variants: dict[str, list[str]]) -> Study:
    """From the command line."""
    micro = given.micro if given.batch % given.micro == 0 else 1
    common = [f"data.tokenizer={given.tokenizer}", f"train.eval_tokens={given.eval_tokens}", f"train.micro={micro}"]
    common += [f"data.path={json.dumps(given.data)}"] if given.data is not None else []
    return Study(
        out=given.out, variants=variants, common=[*common, *given.set], seeds=given.seeds, rates=given.rates,
        tokens=given.tokens, tune_tokens=given.tune_tokens, batch=given.batch, length=given.length,
    )  # fmt: skip


def main(parser: Parser, given: argparse.Namespace, study: Study, report: Callable[[Study], Any]) -> int:
    """Run what is left of a study, or only report."""
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)  # fading memories make denormal numbers, which are slow
    try:
        for name in study.variants:  # a mistake shows now, not after hours
            model_config(study.final(name, study.rates[0], study.seeds[0]))
        report(study)
        if not given.report:
            run(study, lambda: report(study), lambda text: print(text, flush=True))
    except ValueError as error:
        parser.error(str(error))
    except Stopped as stop:
        print(f"{parser.prog}: stopped by {stop}; the same command goes on", file=sys.stderr)
        return 128 + getattr(signal, str(stop))
    print(study.out / "report.md")
    return 0


def model_config(config: TrainConfig) -> HopeConfig:
    """The configuration of a run's model."""
    return configured(config.model, {"vocab_size": Tokenizer(config.data.tokenizer).size})


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """The mean, and the least to the most of several."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f} (one seed)"
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _plain(name: str) -> str:
    return name.replace("/", "-").replace(" ", "-")


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers with commas, such as 0,1,2")
    return [int(part) for part in parts]


def _rates(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0.0]
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give learning rates with commas, such as 1e-3,2e-3")
    return found
