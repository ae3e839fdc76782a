"""What is known of a suite as JSON, tables and a plot; and docs/results.md, made of such JSON and of nothing else."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from circadia.evals import SUITES, load
from circadia.evals.suite import Options, Record, Suite
from circadia.files import write_whole

HEAD = """<!-- Written by `circadia eval report` from the JSON files in {folder}/. Do not edit. -->

# Results

The command of a suite does its runs again; with `--resume` it goes on where it was stopped. In the place of its bases
may stand any Hugging Face decoder: give `--base` its folder, and expect the time to grow with its parameters. What was
made of these figures, and what failed, stands in [experiments.md](experiments.md).
"""


def write(own: Suite, options: Options, records: list[Record], left: int, out: Path) -> None:
    """NAME.json, NAME.md and NAME.png."""
    found = {
        "suite": own.name,
        "depth": options.depth,
        "left": left,  # runs that were known and not done
        "command": _command(own, options),
        **_packed(records),
    }
    path = out / f"{own.name}.json"
    _replace(path, json.dumps(found, separators=(",", ":"), allow_nan=False).replace('{"run"', '\n{"run"') + "\n")
    _replace(out / f"{own.name}.md", page(path))
    own.plot(records, out / f"{own.name}.png")


def _command(own: Suite, options: Options) -> str:
    """Without the paths of this machine: of folders, their names."""
    words = ["circadia eval", own.name]
    words += [f"--{options.depth}"] if options.depth != "default" else []
    for name, values in (("models", options.models), ("base", [folder.name for folder in options.bases]),
                         ("hope", [folder.name for folder in options.hopes])):  # fmt: skip
        text = ",".join(values)
        words += [f"--{name}", f'"{text}"' if " " in text else text] if values else []
    words += [f"--{name} {x}" for name in ("seeds", "steps") if (x := getattr(options, name)) is not None]
    words += ["--data DIR"] if own.needs.data else []
    return " ".join(words)


def _packed(records: list[Record]) -> dict[str, Any]:
    """Each place of work once."""
    places: list[dict[str, Any]] = []
    runs = []
    for one in records:
        place = {name: x for name, x in one.where.items() if name != "time"}
        if place not in places:
            places.append(place)
        runs.append({"run": one.run, "scores": one.scores, "seconds": one.seconds, "where": places.index(place),
                     "time": one.where.get("time")})  # fmt: skip
    return {"places": places, "runs": runs}


def read(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """A file of `write`: what stands in it, and its records."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if missing := {"suite", "depth", "left", "command"} - found.keys():
            raise ValueError(f"it has no {min(missing)}")
        places = found["places"]
        records = [
            Record(x["run"], x["scores"], x["seconds"], {**places[x["where"]], "time": x["time"]})
            for x in found["runs"]
        ]
        load(found["suite"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no result of `circadia eval` ({error}): remove it") from error
    return found, records


def page(path: Path) -> str:
    """One suite in Markdown."""
    found, records = read(path)
    own = load(found["suite"])
    seconds = sum(one.seconds for one in records)
    texts = [f"## {own.name}\n\n{own.summary[0].upper()}{own.summary[1:]}.\n"]
    state = f"Depth {found['depth']}; {len(records)} runs, {_hours(seconds)}"
    if found["left"]:
        state += f"; **{found['left']} runs are still to be done**"
    for place in found["places"]:
        versions = ", ".join(f"{name} {x}" for name, x in place["versions"].items())
        machine = place["machine"]
        state += f"; {machine['processor']}, {machine['threads']} of {machine['cores']} cores, {versions}"
    texts += [state + ".\n", f"`{found['command']}`\n"]
    texts += [table.markdown() for table in own.table(records)]
    return "\n".join(texts)


def rebuild(folder: Path, target: Path) -> int:
    """Write the page of all results in a folder; returns how many suites it holds."""
    paths = {path.stem: path for path in sorted(folder.glob("*.json"))}
    if not paths:
        raise ValueError(f"--results {folder}: it holds no result of a suite; add one with --add runs/eval/SUITE")
    parts = [HEAD.format(folder=folder.name)]
    for name in [*(n for n in SUITES if n in paths), *(n for n in paths if n not in SUITES)]:
        text = page(paths[name])
        picture = paths[name].with_suffix(".png")
        if picture.exists():
            text += f"\n![{name}]({os.path.relpath(picture, target.parent)})\n"
        parts.append(text)
    _replace(target, "\n".join(parts))
    return len(paths)


def add(results: Path, outs: Iterable[Path]) -> None:
    """Copy what a run of a suite left into the folder of results."""
    for out in outs:
        found = [path for path in sorted(out.glob("*.json")) if path.stem in SUITES]
        if not found:
            raise ValueError(f"--add {out}: it holds no result of a suite")
        results.mkdir(parents=True, exist_ok=True)
        for path in found:
            read(path)
            shutil.copy(path, results / path.name)
            if path.with_suffix(".png").exists():
                shutil.copy(path.with_suffix(".png"), results / f"{path.stem}.png")


def _hours(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())
