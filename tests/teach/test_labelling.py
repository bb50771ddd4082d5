"""The labelling panel: its buttons write the right lines, a session can be continued, and no text is read as markup."""

import builtins
import json

import matplotlib.pyplot as plt
import pytest

from ppo_edu.lm import Comparison, append_comparison, load_comparisons
from ppo_edu.teach import labelling
from ppo_edu.teach.labelling import draw_panel, labelling_panel

PAIRS = [("Q1.", " good", " bad"), ("Q2.", " fine", " poor"), ("Q3.", " <b>x</b> & y", " z")]


def parts(panel):
    progress, texts, row = panel.children
    return progress, texts, dict(zip(("first", "tie", "second"), row.children, strict=True))


def test_each_button_appends_its_answer_and_shows_the_next_pair(tmp_path):
    path = tmp_path / "answers.jsonl"
    progress, texts, buttons = parts(labelling_panel(PAIRS, path))
    assert progress.value == "0 of 3 answered"
    assert not path.exists()
    for number, name in enumerate(("second", "tie", "first")):
        assert PAIRS[number][0] in texts.value
        buttons[name].click()
        assert load_comparisons(path)[-1] == Comparison(*PAIRS[number], name)
        assert len(path.read_text().splitlines()) == number + 1
        assert progress.value == f"{number + 1} of 3 answered"
    assert json.loads(path.read_text().splitlines()[0]) == {"prompt": "Q1.", "first": " good", "second": " bad", "preferred": "second"}


def test_after_the_last_pair_nothing_more_is_written(tmp_path):
    path = tmp_path / "answers.jsonl"
    _, texts, buttons = parts(labelling_panel(PAIRS[:1], path))
    buttons["tie"].click()
    assert all(button.disabled for button in buttons.values())
    assert "answers.jsonl" in texts.value
    buttons["first"].click()
    assert len(load_comparisons(path)) == 1


def test_a_session_is_continued_where_it_stopped(tmp_path):
    path = tmp_path / "answers.jsonl"
    append_comparison(path, Comparison(*PAIRS[0], "first"))
    progress, texts, buttons = parts(labelling_panel(PAIRS, path))
    assert progress.value == "1 of 3 answered"
    assert "Q2." in texts.value
    buttons["second"].click()
    assert [x.prompt for x in load_comparisons(path)] == ["Q1.", "Q2."]


def test_texts_are_not_read_as_markup(tmp_path):
    _, texts, _ = parts(labelling_panel(PAIRS[2:], tmp_path / "answers.jsonl"))
    assert "&lt;b&gt;x&lt;/b&gt; &amp; y" in texts.value


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pairs must hold at least one"):
        labelling_panel([], tmp_path / "answers.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text("hello\n")
    with pytest.raises(ValueError, match="one comparison per line"):
        labelling_panel(PAIRS, other)


def test_without_ipywidgets_the_module_works_and_the_panel_says_what_is_missing(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install ipywidgets"):
        labelling_panel(PAIRS, tmp_path / "answers.jsonl")


def test_the_picture_shows_the_pair_and_the_buttons():
    figure = draw_panel("Q.", " one costs $5", " two costs $6")
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert {"Q.", labelling.QUESTION, "1: one costs $5", "2: two costs $6", *labelling.BUTTONS.values()} == set(shown)
    figure.canvas.draw()
    plt.close(figure)
