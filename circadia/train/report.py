"""The end of a run as a page: what was trained, how it went, and the command that does it again."""

import importlib.util
import math
import shlex
from pathlib import Path
from typing import Any

from circadia.train.config import TrainConfig
from circadia.train.log import read


def write(run: Path, config: TrainConfig, facts: dict[str, Any]) -> Path:
    """report.md, with loss.png and levels.png where matplotlib is installed."""
    lines = read(run)
    steps = [line for line in lines if line["kind"] == "step"]
    # What was not finite the log has as null.
    evals = [{n: math.nan if x is None else x for n, x in line.items()} for line in lines if line["kind"] == "eval"]
    skipped = sum(line["skipped"] for line in steps)
    seconds = sum(line["seconds"] for line in steps)
    waited = sum(line["waited"] for line in steps)
    tokens = sum(line["tokens"] for line in steps)
    text = [f"# {run.name}", ""]
    if evals:
        best = min(evals, key=lambda line: math.inf if math.isnan(line["loss"]) else line["loss"])
        text += [
            f"Held-out bits per byte {evals[-1]['bits_per_byte']:.4f} (perplexity {evals[-1]['perplexity']:.3f} per "
            f"token) after {evals[-1]['step']} steps; best {best['bits_per_byte']:.4f} after {best['step']}.",
            "",
        ]
    rows = {
        "model": config.model.preset or config.model.path,
        "parameters": f"{facts['parameters']:,}",
        "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}, {config.optim.schedule}",
        "stages": ", ".join(config.names),
        "steps": f"{len(steps)}, {skipped} of them skipped",
        "tokens": f"{tokens:,}",
        "tokens a second": f"{tokens / seconds:,.0f}" if seconds else "-",
        "waited for data": f"{waited / seconds:.2%} of the time" if seconds else "-",
        "time in steps": f"{seconds:,.0f} s on {facts['processes']} x {facts['device']}",
        "seed": config.seed,
        "versions": facts["versions"],
    }
    text += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
    if _picture(run / "loss.png", steps, evals):
        text += ["![Loss over the tokens read](loss.png)", ""]
    if evals:
        text += ["| step | held-out loss (nats a token) | bits per byte | perplexity |", "|---|---|---|---|"]
        every = math.ceil(len(evals) / 20)
        shown = [*evals[::every], *([evals[-1]] if (len(evals) - 1) % every else [])]
        text += [f"| {e['step']} | {e['loss']:.4f} | {e['bits_per_byte']:.4f} | {e['perplexity']:.3f} |" for e in shown]
        text += [""]
    text += _levels(run, steps, [line for line in lines if line["kind"] == "levels"])
    text += ["Again, into another folder:", "", "```", again(run), "```", ""]
    path = run / "report.md"
    path.write_text("\n".join(text), encoding="utf-8")
    return path


def _levels(run: Path, steps: list[dict[str, Any]], looks: list[dict[str, Any]]) -> list[str]:
    """What each level that learns in context did: over the run in a picture, its beginning and end in a table."""
    if not looks:
        return []
    names = list(dict.fromkeys(name.rpartition("/")[0] for line in looks for name in line if "/" in name))
    text = [f"What each level did in one row: the norm of its inner update, and its surprise ({len(looks)} looks):", ""]
    if _levels_picture(run / "levels.png", steps, looks, names):
        text += ["![Inner update and surprise of every level](levels.png)", ""]
    text += ["| level | update, first | last | surprise, first | last |", "|---|---|---|---|---|"]
    for name in names:
        cells = []
        for what in ("update", "surprise"):
            known = [line[f"{name}/{what}"] for line in looks if line.get(f"{name}/{what}") is not None]
            cells += [f"{known[0]:.4g}", f"{known[-1]:.4g}"] if known else ["-", "-"]
        text.append(f"| {name} | {' | '.join(cells)} |")
    return [*text, ""]


def _levels_picture(path: Path, steps: list[dict], looks: list[dict], names: list[str]) -> bool:
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    at = _tokens(steps)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("update", "surprise")):
        for name in names:
            known = [(at[line["step"]], line[f"{name}/{what}"]) for line in looks if line.get(f"{name}/{what}")]
            if known:
                axes.plot(*zip(*known), lw=1.2, label=name)
        axes.set(xlabel="tokens", ylabel={"update": "norm of the inner update"}.get(what, what))
        axes.spines[["top", "right"]].set_visible(False)
        if what == "update" and axes.lines:
            axes.set_yscale("log")  # a memory's matrices move by orders of magnitude more than an MLP's
            axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return True


def _tokens(steps: list[dict[str, Any]]) -> dict[int, int]:
    """Tokens read after each step."""
    total, at = 0, {0: 0}
    for line in steps:
        total += line["tokens"]
        at[line["step"]] = total
    return at


def again(run: Path) -> str:
    """The command that reproduces a run."""
    return f"circadia train {shlex.quote(str(run / 'config.yaml'))} out={shlex.quote(str(run) + '-again')}"


def _picture(path: Path, steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> bool:
    if not steps or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    at = _tokens(steps)
    good = [line for line in steps if not line["skipped"]]
    axes.plot([at[s["step"]] for s in good], [s["loss"] for s in good], lw=0.8, color="#9aa7b8", label="training")
    if evals:
        axes.plot(
            [at[e["step"]] for e in evals], [e["loss"] for e in evals], marker="o", color="#c2410c", label="held out"
        )
    for line in steps:
        if line["skipped"]:
            axes.axvline(at[line["step"]], color="#dc2626", lw=0.5)
    axes.set(xlabel="tokens", ylabel="nats a token")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return True
