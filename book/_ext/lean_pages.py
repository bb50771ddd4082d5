"""Keeps each page of the book small and free of requests to other hosts.

Three things that Jupyter Book 1 has no option for:

* Mathematics is typeset by KaTeX from book/_extra/vendor/katex. A page of MathJax weighs 860 kB, of KaTeX 370 kB,
  and it is typeset before the page is drawn.
* Scripts and styles that no page, or not this page, uses are left out (Thebe names another host, too).
* The interactive figures of book/_extra/explorables are loaded where a page has one, each by its name.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number, wrap_displaymath

KATEX = "../vendor/katex/"
EXPLORABLES = "../explorables/"

# A broken formula shows its source in red, and the browser test finds it.
TYPESET = """
document.addEventListener("DOMContentLoaded", () => {
  for (const tex of document.querySelectorAll(".math .tex")) {
    const displayMode = tex.parentElement.tagName === "DIV";
    katex.render(tex.textContent, tex, { displayMode, throwOnError: false, strict: false });
  }
});
"""


def visit_inline(self, node: nodes.math) -> None:
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    self.body.append(f'<span class="tex">{self.encode(node.astext())}</span></span>')
    raise nodes.SkipNode


def visit_display(self, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    text = node.astext()
    if not node["nowrap"] and r"\\" in text:
        text = wrap_displaymath(text, None, False).removeprefix(r"\begin{equation*}").strip()
        text = text.removesuffix(r"\end{equation*}").strip()
    self.body.append(f'<div class="tex">{self.encode(text)}</div></div>\n')
    raise nodes.SkipNode


def choose_assets(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    if app.builder.format != "html":
        return
    if app.env.get_domain("math").has_equations(pagename):
        app.add_css_file(KATEX + "katex.min.css")
        app.add_js_file(KATEX + "katex.min.js", defer="defer")
        app.add_js_file(None, body=TYPESET)

    body = context.get("body") or ""
    if explorables := sorted(set(re.findall(r'data-explorable="([a-z]+)"', body))):
        app.add_css_file(EXPLORABLES + "explorables.css")
        for name in ["common", *explorables]:
            app.add_js_file(f"{EXPLORABLES}{name}.js", defer="defer")

    unused = ["thebe"]
    if "sd-" not in body:
        unused += ["sphinx-design", "design-tabs"]

    def used(asset) -> bool:
        content = f"{asset.filename or ''} {getattr(asset, 'attributes', {}).get('body', '')}".lower()
        return not any(name in content for name in unused)

    context["script_files"] = [asset for asset in context["script_files"] if used(asset)]
    context["css_files"] = [asset for asset in context["css_files"] if used(asset)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("katex", (visit_inline, None), (visit_display, None))
    app.connect("html-page-context", choose_assets, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
