"""The catalogue of mistakes: complete, without doubles, plantable; and planting reaches every place and leaves no trace."""

import inspect
import re
import sys
import types

import pytest
import torch

import ppo_edu
from ppo_edu import control, core
from ppo_edu.core import gae  # by name, as any reader's module would have it
from ppo_edu.teach.checks import CHECKERS
from ppo_edu.teach.lab import SUSPECTS
from ppo_edu.teach.lineup import KNOWN
from ppo_edu.teach.pitfalls import PITFALLS, Pitfall, pitfall, pitfalls_of, planted
from ppo_edu.teach.pitfalls.catalogue import TWINS
from ppo_edu.teach.pitfalls.planting import right_function

every_entry = pytest.mark.parametrize("entry", PITFALLS.values(), ids=lambda entry: entry.name)
PLANTABLE = [entry for entry in PITFALLS.values() if entry.replaces]
PUBLIC = r"https://(github\.com/[\w.-]+/[\w.-]+/(issues|pull|discussions)/\d+|arxiv\.org/abs/\d{4}\.\d{5})"


# Entries ----------------------------------------------------------------------------------------------------------------


@every_entry
def test_an_entry_is_complete(entry):
    assert PITFALLS[entry.name] is entry
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.name)
    assert entry in pitfalls_of(entry.target)
    for text in (entry.mistake, entry.symptom, entry.exposed_by):
        assert text == text.strip() != ""
        assert not text.endswith("."), "it is a part of a sentence"
    assert entry.discussed is None or re.fullmatch(PUBLIC, entry.discussed)


def test_no_two_entries_are_one():
    assert len({entry.wrong for entry in PITFALLS.values()}) == len(PITFALLS)
    assert len({(entry.target, entry.mistake) for entry in PITFALLS.values()}) == len(PITFALLS)


@every_entry
def test_an_entry_is_named_by_a_checker_the_lab_or_the_line_up(entry):
    """That they do name it is proved in test_checks.py, test_core_checks.py, test_lab.py and test_lineup.py."""
    assert entry.target in CHECKERS or entry.name in SUSPECTS or entry in KNOWN.get(entry.replaces, [])


def test_there_are_enough_of_them():
    assert len(PLANTABLE) >= 30
    assert sum(entry.discussed is not None for entry in PITFALLS.values()) >= 30


def test_the_twins_are_functions_of_exercises_that_have_known_mistakes():
    assert set(TWINS) <= set(CHECKERS) & {entry.target for entry in PITFALLS.values()}


@pytest.mark.parametrize("entry", PLANTABLE, ids=lambda entry: entry.name)
def test_a_variant_has_the_parameters_of_the_function_it_gets_wrong(entry):
    """Names, order and defaults; what the function takes by keyword only an exercise may also take by position."""
    right, wrong = (inspect.signature(fn).parameters for fn in (right_function(entry), entry.wrong))
    assert [(p.name, p.default) for p in right.values()] == [(p.name, p.default) for p in wrong.values()]
    for p in right.values():
        by_position = p.kind is p.KEYWORD_ONLY and entry.target in CHECKERS and wrong[p.name].kind is p.POSITIONAL_OR_KEYWORD
        assert by_position or wrong[p.name].kind is p.kind


def test_a_name_cannot_be_entered_twice():
    name = next(iter(PITFALLS))
    before = PITFALLS[name]
    with pytest.raises(ValueError, match="name must be unique in the catalogue"):
        pitfall(name, target="x", mistake="x", symptom="x", exposed_by="x")(lambda: None)
    assert PITFALLS[name] is before


# Planting ---------------------------------------------------------------------------------------------------------------


def column(*numbers):
    return torch.tensor(numbers)[:, None]


def advantages(fn):
    ends = torch.zeros(2, 1, dtype=torch.bool)
    return fn(column(1.0, 2.0), column(0.0, 0.0), column(0.0, 0.0), ends, ends, gamma=0.5, lam=0.5).flatten().tolist()


RIGHT, SHIFTED = [1.5, 2.0], [2.0, 0.0]


def test_the_mistake_is_made_wherever_the_function_is_bound_and_nowhere_afterwards():
    def everywhere():
        bound = (gae, core.gae, ppo_edu.gae, ppo_edu.core.advantages.gae, control.ppo.gae, control.train.__kwdefaults__["advantage_fn"])
        return [advantages(fn) for fn in bound]

    before = core.gae
    assert everywhere() == [RIGHT] * 6
    with planted(PITFALLS["advantages-shifted-by-one"]):
        assert everywhere() == [SHIFTED] * 6
        assert core.gae.__name__ == "gae"
    assert everywhere() == [RIGHT] * 6
    assert core.gae is before


def test_a_module_that_is_imported_in_the_meantime_keeps_nothing_of_it(monkeypatch):
    late = types.ModuleType("late")
    monkeypatch.setitem(sys.modules, "late", late)
    with planted(PITFALLS["advantages-shifted-by-one"]):
        late.gae = core.gae
        assert advantages(late.gae) == SHIFTED
    assert late.gae is core.gae
    assert advantages(late.gae) == RIGHT


def test_a_method_is_replaced_in_its_class():
    coefficient = core.AdaptiveKLCoefficient(value=1.0, target=1.0, horizon=10.0)
    with planted(PITFALLS["controller-steers-away"]):
        assert coefficient.updated(2.0, 10).value < 1.0
    assert coefficient.updated(2.0, 10).value > 1.0


def test_a_variant_may_be_made_from_the_right_function():
    entry = Pitfall("twice", "ppo_edu.core.masking.masked_mean", "x", "x", "x", lambda x, mask=None: 2 * core.masked_mean(x, mask))
    with planted(entry):
        assert core.masked_mean(torch.ones(3)) == 2.0
        assert core.masked_mean(torch.ones(3)) == 2.0


def test_the_right_function_comes_back_after_an_error_too():
    def fails(x, mask=None):
        raise ZeroDivisionError

    entry = Pitfall("fails", "ppo_edu.core.masking.masked_mean", "x", "x", "x", fails)
    with pytest.raises(ZeroDivisionError), planted(entry):
        core.masked_mean(torch.ones(3))
    assert core.masked_mean(torch.ones(3)) == 1.0
    with planted(entry):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                core.masked_mean(torch.ones(3))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("leave_one_out", "'x' is known to an exercise only"),
        ("ppo_edu.core.kl.no_such", "'x' names ppo_edu.core.kl.no_such"),
        ("ppo_edu.core.kl.Nobody.updated", "'x' names ppo_edu.core.kl.Nobody.updated"),
    ],
)
def test_what_cannot_be_planted_is_said(target, message):
    with pytest.raises(ValueError, match=message), planted(Pitfall("x", target, "x", "x", "x", lambda: None)):
        pass
