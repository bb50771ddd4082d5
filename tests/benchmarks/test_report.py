"""Tables go between their markers and nowhere else, the README's are those of the stored results, and no result replaces a richer one."""

import json
import re

import pytest

from benchmarks import cartpole_vs_peers, lm_vs_peers, report
from benchmarks.report import README, lost_sides, read_block, store, write_block
from ppo_edu.teach import load_result

PAGE = "above\n<!-- one -->\nold\n<!-- /one -->\nbetween\n<!-- two -->\nkept\n<!-- /two -->\nbelow\n"
TABLES = {module.NAME: module.readme_table for module in (cartpole_vs_peers, lm_vs_peers)}


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    return path


def test_a_block_is_replaced_and_the_rest_stays(page):
    assert write_block("one", "\n| new |\n", page)
    assert page.read_text() == PAGE.replace("old", "| new |")
    assert read_block("one", page) == "| new |"
    assert read_block("two", page) == "kept"


def test_without_markers_nothing_is_written(page):
    assert not write_block("three", "| new |", page)
    assert read_block("three", page) is None
    assert page.read_text() == PAGE


def test_every_block_of_the_readme_has_a_table():
    assert set(re.findall(r"<!-- (\w+) -->", README.read_text(encoding="utf-8"))) == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_shows_the_stored_result(name):
    assert read_block(name) == TABLES[name](load_result(name)).strip()


def compared(*sides):
    return {"summary": {side: {} for side in sides}}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "data_path", lambda name: tmp_path / f"{name}.json")
    return tmp_path / "one.json"


def test_a_result_that_lost_a_side_does_not_replace_the_stored_one(data, page, capsys):
    assert store("one", compared("ours", "peer"), "| both |", readme=page)
    before = data.read_text(), page.read_text()
    assert not store("one", compared("ours", "another"), "| other |", readme=page)
    assert (data.read_text(), page.read_text()) == before
    assert "compares peer too" in capsys.readouterr().out
    assert lost_sides(compared("ours"), data) == ["peer"]


def test_a_result_with_the_same_sides_or_more_replaces_it(data, page):
    for sides in (("ours",), ("peer", "ours"), ("ours", "peer")):
        assert store("one", compared(*sides), f"| {sides} |", readme=page)
        assert json.loads(data.read_text()) == compared(*sides)
        assert read_block("one", page) == f"| {sides} |"


def test_an_output_of_its_own_leaves_data_and_readme_alone(data, page, tmp_path):
    store("one", compared("ours", "peer"), "| both |", readme=page)
    before = data.read_text(), page.read_text()
    assert store("one", compared("ours"), "| one |", tmp_path / "elsewhere.json", page)
    assert (data.read_text(), page.read_text()) == before
    assert json.loads((tmp_path / "elsewhere.json").read_text()) == compared("ours")
