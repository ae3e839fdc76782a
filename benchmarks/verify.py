"""No ratio for a rule whose tests are red: a fast wrong answer is not fast.

Two proofs before a rule is timed: its equality tests, all rules in one pytest process, and its fast form against its
loop in float32, on the device and at the sizes that are timed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

import circadia
from benchmarks.harness import ROOT
from benchmarks.inputs import Inputs
from circadia.memory import Rule

TARGET = "tests/memory/test_rules.py"
TEST = "test_fast_equals_reference"
CASES = ((7, 1), (65, 16), (65, 64))  # (tokens, chunk), from the test's own table
AGREE = 1e-3  # float32 sums in another order differ by about 1e-6


@dataclass(frozen=True)
class Verdict:
    """Of one rule."""

    green: bool
    reason: str
    cases: int = 0  # passed


def verdicts(
    rules: Sequence[str], *, root: Path = ROOT, target: str = TARGET, cases: Sequence[tuple[int, int]] = CASES
) -> dict[str, Verdict]:
    """Run the equality tests of these rules. Anything but a pass of every case is red: also a test that is missing."""
    wanted = {rule: [f"{TEST}[{rule}-{tokens}-{chunk}]" for tokens, chunk in cases] for rule in rules}
    names = " or ".join(f"{rule}-{tokens}-{chunk}" for rule in rules for tokens, chunk in cases)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-k", f"{TEST} and ({names})", f"--junitxml={report}", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", target, *options],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        outcomes = _outcomes(report) if report.exists() else {}
    said = (done.stdout + done.stderr).strip().splitlines() or ["pytest said nothing"]
    return {rule: _verdict(tests, outcomes, said[-1]) for rule, tests in wanted.items()}


def _outcomes(report: Path) -> dict[str, str]:
    """Test name -> "passed", or the tag of what else happened."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[case.get("name", "")] = bad[0] if bad else "passed"
    return found


def _verdict(tests: list[str], outcomes: dict[str, str], said: str) -> Verdict:
    passed = sum(outcomes.get(test) == "passed" for test in tests)
    for test in tests:
        outcome = outcomes.get(test)
        if outcome is None:
            return Verdict(False, f"{test} did not run ({said})", passed)
        if outcome != "passed":
            return Verdict(False, f"{test}: {outcome}", passed)
    return Verdict(True, f"{passed} tests passed", passed)


def tests_what_is_timed() -> None:
    """The tests run on this checkout's package: refuse to time another one."""
    here = Path(circadia.__file__).resolve().parent.parent
    if here != ROOT:
        raise ValueError(f"circadia is imported from {here}, its tests from {ROOT}: run from {ROOT}")


def disagreement(rule: Rule, inputs: Inputs, chunk: int) -> float:
    """Largest difference between the outputs of the two forms, relative to the largest output."""
    call = (inputs.q, inputs.k, inputs.v, inputs.gates, inputs.state)
    with torch.no_grad():
        slow, fast = rule.reference(*call, chunk=chunk)[0], rule(*call, chunk=chunk)[0]
    return ((slow - fast).abs().max() / slow.abs().max().clamp_min(1e-12)).item()
