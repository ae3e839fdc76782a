"""What a run says: a JSONL file always, tensorboard or trackio if asked, a progress bar for whoever watches."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

FILE = "log.jsonl"


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last one that was cut off by a kill is left out."""
    path = run / FILE
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


class Log:
    """Appends to the log; on a resume, first forgets what came after the checkpoint."""

    def __init__(self, run: Path, step: int, settings: dict[str, Any], track: str | None) -> None:
        # The line that opens a stage is written again when the stage is opened again.
        kept = [line for line in read(run) if line["step"] < step + (line["kind"] != "stage")]
        temporary = run / f".{FILE}"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(run / FILE)
        self.file = open(run / FILE, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)
        self.tracker = _tracker(track, run, step, settings)

    def __call__(self, kind: str, step: int, **values: Any) -> None:
        """One line; numbers go to the tracker too."""
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self.file.flush()
        if self.tracker is not None:
            self.tracker.log(
                {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}, step
            )

    def close(self) -> None:
        self.file.close()
        if self.tracker is not None:
            self.tracker.close()


class _Tensorboard:
    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier process wrote after the checkpoint is not shown.
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Trackio:
    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        import trackio

        self.run = trackio.init(project="circadia", name=run.name, config=settings, resume="allow", embed=False)

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


def _tracker(name: str | None, run: Path, step: int, settings: dict[str, Any]) -> Any:
    if name is None:
        return None
    try:
        return _Tensorboard(run, step) if name == "tensorboard" else _Trackio(run, settings)
    except ImportError as error:
        raise ValueError(f"train.track={name} needs a package: pip install 'circadia[track]'") from error


class Bar:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console | None, steps: int, done: int) -> None:
        self.console = console if console is not None and console.is_terminal else None
        self.plain = console
        self.steps = steps
        self.doing = ""  # of the levels, when they were last looked at
        if self.console is not None:
            columns = (
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self.task = self.progress.add_task("", total=steps, completed=done, text="")
            self.progress.start()

    def update(self, step: int, loss: float, speed: float) -> None:
        """After every step."""
        text = f"loss {loss:.4f}  {speed:,.0f} tokens/s{self.doing}"
        if self.console is not None:
            self.progress.update(self.task, completed=step, text=text)
        elif self.plain is not None and step % max(1, self.steps // 20) == 0:
            self.plain.print(f"step {step}/{self.steps}  {text}", highlight=False)

    def levels(self, found: dict[str, float]) -> None:
        """Norm of the inner update and surprise of every level, shown from now on."""
        each: dict[str, dict[str, float]] = {}
        for name, value in found.items():
            level, _, what = name.rpartition("/")
            each.setdefault(level, {})[what] = value
        self.doing = "".join(f"  {name} Δ{x['update']:.3g} ?{x['surprise']:.3g}" for name, x in each.items())

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.plain is not None:
            self.plain.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.console is not None:
            self.progress.stop()
