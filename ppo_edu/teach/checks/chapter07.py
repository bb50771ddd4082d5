"""Checkers of chapter 7: reset rows, annealing, explained variance."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppo_edu.core import explained_variance
from ppo_edu.teach.checks.engine import Case, CheckResult, run_check
from ppo_edu.teach.pitfalls import pitfalls_of


def valid_rows(terminated: Tensor, truncated: Tensor, carried_done: Tensor) -> Tensor:
    """True where a row is a real transition: unless the row before it, perhaps in the previous rollout, ended an episode."""
    return ~torch.cat([carried_done[None], (terminated | truncated)[:-1]])


def _flags(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def check_valid_rows(fn: Callable) -> CheckResult:
    """Exercise 7.2: `fn(terminated [T, N], truncated [T, N], carried_done [N]) -> [T, N]` bool, False on reset rows."""

    def case(title: str, terminated: list, truncated: list, carried: list) -> Case:
        flags = {"terminated": _flags(terminated), "truncated": _flags(truncated), "carried_done": _flags(carried)}
        return Case(title, flags)

    cases = [
        case("no episode ends", [[0], [0]], [[0], [0]], [0]),
        case("an episode terminates", [[0], [1], [0]], [[0], [0], [0]], [0]),
        case("an episode is truncated", [[0], [0], [0]], [[1], [0], [0]], [0]),
        case("the previous rollout ended with an episode", [[0], [0]], [[0], [0]], [1]),
        case("an episode ends on the last row", [[0], [1]], [[0], [0]], [0]),
        case(
            "two environments, everything at once",
            [[0, 1], [1, 0], [0, 0], [0, 0], [1, 0]],
            [[0, 0], [0, 0], [0, 1], [0, 0], [0, 1]],
            [1, 0],
        ),
    ]
    return run_check("Exercise 7.2", fn, reference=valid_rows, cases=cases, pitfalls=pitfalls_of("valid_rows"))


def annealed(initial: float, env_steps: int, total_steps: int) -> float:
    """`initial` lowered linearly, 0 from `total_steps` on."""
    return initial * max(1 - env_steps / total_steps, 0.0)


def check_annealed(fn: Callable) -> CheckResult:
    """Exercise 7.3: `fn(initial, env_steps, total_steps) -> float`, from `initial` linearly down to 0, never below."""
    cases = [
        Case(title, {"initial": initial, "env_steps": env_steps, "total_steps": total_steps})
        for title, initial, env_steps, total_steps in [
            ("before the first step", 1.0, 0, 100),
            ("half way", 1.0, 50, 100),
            ("at the end", 1.0, 100, 100),
            ("past the end: the last update overshoots", 1.0, 110, 100),
            ("a learning rate", 0.005, 10_000, 40_000),
        ]
    ]
    return run_check("Exercise 7.3", fn, reference=annealed, cases=cases, pitfalls=pitfalls_of("annealed"), tolerance=1e-9)


def check_explained_variance(fn: Callable) -> CheckResult:
    """Exercise 7.4: `fn(values [B], returns [B]) -> scalar`, 1 - Var(R - V) / Var(R)."""

    def case(title: str, values: list[float], returns: list[float]) -> Case:
        return Case(title, {"values": torch.tensor(values), "returns": torch.tensor(returns)})

    cases = [
        case("a perfect critic", [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]),
        case("a constant critic", [2.0, 2.0, 2.0], [1.0, 2.0, 4.0]),
        case("a critic off by 3 everywhere", [4.0, 5.0, 7.0], [1.0, 2.0, 4.0]),
        case("a critic with the sign reversed", [-1.0, -2.0, -4.0], [1.0, 2.0, 4.0]),
        case("a critic of half the scale", [0.5, 1.0, 2.0, 0.0], [1.0, 2.0, 4.0, 0.0]),
    ]
    return run_check("Exercise 7.4", fn, reference=explained_variance, cases=cases, pitfalls=pitfalls_of("explained_variance"))
