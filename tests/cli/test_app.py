"""The frame of the command line: help, version, exit codes, and the list of rules."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import circadia
from circadia.cli import app


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"circadia {circadia.__version__}\n")


def test_help_tells_a_story():
    result = run("--help")
    assert result.exit_code == 0
    story = ["Look:", " doctor ", " levels ", "Build:", " train ", " retrofit ", "Live:", " chat ", " learner "]
    story += [" serve ", " key ", "Judge:", " eval "]
    order = [result.stdout.index(word) for word in story]
    assert order == sorted(order)


def test_unknown_option_is_exit_code_2():
    assert run("levels", "x", "--optimizer", "adam").exit_code == 2
    assert run("no-such-command").exit_code == 2


def test_rules_are_listed():
    try:
        rules = circadia.memory.RULES
    except (ImportError, AttributeError):
        pytest.skip("circadia.memory has no RULES")
    result = run("rules")
    assert result.exit_code == 0
    assert [name for name in rules if name not in result.stdout] == []


def test_optimizers_are_listed():
    result = run("optimizers")
    assert result.exit_code == 0
    assert [name for name in circadia.optim.OPTIMIZERS if name not in result.stdout] == []


def test_rules_print_brackets_as_they_are(monkeypatch):

    rule = SimpleNamespace(name="delta", family="linear", summary="erases first", equation="M [I - b k k'] + b v k'")
    monkeypatch.setitem(circadia.__dict__, "memory", SimpleNamespace(RULES={"delta": rule}))
    result = run("rules")
    assert result.exit_code == 0, result.output
    for text in ("delta", "linear", "erases first", "M [I - b k k'] + b v k'"):
        assert text in result.stdout
