"""Checkers of chapter 8: interquartile mean, probability of improvement."""

from collections.abc import Callable, Sequence

from ppo_edu.teach.checks.engine import Case, CheckResult, run_check
from ppo_edu.teach.pitfalls import pitfalls_of

Tasks = list[list[float]]


def middle_half(*tasks: Sequence[float]) -> float:
    """Mean of all scores but the lowest and the highest quarter (rounded down), tasks pooled."""
    pooled = sorted(score for task in tasks for score in task)
    cut = len(pooled) // 4
    kept = pooled[cut : len(pooled) - cut]
    return sum(kept) / len(kept)


def win_rate(ours: Tasks, theirs: Tasks) -> float:
    """Share of pairs in which ours is larger, ties half; the mean over tasks."""
    rates = [sum((a > b) + 0.5 * (a == b) for a in x for b in y) / (len(x) * len(y)) for x, y in zip(ours, theirs, strict=True)]
    return sum(rates) / len(rates)


def check_interquartile_mean(fn: Callable) -> CheckResult:
    """Exercise 8.1: `fn(*tasks) -> float`, the mean of the middle half of all scores, each task a list of scores."""
    cases = [
        Case("four scores", {"task": [4.0, 1.0, 2.0, 30.0]}),
        Case("ten scores: a quarter is rounded down", {"task": [0.1, 0.9, 0.4, 0.3, 0.8, 0.5, 0.2, 0.7, 0.6, 5.0]}),
        Case("an easy task and a hard one", {"easy": [0.9, 1.0, 0.8, 0.95], "hard": [0.1, 0.2, 0.0, 0.4]}),
        Case("tasks of different size", {"a": [0.0, 1.0, 2.0], "b": [0.5, 0.6, 0.7, 0.8, 3.0]}),
    ]
    return run_check("Exercise 8.1", fn, reference=middle_half, cases=cases, pitfalls=pitfalls_of("interquartile_mean"))


def check_probability_of_improvement(fn: Callable) -> CheckResult:
    """Exercise 8.2: `fn(ours, theirs) -> float`, lists with one list of scores per task; ties count half."""
    cases = [
        Case("one task, ours is always ahead", {"ours": [[2.0, 3.0]], "theirs": [[0.0, 1.0]]}),
        Case("the same sample twice", {"ours": [[1.0, 2.0, 3.0]], "theirs": [[1.0, 2.0, 3.0]]}),
        Case("one large score against many small leads", {"ours": [[1.0, 1.1, 9.0]], "theirs": [[2.0, 2.1, 2.2]]}),
        Case("an order that pairs by position would miss", {"ours": [[1.0, 4.0]], "theirs": [[2.0, 3.0]]}),
        Case("two tasks of different size", {"ours": [[1.0, 2.0], [0.0, 0.5, 5.0]], "theirs": [[0.0, 1.5], [1.0, 2.0, 3.0, 4.0]]}),
    ]
    return run_check("Exercise 8.2", fn, reference=win_rate, cases=cases, pitfalls=pitfalls_of("probability_of_improvement"))
