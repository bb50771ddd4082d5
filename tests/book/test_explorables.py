"""The interactive figures in headless Chromium, on a page of their own: the numbers of ppo_edu.teach.explore, by keyboard and touch."""

import functools
import http.server
import inspect
import itertools
import re
import shutil
import threading

import pydata_sphinx_theme
import pytest
import sphinx_book_theme
from book_sources import BOOK, CHAPTERS, markdown
from playwright.sync_api import sync_playwright
from test_browser import CHROMIUM, Quiet

from ppo_edu.teach import explore

SOURCES = BOOK / "_extra" / "explorables"
NAMES = ("clip", "gae", "kl")
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
KINDS = ("k1", "k2", "k3")
approx = pytest.approx

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
each_figure = pytest.mark.parametrize("name", NAMES)
each_theme = pytest.mark.parametrize("theme", ["light", "dark"])


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The figures on small pages with the site's style sheets."""
    folder = tmp_path_factory.mktemp("explorables")
    shutil.copytree(SOURCES, folder / "explorables")
    styles = [
        inspect.getfile(pydata_sphinx_theme).replace("__init__.py", "theme/pydata_sphinx_theme/static/styles/pydata-sphinx-theme.css"),
        inspect.getfile(sphinx_book_theme).replace("__init__.py", "theme/sphinx_book_theme/static/styles/sphinx-book-theme.css"),
        str(BOOK / "_static" / "custom.css"),
    ]
    for number, style in enumerate(styles):
        shutil.copy(style, folder / f"{number}.css")
    for name in NAMES:
        links = "".join(f'<link rel="stylesheet" href="{i}.css">' for i in range(len(styles)))
        (folder / f"{name}.html").write_text(
            f"""<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{name}</title>{links}
            <meta name="viewport" content="width=device-width, initial-scale=1">
            <link rel="stylesheet" href="explorables/explorables.css"><link rel="icon" href="data:,">
            <script src="explorables/common.js" defer></script><script src="explorables/{name}.js" defer></script></head>
            <body style="margin: 0"><main><article class="bd-article" style="max-width: 46rem; padding: 0 12px">
            <div class="explorable" data-explorable="{name}"></div></article></main></body></html>""",
            encoding="utf-8",
        )
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def pages(address):
    """Opens a page of one figure; nothing may complain, and nothing may be asked of another host."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        complaints = []

        def open_page(name, *, size="wide", theme="light"):
            width, height = SIZES[size]
            page = browser.new_context(viewport={"width": width, "height": height}, has_touch=True).new_page()
            page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda r: None if r.url.startswith((address, "data:")) else complaints.append(r.url))
            page.goto(f"{address}/{name}.html", wait_until="load")
            page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
            return page

        yield open_page
        browser.close()
    assert complaints == []


def numbers(page, **settings):
    """What the figure shows, after moving its controls."""
    return page.evaluate(
        """s => {
            const figure = document.querySelector(".explorable").explorable;
            if (Object.keys(s).length) figure.set(s);
            return figure.numbers();
        }""",
        settings,
    )


# Page and package agree ----------------------------------------------------------------------------------------------


@in_a_browser
def test_clip_agrees(pages):
    page = pages("clip")
    assert numbers(page) == explore.clip()
    seen = set()
    grid = itertools.product((0.05, 0.2, 0.35, 0.5), (-1.5, -1.0, 0.0, 0.3, 1.0), (0.02, 0.5, 0.65, 0.8, 1.0, 1.2, 1.5, 2.0))
    for epsilon, advantage, ratio in grid:
        ours, theirs = explore.clip(epsilon, advantage, ratio), numbers(page, epsilon=epsilon, advantage=advantage, ratio=ratio)
        assert theirs.pop("meaning") == ours.pop("meaning")
        assert theirs == approx(ours, abs=1e-6), (epsilon, advantage, ratio)
        seen.add(ours["case"])
    assert seen == set(range(7))


@in_a_browser
def test_gae_agrees(pages):
    page = pages("gae")
    for gamma, lam in [(None, None), *itertools.product((0.0, 0.5, 0.9, 1.0), (0.0, 0.3, 0.95, 1.0))]:
        settings = {} if gamma is None else {"gamma": gamma, "lam": lam}
        ours, theirs = explore.gae(**settings), numbers(page, **settings)
        assert theirs["residuals"] == approx(ours["residuals"], abs=1e-6)
        assert theirs["advantages"] == approx(ours["advantages"], abs=1e-6)
        for row, expected in zip(theirs["weights"], ours["weights"], strict=True):
            assert row == approx(expected, abs=1e-6)


@in_a_browser
def test_kl_agrees(pages):
    page = pages("kl")
    settings = [
        (explore.LOGITS_P, explore.LOGITS_Q, 1, 100),
        ((2.0, 0.0, -1.0), (-1.0, 0.0, 1.0), 7, 2000),
        ((0.0, 0.0, -4.0), (0.0, 0.0, 1.0), 3, 1000),
        ((4.0, -4.0, 0.5), (-4.0, 4.0, 0.1), 12345, 300),
        ((1.0, 0.0, -1.0), (1.0, 0.0, -1.0), 2, 1),
    ]
    for number, (p, q, seed, n) in enumerate(settings):
        controls = {f"p{o}": x for o, x in zip("abc", p, strict=True)} | {f"q{o}": x for o, x in zip("abc", q, strict=True)}
        theirs = numbers(page, **(controls | {"seed": seed, "n": n} if number else {}))  # the first are the page's own
        ours = explore.kl(p, q, seed, n)
        assert theirs["samples"] == ours["samples"]
        assert theirs["exact"] == approx(ours["exact"], abs=1e-6)
        for kind in KINDS:
            assert theirs[kind] == approx(ours[kind], abs=1e-6)
        for name in ("expectation", "spread"):
            assert theirs[name] == approx(ours[name], abs=1e-6)


@in_a_browser
def test_what_is_written_is_what_was_computed(pages):
    """The numbers in the page's text, not only those behind it."""
    page = pages("clip")
    shown = page.locator(".x-numbers dd").all_inner_texts()
    ours = explore.clip()
    assert [float(x.replace("\u2212", "-")) for x in shown] == [ours[n] for n in ("unclipped", "clipped", "objective", "slope", "gradient")]
    assert page.locator(".x-says").inner_text() == ours["meaning"] + "."
    assert page.locator("td[aria-current]").inner_text() == "clipped: 0"

    page = pages("gae")
    drawn = [float(x.replace("\u2212", "-")) for x in page.locator("svg text").all_text_contents() if re.fullmatch(r"\u2212?\d\.\d\d", x)]
    ours = explore.gae()
    expected = [*ours["residuals"], *[x for x in ours["weights"][0] if x], *ours["advantages"]]
    assert drawn == approx(expected, abs=0.005001)
    assert page.locator(".x-says").inner_text().endswith(f"= {ours['advantages'][0]:.2f}")

    page = pages("kl")
    ours = explore.kl()
    rows = [[float(x.replace("\u2212", "-")) for x in row.locator("td").all_inner_texts()] for row in page.locator("tbody tr").all()]
    for kind, row in zip(KINDS, rows, strict=True):
        assert row == approx([ours[kind][-1], ours["expectation"][kind], ours["spread"][kind]], abs=0.0005001)


