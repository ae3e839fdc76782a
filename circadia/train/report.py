"""The end of a run as a page: what was trained, how it went, and the command that does it again."""

import importlib.util
import math
import shlex
from pathlib import Path
from typing import Any

from circadia.train.config import TrainConfig
from circadia.train.log import read


def write(run: Path, config: TrainConfig, facts: dict[str, Any]) -> Path:
    """report.md, with loss.png where matplotlib is installed."""
    lines = read(run)
    steps = [line for line in lines if line["kind"] == "step"]
    evals = [line for line in lines if line["kind"] == "eval"]
    skipped = sum(line["skipped"] for line in steps)
    seconds = sum(line["seconds"] for line in steps)
    waited = sum(line["waited"] for line in steps)
    tokens = sum(line["tokens"] for line in steps)
    text = [f"# {run.name}", ""]
    if evals:
        best = min(evals, key=lambda line: line["loss"])
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
    text += ["Again, into another folder:", "", "```", again(run), "```", ""]
    path = run / "report.md"
    path.write_text("\n".join(text), encoding="utf-8")
    return path


def again(run: Path) -> str:
    """The command that reproduces a run."""
    return f"circadia train {shlex.quote(str(run / 'config.yaml'))} out={shlex.quote(str(run) + '-again')}"


def _picture(path: Path, steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> bool:
    if not steps or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    total, at = 0, {0: 0}
    for line in steps:
        total += line["tokens"]
        at[line["step"]] = total
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
