"""Where the book's sources and its built site are, and what is derived from _config.yml."""

import re
from functools import cache
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
SITE = ROOT / "_build" / "html"

NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if re.match(r"\d\d-", path.name)]  # the others are appendices
PAGES = sorted(BOOK.glob("*.md"))


@cache
def config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def repository() -> str:
    """The one address of the project: _config.yml, repository.url."""
    return config()["repository"]["url"]


def branch() -> str:
    return config()["repository"]["branch"]


def website() -> str:
    """GitHub Pages of the repository: https://OWNER.github.io/NAME/."""
    owner, name = repository().removeprefix("https://github.com/").split("/")
    return f"https://{owner}.github.io/{name}/"


def install_line() -> str:
    return f"pip install -q git+{repository()}"


def colab_cell() -> str:
    """The first code cell of every notebook."""
    return f"""\
# Colab only: install the course package (torch is left untouched).
import sys
from importlib.util import find_spec

if "google.colab" in sys.modules and not find_spec("ppo_edu"):
    %{install_line()}"""


def colab_address(notebook: str) -> str:
    path = repository().removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{path}/blob/{branch()}/book/{notebook}"


def colab_link(notebook: str) -> str:
    """Stands in every notebook's first cell. A text, no badge: a picture from another host is a request to it."""
    return f"[Open in Colab]({colab_address(notebook)})"


@cache
def toc() -> tuple[str, ...]:
    """Document names of _toc.yml, in reading order, without suffix."""
    found = []

    def walk(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    found.append(re.sub(r"\.(md|ipynb)$", "", value))
                else:
                    walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8")))
    return tuple(found)


@cache
def load(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list:
    return [cell for cell in load(path).cells if cell.cell_type == "code"]


def markdown(path: Path) -> str:
    """All prose of a notebook or a page, code blocks blanked, so that prose rules do not meet code."""
    if path.suffix == ".ipynb":
        text = "\n\n".join(cell.source for cell in load(path).cells if cell.cell_type == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    return re.sub(r"^(`{3,}|~{3,})(?!\{)[^\n]*\n.*?^\1[ ]*$", "", text, flags=re.M | re.S)


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])
