"""Real output for docs/learner.md.

    python -m benchmarks.learner_page --base FOLDER --own FOLDER --novel FILE --law FILE

`--own` is a model that learns in context by itself. Every console block of the page is run, in order, in a fresh
folder, and its output put in place of what stands there; with `--only HEADING` those of one section.
"""

import argparse
import gzip
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "learner.md"
PROBES = """\
- {{name: novel, kind: text, text: {novel!r}, rise: 0.05}}
- {{name: drift, kind: drift, text: {novel!r}, max: 1.0}}
- {{name: size, kind: norm, max: 0.5, action: rollback}}
"""


def text_of(path: Path, skip: int, count: int) -> str:
    """A piece of a file, from the beginning of a line."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        file.seek(skip)
        return file.read(count).decode("utf-8", "ignore").partition("\n")[2]


def prepare(folder: Path, base: Path, own: Path, novel: Path, law: Path) -> None:
    """The files that the page speaks of."""
    (folder / "base").symlink_to(base.resolve())
    (folder / "own").symlink_to(own.resolve())
    (folder / "novel.txt").write_text(text_of(novel, 60_000, 12_288))
    (folder / "law.txt").write_text(text_of(law, 60_000, 12_288))
    chance = random.Random(0)
    letters = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz ", k=4096))
    (folder / "web.txt").write_text(letters)
    probe = " ".join(text_of(novel, 90_000, 1200).split())
    (folder / "probes.yaml").write_text(PROBES.format(novel=probe.replace("'", "")))


def run(command: str, folder: Path) -> str:
    """What the shell shows."""
    words = command.replace("circadia ", f"{sys.executable} -m circadia ", 1)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command}: {done.stderr}")
    return (done.stdout + done.stderr).rstrip()


def fill(page: Path, folder: Path, run: Callable[[str, Path], str] = run, only: str | None = None) -> None:
    """Run every console block of a page or of a section, in order, and put its output into its place."""

    def again(block: re.Match) -> str:
        shown = []
        for line in block[1].splitlines():
            if line.startswith("$ "):
                print(line, flush=True)
                shown += [line, run(line[2:], folder)]
        return "```console\n" + "\n".join(filter(None, shown)) + "\n```"

    sections = re.split(r"(?m)^(?=## )", page.read_text())
    for i, section in enumerate(sections):
        if only is None or section.startswith(f"## {only}\n"):
            sections[i] = re.sub(r"```console\n(.*?)```", again, section, flags=re.S)
    page.write_text("".join(sections))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("base", "own", "novel", "law"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--only", metavar="HEADING", help="a section of the page")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, given.base, given.own, given.novel, given.law)
        fill(PAGE, folder, only=given.only)
        picture = folder / "life.svg"
        if picture.exists():
            (PAGE.parent / "learner.svg").write_text(picture.read_text())


if __name__ == "__main__":
    main()
