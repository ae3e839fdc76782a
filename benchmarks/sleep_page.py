"""Real output for docs/sleep.md: ``python -m benchmarks.sleep_page --data DIR``.

Every console block of the page is run, in order, in a fresh folder, and its output put in place of what stands there.
The day is one of ``circadia eval sleep``: a novel with one plain sentence about an invented person in every chunk.
"""

import argparse
import contextlib
import shlex
import tempfile
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.learner_page import ROOT, fill
from circadia.cli import app
from circadia.evals.bases import Base
from circadia.evals.sleep_days import day, facts
from circadia.evals.streams import own_text, source_text
from circadia.models.bundled import bundled

PAGE = ROOT / "docs" / "sleep.md"
RUMOUR = "A stranger on a train said that every house in the town was made of cheese, and that nobody lived there.\n"
PROBES = "- {{name: own text, kind: text, text: {own!r}, rise: 0.6}}\n- {{name: size, kind: norm, max: 0.8}}\n"


def prepare(folder: Path, base: Path, data: Path) -> None:
    """The files that the page speaks of."""
    (folder / "base").symlink_to(base.resolve())
    told, reader = facts(4, 0), Base.load(base)
    novel = source_text(data, "Kipling").decode("utf-8", "ignore")
    monday = "".join(reader.decode(chunk.tolist()) for chunk in day(reader, told, 4, 0, novel, 256, 0))
    (folder / "monday.txt").write_text(monday)
    (folder / "law.txt").write_bytes(source_text(data, "legal")[:2048])
    (folder / "web.txt").write_text(RUMOUR * 3)
    own = own_text(data).decode("utf-8", "ignore")[:200]
    (folder / "probes.yaml").write_text(PROBES.format(own=" ".join(own.replace("'", "").split())))
    for fact in told:
        print(fact)


def run(command: str, folder: Path) -> str:
    """What the shell shows, without a process for each command."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, shlex.split(command)[1:])
    if done.exit_code not in (0, 1) or (done.exception and not isinstance(done.exception, SystemExit)):
        raise SystemExit(f"{command}: {done.output} {done.exception!r}")
    return done.output.rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", type=Path, default=bundled(), help="a folder with a model of bytes")
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), given.base, given.data)
        fill(PAGE, Path(name), run)


if __name__ == "__main__":
    main()
