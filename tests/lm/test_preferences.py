"""Bradley-Terry with noise and ties against its formulas; simulated annotators; comparisons on disk."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from ppo_edu.lm import (
    Comparison,
    append_comparison,
    best_accuracy,
    load_comparisons,
    preference_probabilities,
    save_comparisons,
    simulate_annotator,
)

DIFFERENCES = torch.tensor([-3.0, -0.7, 0.0, 0.2, 1.0, 2.5], dtype=torch.float64)
ODD = Comparison("Mein Tee: ", 'sagt "ja"\nund geht', "お茶\u2028\u0085🍵 \\ \t", "tie")
PLAIN = Comparison("a", "", "b c", "second")


def probabilities(**options):
    shift = torch.linspace(-5, 5, len(DIFFERENCES), dtype=torch.float64)
    return preference_probabilities(DIFFERENCES + shift, shift, **options)


# Probabilities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.25, 1.0, 3.0])
def test_without_ties_it_is_the_sigmoid_of_the_difference_in_units_of_the_noise(noise):
    found = probabilities(noise=noise)
    expected = [1 / (1 + math.exp(-d / noise)) for d in DIFFERENCES.tolist()]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(found[:, 1], 1 - np.array(expected), rtol=1e-9)
    assert (found[:, 2] == 0).all()


def test_at_a_difference_of_one_noise_the_better_one_wins_73_percent_of_the_time():
    assert probabilities()[4, 0] == pytest.approx(0.731, abs=5e-4)


@pytest.mark.parametrize("ties", [0.0, 0.3, 2.0])
def test_ties_follow_davidson_and_leave_the_odds_of_the_decided_as_they_are(ties):
    """Davidson's law: P(tie) = ties * sqrt(P(first) P(second)), at every difference."""
    first, second, tie = probabilities(noise=0.7, ties=ties).T
    torch.testing.assert_close(first + second + tie, torch.ones_like(tie))
    torch.testing.assert_close(tie, ties * (first * second).sqrt())
    torch.testing.assert_close((first / second).log(), DIFFERENCES / 0.7)


def test_who_is_called_first_makes_no_difference():
    a, b = torch.tensor([0.3, -1.0]), torch.tensor([0.1, 2.0])
    there, back = preference_probabilities(a, b, noise=0.4, ties=0.5), preference_probabilities(b, a, noise=0.4, ties=0.5)
    torch.testing.assert_close(there, back[:, [1, 0, 2]])


def test_noise_0_is_an_annotator_without_error_and_the_limit_of_small_noise():
    found = probabilities(noise=0.0)
    expected = [[float(d > 0) + 0.5 * (d == 0), float(d < 0) + 0.5 * (d == 0), 0.0] for d in DIFFERENCES.tolist()]
    np.testing.assert_array_equal(found, expected)
    torch.testing.assert_close(probabilities(noise=1e-4), found)
    np.testing.assert_allclose(probabilities(noise=0.0, ties=1.0)[2], [1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1.0])
def test_differences_of_any_size_give_no_nan(dtype, noise):
    a = torch.tensor([1e30, -1e30, 5e4, -800.0], dtype=dtype)
    found = preference_probabilities(a, torch.zeros_like(a), noise=noise, ties=0.2)
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], dtype=dtype)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        (torch.zeros(2), torch.zeros(3), {}, "second must match first"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), {}, "second must match first"),
        (torch.zeros(2), torch.zeros(2), {"noise": -1.0}, "noise must be"),
        (torch.zeros(2), torch.zeros(2), {"ties": -0.1}, "ties must be"),
        (torch.zeros(2), torch.zeros(2), {"noise": math.nan}, "noise must be"),
    ],
)
def test_bad_arguments_are_named(first, second, options, message):
    with pytest.raises(ValueError, match=message):
        preference_probabilities(first, second, **options)


# Annotators ---------------------------------------------------------------------------------------------------------------


def annotate(difference: float, n: int, **options) -> Counter:
    texts = (["p"] * n, ["x"] * n, ["y"] * n)
    made = simulate_annotator(*texts, torch.full((n,), difference), torch.zeros(n), **options)
    assert {(c.prompt, c.first, c.second) for c in made} == {("p", "x", "y")}
    return Counter(c.preferred for c in made)


@pytest.mark.parametrize("difference", [-0.5, 0.0, 0.4])
def test_a_simulated_annotator_chooses_as_often_as_the_probabilities_say(difference):
    n = 20_000
    found = annotate(difference, n, noise=0.5, ties=0.4, seed=0)
    weights = [math.exp(difference), math.exp(-difference), 0.4]  # d / 2 with d = difference / 0.5
    for name, weight in zip(("first", "second", "tie"), weights, strict=True):
        p = weight / sum(weights)
        assert abs(found[name] / n - p) < 4 * math.sqrt(p * (1 - p) / n), name


