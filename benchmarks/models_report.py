"""The tables of ``benchmarks.models`` as Markdown, from what its JSON file holds."""

from typing import Any

from benchmarks.harness import human

Report = dict[str, Any]
RIVAL = "transformer++"


def markdown(report: Report) -> str:
    """Every number with its spread."""
    config, machine = report["config"], report["machine"]
    parts = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['versions']['torch']}; size {config['size']}, "
        f"batch {config['batch']}, float32; {config['reps']} repetitions, median (least-most)"
    ]
    steps = [r for r in report["results"] if r["section"] == "step"]
    rows = []
    for r in steps:
        known = r["contestants"][r["ours"]]
        first = f"{r['first_step_seconds']:.0f} s" if "first_step_seconds" in r else ""
        speed = human(known["tokens_per_second"]) if "tokens_per_second" in known else known["not_measured"]
        rows.append([r["preset"], r["form"], str(r["tokens"]), speed, _ratio(r["ratios"].get(RIVAL)), first])
    head = ["preset", "form", "tokens", "tokens/s", f"times {RIVAL}", "first step, with compiling"]
    parts.append(_table("A step: forward, backward, AdamW", head, rows))
    decoded = [r for r in report["results"] if r["section"] == "decode"]
    rows = []
    for r in decoded:
        for name, known in r["contestants"].items():
            each = f"{1e3 / known['tokens_per_second']:.2f} ms" if "median" in known else known["not_measured"]
            rows.append([r["preset"], name, each, _ratio(r["ratios"].get(name))])
    if rows:
        head = ["preset", "context", "time per token", "speed after the first context, as a multiple of this"]
        parts.append(_table("Decoding", head, rows))
    if report["memory"]:
        rival = report["memory"][RIVAL].get("bytes")
        rows = []
        for name, known in report["memory"].items():
            grown = known.get("bytes")
            size = known["not_measured"] if grown is None else f"{grown / 2**20:.0f} MiB"
            rows.append([name, size, f"{grown / rival:.2f}" if grown and rival else ""])
        title = f"Resident memory that a step of {max(config['tokens'])} tokens adds"
        parts.append(_table(title, ["preset", "added", f"times {RIVAL}"], rows))
    return "\n\n".join(parts) + "\n"


def _ratio(known: Report | None) -> str:
    if known is None:
        return ""
    return f"{human(known['median'])} ({human(known['min'], 2)}-{human(known['max'], 2)})"


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
