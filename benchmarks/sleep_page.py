"""Real output for docs/sleep.md: ``python -m benchmarks.sleep_page --base FOLDER --data DIR``.

Every console block of the page is run, in order, in a fresh folder, and its output put in place of what stands there.
The day is that of benchmarks/sleep_facts.py: a novel with one plain sentence about an invented person in every chunk.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.learner_page import ROOT, fill
from benchmarks.sleep_facts import data_of, day_of, facts

PAGE = ROOT / "docs" / "sleep.md"
RUMOUR = "A stranger on a train said that every house in the town was made of cheese, and that nobody lived there.\n"
PROBES = "- {{name: own text, kind: text, text: {own!r}, rise: 0.6}}\n- {{name: size, kind: norm, max: 0.8}}\n"


def prepare(folder: Path, base: Path, data: Path) -> None:
    """The files that the page speaks of."""
    (folder / "base").symlink_to(base.resolve())
    found = data_of(data)
    day = day_of(facts(4, 0), 4, 0, found.novel)
    (folder / "monday.txt").write_bytes(b"".join(bytes(chunk.tolist()) for chunk in day))
    (folder / "law.txt").write_bytes(found.law[:2048])
    (folder / "web.txt").write_text(RUMOUR * 3)
    own = bytes(found.own[0, :200].tolist()).decode("utf-8", "ignore")
    (folder / "probes.yaml").write_text(PROBES.format(own=" ".join(own.replace("'", "").split())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="a folder with a model of bytes")
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), given.base, given.data)
        fill(PAGE, Path(name))


if __name__ == "__main__":
    main()
