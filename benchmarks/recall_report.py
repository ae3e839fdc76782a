"""The table of ``benchmarks.recall``, and what it says in words: every sentence is filled from the measurements."""

from itertools import pairwise
from math import log2
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 118  # columns of a screen that has room for all of the table
GOOD = 0.9  # the accuracy up to which pairs count as kept


def figures(results: dict[str, Any], label: str) -> dict[str, list[float]]:
    """The numbers of one row, each as one value a seed."""
    config, found = results["config"], results["rules"][label]["per_seed"]
    width, newest = config["width"], config["newest"]
    at = {count: i for i, count in enumerate(config["counts"])}
    row = {"noisy": found["noisy"]}
    for task in ("pairs", "alike"):
        for name, count in (("few", width // 8), ("half", width // 2), ("one", width), ("two", 2 * width)):
            row[f"{task} {name}"] = [curve[at[count]] for curve in found[task]]
    row["newest"] = [mean(ages[-newest:]) for ages in found["long"]]
    row["oldest"] = [mean(ages[:newest]) for ages in found["long"]]
    row["newer"] = [shares[0] for shares in found["again"]]
    row["older"] = [shares[1] for shares in found["again"]]
    return row


def spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def kept(results: dict[str, Any], label: str, task: str = "pairs") -> str:
    """How many pairs can be stored before the accuracy falls under ``GOOD``, between two counts on a log scale."""
    counts = results["config"]["counts"]
    curve = [mean(values) for values in zip(*results["rules"][label]["per_seed"][task])]
    if curve[0] < GOOD:
        return f"fewer than {counts[0]}"
    for (a, y), (b, z) in pairwise(zip(counts, curve)):
        if z < GOOD:
            return f"{2 ** (log2(a) + (y - GOOD) / (y - z) * (log2(b) - log2(a))):.0f}"
    return f"at least {counts[-1]}"


def versus(a: list[float], b: list[float]) -> str:
    """A against b, seed by seed."""
    differences = [100 * (x - y) for x, y in zip(a, b)]
    mid = mean(differences)
    # Two standard errors; one seed has none, so two points stand in.
    noise = 2 * stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 2.0
    if abs(mid) <= max(noise, 0.5):
        return f"no clear difference ({mid:+.1f} points)"
    return f"{abs(mid):.0f} points {'more' if mid > 0 else 'fewer'}" if abs(mid) >= 1 else f"{mid:+.1f} points"


def show(results: dict[str, Any], console: Console) -> None:
    console.print(table(results, wide=console.width >= WIDE))
    config = results["config"]
    many = f"mean ± standard deviation over {config['seeds']} seeds" if config["seeds"] > 1 else "one seed, no spread"
    console.print(
        f"Per cent right, {many}; chance is {config['chance']:.1%}. "
        f"½, 1, 2 d_k: stored pairs in widths of the key (d_k = {config['width']}). Alike: keys with mean cosine "
        f"{config['alike']}. Noisy: queries with cosine {config['noisy']} to their key. Newest, oldest: "
        f"{config['newest']} of {config['pairs']} pairs. Again: {config['width'] // 2} keys stored twice. The settings "
        "tuned for each task stand below and in recall.json.",
        style="dim",
    )
    for name, why in results["left_out"].items():
        console.print(f"Left out: {name} {why}.", style="dim")
    console.print()
    for sentence in reading(results):
        console.print(Text(f"• {sentence}"))
    console.print(chosen(results))


def table(results: dict[str, Any], *, wide: bool) -> Table:
    """One row a memory; on a narrow screen without the spreads and the less telling columns."""
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    made.add_column("memory", no_wrap=True, min_width=22)
    made.add_column("state\nbytes", justify="right")
    columns = {
        "pairs half": "random\n½ d_k",
        "pairs one": "random\n1 d_k",
        "pairs two": "random\n2 d_k",
        "noisy": "noisy\n½ d_k",
        "alike half": "alike\n½ d_k",
        "alike one": "alike\n1 d_k",
        "newest": "long\nnewest",
        "oldest": "long\noldest",
        "newer": "again\nnewer",
        "older": "again\nolder",
    }
    if not wide:
        columns = {
            name: head for name, head in columns.items() if name not in ("pairs half", "noisy", "alike half", "older")
        }
    for head in columns.values():
        made.add_column(head, justify="right")
    family = None
    for label, rule in results["rules"].items():
        if family not in (None, rule["family"]):
            made.add_section()
        family = rule["family"]
        row = figures(results, label)
        cells = [
            f"{100 * mean(row[c]):.0f}" + (f" ±{100 * spread(row[c]):.0f}" if wide and len(row[c]) > 1 else "")
            for c in columns
        ]
        made.add_row(label, f"{rule['state_bytes']:,}", *cells)
    return made


def chosen(results: dict[str, Any]) -> Table:
    """What was tuned for each task."""
    signs = {"eta": "η", "alpha": "α", "beta": "β", "head": "head", "gain": "g"}
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), style="dim", row_styles=["dim"], header_style="dim")
    made.caption = "η rate, α retention, β momentum; of the last matrix of an MLP: g gain, s scale of its steps"
    for head in ("tuned for", "random keys", "keys alike", "long stream", "keys again"):
        made.add_column(head)
    for label, rule in results["rules"].items():
        cells = []
        for one in rule["tuned"].values():
            found = {**one["setting"], **one["treatment"]}
            words = [f"{sign} {found[name]:g}" for name, sign in signs.items() if name in found]
            if "output_scale" in found:
                words.append("s 1" if found["output_scale"] else f"s 1/{results['config']['chunk']}")
            cells.append(" ".join(words) or "-")
        made.add_row(label, *cells)
    return made


