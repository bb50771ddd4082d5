"""Checkers of chapter 4: the TD residual, the weights of the n-step returns, the bootstrap folded into the reward."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppo_edu.core import td_residual
from ppo_edu.teach.checks.engine import Case, CheckResult, column, keyword_only, run_check
from ppo_edu.teach.pitfalls import pitfalls_of


def _flag(x: Sequence[int]) -> Tensor:
    return torch.tensor(x, dtype=torch.bool)[:, None]


def check_td_residual(fn: Callable) -> CheckResult:
    """`fn(rewards, values, next_values, terminated, *, gamma) -> [T, N]`, as `ppo_edu.td_residual`; all tensors [T, N]."""

    def case(title: str, rewards: list, values: list, next_values: list, terminated: list, gamma: float = 0.5) -> Case:
        columns = {"rewards": column(rewards), "values": column(values), "next_values": column(next_values)}
        return Case(title, columns | {"terminated": _flag(terminated), "gamma": gamma})

    cases = [
        case("a reward of 1, no values", [1], [0], [0], [0]),
        case("a value before, none after", [1], [3], [0], [0]),
        case("a value after, none before", [1], [0], [4], [0]),
        case("a step to a terminal state", [1], [3], [4], [1]),
        case("three steps, the second terminates", [1, 2, 4], [3, 5, 1], [5, 7, 2], [0, 1, 0], gamma=0.9),
        case("the value after a terminal row is undefined", [1, 2], [3, 5], [5, math.nan], [0, 1]),
    ]
    return run_check(
        "Exercise 4.2", fn, reference=td_residual, cases=cases, pitfalls=pitfalls_of("td_residual"), call=keyword_only("gamma")
    )


def lambda_weights(length: int, lam: float) -> Tensor:
    """Weights [length] of the n-step returns n = 1, ..., length: (1 - lam) lam^(n-1), and what remains for the longest."""
    weights = (1 - lam) * lam ** torch.arange(length, dtype=torch.float64)
    weights[-1] = lam ** (length - 1)
    return weights


def check_lambda_weights(fn: Callable) -> CheckResult:
    """Exercise 4.3: `fn(length, lam) -> [length]`, the weight of each n-step return when `length` rows are left; they sum to 1."""
    cases = [
        Case(title, {"length": length, "lam": lam})
        for title, length, lam in [
            ("one row left: a single return", 1, 0.5),
            ("two rows left", 2, 0.5),
            ("lambda 0: the one-step return alone", 3, 0.0),
            ("lambda 1: the longest return alone", 3, 1.0),
            ("four rows left", 4, 0.8),
        ]
    ]
    return run_check("Exercise 4.3", fn, reference=lambda_weights, cases=cases, pitfalls=pitfalls_of("lambda_weights"))


def sb3_rewards(rewards: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float) -> Tensor:
    """Rewards [T, N] with gamma V(final) added where an episode was cut by a time limit and not ended by the task."""
    return torch.where(truncated & ~terminated, rewards + gamma * next_values, rewards)


def check_sb3_rewards(fn: Callable) -> CheckResult:
    """Exercise 4.6: `fn(rewards, next_values, terminated, truncated, *, gamma) -> [T, N]`, the rewards that let GAE do with one flag."""

    def case(title: str, rewards: list, next_values: list, terminated: list, truncated: list, gamma: float = 0.5) -> Case:
        columns = {"rewards": column(rewards), "next_values": column(next_values)}
        return Case(title, columns | {"terminated": _flag(terminated), "truncated": _flag(truncated), "gamma": gamma})

    cases = [
        case("a row inside an episode", [1], [4], [0], [0]),
        case("a truncated row", [1], [4], [0], [1]),
        case("a terminal row", [1], [4], [1], [0]),
        case("a fall on the last allowed step: both flags", [1], [4], [1], [1]),
        case("two episodes, one of each end", [1, 2, 3, 4], [5, 6, 7, 8], [0, 1, 0, 0], [0, 0, 0, 1], gamma=0.9),
        case("the value after a terminal row is undefined", [1, 2], [5, math.nan], [0, 1], [0, 0]),
    ]
    return run_check(
        "Exercise 4.6", fn, reference=sb3_rewards, cases=cases, pitfalls=pitfalls_of("sb3_rewards"), call=keyword_only("gamma")
    )
