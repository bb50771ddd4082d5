"""Showing package code as it stands, and results of long runs."""

import inspect
import json
from pathlib import Path

import pytest

from ppo_edu.control import PPOConfig
from ppo_edu.core import gae, td_residual
from ppo_edu.teach import load_result, show_source
from ppo_edu.teach import results as results_module

STORED = sorted(path.stem for path in (Path(results_module.__file__).parent / "data").glob("*.json"))


def test_show_source_prints_functions_and_classes_as_they_stand():
    text = show_source(gae, PPOConfig).data
    assert [inspect.getsource(x).rstrip() in text for x in (gae, PPOConfig)] == [True, True]
    assert text.index("def gae") < text.index("class PPOConfig")


def test_show_source_is_one_block_of_python():
    text = show_source(td_residual).data
    assert text.startswith("```python\n")
    assert text.endswith("\n```")
    assert text.count("```") == 2
    assert "delta_t = r_t + gamma" in text


@pytest.mark.parametrize("name", STORED)
def test_a_stored_result_is_read_by_its_name(name):
    assert isinstance(load_result(name), dict)


@pytest.mark.parametrize("name", ["no-such-result", "", "../data", "cartpole_vs_peers.json"])
def test_an_unknown_name_is_refused_with_those_that_are_known(name):
    with pytest.raises(ValueError, match="name must be one of") as caught:
        load_result(name)
    assert str(STORED) in str(caught.value)


def test_a_result_is_read_as_it_was_written(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.json").write_text(json.dumps({"a": [1, None, "ü"]}), encoding="utf-8")
    monkeypatch.setattr(results_module, "files", lambda package: tmp_path)
    assert load_result("mine") == {"a": [1, None, "ü"]}
