"""Most readers open one notebook in Colab, which knows no MyST: each must read well in a plain renderer too."""

import re
from urllib.parse import urlsplit

import pytest
from book_sources import BOOK, NOTEBOOKS, PAGES, load, markdown
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

FENCES = {"prf:theorem", "prf:lemma", "prf:proof", "prf:algorithm", "note"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def myst_syntax(text: str) -> list[str]:
    """What would show as raw text in a plain renderer, beyond the fences that we allow."""
    found = [fence for fence in re.findall(r"^\s*:{3,}\{([^}]*)\}", text, flags=re.M) if fence not in FENCES]
    found += re.findall(r"^\s*(?:`{3,}|~{3,})\{[^}]*\}", text, flags=re.M)  # fenced directives
    found += re.findall(r"\{[a-zA-Z][\w:+-]*\}`[^`]*`", text)  # roles
    found += re.findall(r"^\([\w:-]+\)=\s*$", text, flags=re.M)  # targets
    found += re.findall(r"^\{[.#][^}]*\}\s*$|[\])`]\{[.#][^}]*\}", text, flags=re.M)  # attributes
    found += re.findall(r"^\+\+\+.*$|^%\s.*$|\{\{.*?\}\}(?!\})", re.sub(r"\$\$.*?\$\$|\$[^$]*\$", "", text, flags=re.S), flags=re.M)
    return found


@each_notebook
def test_source_has_no_syntax_beyond_the_allow_list(path):
    assert myst_syntax(markdown(path)) == []


@pytest.mark.parametrize(
    "raw",
    [
        "see {eq}`eq-gae`",
        ":::{tip}\nx\n:::",
        "```{math}\nx\n```",
        "(my-label)=\n# T",
        "[x](y){.button}",
        "{cite:t}`schulman2017`",
        "{{ name }}",
    ],
)
def test_the_search_finds_raw_syntax(raw):
    assert myst_syntax(raw)


@pytest.mark.parametrize("fine", [":::{prf:theorem} GAE\nx\n:::", "$\\mathbb{E}`$", "$$x$$ (eq-gae)", "$\\frac{{a}}{{b}}$", "f(x)= 3"])
def test_the_search_leaves_plain_markdown_alone(fine):
    assert myst_syntax(fine) == []


@each_notebook
def test_plain_renderer_shows_no_directive(path):
    html, _ = HTMLExporter(template_name="basic", embed_images=False).from_notebook_node(load(path))
    page = BeautifulSoup(html, "html.parser")
    assert not page.select('code[class*="language-{"]')
    for code in page(["pre", "code"]):
        code.decompose()
    text = page.get_text()
    assert set(re.findall(r":{3,}\{([^}]*)\}", text)) <= FENCES
    for block in page.find_all("details"):
        assert block.find("summary"), block
        assert block.find(["p", "ul", "ol", "div"]), f"the fold holds raw Markdown; put a blank line after the summary:\n{block}"


@each_notebook
def test_folds_have_the_blank_line(path):
    text = markdown(path)
    assert text.count("<details>") == text.count("</details>")
    assert text.count("<details>") == len(re.findall(r"<details>\s*<summary>[^\n]*</summary>\n\n", text))


# --- citations: author-year links that also stand in references.bib


def canonical(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.lower().removeprefix("www.").removeprefix("dx.")
    path = re.sub(r"\.pdf$|\.html$", "", parts.path.rstrip("/"))
    if host == "arxiv.org":
        path = re.sub(r"v\d+$", "", path.replace("/pdf/", "/abs/"))
    return host + path.lower() + (f"?{parts.query}" if parts.query else "")


def bibliography() -> dict[str, tuple[str, str]]:
    """canonical url -> (first author's surname, year)"""
    entries = {}
    for entry in re.split(r"^@", (BOOK / "references.bib").read_text(encoding="utf-8"), flags=re.M)[1:]:
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", entry, flags=re.M))
        surname = re.sub(r"[{}]", "", fields["author"].split(" and ")[0].split(",")[0])
        entries[canonical(fields["url"])] = (surname, fields["year"])
    return entries


def citations(text: str) -> list[tuple[str, str]]:
    """(text, url) of links that name a year, and of all links to where papers live."""
    links = re.findall(r"(?<!!)\[([^\]]+)\]\((https?://[^)\s]+)\)", text)
    papers = ("arxiv.org", "doi.org", "openreview.net", "jmlr.org", "papers.nips.cc", "proceedings.mlr.press")
    return [(t, u) for t, u in links if re.search(r"\b(19|20)\d\d\b", t) or urlsplit(u).netloc.removeprefix("www.") in papers]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda p: p.name)
def test_citations_stand_in_the_bibliography(path):
    known = bibliography()
    for text, url in citations(markdown(path)):
        assert canonical(url) in known, f"[{text}]({url}) is not in references.bib"
        surname, year = known[canonical(url)]
        assert surname in text, f"[{text}]: {url} is by {surname}"
        assert year in text, f"[{text}]: {url} is of {year}"


def test_bibliography_is_whole():
    text = (BOOK / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{([^,]+),", text, flags=re.M)
    assert len(keys) == len(set(keys)) == len(re.findall(r"^\s*url\s*=", text, flags=re.M)) >= 20


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_chapter_cites_its_sources(path):
    assert citations(markdown(path))
