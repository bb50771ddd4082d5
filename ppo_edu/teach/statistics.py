"""Statistics of runs: how good is an algorithm, when all that is known are a few runs on a few tasks.

A score is one number per run. Scores come as one array per task, [runs] each, normalised so that tasks can be pooled.

Source: Agarwal et al. 2021 (arXiv:2108.13264).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import trapezoid
from scipy.stats import bootstrap, trim_mean


class Interval(NamedTuple):
    """An estimate and a confidence interval for it.

    Bootstrap intervals of few runs are a little too narrow: with ten runs, a 95 % interval covers the truth in about 91 %.
    """

    estimate: float
    low: float
    high: float


def normalized_auc(steps: ArrayLike, returns: ArrayLike, *, random: float, threshold: float, total_steps: float) -> float:
    """Area under a learning curve, per step, on a scale where random play is 0 and the threshold 1.

    steps: [points] increasing, environment steps of each point; returns: [points], nan where unknown. Before the first
    point the curve is taken at random play, after the last at its last value; between, it is linear.
    Raises: ValueError naming the argument.
    """
    steps, returns = _curve(steps, returns)
    known = np.isfinite(returns)
    if not known.any():
        raise ValueError("returns must have at least one finite entry, got none")
    if not ((np.diff(steps) > 0).all() and steps[0] >= 0 and steps[-1] <= total_steps):  # so that nan is refused
        raise ValueError(f"steps must increase from 0 at least to total_steps ({total_steps}) at most")
    if not abs(threshold - random) > 0:
        raise ValueError(f"threshold must differ from random ({random}), got {threshold}")
    x = np.concatenate([[0.0], steps[known], [total_steps]])
    y = np.concatenate([[random], returns[known], [returns[known][-1]]])
    return float((trapezoid(y, x) / total_steps - random) / (threshold - random))


def steps_to_threshold(steps: ArrayLike, returns: ArrayLike, *, threshold: float) -> float:
    """Environment steps at the first point whose return reaches the threshold; inf if none does. Unknown returns (nan) do not."""
    steps, returns = _curve(steps, returns)
    reached = np.flatnonzero(returns >= threshold)
    return float(steps[reached[0]]) if len(reached) else np.inf


def interquartile_mean(*tasks: ArrayLike) -> float:
    """Mean of the middle half of all scores, tasks pooled: more robust than the mean, less wasteful than the median."""
    return float(_pooled_mean(*(_scores(task) for task in tasks)))


def stratified_interval(*tasks: ArrayLike, level: float = 0.95, resamples: int = 2_000, seed: int = 0) -> Interval:
    """The interquartile mean with a percentile bootstrap interval. Runs are resampled within each task, so tasks keep their weight."""
    arrays = [_scores(task) for task in tasks]
    return _interval(arrays, _pooled_mean, level, resamples, seed)


def probability_of_improvement(
    ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike], *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """How likely a run of ours beats a run of theirs on the same task, averaged over tasks; ties count half. With its interval.

    It says how often, not by how much. One half is no difference.
    """
    if len(ours) != len(theirs) or len(ours) == 0:
        raise ValueError(f"theirs must have as many tasks as ours ({len(ours)}), and at least one, got {len(theirs)}")
    arrays = [_scores(task) for pair in zip(ours, theirs, strict=True) for task in pair]
    return _interval(arrays, _mean_win_rate, level, resamples, seed)


def _pooled_mean(*arrays: np.ndarray, axis: int = -1) -> np.ndarray:
    return trim_mean(np.concatenate(arrays, axis=axis), 0.25, axis=axis)


def _mean_win_rate(*arrays: np.ndarray, axis: int = -1) -> np.ndarray:  # ours and theirs of the first task, of the second, ...
    wins = []
    for ours, theirs in zip(arrays[::2], arrays[1::2], strict=True):
        difference = np.expand_dims(ours, -1) - np.expand_dims(theirs, -2)
        wins.append(((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1)))
    return np.mean(wins, axis=0)


def _interval(arrays: list[np.ndarray], statistic: Callable[..., np.ndarray], level: float, resamples: int, seed: int) -> Interval:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be a number between 0 and 1, got {level!r}")
    found = bootstrap(
        arrays,
        statistic,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        batch=100,
        rng=np.random.default_rng(seed),
    )
    return Interval(float(statistic(*arrays)), float(found.confidence_interval.low), float(found.confidence_interval.high))


def _curve(steps: ArrayLike, returns: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    steps, returns = np.asarray(steps, dtype=float), np.asarray(returns, dtype=float)
    if steps.ndim != 1 or steps.shape != returns.shape:
        raise ValueError(f"returns must be one number per step, got {returns.shape} for steps of shape {steps.shape}")
    return steps, returns


def _scores(task: ArrayLike) -> np.ndarray:
    scores = np.asarray(task, dtype=float)
    if scores.ndim != 1 or len(scores) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"scores must be at least two finite numbers per task, got shape {scores.shape}: {scores}")
    return scores
