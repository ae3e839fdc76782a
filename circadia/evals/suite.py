"""What a suite of evaluations is: independent runs, how one is done, and how their scores are shown.

A run is a dict of JSON values that says everything that decides its result (model, task, seed, rate, steps, ...), so
runs can be done in any order, on any day, and on several machines; its record is the run with what came out.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEPTHS = ("quick", "default", "full")

Run = dict[str, Any]


def key(run: Run) -> str:
    """The same text for the same run, whatever the order of its settings."""
    return json.dumps(run, sort_keys=True)


@dataclass(frozen=True)
class Record:
    """A finished run."""

    run: Run
    scores: dict[str, Any]  # raw: what `Suite.run` returned
    seconds: float
    where: dict[str, Any] = field(default_factory=dict)  # versions, machine, time


@dataclass(frozen=True)
class Options:
    """What the user asked for. Whatever of it changes a result goes into the runs, but for the data: one --out, one
    --data.
    """

    depth: str = "default"
    models: tuple[str, ...] = ()  # empty: those that the suite shows at this depth
    seeds: int | None = None
    steps: int | None = None
    data: Path | None = None
    bases: tuple[Path, ...] = ()  # trained models that a suite starts from
    hopes: tuple[Path, ...] = ()  # models of our own that were trained from scratch to carry a memory
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            raise ValueError(f"depth={self.depth!r} is unknown: use one of {', '.join(DEPTHS)}")
        for name in ("seeds", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")

    def pick(self, quick: Any, default: Any, full: Any) -> Any:
        """The value for this depth."""
        return {"quick": quick, "default": default, "full": full}[self.depth]

    def chosen(self, offered: tuple[str, ...], shown: tuple[str, ...]) -> tuple[str, ...]:
        """The models to run: the user's, if the suite offers them, or those it shows."""
        for name in self.models:
            if name not in offered:
                raise ValueError(f"--models {name}: this suite offers {', '.join(offered)}")
        return tuple(dict.fromkeys(self.models)) or shown

    def folder(self, name: str) -> Path:
        """A folder of the data, or what to do about it."""
        if self.data is None:
            raise ValueError(f"this suite reads the folder {name}: give --data DIR, the folder that {name} lies in")
        found = self.data / name
        if not found.is_dir():
            raise ValueError(f"--data {self.data}: there is no folder {name} in it, which this suite reads")
        return found

    def base_folders(self) -> dict[str, Path]:
        """The bases by the name of their folder, which stands in the runs: a result knows no paths of a machine."""
        if not self.bases:
            raise ValueError("this suite starts from a trained model: give --base FOLDER, one or several with commas")
        return _named("--base", self.bases)

    def hope_folders(self) -> dict[str, Path]:
        """The same of models trained from scratch; none is no mistake."""
        found = _named("--hope", self.hopes)
        for name in found:
            if name in {folder.name for folder in self.bases}:
                raise ValueError(f"--hope: a --base is called {name}, too, and results are kept by that name")
        return found

    def model_folder(self, name: str) -> Path:
        """Of a base, or of a model trained from scratch."""
        return {**self.base_folders(), **self.hope_folders()}[name]


def _named(option: str, folders: tuple[Path, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise ValueError(f"{option} {folder}: there is no config.json in it; give the folder of a model")
        if folder.name in found:
            raise ValueError(f"{option}: two folders are called {folder.name}, and results are kept by that name")
        found[folder.name] = folder
    return found


@dataclass(frozen=True)
class Table:
    """Text in rows and columns."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        cells = [self.columns, ("---",) * len(self.columns), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n".join([f"### {self.title}", "", *lines, *(f"\n{note}" for note in self.notes)]) + "\n"


@dataclass(frozen=True)
class Needs:
    """For `circadia eval list`."""

    data: tuple[str, ...]  # folders of --data
    time: dict[str, str]  # depth -> about how long
    models: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """One file of this package; its row stands in ``circadia.evals.SUITES``."""

    name: str
    summary: str  # one line
    needs: Needs
    # All runs that are known so far. It is asked again when they are done, with their records: runs that depend on
    # others (the rate that was best) come then. Data that is missing is refused here.
    runs: Callable[[Options, list[Record]], list[Run]]
    run: Callable[[Run, Options], dict[str, Any]]  # does one, and returns its raw scores as JSON values
    table: Callable[[list[Record]], list[Table]]  # of any part of the runs
    plot: Callable[[list[Record], Path], None]  # a PNG
