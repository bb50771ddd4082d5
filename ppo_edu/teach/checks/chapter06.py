"""Checkers of chapter 6: the one-sided form of the clip, the dual clip, value clipping."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppo_edu.core import probability_ratio, value_loss
from ppo_edu.teach.checks.engine import Case, CheckResult, run_check, with_gradients
from ppo_edu.teach.pitfalls import pitfalls_of


def g_form(clip_range: float, advantages: Tensor) -> Tensor:
    """The most that the clipped objective of a sample can reach: (1 + eps) A where A >= 0, (1 - eps) A where A < 0."""
    return advantages + clip_range * advantages.abs()


def check_g_form(fn: Callable) -> CheckResult:
    """Exercise 6.2: `fn(clip_range, advantages [B]) -> [B]`, so that the clipped objective is min(ratio * A, g)."""

    def case(title: str, clip_range: float, advantages: list[float]) -> Case:
        return Case(title, {"clip_range": clip_range, "advantages": torch.tensor(advantages)})

    cases = [
        case("a good action", 0.2, [1.0]),
        case("a bad action", 0.2, [-1.0]),
        case("nothing to learn", 0.2, [0.0]),
        case("a better action, a wider interval", 0.5, [2.0]),
        case("four samples", 0.1, [3.0, -2.0, 0.5, -0.25]),
    ]
    return run_check("Exercise 6.2", fn, reference=g_form, cases=cases, pitfalls=pitfalls_of("g_form"))


def dual_clip(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float, dual_clip: float) -> Tensor:
    """The clipped surrogate as a loss, with the floor c A under the samples whose advantage is negative."""
    ratio, advantages = probability_ratio(log_probs, old_log_probs), advantages.detach()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    floored = torch.maximum(objective, dual_clip * advantages)
    return -torch.where(advantages < 0, floored, objective).mean()


def check_dual_clip(fn: Callable) -> CheckResult:
    """Exercise 6.6: `fn(log_probs, old_log_probs, advantages, clip_range, dual_clip) -> loss`, by value and by gradient."""

    def case(title: str, ratios: Sequence[float], advantages: Sequence[float], *, dual_clip: float = 3.0) -> Case:
        old = torch.full((len(ratios),), 0.1)
        tensors = {"log_probs": (torch.tensor(ratios) * old).log(), "old_log_probs": old.log(), "advantages": torch.tensor(advantages)}
        return Case(title, tensors | {"clip_range": 0.2, "dual_clip": dual_clip})

    cases = [
        case("ratio 1, A = 1: the policy has not moved", [1.0], [1.0]),
        case("ratio 1, A = -1", [1.0], [-1.0]),
        case("ratio 1.5, A = -1: above the interval, still pushed back", [1.5], [-1.0]),
        case("ratio 5, A = -1: beyond c", [5.0], [-1.0]),
        case("ratio 5, A = 1: clipped as ever", [5.0], [1.0]),
        case("ratio 0.5, A = -1: clipped as ever", [0.5], [-1.0]),
        case("ratio 0.5, A = 1: pulled back", [0.5], [1.0]),
        case("six samples, c = 2", [0.5, 1.1, 2.5, 0.5, 1.1, 2.5], [1.0, 2.0, 3.0, -1.0, -2.0, -3.0], dual_clip=2.0),
    ]
    return run_check("Exercise 6.6", fn, reference=dual_clip, cases=cases, pitfalls=pitfalls_of("dual_clip"), call=with_gradients())


def value_clip(values: Tensor, returns: Tensor, old_values: Tensor, clip_range: float) -> Tensor:
    """The larger of the two squared errors, halved and averaged."""
    return value_loss(values, returns, old_values=old_values, clip_range=clip_range)


def check_value_clip(fn: Callable) -> CheckResult:
    """Exercise 6.5: `fn(values, returns, old_values, clip_range) -> loss`, by value and by gradient."""

    def case(title: str, values: list[float], returns: list[float], old_values: list[float], clip_range: float = 1.0) -> Case:
        tensors = {"values": torch.tensor(values), "returns": torch.tensor(returns), "old_values": torch.tensor(old_values)}
        return Case(title, tensors | {"clip_range": clip_range})

    cases = [
        case("inside the interval", [0.5], [2.0], [0.0]),
        case("outside, on the way to the target: held", [2.0], [5.0], [0.0]),
        case("outside, away from the target: pulled back", [2.0], [-1.0], [0.0]),
        case("outside and a little too far: nearer to the target than the clipped value, held", [2.5], [2.0], [0.0]),
        case("outside and much too far: pulled back", [4.0], [2.0], [0.0]),
        case("an old value far from 0, inside the interval", [10.5], [12.0], [10.0]),
        case("downwards, on the way: held", [7.0], [2.0], [10.0]),
        case("four states", [0.5, 2.0, -2.0, 4.0], [2.0, 5.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0], 0.5),
    ]
    return run_check("Exercise 6.5", fn, reference=value_clip, cases=cases, pitfalls=pitfalls_of("value_clip"), call=with_gradients())
