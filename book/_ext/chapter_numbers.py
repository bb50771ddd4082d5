"""Number chapters by their file names, so that chapter 11 is 11 on the site, in its exercises and in its equations, whatever
chapters before it are still to come. (Sphinx counts the pages of the table of contents.)"""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles


def by_file_name(env: BuildEnvironment) -> None:
    """Replace the first number of every section of a file `NN-name` by NN."""
    for document, numbers in env.toc_secnumbers.items():
        match = re.match(r"\d+(?=-)", document)
        if not match:
            continue
        chapter = int(match.group())
        for anchor, number in numbers.items():
            if number:
                numbers[anchor] = (chapter, *number[1:])
        for node in [env.titles[document], *env.tocs[document].findall(nodes.reference)]:
            if node.get("secnumber"):
                node["secnumber"] = [chapter, *node["secnumber"][1:]]


def patch(app: Sphinx) -> None:
    """Once every extension is loaded, correct the numbers right after they are assigned: figures and theorems build on them."""
    assign = TocTreeCollectorWithStyles.assign_section_numbers

    def assign_section_numbers(self: TocTreeCollectorWithStyles, env: BuildEnvironment) -> list[str]:
        changed = assign(self, env)
        by_file_name(env)
        return changed

    TocTreeCollectorWithStyles.assign_section_numbers = assign_section_numbers


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.connect("builder-inited", patch)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
