"""Tables go between their markers and nowhere else."""

from benchmarks.report import read_block, write_block

PAGE = "above\n<!-- one -->\nold\n<!-- /one -->\nbetween\n<!-- two -->\nkept\n<!-- /two -->\nbelow\n"


def test_a_block_is_replaced_and_the_rest_stays(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    assert write_block("one", "\n| new |\n", path)
    assert path.read_text() == PAGE.replace("old", "| new |")
    assert read_block("one", path) == "| new |"
    assert read_block("two", path) == "kept"


def test_without_markers_nothing_is_written(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    assert not write_block("three", "| new |", path)
    assert read_block("three", path) is None
    assert path.read_text() == PAGE
