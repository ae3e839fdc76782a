"""The tables and the picture of ``benchmarks.memory``, from what its JSON file holds."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.harness import human

Report = dict[str, Any]

PASSES = ("forward", "forward+backward")
COLOURS = ("#4477aa", "#ee6677")
RED = "tests red: no ratio"


def show(report: Report, console: Console | None = None) -> None:
    """Every number with its spread; what was not measured, with the reason."""
    console = console or Console()
    machine, config, results = report["machine"], report["config"], report["results"]
    console.print(f"{escape(_where(machine))}, torch {machine['versions']['torch']}", style="bold")
    console.print(
        f"batch {config['batch']}, {config['heads']} heads of {config['width']}, chunk {config['chunk']}, "
        f"{config['dtype']}; {config['reps']} repetitions\n"
        "ratios: how many times as fast ours is, median (least-most)\n",
    )
    for which in PASSES:
        console.print(_rules(report, which))
    for section, build in (("peers", _peers), ("sweep", _sweep), ("compile", _compile)):
        found = [r for r in results if r["section"] == section and r["ratios"]]
        if found:
            console.print(build(found))
    for name, verdict in report["verified"].items():
        if not verdict["green"]:
            console.print(f"{name}: {RED} ({escape(verdict['reason'])})", style="red", soft_wrap=True)
    lacking: dict[str, list[str]] = {}
    for r in results:
        for name, known in r["contestants"].items():
            if "not_measured" in known:
                line = f"{r['rule']}, {r['section']}: {name} not measured: {known['not_measured']}"
                lacking.setdefault(line, []).append(r["pass"])
    for line, passes in lacking.items():
        console.print(escape(f"{line} ({' and '.join(dict.fromkeys(passes))})"), style="dim", soft_wrap=True)


def _where(machine: Report) -> str:
    return machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"


def _ratio(result: Report, rival: str) -> str:
    known = result["ratios"].get(rival)
    if known is None:
        return "not measured"
    return f"{human(known['median'])} ({human(known['min'], 2)}-{human(known['max'], 2)})"


def _speed(result: Report, name: str) -> str:
    known = result["contestants"].get(name, {})
    return human(known["tokens_per_second"]) if "tokens_per_second" in known else "-"


def _table(title: str, names: str, *columns: str) -> Table:
    """Names to the left, numbers to the right, within 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(names, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _rules(report: Report, which: str) -> Table:
    tokens, short = report["config"]["tokens"], report["config"]["loop_tokens"]
    table = _table(which, "rule", "tokens/s", f"to attention, {tokens}", f"to its loop, {short}")
    found = {(r["section"], r["rule"]): r for r in report["results"] if r["pass"] == which}
    for name, verdict in report["verified"].items():
        if not verdict["green"]:
            table.add_row(name, "", RED, RED, style="red")
            continue
        there, slow = found["attention", name], found["loop", name]
        table.add_row(name, _speed(there, there["ours"]), _ratio(there, "attention"), _ratio(slow, "loop"))
    return table


def _peers(found: list[Report]) -> Table:
    table = _table("other packages, tokens/s", "package, pass", "tokens", "theirs", "ours", "ratio")
    for r in found:
        for name in r["ratios"]:
            speeds = (_speed(r, name), _speed(r, r["ours"]))
            table.add_row(f"{name}\n  {r['rule']}, {r['pass']}", str(r["tokens"]), *speeds, _ratio(r, name))
    return table


def _sweep(found: list[Report]) -> Table:
    lengths = list(dict.fromkeys(r["tokens"] for r in found))
    table = _table("ratio to attention by length", "rule, pass", *map(str, lengths))
    cells: dict[str, dict[int, str]] = {}
    for r in found:
        cells.setdefault(f"{r['rule']}\n  {r['pass']}", {})[r["tokens"]] = _ratio(r, "attention").replace(" ", "\n")
    for name, ratios in cells.items():
        table.add_row(name, *(ratios.get(n, "not measured") for n in lengths))
    return table


def _compile(found: list[Report]) -> Table:
    table = _table("torch.compile, tokens/s", "rule, pass", "tokens", "eager", "compiled", "ratio", "compiling")
    for r in found:
        speeds = (_speed(r, "eager"), _speed(r, "compiled"))
        name = f"{r['rule']}\n  {r['pass']}"
        table.add_row(name, str(r["tokens"]), *speeds, _ratio(r, "eager"), f"{r['compile_seconds']:.0f} s")
    return table


def plot(report: Report, path: Path) -> None:
    """Ratios with their spread: to the loop and to attention, and the sweep if there is one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    machine, config, results = report["machine"], report["config"], report["results"]
    swept = [r for r in results if r["section"] == "sweep" and r["ratios"]]
    rules = list(report["verified"])[::-1]
    columns = 3 if swept else 2
    figure, axes = plt.subplots(1, columns, figsize=(5.2 * columns, 2 + 0.36 * len(rules)), layout="constrained")
    _points(axes[0], report, rules, "loop", "loop", f"its own loop, {config['loop_tokens']} tokens")
    _points(axes[1], report, rules, "attention", "attention", f"attention, {config['tokens']} tokens")
    if swept:
        _lines(axes[2], swept)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS]
    figure.legend(handles, PASSES, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(
        f"Memory rules on {_where(machine)}, torch {machine['versions']['torch']}\nbatch {config['batch']}, "
        f"{config['heads']} heads of {config['width']}, chunk {config['chunk']}, {config['dtype']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _points(ax: Any, report: Report, rules: list[str], section: str, rival: str, title: str) -> None:
    for height, which, colour in zip((0.19, -0.19), PASSES, COLOURS):
        found = {r["rule"]: r["ratios"] for r in report["results"] if (r["section"], r["pass"]) == (section, which)}
        for i, name in enumerate(rules):
            known = found.get(name, {}).get(rival)
            if known is not None:
                ax.plot([known["min"], known["max"]], [i + height] * 2, color=colour, linewidth=1.5)
                ax.plot(known["median"], i + height, "o", color=colour)
    for i, name in enumerate(rules):
        if not report["verified"][name]["green"]:
            ax.text(0.02, i, RED, transform=ax.get_yaxis_transform(), va="center", color="#b00020")
    ax.set_yticks(range(len(rules)), rules)
    ax.set_ylim(-0.6, len(rules) - 0.4)
    ax.grid(axis="x", color="#dddddd")
    ax.set_axisbelow(True)
    ax.set_xscale("log")
    ax.axvline(1.0, color="#333333", linewidth=0.8)
    ax.set_title(f"times as fast as {title}", fontsize=10)


def _lines(ax: Any, swept: list[Report]) -> None:
    for number, name in enumerate(dict.fromkeys(r["rule"] for r in swept)):
        for which, style in zip(PASSES, ("--", "-")):
            some = [r for r in swept if r["rule"] == name and r["pass"] == which]
            ratios = [r["ratios"]["attention"]["median"] for r in some]
            label = name if style == "-" else None
            ax.plot([r["tokens"] for r in some], ratios, style, marker="o", color=f"C{number}", label=label)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.axhline(1.0, color="#333333", linewidth=0.8)
    ax.set_xlabel("tokens (dashed: forward alone)")
    ax.set_title("times as fast as attention", fontsize=10)
    ax.legend(frameon=False)
