"""The demo in the terminal, and its two files."""

import json
import platform
import tempfile
import time
from pathlib import Path

from rich.console import Console

from circadia import __version__
from circadia.demo import page
from circadia.demo.story import PERIODS, Story
from circadia.files import write_whole

BARS = " ▁▂▃▄▅▆▇█"


def run(out: Path, base: str, rounds: int) -> None:
    """All of it."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"Reads, answers, is corrected, sleeps, forgets, goes back: about a minute on 2 cores; writes {out}/demo.html"
    )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):  # a folder that cannot be written is found out now
        pass
    begin, bars = time.perf_counter(), ""

    def seen(position: int, surprise: float, updates: list[int]) -> None:
        nonlocal bars
        bars = (bars + BARS[min(8, int(surprise * 3))])[-40:]
        if console.is_terminal:
            ticks = ", ".join(f"level of {period}: {count} writes" for period, count in zip(PERIODS, updates))
            console.file.write(f"\r\033[K  {bars} {surprise:.2f} nats a byte; {ticks}")
            console.file.flush()

    def asleep(part: str, at: int, of: int) -> None:
        if console.is_terminal:
            console.file.write(f"\r\033[K  {part}: {at} of {of} steps")
            console.file.flush()

    def tell(text: str) -> None:
        if console.is_terminal:
            console.file.write("\r\033[K")
        console.print(text, markup=False)

    with tempfile.TemporaryDirectory(prefix="circadia-demo-") as folder:
        story = Story(Path(folder), base, rounds, tell, seen, asleep)
        size = sum(p.numel() for p in story.me.model.base.parameters())
        found = story.run()
    found |= {"circadia": __version__, "parameters": size, "machine": platform.machine()}
    found["total"] = round(time.perf_counter() - begin, 1)
    write_whole(out / "demo.html", page.draw(found).encode())
    del found["picture"]
    write_whole(out / "demo.json", (json.dumps(found, indent=2) + "\n").encode())
    console.print(f"{found['total']:.0f} seconds. The page: {(out / 'demo.html').resolve()}", markup=False)
