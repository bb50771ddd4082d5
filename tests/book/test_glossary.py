"""The glossary: every link to it leads to an entry, every entry is linked from a chapter, and the order is alphabetical."""

import re

import pytest
from book_sources import BOOK, CHAPTERS, NOTEBOOKS, PAGES, markdown

ENTRIES = re.findall(r"^\(([\w-]+)\)=\n## (.+)\n(.+)$", (BOOK / "glossary.md").read_text(encoding="utf-8"), flags=re.M)
TERMS = [term for term, _, _ in ENTRIES]


def linked(path) -> set[str]:
    return set(re.findall(r"\]\(glossary\.(?:md|html)?#([\w-]+)\)", markdown(path)))


def test_entries_are_whole_and_in_order():
    headings = [heading for _, heading, _ in ENTRIES]
    assert headings == sorted(headings, key=str.casefold)
    assert len(TERMS) == len(set(TERMS)) == (BOOK / "glossary.md").read_text(encoding="utf-8").count("\n## ")


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda path: path.stem)
def test_links_lead_to_an_entry(path):
    assert linked(path) <= {*TERMS}


@pytest.mark.parametrize("term", TERMS)
def test_a_chapter_links_to_the_entry(term):
    assert any(term in linked(path) for path in CHAPTERS)
