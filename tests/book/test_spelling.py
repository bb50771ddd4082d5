"""codespell over the prose: pages, notebooks' cells, and the project's own documents."""

import subprocess
import sys

import pytest
from book_sources import NOTEBOOKS, PAGES, ROOT, load

# Words that codespell takes for slips of the pen.
IGNORED = "lamda,ba,te"


def misspelt(text: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "--ignore-words-list", IGNORED, "-"], input=text, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def text_of(path) -> str:
    if path.suffix == ".ipynb":
        return "\n\n".join(cell.source for cell in load(path).cells)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_prose(path):
    assert misspelt(text_of(path)) == ""


def test_code_comments_and_docstrings():
    sources = sorted((ROOT / "ppo_edu").rglob("*.py"))
    assert sources
    assert misspelt("\n".join(path.read_text(encoding="utf-8") for path in sources)) == ""


def test_a_misspelling_is_found():
    assert "the" in misspelt("teh policy")