# Keyboard, touch, eyes -----------------------------------------------------------------------------------------------


@in_a_browser
@each_figure
def test_every_control_works_by_keyboard(pages, name):
    page = pages(name)
    sliders = page.locator("input[type=range]")
    assert sliders.count() >= 3
    for slider in sliders.all():
        label = page.locator(f"label[for={slider.get_attribute('id')}]")
        assert label.inner_text().strip()
        slider.focus()
        assert slider.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        before, value = numbers(page), slider.input_value()
        text = page.locator(f"output[for={slider.get_attribute('id')}]").inner_text()
        for _ in range(3):
            page.keyboard.press("ArrowRight" if float(value) < float(slider.get_attribute("max")) else "ArrowLeft")
        assert slider.input_value() != value
        assert page.locator(f"output[for={slider.get_attribute('id')}]").inner_text() != text
        if slider.get_attribute("data-name") != "step":  # chooses what is shown, computes nothing
            assert numbers(page) != before
    for button in page.locator("button").all():
        button.focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")  # :focus-visible as a keyboard reader has it
        assert button.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        before = page.locator(".explorable").inner_html(), numbers(page)
        page.keyboard.press("Enter")
        assert (page.locator(".explorable").inner_html(), numbers(page)) != before, button.inner_text()


@in_a_browser
def test_samples_arrive(pages):
    page = pages("kl")
    for label, n in (("back to 1", 1), ("+1", 2), ("+10", 12), ("+100", 112)):
        page.get_by_role("button", name=label, exact=True).tap()
        assert len(numbers(page)["samples"]) == n
    before = numbers(page)["samples"]
    page.get_by_role("button", name="other samples").tap()
    assert numbers(page)["samples"] != before
    page.get_by_role("button", name="rare outcome").tap()
    assert numbers(page)["exact"] == approx(explore.kl((0.0, 0.0, -4.0), (0.0, 0.0, 1.0))["exact"], abs=1e-6)


@in_a_browser
def test_plots_answer_to_a_tap(pages):
    page = pages("clip")
    box = page.locator("svg").bounding_box()
    page.mouse.click(box["x"] + 40 + (box["width"] - 52) / 4, box["y"] + 100)
    assert numbers(page)["unclipped"] == approx(0.5, abs=0.02)
    page = pages("gae", size="narrow")
    box = page.locator("svg").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.9, box["y"] + 60)
    assert page.locator("input[data-name=step]").input_value() == "7"


