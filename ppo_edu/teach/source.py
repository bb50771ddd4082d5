"""Showing package code in a chapter, as it stands."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import Markdown


def show_source(*objects: Callable) -> "Markdown":
    """The source of functions or classes as a highlighted code block, so that text and code cannot drift apart."""
    from IPython.display import Markdown  # only here: the checkers work in plain Python too

    source = "\n\n".join(inspect.getsource(x).rstrip() for x in objects)
    return Markdown(f"```python\n{source}\n```")
