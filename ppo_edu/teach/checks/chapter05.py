"""Checkers of chapter 5: the effective sample size, the adaptive KL coefficient, the natural-gradient step."""

from collections.abc import Callable, Sequence

import torch

from ppo_edu.core import effective_sample_size
from ppo_edu.teach.checks.engine import Case, CheckResult, run_check
from ppo_edu.teach.exact import natural_step
from ppo_edu.teach.kl_penalty import kl_penalty_update
from ppo_edu.teach.pitfalls import pitfalls_of


def check_effective_sample_size(fn: Callable) -> CheckResult:
    """Exercise 5.2: `fn(log_probs [n], old_log_probs [n]) -> scalar`, (sum w)^2 / sum w^2 with w = pi / pi_old."""

    def case(title: str, ratios: Sequence[float]) -> Case:
        old = torch.tensor([-1.0, -2.0, -0.5, -1.5][: len(ratios)])
        return Case(title, {"log_probs": old + torch.tensor(ratios).log(), "old_log_probs": old})

    def long_case(title: str, log_ratios: Sequence[float]) -> Case:
        old = torch.full((len(log_ratios),), -300.0)
        return Case(title, {"log_probs": old + torch.tensor(log_ratios), "old_log_probs": old})

    cases = [
        case("the policy has not moved", [1.0, 1.0, 1.0]),
        case("one sample counts four times", [1.0, 1.0, 4.0]),
        case("one sample hardly counts", [1.0, 1.0, 0.1, 1.0]),
        case("every weight is doubled", [2.0, 2.0, 2.0]),
        case("four different ratios", [0.5, 2.0, 1.2, 0.8]),
        long_case("whole sequences: log-ratios near 100", [100.0, 99.0, 98.0]),
    ]
    return run_check(
        "Exercise 5.2", fn, reference=effective_sample_size, cases=cases, pitfalls=pitfalls_of("effective_sample_size"), tolerance=1e-4
    )


def check_kl_penalty_update(fn: Callable) -> CheckResult:
    """Exercise 5.5: `fn(coefficient, kl, target) -> float`, halved below target / 1.5, doubled above 1.5 * target."""
    cases = [
        Case(title, {"coefficient": coefficient, "kl": kl, "target": 0.01})
        for title, coefficient, kl in [
            ("right on target", 1.0, 0.01),
            ("far too small a step", 1.0, 0.001),
            ("far too large a step", 1.0, 0.1),
            ("no step at all", 0.5, 0.0),
            ("a little above the target", 1.0, 0.014),
            ("a little below the target", 1.0, 0.007),
            ("1.8 times the target", 1.0, 0.018),
            ("0.6 times the target", 3.0, 0.006),
        ]
    ]
    pitfalls = pitfalls_of("kl_penalty_update")
    return run_check("Exercise 5.5", fn, reference=kl_penalty_update, cases=cases, pitfalls=pitfalls, tolerance=1e-9)


def check_natural_step(fn: Callable) -> CheckResult:
    """Exercise 5.6: `fn(gradient [n], fisher [n, n], max_kl) -> [n]`, the most gain with 0.5 * step . F step = max_kl."""

    def case(title: str, gradient: Sequence[float], fisher: Sequence[Sequence[float]], max_kl: float) -> Case:
        tensors = {"gradient": torch.tensor(gradient, dtype=torch.float64), "fisher": torch.tensor(fisher, dtype=torch.float64)}
        return Case(title, tensors | {"max_kl": max_kl})

    cases = [
        case("one parameter", [2.0], [[1.0]], 0.5),
        case("two parameters that count alike", [3.0, 4.0], [[1.0, 0.0], [0.0, 1.0]], 0.5),
        case("one counts four times as much", [1.0, 1.0], [[4.0, 0.0], [0.0, 1.0]], 0.02),
        case("a full matrix", [1.0, -0.5], [[2.0, 1.0], [1.0, 3.0]], 0.01),
        case("a fair coin with two logits: the matrix is singular", [-0.25, 0.25], [[0.25, -0.25], [-0.25, 0.25]], 0.01),
    ]
    return run_check("Exercise 5.6", fn, reference=natural_step, cases=cases, pitfalls=pitfalls_of("natural_step"), tolerance=1e-6)
