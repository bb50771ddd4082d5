"""Exercise checkers: right functions pass, every known mistake is named, and no function however wild gets past or breaks them."""

import re
import time

import numpy as np
import pytest
import torch

from ppo_edu.teach.checks import CHECKERS, Case, check_annealed, check_explained_variance, check_valid_rows, engine, run_check
from ppo_edu.teach.pitfalls import PITFALLS, Pitfall

each_checker = pytest.mark.parametrize("target", CHECKERS)


def reference_of(target, monkeypatch):
    """The right function that a checker compares with."""
    checker = CHECKERS[target]
    with monkeypatch.context() as patch:
        patch.setitem(checker.__globals__, "run_check", lambda exercise, fn, *, reference, **rest: reference)
        return checker(None)


# Right functions --------------------------------------------------------------------------------------------------------


def valid_rows_by_loops(terminated, truncated, carried_done):
    rows = []
    for t in range(len(terminated)):
        before = carried_done if t == 0 else [a or b for a, b in zip(terminated[t - 1].tolist(), truncated[t - 1].tolist(), strict=True)]
        rows.append([not bool(x) for x in before])
    return torch.tensor(rows)


def explained_variance_in_numpy(values, returns):
    values, returns = values.double().numpy(), returns.double().numpy()
    return 1 - np.var(returns - values) / np.var(returns)


RIGHT = [
    (check_valid_rows, valid_rows_by_loops),
    (check_annealed, lambda initial, env_steps, total_steps: np.interp(env_steps, [0, total_steps], [initial, 0.0])),
    (check_explained_variance, explained_variance_in_numpy),
]


@pytest.mark.parametrize(("checker", "fn"), RIGHT)
def test_a_right_function_written_another_way_passes(checker, fn):
    result = checker(fn)
    assert result, repr(result)
    assert result.cases_passed == result.cases > 0
    assert result.pitfall is None
    assert repr(result) == f"{result.exercise}: all {result.cases} cases pass."


@each_checker
def test_the_reference_itself_passes(target, monkeypatch):
    result = CHECKERS[target](reference_of(target, monkeypatch))
    assert result, repr(result)


# Known mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [entry for entry in PITFALLS.values() if entry.target in CHECKERS], ids=lambda entry: entry.name)
def test_every_known_mistake_is_found_and_named(entry):
    result = CHECKERS[entry.target](entry.wrong)
    assert not result
    assert result.pitfall is entry
    assert result.cases_passed < result.cases
    text = repr(result)
    assert entry.mistake in text
    assert entry.symptom in text
    assert entry.name in text


def test_an_unknown_mistake_is_found_and_not_given_a_name():
    result = check_annealed(lambda initial, env_steps, total_steps: initial * 0.9)
    assert not result
    assert result.pitfall is None
    assert "Pitfall" not in repr(result)


# The report -------------------------------------------------------------------------------------------------------------


def test_the_report_shows_the_smallest_case_that_fails_with_its_arguments_and_both_results():
    def forgets_what_was_carried(terminated, truncated, carried_done):
        return valid_rows_by_loops(terminated, truncated, torch.zeros_like(carried_done))

    result = check_valid_rows(forgets_what_was_carried)
    assert (result.cases_passed, result.cases) == (4, 6)
    lines = repr(result).splitlines()
    assert lines[0] == "Exercise 7.2: 4 of 6 cases pass."
    assert lines[1] == "The smallest case that fails: the previous rollout ended with an episode."
    assert "  carried_done = [1]" in lines
    assert "  expected = [[0], [1]]" in lines
    assert "  got      = [[1], [1]]" in lines


def double(x):
    return 2 * x


def check_double(fn, **options):
    cases = [Case(f"case {n}", {"x": torch.full((n,), 1.5)}) for n in (1, 2, 100)]
    return run_check("Doubling", fn, reference=double, cases=cases, **options)


def test_numbers_are_shown_with_four_digits_and_large_tensors_by_their_shape():
    assert "got      = [1.235]" in repr(check_double(lambda x: x * 0 + 1.23456))
    wrong_when_large = repr(check_double(lambda x: x if len(x) > 2 else 2 * x))
    assert "x = a tensor of shape [100]" in wrong_when_large


