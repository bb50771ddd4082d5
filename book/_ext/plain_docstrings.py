"""Renders docstrings that are written to be read in the source.

An indented block is an equation or a table and keeps its lines; `name` is code (default_role in _config.yml);
a line that starts with Source, Returns or Raises is a paragraph of its own.
"""

import re
from typing import Any

from sphinx.application import Sphinx


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    out: list[str] = []
    literal = False
    for line in lines:
        indented = line.startswith("    ")
        if literal:
            literal = indented or not line.strip()
        elif indented and out and not out[-1] and not last_word(out).startswith(("-", "*", "..", ":")):
            if not last_word(out).endswith("::"):
                out += ["::", ""]
            literal = True
        if not literal and re.match(r"(Source|Returns|Raises)\b[^:]*:", line):
            line = re.sub(r"^(Source|Returns|Raises)(\b[^:]*):", r"**\1\2:**", line)
            if out and out[-1].strip():
                out.append("")
        out.append(line)
    lines[:] = out


def last_word(lines: list[str]) -> str:
    """The last line that is not blank."""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
