"""The built pages in headless Chromium, wide and narrow, light and dark. Skipped only where no Chromium is."""

import functools
import http.server
import json
import re
import shutil
import threading

import pytest
from book_sources import PAGES, toc
from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HEAVIEST = 1_500_000  # bytes that one page load transfers, uncompressed

each_page = pytest.mark.parametrize("name", toc())


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """One page, opened with an empty cache and read to its end; keeps what the browser noticed."""

    def __init__(self, browser, url: str):
        self.context = browser.new_context(viewport=WIDE, permissions=["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.requests, self.finished, self.complaints = [], [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfinished", lambda request: self.finished.append(request))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url, wait_until="load")
        self.page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
        self.page.wait_for_load_state("networkidle")
        self.page.evaluate("() => window.scrollTo(0, 0)")

    @property
    def weight(self) -> dict[str, int]:
        """Bytes of each response; the test's server never compresses."""
        return {r.url: int(r.response().headers.get("content-length", 0)) for r in self.finished if r.url.startswith("http")}

    def look(self, size: dict, theme: str):
        self.page.set_viewport_size(size)
        self.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)


@pytest.fixture(scope="module")
def visits(browser, address):
    """Each page is loaded once and looked at by all tests below."""
    seen = {}

    def visit(name: str) -> Visit:
        if name not in seen:
            seen[name] = Visit(browser, f"{address}/{name}.html")
        return seen[name]

    yield visit
    for each in seen.values():
        each.context.close()


@each_page
def test_no_request_leaves_the_site_and_nothing_complains(visits, address, name):
    visit = visits(name)
    assert [url for url in visit.requests if not url.startswith((address, "data:", "blob:"))] == []
    assert visit.complaints == []


@each_page
def test_page_weight(visits, name):
    weight = visits(name).weight
    heaviest = dict(sorted(weight.items(), key=lambda item: -item[1])[:8])
    assert sum(weight.values()) <= HEAVIEST, json.dumps(heaviest, indent=1)


@each_page
def test_mathematics_is_typeset(visits, name):
    page = visits(name).page
    assert page.locator(".math .tex:not(:has(.katex))").count() == 0
    assert page.locator(".math:not(:has(.tex))").count() == 0
    assert page.locator(".katex-error").evaluate_all("all => all.map(e => e.title)") == []
    assert "$$" not in page.locator("article").inner_text()


@each_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_narrow_page_does_not_scroll_sideways(visits, name, theme):
    visit = visits(name)
    visit.look(NARROW, theme)
    for fold in visit.page.locator("article details").all():
        fold.evaluate("fold => { fold.open = true }")
    wide = visit.page.evaluate(
        """() => [...document.querySelectorAll("article *")].filter(e => {
            if (e.getBoundingClientRect().right <= 391) return false;
            for (let p = e; p && p.tagName !== "ARTICLE"; p = p.parentElement)
                if (["auto", "scroll", "hidden"].includes(getComputedStyle(p).overflowX)) return false;
            return true;
        }).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert wide == []
    assert visit.page.evaluate("() => document.scrollingElement.scrollWidth") <= 390


@each_page
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_one_header_one_title(visits, name, size):
    visit = visits(name)
    visit.look(size, "light")
    boxes = visit.page.locator("header.bd-header, .bd-header-article").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect()).filter(b => b.height > 4 && b.width > 0).length"
    )
    assert boxes == 1
    assert visit.page.locator("h1:visible").count() == 1


@each_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_figures_are_visible(visits, name, theme):
    """Body text against its background reaches WCAG's 4.5 to 1; figures stand on an opaque ground."""
    visit = visits(name)
    visit.look(WIDE, theme)
    contrast = visit.page.evaluate(
        """() => {
            const parse = c => c.match(/[\\d.]+/g).map(Number);
            const light = c => parse(c).slice(0, 3).map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const text = light(getComputedStyle(document.querySelector("article")).color);
            const ground = light(getComputedStyle(document.body).backgroundColor);
            return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
        }"""
    )
    assert contrast >= 4.5
    figures = visit.page.locator("article .cell_output img").all()
    assert figures or not re.match(r"\d\d-", name)
    for figure in figures:
        assert figure.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 255, 255)"
        assert figure.evaluate("e => getComputedStyle(e).filter") == "none"
        assert figure.evaluate("e => e.complete && e.naturalWidth > 0")


def test_dark_mode_can_be_switched(visits):
    page = visits(toc()[1]).page
    page.set_viewport_size(WIDE)
    themes = set()
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").first.click()
        themes.add(page.evaluate("() => document.documentElement.dataset.theme"))
    assert themes == {"light", "dark"}


def test_code_can_be_copied(visits):
    page = visits("07-ppo-on-cartpole").page
    page.set_viewport_size(WIDE)
    block = page.locator("article div.cell_input div.highlight").first
    block.scroll_into_view_if_needed()
    block.hover()
    block.locator("button.copybtn").click()
    assert page.evaluate("() => navigator.clipboard.readText()").strip() == block.locator("pre").inner_text().strip()


def test_search_finds_a_page(browser, address):
    visit = Visit(browser, f"{address}/search.html?q=advantage")
    visit.page.locator("#search-results li a").first.wait_for(timeout=10_000)
    titles = visit.page.locator("#search-results li a").all_inner_texts()
    assert any("Glossary" in title or "Notation" in title for title in titles), titles
    assert visit.complaints == []
    visit.context.close()


def test_the_pages_of_this_book_were_looked_at():
    assert {path.stem for path in PAGES} <= set(toc())