@pytest.mark.parametrize("error", [0.9e-5, -0.9e-5])
def test_rounding_is_forgiven(error):
    assert check_double(lambda x: 2 * x + error)
    assert not check_double(lambda x: 2 * x + 10 * error)


def test_a_sign_error_is_never_forgiven():
    assert not check_double(lambda x: -2 * x)


# Wild functions ---------------------------------------------------------------------------------------------------------


def raise_system_exit(*args, **kwargs):
    raise SystemExit(3)


def generate(*args, **kwargs):
    yield args[0]


def in_place(first, *rest, **kwargs):
    if isinstance(first, torch.Tensor):
        return first.logical_not_() if first.dtype == torch.bool else first.add_(1)
    return first


def endless_recursion(*args, **kwargs):
    return endless_recursion(*args, **kwargs)


WILD = {
    "raises": (lambda *args, **kwargs: 1 / 0, "It raised ZeroDivisionError: division by zero"),
    "exits": (raise_system_exit, "It raised SystemExit: 3"),
    "recurses": (endless_recursion, "It raised RecursionError"),
    "takes no arguments": (lambda: 1.0, "It raised TypeError"),
    "generator": (generate, "It must return .*, got generator"),
    "None": (lambda *args, **kwargs: None, "It must return .*, got NoneType None"),
    "string": (lambda *args, **kwargs: "1.0", "It must return .*, got str '1.0'"),
    "list": (lambda *args, **kwargs: [1.0, 2.0], r"It must return .*, got list \[1.0, 2.0\]"),
    "dict": (lambda *args, **kwargs: {}, "It must return .*, got dict"),
    "array of strings": (lambda *args, **kwargs: np.array(["a"]), "It must return .*, got ndarray"),
    "array of objects": (lambda *args, **kwargs: np.array([None]), "It must return .*, got ndarray"),
    "huge integer": (lambda *args, **kwargs: 10**30, "It must return .*, got int"),
    "complex": (lambda *args, **kwargs: torch.tensor(1 + 2j), "It must return .*, got Tensor"),
    "sparse": (lambda *args, **kwargs: torch.eye(2).to_sparse(), "It must return .*, got Tensor"),
    "wrong shape": (lambda *args, **kwargs: torch.zeros(7, 7, 7), r"The result must have shape \[.*\], got \[7, 7, 7\]"),
    "empty": (lambda *args, **kwargs: torch.empty(0), "The result must have shape"),
}


@each_checker
@pytest.mark.parametrize("kind", WILD)
def test_a_wild_function_is_reported_and_never_raised(target, kind):
    fn, message = WILD[kind]
    result = CHECKERS[target](fn)
    assert not result
    assert result.cases_passed == 0
    assert result.pitfall is None
    assert re.search(message, repr(result)), repr(result)


@each_checker
def test_a_function_of_nan_fails(target):
    assert not CHECKERS[target](lambda *args, **kwargs: torch.full((3, 1), float("nan")))
    assert not CHECKERS[target](lambda *args, **kwargs: float("nan"))


@each_checker
@pytest.mark.parametrize("thing", [None, 3, "check", [], torch.zeros(2)], ids=repr)
def test_what_is_no_function_is_said_so(target, thing):
    result = CHECKERS[target](thing)
    assert not result
    assert "A function is needed, got " + type(thing).__name__ in repr(result)


@pytest.mark.parametrize("checker", [check_valid_rows, check_explained_variance])
def test_a_change_of_the_arguments_is_reported_by_name(checker):
    result = checker(in_place)
    assert not result
    assert "It changed its argument" in repr(result)
    assert "in place" in repr(result)


def test_a_right_result_does_not_excuse_a_change_in_place():
    assert "It changed its argument x in place" in repr(check_double(lambda x: x.mul_(2)))


@each_checker
def test_a_checker_starts_afresh_each_time(target, monkeypatch):
    right = reference_of(target, monkeypatch)
    for spoiler in (in_place, raise_system_exit, lambda *args, **kwargs: None):
        CHECKERS[target](spoiler)
        assert CHECKERS[target](right)


def test_the_reference_never_sees_the_arguments_that_the_function_got():
    seen = []

    def reference(x):
        seen.append(x.clone())
        return 2 * x

    case = Case("one", {"x": torch.ones(2)})
    run_check("E", lambda x: x.zero_(), reference=reference, cases=[case, case])
    assert all(torch.equal(x, torch.ones(2)) for x in seen)
    assert torch.equal(case.arguments["x"], torch.ones(2))


