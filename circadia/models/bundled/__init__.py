"""The small base that comes with the package, so that everything works at once and offline; see README.md here."""

from pathlib import Path

NAME = "bundled"  # wherever a base is named, this is it; ./bundled is a folder of yours


def bundled() -> Path:
    """The folder of the bundled base: a byte-level transformer of a million parameters that has read 8 MB of novels."""
    return Path(__file__).parent


def located(source: str) -> str:
    """A base's name, with the bundled one's as a folder."""
    return str(bundled()) if source == NAME else source
