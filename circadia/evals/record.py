"""Records on disk: a file with one line for every finished run, and where it was run."""

import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from circadia import __version__
from circadia.evals.suite import Record, key


class Lines:
    """One JSON object a line. A line is written whole and flushed to the disk, or it does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Record]:
        """All finished runs. What a killed process left of a last line is cut off."""
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        records = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = Record(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number} is no record of a run: remove that line") from error
            records[key(record.run)] = record
        return list(records.values())

    def add(self, record: Record) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def where(device: str) -> dict[str, Any]:
    """What a result was obtained with and on."""
    versions = {"circadia": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for name in ("transformers", "lm_eval"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    on_gpu = torch.device(device).type == "cuda"
    machine = {
        "processor": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    return {"versions": versions, "machine": machine, "time": datetime.now(UTC).isoformat(timespec="seconds")}


def _processor() -> str:
    """Its name; where Linux does not tell, what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