CONTRAST = """() => {
    const parse = c => c.match(/[\\d.]+/g).map(Number);
    const light = c => parse(c).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const root = document.querySelector(".explorable");
    const ground = light(getComputedStyle(root).backgroundColor);
    const ratio = c => (Math.max(light(c), ground) + 0.05) / (Math.min(light(c), ground) + 0.05);
    const lowest = (selector, property) => Math.min(...[...root.querySelectorAll(selector)]
        .map(e => getComputedStyle(e)[property]).filter(c => c.startsWith("rgb")).map(ratio));
    return {
        text: lowest("label, output, p, button, dt, dd, th, td, span", "color"), drawn: lowest("svg text", "fill"),
        lines: lowest("svg path:not(.x-grid)", "stroke"), marks: lowest("svg circle, svg rect:not([opacity])", "fill"),
    };
}"""


@in_a_browser
@each_figure
@each_theme
def test_light_and_dark_are_readable(pages, name, theme):
    """WCAG: 4.5 to 1 for text, 3 to 1 for lines and marks."""
    contrast = {k: v if v is not None else 99 for k, v in pages(name, theme=theme).evaluate(CONTRAST).items()}
    assert contrast["text"] >= 4.5, contrast
    assert contrast["drawn"] >= 4.5, contrast
    assert contrast["lines"] >= 3, contrast
    assert contrast["marks"] >= 3, contrast


# Texts of a drawing that leave it, or that lie on each other.
MISPLACED = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
    const outside = texts.filter(([, b]) =>
        b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 2 || b.bottom > frame.bottom + 2);
    const shared = (a, b, low, high) => Math.min(a[high], b[high]) - Math.max(a[low], b[low]);
    const touching = texts.flatMap(([one, a], i) => texts.slice(i + 1)
        .filter(([, b]) => shared(a, b, "left", "right") > 1 && shared(a, b, "top", "bottom") > 4)
        .map(([two]) => [one, two]));
    return [...outside.map(([text]) => text), ...touching];
})"""


EXTREMES = {
    "clip": [{"advantage": a, "ratio": r, "epsilon": e} for a in (-1.5, 1.5) for r in (0.02, 2.0) for e in (0.05, 0.5)],
    "gae": [{"gamma": g, "lam": x, "step": t} for g in (0.0, 0.9, 1.0) for x in (0.0, 1.0) for t in (0, 4, 7)],
    "kl": [{"pa": a, "qa": -a, "n": n} for a in (-4.0, 0.0, 1.0, 4.0) for n in (1, 12, 2000)],
}


@in_a_browser
@each_figure
@pytest.mark.parametrize("size", SIZES)
def test_nothing_overflows(pages, name, size):
    page = pages(name, size=size)
    assert page.evaluate("() => document.scrollingElement.scrollWidth") <= SIZES[size][0]
    frame = page.locator(".explorable").bounding_box()
    for element in page.locator(".explorable *:visible").all():
        box = element.bounding_box()
        if box is None:
            continue
        assert box["x"] >= frame["x"] - 1, element.evaluate("e => e.outerHTML.slice(0, 120)")
        assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1, element.evaluate("e => e.outerHTML.slice(0, 120)")
    for settings in EXTREMES[name]:
        numbers(page, **settings)
        assert page.evaluate(MISPLACED) == [], settings
    for control in page.locator("button, input").all():
        assert control.bounding_box()["height"] >= 44, "a finger's width"


@in_a_browser
def test_a_drawing_follows_the_width_of_the_page(pages):
    page = pages("clip")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => { const s = document.querySelector('svg'); return s.viewBox.baseVal.width === s.clientWidth; }")


# The files and the book ----------------------------------------------------------------------------------------------


def test_scripts_are_small_and_ask_nothing_of_the_network():
    for path in SOURCES.iterdir():
        text = path.read_text(encoding="utf-8")
        assert len(text) <= 12_000, path.name
        assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), path.name
        assert not re.search(r"\b(fetch|XMLHttpRequest|import|WebSocket)\b", re.sub(r"//.*", "", text)), path.name


def test_the_eight_steps_are_the_same_on_both_sides():
    script = (SOURCES / "gae.js").read_text(encoding="utf-8")
    for name in ("REWARDS", "VALUES", "NEXT_VALUES"):
        written = re.search(rf"const {name} = \[(.*?)\]", script).group(1)
        assert [float(x) for x in written.split(",")] == approx(getattr(explore, name), nan_ok=True)


def test_meanings_of_the_cases_are_the_same_on_both_sides():
    assert re.findall(r'"(A [=<>].*?)",', (SOURCES / "clip.js").read_text(encoding="utf-8")) == list(explore.CASES)


@each_figure
def test_a_chapter_shows_each_figure_and_its_twin(name):
    showing = [path for path in CHAPTERS if f'<div class="explorable" data-explorable="{name}"></div>' in markdown(path)]
    assert showing
    for path in showing:
        assert f"explore.{name}(" in path.read_text(encoding="utf-8") or f"plot_{name}(" in path.read_text(encoding="utf-8"), path.name
