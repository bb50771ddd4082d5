"""The catalogue's page is made from the package: every mistake stands there once, as the package words it, with its code."""

import re

import pytest
from book_sources import SITE
from bs4 import BeautifulSoup

from ppo_edu.teach.pitfalls import PITFALLS

pytestmark = pytest.mark.usefixtures("site")
QUOTES = str.maketrans("“”‘’", "\"\"''")  # the site sets typographic ones


@pytest.fixture(scope="module")
def page():
    return BeautifulSoup((SITE / "catalogue-of-mistakes.html").read_text(encoding="utf-8"), "html.parser").find("article")


def test_every_mistake_has_its_place_and_its_code(page):
    places = [tag["id"] for tag in page.find_all(id=re.compile("^mistake-"))]
    assert sorted(places) == sorted(f"mistake-{name}" for name in PITFALLS)
    variants = [fold for fold in page.find_all("details") if fold.summary.get_text() == "The wrong variant"]
    assert len(variants) == len(PITFALLS)
    assert all("def " in fold.find("pre").get_text() for fold in variants)


def test_every_mistake_is_worded_as_in_the_package(page):
    text = page.get_text().translate(QUOTES)
    for entry in PITFALLS.values():
        for words in (entry.mistake[1:], entry.symptom, entry.exposed_by):
            assert words.replace("`", "") in text, entry.name
    assert text.count("Seen in public") == sum(entry.discussed is not None for entry in PITFALLS.values())
