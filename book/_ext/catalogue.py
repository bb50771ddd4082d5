"""Writes the catalogue of mistakes into its page, from the package: the page cannot fall behind the code."""

import inspect
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from sphinx.application import Sphinx

from ppo_edu.teach.pitfalls import PITFALLS, Pitfall

PAGE, PLACE = "catalogue-of-mistakes", "<!-- catalogue -->"
EXERCISES = "Functions of exercises"
PARTS = {"core": "The mathematics", "control": "The trainer", "lm": "Language models", "teach": "Exact methods"}


def part(entry: Pitfall) -> str:
    """The heading that an entry stands under."""
    return PARTS[entry.replaces.split(".")[1]] if entry.replaces else EXERCISES


def function(entry: Pitfall) -> str:
    """The function that an entry gets wrong: its name and, below it, where it is."""
    if entry.replaces:
        _, _, _, name = entry.replaces.split(".", 3)  # the package, the part and the module are told below
        return f"### `{name}`\n\n`{entry.replaces}`\n"
    return f"### `{entry.target}`\n\nAn exercise of chapter {int(entry.wrong.__module__[-2:])}\n"


def escaped(text: str) -> str:
    """Plain text as Markdown, but for its `code`."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([\\*_$<>\[\]{}|])", r"\\\1", piece) for piece in pieces)


def described(entry: Pitfall) -> Iterator[str]:
    """The lines of an entry: what it does, what a run shows, what exposes it, and its code folded."""
    yield f"(mistake-{entry.name})="
    mistake = escaped(entry.mistake[:1].upper() + entry.mistake[1:])
    line = f"**{entry.name}.** {mistake}. *In a run:* {escaped(entry.symptom)}. *Exposed by:* {escaped(entry.exposed_by)}."
    yield line + (f" [Seen in public]({entry.discussed})." if entry.discussed else "")
    code = re.sub(r"\A.*?(?=^def )", "", inspect.getsource(entry.wrong), flags=re.DOTALL | re.MULTILINE)  # without its decorator
    yield f"\n<details>\n<summary>The wrong variant</summary>\n\n```python\n{code}```\n\n</details>\n"


def catalogue() -> str:
    """All entries as Markdown: those of the package by module, then those of exercises by chapter."""
    order = [*PARTS.values(), EXERCISES]
    entries = sorted(PITFALLS.values(), key=lambda x: (order.index(part(x)), x.replaces or x.wrong.__module__, x.target))
    lines = []
    for heading, group in groupby(entries, part):
        lines += [f"## {heading}", ""]
        for name, mistakes in groupby(group, function):
            lines += [name]
            lines += [line for entry in mistakes for line in described(entry)]
    return "\n".join(lines)


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    if name == PAGE:
        source[0] = source[0].replace(PLACE, catalogue())


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
