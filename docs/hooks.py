"""Hooks of mkdocs: the README is the first page, equations are rendered, and links to files that the site does not hold
become their names.
"""

import re
import sys
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from maths import mathml

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Dollars and blocks marked `math` are equations, in pages and in docstrings."""
    fence = {"name": "math", "class": "math", "format": _block}
    config.markdown_extensions.append(_Maths())
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


class _Maths(Extension):
    """After code, where a dollar means itself, and before everything else."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(_Dollars(r"(?<![\w$\\])\$(?=[^\s$])([^$\n]*?[^\s$])\$(?![\w$])", md), "maths", 185)


class _Dollars(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


def _block(source: str, *given: Any, **more: Any) -> str:
    """One equation a line."""
    return "".join(f"<p>{mathml(line, display=True)}</p>" for line in source.strip().splitlines())


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
