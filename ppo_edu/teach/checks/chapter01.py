"""Checkers of chapter 1: values and advantages of a policy on a table, and value iteration."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppo_edu.teach.checks.engine import Case, CheckResult, run_check
from ppo_edu.teach.pitfalls import pitfalls_of

END = -1  # as a next state: the episode is over


def state_values(transition: Tensor, reward: Tensor, pi: Tensor, gamma: float) -> Tensor:
    """V [S], the solution of the Bellman equation. float64."""
    step = gamma * torch.einsum("sa,sap->sp", pi, transition)
    return torch.linalg.solve(torch.eye(len(step), dtype=step.dtype) - step, (pi * reward).sum(-1))


def advantages(transition: Tensor, reward: Tensor, pi: Tensor, gamma: float) -> Tensor:
    """A [S, A] = Q - V."""
    values = state_values(transition, reward, pi, gamma)
    return reward + gamma * transition @ values - values[:, None]


def value_iteration(transition: Tensor, reward: Tensor, gamma: float) -> Tensor:
    """V [S] of the best policy."""
    values = torch.zeros_like(reward[:, 0])
    for _ in range(1000):
        values = (reward + gamma * transition @ values).amax(-1)
    return values


def _tables(reward: Sequence[Sequence[float]], leads_to: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Tables of a problem in which each action leads to one state for certain, or to the END."""
    r = torch.tensor(reward, dtype=torch.float64)
    S, A = r.shape
    transition = torch.zeros(S, A, S, dtype=torch.float64)
    for s in range(S):
        for a in range(A):
            if leads_to[s][a] != END:
                transition[s, a, leads_to[s][a]] = 1.0
    return {"transition": transition, "reward": r}


def _policy_cases() -> list[Case]:
    """From one state and one action to a small problem with loops and chance."""

    def case(title: str, tables: dict[str, Tensor], pi: Sequence[Sequence[float]], gamma: float = 0.5) -> Case:
        return Case(title, tables | {"pi": torch.tensor(pi, dtype=torch.float64), "gamma": gamma})

    chancy = _tables([[0, 1], [2, 0], [4, -1]], [[1, 0], [2, END], [END, 0]])
    chancy["transition"][0, 0] = torch.tensor([0.25, 0.5, 0.125], dtype=torch.float64)  # else the episode ends
    return [
        case("one state, one action", _tables([[1]], [[END]]), [[1]]),
        case("one state, two actions, both even", _tables([[1, 2]], [[END, END]]), [[0.5, 0.5]]),
        case("one state, two actions, one likely", _tables([[1, 2]], [[END, END]]), [[0.9, 0.1]]),
        case("two states in a row", _tables([[0], [1]], [[1], [END]]), [[1], [1]]),
        case("three states in a row", _tables([[0], [0], [1]], [[1], [2], [END]]), [[1], [1], [1]]),
        case("a reward now or a larger one later", _tables([[0, 1], [4, 1]], [[1, END], [END, END]]), [[0.75, 0.25], [0.5, 0.5]], 0.9),
        case("a loop and a step by chance", chancy, [[0.5, 0.5], [0.2, 0.8], [0.7, 0.3]], 0.9),
    ]


def check_state_values(fn: Callable) -> CheckResult:
    """Exercise 1.4: `fn(transition [S, A, S], reward [S, A], pi [S, A], gamma) -> [S]`, V of the policy; float64."""
    return run_check("Exercise 1.4", fn, reference=state_values, cases=_policy_cases(), pitfalls=pitfalls_of("state_values"))


def check_advantages(fn: Callable) -> CheckResult:
    """Exercise 1.5: `fn(transition [S, A, S], reward [S, A], pi [S, A], gamma) -> [S, A]`, Q - V of the policy; float64."""
    return run_check("Exercise 1.5", fn, reference=advantages, cases=_policy_cases(), pitfalls=pitfalls_of("advantages"))


def check_value_iteration(fn: Callable) -> CheckResult:
    """Exercise 1.6: `fn(transition [S, A, S], reward [S, A], gamma) -> [S]`, V of the best policy; float64."""
    cases = [Case(case.title, {name: x for name, x in case.arguments.items() if name != "pi"}) for case in _policy_cases()]
    return run_check("Exercise 1.6", fn, reference=value_iteration, cases=cases, pitfalls=pitfalls_of("value_iteration"))