def reading(results: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    config = results["config"]
    rows = {label: figures(results, label) for label in results["rules"]}
    width = config["width"]

    def says(name: str, *labels: str) -> str:
        return ", ".join(f"{label} {100 * mean(rows[label][name]):.0f}%" for label in labels)

    def best(family: str, name: str) -> str:
        members = [label for label, rule in results["rules"].items() if rule["family"] == family]
        return max(members, key=lambda label: mean(rows[label][name]))

    def against(name: str, a: str, b: str) -> str:
        return versus(rows[a][name], rows[b][name])

    rate = results["rules"]["deltanet"]["tuned"]["pairs"]["setting"]["eta"]
    deep = best("deep", "pairs one")
    own, large = results["rules"]["self_modifying"], results["rules"]["self_modifying, large"]
    extra = 1 - own["memory_bytes"] / own["state_bytes"]
    ratio = large["state_bytes"] / own["state_bytes"]
    return [
        f"Random keys: {GOOD:.0%} of the answers are right up to {kept(results, 'linear')} pairs with linear attention,"
        f" {kept(results, 'deltanet')} with deltanet (tuned rate {rate:g}), {kept(results, 'dgd')} with dgd (d_k is"
        f" {width}). Deltanet against linear at d_k pairs: {against('pairs one', 'deltanet', 'linear')}.",
        f"Similar keys, {width} pairs: {says('alike one', 'linear', 'deltanet', 'dgd')}. Deltanet against linear:"
        f" {against('alike one', 'deltanet', 'linear')}; dgd against deltanet, the same equation at retention 1:"
        f" {against('alike one', 'dgd', 'deltanet')}.",
        f"A stream of {config['pairs']} pairs, newest {config['newest']}:"
        f" {says('newest', 'linear', 'retnet', 'mamba2', 'deltanet', 'dgd')}; oldest:"
        f" {says('oldest', 'linear', 'retnet', 'mamba2', 'deltanet', 'dgd')}. Decay (mamba2) against none (linear):"
        f" newest {against('newest', 'mamba2', 'linear')}, oldest {against('oldest', 'mamba2', 'linear')}.",
        f"A key stored again, newer value returned: {says('newer', 'linear', 'mamba2', 'deltanet', 'dgd', 'dgd_mlp')};"
        f" the older one: {says('older', 'linear', 'mamba2', 'deltanet', 'dgd', 'dgd_mlp')}.",
        f"Depth, untrained: {deep} is the MLP memory that keeps most random pairs; at d_k pairs"
        f" {says('pairs one', deep, 'linear')}. Against a matrix of the same size with linear attention:"
        f" {against('pairs one', deep, 'linear')}.",
        "DGD on an MLP memory, dgd_mlp against dgd_mlp_decay (the same without the factor), at d_k pairs: random keys"
        f" {against('pairs one', 'dgd_mlp', 'dgd_mlp_decay')}, similar keys"
        f" {against('alike one', 'dgd_mlp', 'dgd_mlp_decay')}, keys stored again"
        f" {against('newer', 'dgd_mlp', 'dgd_mlp_decay')}.",
        f"Self-modifying, untrained: {extra:.0%} of its state are the memories that make keys, values and rates. At"
        f" {width // 8} random pairs: {says('pairs few', 'self_modifying', 'self_modifying, large', 'dgd_mlp')}; the"
        f" large one has the main memory of dgd_mlp and its projections on top, {ratio:.1f} times the state.",
    ]
