"""Hooks of mkdocs: the README is the first page, and links to files that the site does not hold become their names."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """The two pages that stand outside docs/."""
    for name, source in (("index.md", "README.md"), ("changes.md", "CHANGELOG.md")):
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_moved(text)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """What lies outside of docs/ is named, not linked: the site may stand anywhere."""

    def named(found: re.Match[str]) -> str:
        target = found[3].partition("#")[0]
        inside = "://" in target or not target or files.get_file_from_path(target) is not None
        return found[0] if inside else f"{found[2]} (`{target.removeprefix('../')}`)"

    return LINK.sub(named, markdown)


def _moved(text: str) -> str:
    """Links of a page in the root, as they are in docs/."""

    def moved(found: re.Match[str]) -> str:
        target = found[3].removeprefix("docs/") if found[3].startswith("docs/") else found[3]
        return f"{found[1]}[{found[2]}]({target})"

    return LINK.sub(moved, text)