def test_choices_stay_with_their_texts_and_follow_from_the_seed():
    prompts, firsts, seconds = ([f"{name}{i}" for i in range(40)] for name in "pxy")
    scores = torch.tensor([1.0, -1.0] * 20)
    exact = simulate_annotator(prompts, firsts, seconds, scores, -scores, noise=0.0, seed=3)
    assert [(c.prompt, c.first, c.second) for c in exact] == list(zip(prompts, firsts, seconds, strict=True))
    assert [c.preferred for c in exact] == ["first", "second"] * 20
    noisy = [simulate_annotator(prompts, firsts, seconds, scores, -scores, noise=3.0, seed=seed) for seed in (3, 3, 4)]
    assert noisy[0] == noisy[1] != noisy[2]


def test_an_annotator_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    annotate(0.0, 10, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="must be of one length, got 2, 2, 1, 2"):
        simulate_annotator(["p", "p"], ["x", "x"], ["y"], torch.zeros(2), torch.zeros(2), seed=0)
    with pytest.raises(ValueError, match="second must match first"):
        simulate_annotator(["p", "p"], ["x", "x"], ["y", "y"], torch.zeros(2), torch.zeros(3), seed=0)


def test_the_best_accuracy_by_hand():
    """Differences of 1, 0 and -2 noises: sigmoid(1) = 0.7311, one half, sigmoid(2) = 0.8808."""
    first, second = torch.tensor([1.5, 3.0, 0.0]), torch.tensor([1.0, 3.0, 1.0])
    assert best_accuracy(first, second, noise=0.5) == pytest.approx((0.7310586 + 0.5 + 0.8807971) / 3, abs=1e-6)
    assert best_accuracy(first, second, noise=0.0) == pytest.approx(2.5 / 3)


def test_the_best_accuracy_is_reached_by_who_knows_the_scores():
    n = 20_000
    scores = torch.randn(n, generator=torch.Generator().manual_seed(0))
    texts = (["p"] * n, ["x"] * n, ["y"] * n)
    decided = [
        (c.preferred == "first", s > 0) for c, s in zip(simulate_annotator(*texts, scores, torch.zeros(n), seed=1), scores, strict=True)
    ]
    assert np.mean([chosen == known for chosen, known in decided]) == pytest.approx(
        best_accuracy(scores, torch.zeros(n), noise=1.0), abs=0.012
    )


# On disk ------------------------------------------------------------------------------------------------------------------


def test_comparisons_survive_a_round_trip_one_to_a_line(tmp_path):
    path = tmp_path / "comparisons.jsonl"
    save_comparisons(path, [ODD, PLAIN])
    assert load_comparisons(path) == load_comparisons(str(path)) == [ODD, PLAIN]
    assert path.read_bytes().count(b"\n") == 2
    save_comparisons(path, [PLAIN])
    assert load_comparisons(path) == [PLAIN], "saving replaces"


def test_one_by_one_they_give_the_same_file(tmp_path):
    for x in (ODD, PLAIN):
        append_comparison(tmp_path / "one-by-one.jsonl", x)
    save_comparisons(tmp_path / "at-once.jsonl", [ODD, PLAIN])
    assert (tmp_path / "one-by-one.jsonl").read_bytes() == (tmp_path / "at-once.jsonl").read_bytes()


def test_lines_that_people_leave_empty_are_passed_over(tmp_path):
    path = tmp_path / "edited.jsonl"
    path.write_bytes(b"\r\n  \n" + '{"prompt": "ü", "first": "x", "second": "y", "preferred": "first"}\r\n\n'.encode())
    assert load_comparisons(path) == [Comparison("ü", "x", "y", "first")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p"', "line 2 is none: Expecting"),
        ("[1, 2]", "line 2 is none"),
        ("3", "line 2 is none"),
        ('{"prompt": "p", "first": "x", "second": "y"}', "line 2 is none: .*preferred"),
        ('{"prompt": "p", "first": "x", "second": "y", "preferred": "first", "who": 1}', "line 2 is none: .*who"),
        ('{"prompt": "p", "first": "x", "second": "y", "preferred": "left"}', "line 2 is none: preferred must be .* got 'left'"),
        ('{"prompt": "p", "first": "x", "second": "y", "preferred": []}', "line 2 is none"),
        ('{"prompt": "p", "first": 5, "second": "y", "preferred": "tie"}', "line 2 is none: first must be a string, got 5"),
    ],
)
def test_a_line_that_is_no_comparison_is_named(tmp_path, line, message):
    path = tmp_path / "comparisons.jsonl"
    append_comparison(path, PLAIN)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_comparisons(path)


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_path_that_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="path must be a file of comparisons"):
        load_comparisons(tmp_path / name)
