"""What each part of Hope is worth: Table 6 of the paper at a small size, its column beside ours.

    nice python -m benchmarks.ablation --data novels.jsonl.xz --threads 1 --out runs/ablation

The whole model of the paper has momentum and a memory that makes the queries (its table takes both away); ours has
neither unless told, and stands in the last row. Every other row changes one thing of the first:

without DGD           plain gradient descent on the L2 objective at the chunk start: no factor (alpha - eta k k^T)
without momentum      of the memories' inner optimizer
without weight decay  the retention alpha is 1: nothing is forgotten
without CMS           one MLP that never learns in context, as wide as the three levels together
static k, v, q        that projection comes from a memory that keeps its start; q: from the input alone
"""

import json
import sys
from typing import Any

from benchmarks import grid, harness, language
from benchmarks.grid import Study

WHOLE = {"inertia": True, "adaptive_q": True}
# Name -> settings of the self-modifying rule, and of the model.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hope": (WHOLE, {}),
    "without DGD": ({**WHOLE, "erase": False, "objective": "l2"}, {}),
    "without momentum": ({**WHOLE, "inertia": False}, {}),
    "without weight decay": ({**WHOLE, "decays": False}, {}),
    "without CMS": (WHOLE, {"periods": [0]}),
    "static k": ({**WHOLE, "static": ["k"]}, {}),
    "static v": ({**WHOLE, "static": ["v"]}, {}),
    "static q": ({**WHOLE, "adaptive_q": False}, {}),
    "default hope": ({}, {}),
}
# Perplexity and accuracy on reasoning in Table 6 of "Nested Learning" (1.3B parameters, 100B tokens).
PAPER = {
    "hope": (12.24, 58.1),
    "without DGD": (13.41, 56.5),
    "without momentum": (13.58, 56.9),
    "without weight decay": (13.71, 57.2),
    "without CMS": (13.04, 57.3),
    "static k": (13.77, 56.9),
    "static v": (13.90, 55.1),
    "static q": (12.19, 57.4),
}


def variants(size: str, names: list[str]) -> dict[str, list[str]]:
    """Overrides of the configuration for each."""
    made = {}
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"--variants: {name!r} is unknown; use some of {', '.join(VARIANTS)}")
        rule, model = VARIANTS[name]
        changes = {**model, **({"rules": {"self_modifying": rule}} if rule else {})}
        each = [f"model.config.{key}={json.dumps(value)}" for key, value in changes.items()]
        made[name] = [f"model.preset=hope/{size}", *each]
    return made


def table(found: dict[str, Any]) -> list[str]:
    """Ours beside the paper's; differences are to the whole model, above zero where the part helps."""
    lines = [
        "| | bits per byte | difference | seeds | lr | parameters | tokens/s | paper: perplexity | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first = next((row["runs"] for row in found["rows"] if row["model"] == "hope"), [])
    whole = {run["seed"]: run["bits_per_byte"] for run in first}
    for row in found["rows"]:
        runs = [run for run in row["runs"] if run["bits_per_byte"] is not None]
        perplexity, accuracy = PAPER.get(row["model"], ("-", "-"))
        if not runs:
            why = "diverged" if row["runs"] else "not finished"
            lines.append(f"| {row['model']} | {why} | - | 0 | - | - | - | {perplexity} | {accuracy} |")
            continue
        # Seed by seed: the same order of the text on both sides.
        each = [run["bits_per_byte"] - whole[run["seed"]] for run in runs if whole.get(run["seed"]) is not None]
        difference = "-"
        if each and row["model"] != "hope":
            difference = f"{sum(each) / len(each):+.4f} ({min(each):+.4f} to {max(each):+.4f})"
        speed = sum(run["tokens"] for run in runs) / sum(run["seconds"] for run in runs)
        lines.append(
            f"| {row['model']} | {grid.mean_and_spread([run['bits_per_byte'] for run in runs])} | {difference} | "
            f"{len(runs)} of {len(row['runs'])} | {language.rate_text(row)} | {runs[0]['parameters']:,} | "
            f"{speed:,.0f} | {perplexity} | {accuracy} |"
        )
    return lines


def report(study: Study) -> dict[str, Any]:
    """results.json, report.md and curves.png, of what is finished."""
    found = language.results(study)
    study.out.mkdir(parents=True, exist_ok=True)
    harness.write_json(study.out / "results.json", {**found, "paper": PAPER, "machine": harness.machine("cpu")})
    language.picture(found, study.out / "curves.png")
    text = [
        f"# Ablation of Hope: {study.tokens:,} tokens in rows of {study.length}, {study.batch} rows a step",
        "",
        *table(found),
        "",
        "Bits per byte on held-out authors: mean over the seeds (least to most); the difference to the whole model is",
        "taken seed by seed. The paper's figures are of its Table 6: another size, other text.",
        "",
        "![Bits per byte over the tokens read](curves.png)",
        "",
        "Learning rates:",
        "",
        *language.grid_table(found),
        "",
    ]
    (study.out / "report.md").write_text("\n".join(text), encoding="utf-8")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = grid.parser("benchmarks.ablation", __doc__.splitlines()[0], "runs/ablation")  # type: ignore[union-attr]
    parser.add_argument("--size", default="tiny", help="of the preset hope/SIZE")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="with commas; rows of the table")
    given = parser.parse_args(arguments)
    try:
        study = grid.study(given, variants(given.size, given.variants.split(",")))
    except ValueError as error:
        parser.error(str(error))
    return grid.main(parser, given, study, report)


if __name__ == "__main__":
    sys.exit(main())
