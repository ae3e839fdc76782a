"""For the reference: settings that a docstring aligns in two columns become a list, its equations are rendered."""

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from maths import equation

CODE = re.compile(r"``([^`\n]+)``")
ROW = re.compile(r"^(\w[\w, ]*?) {2,}(\S.*)$")


class Lists(griffe.Extension):
    """Reads every docstring once, before it is shown."""

    def on_object(self, *, obj: griffe.Object, **given: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = CODE.sub(_set, listed(obj.docstring.value))


def _set(code: re.Match[str]) -> str:
    """Between dollars if it is an equation, which docs/maths.py then renders."""
    return f"${code[1]}$" if equation(code[1]) else code[0]


def listed(text: str) -> str:
    """A row is a name, two spaces or more, and words; lines that are further in go on with it."""
    found: list[str] = []
    inside = False
    for line in text.split("\n"):
        row = ROW.match(line)
        if row:
            found += ["", f"- **{row[1]}**: {row[2]}"] if not inside else [f"- **{row[1]}**: {row[2]}"]
        else:
            found.append(line if not line.startswith("  ") or not inside else "  " + line.strip())
        inside = bool(row) or (inside and line.startswith("  "))
    return "\n".join(found)
