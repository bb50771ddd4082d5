"""The built site: every page is there, every link and fragment leads somewhere, nothing is left raw."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from book_sources import BOOK, NOTEBOOKS, PAGES, SITE, colab_address, repository, toc
from bs4 import BeautifulSoup

each_page = pytest.mark.parametrize("name", toc())
pytestmark = pytest.mark.usefixtures("site")


@cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(tag.get("id") or tag.get("name") for tag in parsed(path).find_all(lambda t: t.get("id") or t.get("name")))


def broken_links(path: Path) -> list[str]:
    broken = []
    for tag, attribute in (("a", "href"), ("link", "href"), ("img", "src"), ("script", "src"), ("source", "src")):
        for element in parsed(path).find_all(tag):
            address = element.get(attribute)
            if not address:
                continue
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            if not target.is_file():
                broken.append(f"{address}: no such file")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in anchors(target):
                broken.append(f"{address}: no such place")
    return broken


@each_page
def test_page_is_built(name):
    assert (SITE / f"{name}.html").is_file()


def test_every_source_is_in_the_table_of_contents():
    sources = {path.stem for path in [*NOTEBOOKS, *PAGES]}
    assert sources == set(toc())
    assert yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))["root"] == "intro"


@each_page
def test_no_broken_link(name):
    assert broken_links(SITE / f"{name}.html") == []


def test_no_broken_link_in_generated_pages(site):
    for path in [*site.glob("*.html"), *site.glob("_modules/**/*.html")]:
        assert broken_links(path) == [], path


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<p id="here"></p><a href="#here">x</a><a href="#gone">x</a><a href="gone.html">x</a>')
    assert broken_links(page) == ["#gone: no such place", "gone.html: no such file"]


@each_page
def test_nothing_is_left_raw(name):
    """No TeX outside of what MathJax will typeset, no directive, role or unresolved substitution in the text."""
    page = BeautifulSoup((SITE / f"{name}.html").read_text(encoding="utf-8"), "html.parser").find("article")
    for element in page(["script", "style", "pre", "code"]):
        element.decompose()
    for element in page.find_all(class_="math"):
        element.decompose()
    text = page.get_text()
    raw = re.findall(r"\$\$|\\begin\{|\\\(|\\\[|\\(?:frac|mathbb|hat|pi|gamma)\b|\{[a-z:]+\}`|:::|\{\{|\]\(#?[\w-]+\)|[^\s]\*\*[^\s]", text)
    assert not raw


@each_page
def test_one_title_and_alt_texts(name):
    page = parsed(SITE / f"{name}.html")
    assert len(page.select("article h1")) == 1
    for image in page.select("article img"):
        assert image.get("alt"), image.get("src", "")[:80]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_has_its_buttons(path):
    links = {a.get("href") for a in parsed(SITE / f"{path.stem}.html").select(".header-article__right a, .article-header-buttons a")}
    assert colab_address(path.name) in links
    assert repository() in links


@each_page
def test_open_graph(name):
    page = parsed(SITE / f"{name}.html")
    for prop in ("og:title", "og:type", "og:url", "og:site_name"):
        assert page.find("meta", property=prop)["content"], prop


def test_every_icon_is_in_our_cut_of_the_icon_font(site):
    """book/_tools/subset_icons.py keeps the icons that the theme uses; one that is missing would show as a box."""
    known = set(re.findall(r"\.fa-([a-z-]+)::before", (site / "vendor/fontawesome/icons.css").read_text(encoding="utf-8")))
    pages = "".join(path.read_text(encoding="utf-8") for path in site.glob("*.html"))  # as text: some stand in scripts
    used = set(re.findall(r"[\"' ]fa-([a-z-]+)(?=[\"' ])", pages))
    assert used - {"solid", "regular", "brands", "lg", "fw"} <= known


def test_page_names_no_other_host(site):
    """Nothing is loaded from elsewhere: links may lead away, but no script, style, picture or font does."""
    for path in site.rglob("*.html"):
        for element in parsed(path).find_all(["script", "img", "iframe", "source", "video", "object", "link"]):
            address = element.get("src") or element.get("data") or (element.get("href") if element.name == "link" else None) or ""
            if element.name == "link" and set(element.get("rel", [])) & {"canonical", "prev", "next", "search", "index"}:
                continue
            assert not urlsplit(address).netloc, f"{path.name}: {address}"
