"""Checkers of the mathematics: advantages, returns, losses and KL estimates, each called as `ppo_edu.core` defines it.

Losses are checked by value and by gradient, sign included: two losses of one value may push in opposite directions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppo_edu.core import clipped_surrogate_loss, discounted_return, gae, kl_estimate, policy_gradient_loss
from ppo_edu.teach.checks.engine import Case, CheckResult, column, keyword_only, run_check, with_gradients
from ppo_edu.teach.pitfalls import pitfalls_of

Column = Sequence[float]


def _flags(rows: Sequence[int], steps: int) -> Tensor:
    """[T, 1] bool, True on the given rows."""
    flags = torch.zeros(steps, 1, dtype=torch.bool)
    flags[list(rows)] = True
    return flags


def _beside(*cases: Case, title: str) -> Case:
    """Cases of equal length and constants as the environments of one."""
    first = cases[0].arguments
    together = {
        name: torch.cat([case.arguments[name] for case in cases], dim=1) if isinstance(x, Tensor) else x for name, x in first.items()
    }
    return Case(title, together)


# Returns and advantages ----------------------------------------------------------------------------------------------


def _rollout(
    title: str,
    rewards: Column,
    values: Column,
    next_values: Column,
    *,
    terminated: Sequence[int] = (),  # the rows
    truncated: Sequence[int] = (),
    gamma: float = 0.5,
    lam: float = 0.5,
) -> Case:
    steps = len(rewards)
    return Case(
        title,
        {
            "rewards": column(rewards),
            "values": column(values),
            "next_values": column(next_values),
            "terminated": _flags(terminated, steps),
            "truncated": _flags(truncated, steps),
            "gamma": gamma,
            "lam": lam,
        },
    )


def _gae_cases() -> list[Case]:
    terminates = _rollout("the first of two episodes terminates", [1, 2, 3, 4], [1, 2, 4, 8], [2, 6, 8, 2], terminated=[1])
    truncates = _rollout("the first of two episodes is truncated", [1, 2, 3, 4], [1, 2, 4, 8], [2, 6, 8, 2], truncated=[1])
    return [
        _rollout("one step, nothing ends", [1], [2], [4]),
        _rollout("one step, terminated", [1], [2], [4], terminated=[0]),
        _rollout("one step, truncated", [1], [2], [4], truncated=[0]),
        _rollout("a single reward at the end", [0, 0, 1], [0, 0, 0], [0, 0, 0], terminated=[2]),
        _rollout("two steps", [1, 2], [2, 4], [4, 2]),
        _rollout("two steps, lambda 0: the residuals", [1, 2], [2, 4], [4, 2], lam=0.0),
        _rollout("two steps, lambda 1", [1, 2], [2, 4], [4, 2], gamma=0.9, lam=1.0),
        terminates,
        truncates,
        _beside(terminates, truncates, title="both as two environments"),
        _rollout("the value after a terminal row is undefined", [1, 2, 3], [1, 2, 4], [2, math.nan, 6], terminated=[1]),
    ]


def check_gae(fn: Callable) -> CheckResult:
    """`fn(rewards, values, next_values, terminated, truncated, *, gamma, lam) -> [T, N]`, as `ppo_edu.gae`; all tensors [T, N]."""
    return run_check("gae", fn, reference=gae, cases=_gae_cases(), pitfalls=pitfalls_of("gae"), call=keyword_only("gamma", "lam"))


def _return_case(
    title: str,
    rewards: Column,
    *,
    bootstrap: Column | None = None,
    terminated: Sequence[int] = (),
    truncated: Sequence[int] = (),
    gamma: float = 0.5,
) -> Case:
    steps = len(rewards)
    arguments = {
        "rewards": column(rewards),
        "terminated": _flags(terminated, steps),
        "truncated": _flags(truncated, steps),
        "gamma": gamma,
    }
    return Case(title, arguments if bootstrap is None else arguments | {"bootstrap": column(bootstrap)})


def _return_cases() -> list[Case]:
    terminates = _return_case("the first of two episodes terminates", [1, 2, 4, 8], bootstrap=[3, 6, 7, 2], terminated=[1])
    truncates = _return_case("the first of two episodes is truncated", [1, 2, 4, 8], bootstrap=[3, 6, 7, 2], truncated=[1])
    return [
        _return_case("one step", [1], terminated=[0]),
        _return_case("a single reward at the end", [0, 0, 1], terminated=[2]),
        _return_case("two rewards", [1, 2], terminated=[1]),
        _return_case("two episodes, no bootstrap", [1, 2, 4], terminated=[0, 2]),
        _return_case("one step, truncated", [1], bootstrap=[4], truncated=[0]),
        _return_case("one step, terminated: the bootstrap does not count", [1], bootstrap=[4], terminated=[0]),
        _return_case("the rollout ends, the episode does not", [1, 2], bootstrap=[3, 4]),
        terminates,
        truncates,
        _beside(terminates, truncates, title="both as two environments"),
    ]


def check_discounted_return(fn: Callable) -> CheckResult:
    """`fn(rewards, terminated, truncated, *, gamma, bootstrap=None) -> [T, N]`, as `ppo_edu.discounted_return`."""
    return run_check(
        "discounted_return",
        fn,
        reference=discounted_return,
        cases=_return_cases(),
        pitfalls=pitfalls_of("discounted_return"),
        call=keyword_only("gamma", "bootstrap"),
    )


# Losses --------------------------------------------------------------------------------------------------------------


def _policy_gradient_case(title: str, probabilities: Any, advantages: Any) -> Case:
    return Case(title, {"log_probs": torch.tensor(probabilities).log(), "advantages": torch.tensor(advantages)})


def _policy_gradient_cases() -> list[Case]:
    return [
        _policy_gradient_case("one action with advantage 1", [0.5], [1.0]),
        _policy_gradient_case("one action with advantage -1", [0.5], [-1.0]),
        _policy_gradient_case("one action with advantage 2", [0.25], [2.0]),
        _policy_gradient_case("two actions, one good and one bad", [0.5, 0.25], [1.0, -1.0]),
        _policy_gradient_case("a rollout [T, N]", [[0.5, 0.25], [0.1, 0.9]], [[1.0, -2.0], [3.0, 0.5]]),
    ]


def check_policy_gradient(fn: Callable) -> CheckResult:
    """`fn(log_probs, advantages) -> loss`, as `ppo_edu.policy_gradient_loss`: a scalar to minimise, by value and gradient."""
    return run_check(
        "policy_gradient",
        fn,
        reference=policy_gradient_loss,
        cases=_policy_gradient_cases(),
        pitfalls=pitfalls_of("policy_gradient"),
        call=with_gradients(),
    )


def _clipped_case(title: str, ratio: Any, advantages: Any, *, old_probability: float = 0.2, clip_range: float = 0.2) -> Case:
    ratio = torch.tensor(ratio)
    old = torch.full_like(ratio, old_probability)
    return Case(
        title,
        {
            "log_probs": (ratio * old).log(),
            "old_log_probs": old.log(),
            "advantages": torch.tensor(advantages),
            "clip_range": clip_range,
        },
    )


def _clipped_cases() -> list[Case]:
    return [
        _clipped_case("ratio 1, A = 1: the policy has not moved", [1.0], [1.0]),
        _clipped_case("ratio 1, A = -1", [1.0], [-1.0]),
        _clipped_case("ratio 1.1, A = 2: inside the interval", [1.1], [2.0]),
        _clipped_case("ratio 1.5, A = 1: clipped", [1.5], [1.0]),
        _clipped_case("ratio 0.5, A = 1: outside, and still pulled back", [0.5], [1.0]),
        _clipped_case("ratio 0.5, A = -1: clipped", [0.5], [-1.0]),
        _clipped_case("ratio 1.5, A = -1: outside, and still pushed back", [1.5], [-1.0]),
        _clipped_case("a wider interval", [1.5, 0.5], [1.0, -1.0], clip_range=0.4),
        _clipped_case("all six at once", [[0.5, 1.1, 1.5], [0.5, 1.1, 1.5]], [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]),
    ]


def check_clipped_surrogate(fn: Callable) -> CheckResult:
    """`fn(log_probs, old_log_probs, advantages, *, clip_range) -> loss`, as `ppo_edu.clipped_surrogate_loss`, by value and gradient."""
    return run_check(
        "clipped_surrogate",
        fn,
        reference=clipped_surrogate_loss,
        cases=_clipped_cases(),
        pitfalls=pitfalls_of("clipped_surrogate"),
        call=with_gradients(keyword_only("clip_range")),
    )


# KL ------------------------------------------------------------------------------------------------------------------


def _kl_cases() -> list[Case]:
    samples = {
        "one sample that pi likes better": ([0.5], [0.25]),
        "one sample that the reference likes better": ([0.25], [0.5]),
        "two policies that agree": ([0.5, 0.25], [0.5, 0.25]),
        "two responses of three tokens": ([[0.9, 0.5, 0.1], [0.2, 0.3, 0.6]], [[0.8, 0.1, 0.2], [0.4, 0.3, 0.1]]),
    }
    return [
        Case(f"{kind}, {title}", {"log_probs": torch.tensor(p).log(), "ref_log_probs": torch.tensor(q).log(), "kind": kind})
        for title, (p, q) in samples.items()
        for kind in ("k1", "k2", "k3")
    ]


def check_kl_estimate(fn: Callable) -> CheckResult:
    """`fn(log_probs, ref_log_probs, kind) -> one estimate per sample`, as `ppo_edu.kl_estimate`; kind is "k1", "k2" or "k3"."""
    return run_check("kl_estimate", fn, reference=kl_estimate, cases=_kl_cases(), pitfalls=pitfalls_of("kl_estimate"))
