"""Does it learn language? Architectures at equal parameters and tokens on novels, tested on authors never read.

    nice python -m benchmarks.language --data novels.jsonl.xz --threads 1 --out runs/language

Each architecture reads the same rows in the same order. Its learning rate comes from one grid, by short runs with seed
0; then every seed runs with it. The report holds the finished runs only, at any time (`--report` writes it alone).
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import grid, harness
from benchmarks.grid import Study
from circadia.models.measure import Cost, cost

PRESETS = "transformer++,gated-deltanet,titans-lmm,hope-attention,hope"
COLORS = ("#57534e", "#0369a1", "#15803d", "#9333ea", "#c2410c", "#0f766e", "#be123c", "#a16207")


def variants(names: str) -> dict[str, list[str]]:
    """Of presets with commas; without a size they are tiny."""
    full = [name if "/" in name else f"{name}/tiny" for name in names.split(",")]
    return {name: [f"model.preset={name}"] for name in full}


def results(study: Study) -> dict[str, Any]:
    """All that the finished runs say."""
    rows = []
    for name in study.variants:
        rate = study.rate(name)
        tried = {f"{r:g}": _number(grid.outcome(study.tuning(name, r))) for r in study.rates}
        row: dict[str, Any] = {"model": name, "rate": rate, "tried": tried, "runs": []}
        for seed, found in study.outcomes(name).items():
            row["runs"].append({"seed": seed, **vars(found), "bits_per_byte": _number(found)})
        if row["runs"]:
            used = _cost(study, name)
            row["state_bytes"] = used.state_bytes + used.bytes_per_token * study.length
            row["flops_per_token"] = used.flops_per_token
        rows.append(row)
    return {"tokens": study.tokens, "length": study.length, "batch": study.batch, "rows": rows}


def _number(found: grid.Outcome | None) -> float | None:
    """JSON knows no infinity: a run that diverged has none."""
    return None if found is None or found.bits_per_byte == float("inf") else found.bits_per_byte


@cache
def _costs(config: str, length: int) -> Cost:
    from circadia.models import HopeConfig

    return cost(HopeConfig.from_json_file(config), length)


def _cost(study: Study, name: str) -> Cost:
    rate = study.rate(name)
    assert rate is not None
    folder = next(Path(study.final(name, rate, seed).out) for seed in study.outcomes(name))
    return _costs(str(next(folder.rglob("config.json"))), study.length)


def table(found: dict[str, Any]) -> list[str]:
    """In Markdown; speed and time are of this machine, whatever else it did."""
    lines = [
        "| model | parameters | bits per byte, held-out authors | seeds | lr | seconds a run | tokens/s | "
        f"state after {found['length']} tokens | forward FLOPs a token |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        runs = row["runs"]
        good = [run["bits_per_byte"] for run in runs if run["bits_per_byte"] is not None]
        if not runs:
            lines.append(f"| {row['model']} | - | not finished | 0 | {rate_text(row)} | - | - | - | - |")
            continue
        diverged = f", {len(runs) - len(good)} diverged" if len(good) < len(runs) else ""
        seconds = [run["seconds"] for run in runs]
        speed = sum(run["tokens"] for run in runs) / sum(seconds)
        lines.append(
            f"| {row['model']} | {runs[0]['parameters']:,} | {grid.mean_and_spread(good) if good else '-'}{diverged} | "
            f"{len(runs)} | {rate_text(row)} | {sum(seconds) / len(seconds):,.0f} | {speed:,.0f} | "
            f"{row['state_bytes']:,} bytes | {row['flops_per_token']:,} |"
        )
    return lines


def rate_text(row: dict[str, Any]) -> str:
    """The chosen one; said if it is at the end of the grid, so that a better one may lie beyond."""
    if row["rate"] is None:
        return "-"
    tried = [float(rate) for rate in row["tried"]]
    edge = len(tried) > 1 and row["rate"] in (min(tried), max(tried))
    return f"{row['rate']:g}" + (" (edge of the grid)" if edge else "")


def grid_table(found: dict[str, Any]) -> list[str]:
    """What chose the learning rates."""
    rates = list(found["rows"][0]["tried"])
    lines = ["| model | " + " | ".join(rates) + " |", "|---|" + "---|" * len(rates)]
    for row in found["rows"]:
        each = ["-" if value is None else f"{value:.4f}" for value in row["tried"].values()]
        lines.append(f"| {row['model']} | " + " | ".join(each) + " |")
    return lines


def picture(found: dict[str, Any], path: Path) -> None:
    """Bits per byte over the tokens read: the mean of the seeds, and all of them between."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row, color in zip(found["rows"], COLORS * 4):
        curves = [dict(run["curve"]) for run in row["runs"]]
        if not curves:
            continue
        at = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = [[curve[x] for curve in curves] for x in at]
        mean = [sum(each) / len(each) for each in values]
        axes.plot(at, mean, marker="o", ms=3, color=color, label=f"{row['model']} ({len(curves)})")
        axes.fill_between(at, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15, lw=0)
    axes.set(xlabel="tokens read", ylabel="bits per byte, held-out authors")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, title="model (seeds)")
    figure.savefig(path, dpi=130)


def report(study: Study) -> dict[str, Any]:
    """results.json, report.md and curves.png, of what is finished."""
    found = results(study)
    study.out.mkdir(parents=True, exist_ok=True)
    harness.write_json(study.out / "results.json", {**found, "machine": harness.machine("cpu")})
    picture(found, study.out / "curves.png")
    text = [
        f"# Language: {study.tokens:,} tokens in rows of {study.length}, {study.batch} rows a step",
        "",
        *table(found),
        "",
        "Bits per byte: mean over the seeds (least to most). Seconds and tokens/s: steps only, on this machine.",
        "",
        "![Bits per byte over the tokens read](curves.png)",
        "",
        f"Learning rates, chosen by bits per byte after {study.tune_tokens:,} tokens with seed 0:",
        "",
        *grid_table(found),
        "",
    ]
    (study.out / "report.md").write_text("\n".join(text), encoding="utf-8")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = grid.parser("benchmarks.language", __doc__.splitlines()[0], "runs/language")  # type: ignore[union-attr]
    parser.add_argument("--presets", default=PRESETS, help="with commas; architecture/size, or architecture for tiny")
    given = parser.parse_args(arguments)
    study = grid.study(given, variants(given.presets))
    return grid.main(parser, given, study, report)


if __name__ == "__main__":
    sys.exit(main())
