"""Statistics of runs: against other formulas, and the coverage of the intervals by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from ppo_edu.teach.statistics import (
    interquartile_mean,
    normalized_auc,
    probability_of_improvement,
    steps_to_threshold,
    stratified_interval,
)

RUNS, SIMULATIONS, RESAMPLES = 10, 400, 400


def test_interquartile_mean_of_pooled_scores():
    assert interquartile_mean([0.0, 1.0, 2.0, 300.0]) == 1.5
    assert interquartile_mean([0.0, 1.0], [2.0, 300.0]) == 1.5


def test_area_under_a_curve_made_of_straight_lines():
    area = normalized_auc([100, 200], [60.0, 60.0], random=20.0, threshold=60.0, total_steps=400)
    assert area == pytest.approx((0.5 * 100 + 300) / 400)  # a ramp from 0 to 1, then 1
    assert normalized_auc([400], [20.0], random=20.0, threshold=60.0, total_steps=400) == 0.0
    gap = normalized_auc([100, 150, 200], [60.0, math.nan, 60.0], random=20.0, threshold=60.0, total_steps=400)
    assert gap == area  # unknown points change nothing


def test_area_where_a_threshold_lies_below_random_play_in_sign():
    assert normalized_auc([10, 100], [-100.0, -100.0], random=-500.0, threshold=-100.0, total_steps=100) == pytest.approx(0.95)


def test_steps_to_threshold_is_the_first_point_that_reaches_it():
    assert steps_to_threshold([10, 20, 30], [1.0, 5.0, 9.0], threshold=5.0) == 20.0
    assert steps_to_threshold([10, 20, 30], [math.nan, 4.0, 4.0], threshold=5.0) == math.inf


def test_probability_of_improvement_is_mann_whitneys_u():
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 5, 12).astype(float), rng.integers(0, 4, 9).astype(float)  # with ties
    u = mannwhitneyu(ours, theirs).statistic / (len(ours) * len(theirs))
    assert probability_of_improvement([ours], [theirs], resamples=10).estimate == pytest.approx(u)
    both = probability_of_improvement([ours, theirs], [theirs, ours], resamples=10)
    assert both.estimate == pytest.approx(0.5)


def test_tasks_may_be_the_rows_of_an_array():
    ours, theirs = np.random.default_rng(0).normal(size=(2, 3, 5))
    assert probability_of_improvement(ours, theirs, resamples=10) == probability_of_improvement([*ours], [*theirs], resamples=10)


@pytest.mark.parametrize(("means", "spreads"), [((1, 1), (0.3, 0.1)), ((0, 1), (0.3, 0.3))], ids=["one mean", "two means"])
def test_coverage_of_the_interquartile_mean(means, spreads):
    """Two normal tasks whose pool is symmetric, so its interquartile mean is its centre.

    Intervals of level 0.90 cover it in 0.85 of these simulations, of 0.99 in 0.96 or more. Pooled resampling, instead of
    resampling within tasks, always covers two means.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(SIMULATIONS):
        scores = [rng.normal(mean, spread, RUNS) for mean, spread in zip(means, spreads, strict=True)]
        found = stratified_interval(*scores, resamples=RESAMPLES, seed=i)
        covered += found.low <= np.mean(means) <= found.high
    assert 0.87 <= covered / SIMULATIONS <= 0.95  # nominal 0.95; the standard error of this share is 0.015


def test_coverage_of_the_probability_of_improvement():
    """Intervals of level 0.90 cover the truth in 0.89 of these simulations, of 0.99 in 0.98."""
    rng = np.random.default_rng(0)
    truth = norm.cdf(0.5 / math.sqrt(2))
    covered = 0
    for i in range(SIMULATIONS):
        found = probability_of_improvement([rng.normal(0.5, 1, RUNS)], [rng.normal(0, 1, RUNS)], resamples=RESAMPLES, seed=i)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / SIMULATIONS <= 0.96


def test_a_wider_level_gives_a_wider_interval_around_the_estimate():
    scores = np.random.default_rng(0).normal(0, 1, 20)
    narrow, wide = (stratified_interval(scores, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_runs_are_resampled_within_their_task():
    """A task whose runs all agree adds no uncertainty: pooled resampling would."""
    found = stratified_interval(np.zeros(10), np.ones(10))
    assert found.low == found.high == found.estimate == 0.5


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: interquartile_mean([1.0]), "scores"),
        (lambda: interquartile_mean([1.0, math.nan]), "scores"),
        (lambda: stratified_interval([1.0, 2.0], level=95), "level"),
        (lambda: probability_of_improvement([], []), "theirs"),
        (lambda: probability_of_improvement([[1.0, 2.0]], []), "theirs"),
        (lambda: normalized_auc([1, 2], [1.0], random=0.0, threshold=1.0, total_steps=2), "returns"),
        (lambda: normalized_auc([1, 2], [math.nan, math.nan], random=0.0, threshold=1.0, total_steps=2), "returns"),
        (lambda: steps_to_threshold([1, 2], [1.0, 2.0, 3.0], threshold=3.0), "returns"),
        (lambda: normalized_auc([2, 1], [1.0, 1.0], random=0.0, threshold=1.0, total_steps=2), "steps"),
        (lambda: normalized_auc([1, math.nan], [1.0, 1.0], random=0.0, threshold=1.0, total_steps=2), "steps"),
        (lambda: normalized_auc([1, 2], [1.0, 1.0], random=0.0, threshold=1.0, total_steps=math.nan), "steps"),
        (lambda: normalized_auc([1, 2], [1.0, 1.0], random=0.0, threshold=math.nan, total_steps=2), "threshold"),
        (lambda: normalized_auc([1, 2], [1.0, 1.0], random=1.0, threshold=1.0, total_steps=2), "threshold"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=rf"^{named} must"):
        call()