def test_a_reference_that_works_in_place_does_not_spoil_what_the_function_gets():
    cases = [Case("one", {"x": torch.ones(2)})]
    assert run_check("E", lambda x: 2 * x, reference=lambda x: x.mul_(2), cases=cases)


# Time -------------------------------------------------------------------------------------------------------------------


def slow(fn):
    def slowed(*args, **kwargs):
        time.sleep(0.02)
        return fn(*args, **kwargs)

    return slowed


def test_a_slow_function_is_stopped_between_cases(monkeypatch):
    monkeypatch.setattr(engine, "SECONDS_ALLOWED", 0.01)
    calls = []
    result = check_double(slow(lambda x: calls.append(1) or 2 * x))
    assert not result
    assert len(calls) == 1
    assert (result.cases_passed, result.cases) == (1, 3)
    assert "The smallest case that fails: case 2." in repr(result)
    assert "Stopped before this case" in repr(result)


@each_checker
def test_a_slow_right_function_is_not_told_that_it_made_a_known_mistake(target, monkeypatch):
    monkeypatch.setattr(engine, "SECONDS_ALLOWED", 0.01)
    result = CHECKERS[target](slow(reference_of(target, monkeypatch)))
    assert not result
    assert "Stopped before this case" in repr(result)
    assert result.pitfall is None


def test_a_slow_function_that_ends_with_the_last_case_passes(monkeypatch):
    monkeypatch.setattr(engine, "SECONDS_ALLOWED", 0.01)
    assert run_check("E", slow(double), reference=double, cases=[Case("one", {"x": torch.ones(2)})])


# Results of other kinds -------------------------------------------------------------------------------------------------


def test_numbers_and_arrays_count_as_tensors_reversed_and_read_only_ones_too():
    reversed_cases = [Case("r", {"x": torch.tensor([1.0, 2.0])})]
    assert run_check("E", lambda x: x.numpy()[::-1], reference=lambda x: x.flip(0), cases=reversed_cases)
    assert run_check("E", lambda x: np.broadcast_to(np.float32(3), (2,)), reference=lambda x: torch.full((2,), 3.0), cases=reversed_cases)
    assert run_check("E", lambda x: 3, reference=lambda x: 3.0, cases=reversed_cases)


def test_a_bool_result_must_be_bool():
    cases = [Case("b", {"x": torch.tensor([1.0, 0.0])})]
    result = run_check("E", lambda x: x, reference=lambda x: x > 0.5, cases=cases)
    assert "The result must be bool, got torch.float32" in repr(result)


def test_results_in_a_dict_are_compared_by_name():
    cases = [Case("d", {"x": torch.tensor(2.0)})]

    def check(fn):
        return run_check("E", fn, reference=lambda x: {"square": x * x, "name": "x"}, cases=cases)

    assert check(lambda x: {"square": 4.0, "name": "x"})
    assert "In square:\n  expected = 4\n" in repr(check(lambda x: {"square": 5.0, "name": "x"}))
    assert "In name: Expected 'x', got 'y'" in repr(check(lambda x: {"square": 4.0, "name": "y"}))
    assert "It must return a dict with ['name', 'square']" in repr(check(lambda x: {"square": 4.0}))
    assert "It must return a dict" in repr(check(lambda x: 4.0))


def test_a_checker_may_compare_gradients_through_its_own_call():
    def call(fn, arguments):
        x = arguments["x"].clone().requires_grad_()
        fn(x).backward()
        return {"gradient": x.grad}

    cases = [Case("g", {"x": torch.tensor([1.0, 2.0])})]
    entry = Pitfall("sign", "loss", "the loss with its sign reversed", "unlearns", "gradient", lambda x: -x.square().sum())

    def check(fn):
        return run_check("E", fn, reference=lambda x: x.square().sum(), cases=cases, call=call, pitfalls=[entry])

    assert check(lambda x: (x * x).sum() + 7.0)
    assert check(lambda x: -(x * x).sum()).pitfall is entry
    assert "It raised RuntimeError" in repr(check(lambda x: x.detach().sum()))
