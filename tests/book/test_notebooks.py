"""Every notebook is committed as it ran: in order, with outputs, without errors, and follows the chapter's template."""

import re

import pytest
from book_sources import CHAPTERS, NOTEBOOKS, code_cells, load, tags
from bs4 import BeautifulSoup

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


def test_there_are_chapters():
    assert CHAPTERS


def test_file_names():
    for path in NOTEBOOKS:
        assert re.fullmatch(r"(\d\d-)?[a-z0-9]+(-[a-z0-9]+)*\.ipynb", path.name), path.name


@each_notebook
def test_ran_top_to_bottom(path):
    counts = [cell.execution_count for cell in code_cells(path) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"


@each_notebook
def test_no_error_and_nothing_hidden_from_the_tests(path):
    for cell in code_cells(path):
        assert not any(output.output_type == "error" for output in cell.outputs), cell.source
        assert not {"raises-exception", "nbval-skip"} & set(tags(cell)), cell.source
        assert "NBVAL_" not in cell.source, "use cell tags, which readers do not see"


@each_notebook
def test_outputs_are_compared(path):
    """With cleared outputs nbval would pass and compare nothing."""
    compared = [cell for cell in code_cells(path) if cell.outputs and "nbval-ignore-output" not in tags(cell)]
    text = [c for c in compared if any(o.output_type == "stream" or "text/plain" in o.get("data", {}) for o in c.outputs)]
    assert len(text) >= 3


@each_notebook
def test_what_is_not_compared_is_asserted(path):
    """A cell tagged nbval-ignore-output has an assert, in itself or in one of the next two code cells."""
    cells = code_cells(path)
    for i, cell in enumerate(cells):
        if "nbval-ignore-output" in tags(cell):
            near = "\n".join(c.source for c in cells[i : i + 3])
            assert re.search(r"^\s*(assert\b|[\w.]*assert_\w+\()", near, flags=re.M), cell.source


@each_notebook
def test_no_output_on_stderr(path):
    for cell in code_cells(path):
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.source


@each_notebook
def test_code_lines_fit(path):
    long = [line for cell in code_cells(path) for line in cell.source.splitlines() if len(line) > 75]
    assert not long


@each_notebook
def test_every_picture_has_alt_text(path):
    for cell in code_cells(path):
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        for output in cell.outputs:
            data = output.get("data", {})
            if any(kind in data for kind in IMAGES):
                assert len(alt) >= 20, f"describe the figure in the cell's metadata, mystnb.image.alt:\n{cell.source}"
            for image in BeautifulSoup(data.get("text/html", ""), "html.parser").find_all("img"):
                assert len(image.get("alt", "")) >= 20, cell.source
    for cell in load(path).cells:
        if cell.cell_type == "markdown":
            for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]*)", cell.source):
                assert len(alt) >= 20, target
                assert target.startswith(("data:", "attachment:")), f"{target}: a lone notebook in Colab has no such file"


@each_notebook
def test_plot_cells_end_quietly(path):
    """A figure's repr carries nothing; end the cell with plt.show()."""
    for cell in code_cells(path):
        for output in cell.outputs:
            repr_ = output.get("data", {}).get("text/plain", "")
            assert output.output_type != "execute_result" or "matplotlib" not in repr_, cell.source


@each_notebook
def test_small_and_without_widget_state(path):
    assert path.stat().st_size < 2_000_000
    assert "widgets" not in load(path).metadata
    for cell in code_cells(path):
        for output in cell.outputs:
            assert not any("widget" in kind for kind in output.get("data", {})), cell.source


# --- the chapter's template


def sections(path, level: str) -> list[tuple[str, str]]:
    """(heading, everything up to the next heading of this or a higher level), code cells included as fences."""
    text = "\n\n".join(
        cell.source if cell.cell_type == "markdown" else "~~~\n" + cell.source.replace("\n#", "\n %") + "\n~~~" for cell in load(path).cells
    )
    text = re.sub(r"^~~~\n#", "~~~\n %", text, flags=re.M)
    found = re.split(rf"^(#{{1,{len(level)}}} .*)$", text, flags=re.M)[1:]
    return [(head, body) for head, body in zip(found[::2], found[1::2], strict=True) if head.startswith(level + " ")]


@each_chapter
def test_required_sections(path):
    heads = [head.removeprefix("## ") for head, _ in sections(path, "##")]
    wanted = ["In this chapter", "What goes wrong", "Exercises", "Summary", "Further reading"]
    assert [h for h in heads if h in wanted] == wanted, heads
    everything = "\n".join(cell.source for cell in load(path).cells if cell.cell_type == "markdown")
    assert re.search(r"^(#+ |\*\*)Check it", everything, flags=re.M), "no **Check it**"
    opening = dict(sections(path, "##"))["## In this chapter"]
    assert re.search(r"\d+ minutes", opening), "reading minutes"
    assert re.search(r"\d+ seconds", opening), "run seconds"
    assert "show_source(" in "\n".join(cell.source for cell in code_cells(path)), "the implementation is shown by show_source"


@each_notebook
def test_titles_carry_no_number(path):
    title = load(path).cells[0].source.splitlines()[0]
    assert re.fullmatch(r"# [^\d\W].*", title), title
    for cell in load(path).cells[1:]:
        if cell.cell_type == "markdown":
            assert not re.search(r"^# ", re.sub(r"```.*?```", "", cell.source, flags=re.S), flags=re.M), "one title a chapter"


@each_chapter
def test_exercises(path):
    number = int(path.name[:2])
    exercises = [(head, body) for head, body in sections(path, "###") if head.startswith("### Exercise")]
    assert len(exercises) >= 4
    for i, (head, body) in enumerate(exercises, start=1):
        assert head.startswith(f"### Exercise {number}.{i}: "), head
        first = body.strip().splitlines()[0]
        assert re.fullmatch(r"\*(easy|medium|hard), \d+ minutes, (pencil|code|experiment)\*", first), f"{head}: {first}"
        assert re.search(r"^<details>\s*<summary>Solution[^<]*</summary>\n\n(.+?)\n\n?</details>$", body, flags=re.M | re.S), head
