"""Checkers of chapter 10: log-densities of Gaussian and squashed actions, running moments."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ppo_edu.control import RunningMoments, SquashedNormal
from ppo_edu.teach.checks.engine import Case, CheckResult, run_check
from ppo_edu.teach.pitfalls import pitfalls_of

Rows = Sequence[Sequence[float]]


def gaussian_log_prob(mean: Tensor, log_std: Tensor, sampled: Tensor, sent: Tensor) -> Tensor:  # [B, A], [A], [B, A], [B, A] -> [B]
    """Log-density of the sampled actions under N(mean, exp(log_std)^2), components independent. What was sent is no matter."""
    return Independent(Normal(mean, log_std.exp()), 1).log_prob(sampled)


def check_gaussian_log_prob(fn: Callable) -> CheckResult:
    """Exercise 10.2: `fn(mean [B, A], log_std [A], sampled [B, A], sent [B, A]) -> [B]`, the log-density for PPO's ratio."""

    def case(title: str, mean: Rows, log_std: Sequence[float], sampled: Rows) -> Case:
        actions = torch.tensor(sampled)
        arguments = {"mean": torch.tensor(mean), "log_std": torch.tensor(log_std), "sampled": actions, "sent": actions.clamp(-2.0, 2.0)}
        return Case(title, arguments)

    cases = [
        case("a standard normal, half a unit from its mean", [[0.0]], [0.0], [[0.5]]),
        case("a narrow one: the density is above 1", [[1.0]], [-2.0], [[1.1]]),
        case("a sample outside of the box [-2, 2]", [[1.5]], [0.0], [[3.0]]),
        case("two components", [[0.0, 1.0]], [0.5, -0.5], [[0.5, 0.7]]),
        case("three rows", [[0.0, 1.0], [0.3, -0.2], [1.9, 0.0]], [0.2, -0.7], [[0.1, 1.2], [-0.8, 0.4], [2.6, -0.3]]),
    ]
    pitfalls = pitfalls_of("gaussian_log_prob")
    return run_check("Exercise 10.2", fn, reference=gaussian_log_prob, cases=cases, pitfalls=pitfalls)


def squashed_log_prob(mean: Tensor, log_std: Tensor, u: Tensor, half_width: Tensor) -> Tensor:  # [B, A], [A], [B, A], [A] -> [B]
    """Log-density of a = half_width * tanh(u), where u ~ N(mean, exp(log_std)^2)."""
    return SquashedNormal(mean, log_std.exp(), half_width).log_prob(u)


def check_squashed_log_prob(fn: Callable) -> CheckResult:
    """Exercise 10.3: `fn(mean [B, A], log_std [A], u [B, A], half_width [A]) -> [B]`, the log-density of half_width * tanh(u)."""

    def case(title: str, mean: Rows, log_std: Sequence[float], u: Rows, half_width: Sequence[float]) -> Case:
        names = ("mean", "log_std", "u", "half_width")
        return Case(title, {name: torch.tensor(x) for name, x in zip(names, (mean, log_std, u, half_width), strict=True)})

    cases = [
        case("in the middle of the box [-1, 1]", [[0.0]], [0.0], [[0.0]], [1.0]),
        case("off the middle", [[0.0]], [0.0], [[1.0]], [1.0]),
        case("the box [-2, 2]", [[0.0]], [0.0], [[1.0]], [2.0]),
        case("two components, one row", [[0.5, -1.0]], [0.0, -0.5], [[0.3, -1.2]], [2.0, 0.5]),
        case("a saturated action", [[3.0]], [1.0], [[12.0]], [1.0]),
        case("three rows", [[0.0, 0.0], [0.2, 1.0], [-2.0, 0.1]], [0.3, -0.4], [[0.1, 0.4], [1.0, 1.5], [-3.0, 0.0]], [2.0, 0.5]),
    ]
    pitfalls = pitfalls_of("squashed_log_prob")
    return run_check("Exercise 10.3", fn, reference=squashed_log_prob, cases=cases, pitfalls=pitfalls)


def running_moments(mean: Tensor, variance: Tensor, count: int, rows: Tensor) -> Tensor:  # [D], [D], int, [B, D] -> [2, D]
    """Mean and variance (ddof 0) of `count` rows with these moments and of the new `rows`, together."""
    moments = RunningMoments(len(mean))
    moments.count.fill_(count)
    moments.mean.copy_(mean)
    moments.squares.copy_(variance * count)
    moments.update(rows)
    return torch.stack([moments.mean, moments.variance])


def check_running_moments(fn: Callable) -> CheckResult:
    """Exercise 10.4: `fn(mean [D], variance [D], count, rows [B, D]) -> [2, D]`: mean and variance of all rows together."""

    def case(title: str, mean: Sequence[float], variance: Sequence[float], count: int, rows: Rows) -> Case:
        doubles = {name: torch.tensor(x, dtype=torch.float64) for name, x in (("mean", mean), ("variance", variance), ("rows", rows))}
        return Case(title, {"mean": doubles["mean"], "variance": doubles["variance"], "count": count, "rows": doubles["rows"]})

    cases = [
        case("one row after one row", [0.0], [0.0], 1, [[2.0]]),
        case("two rows after two", [1.0], [1.0], 2, [[3.0], [5.0]]),
        case("three rows after one", [4.0], [0.0], 1, [[1.0], [2.0], [3.0]]),
        case("the first batch of all", [0.0], [1.0], 0, [[7.0], [9.0]]),
        case("two columns, a large mean", [1000.0, 0.5], [0.04, 2.0], 5, [[1000.3, -1.0], [999.8, 2.0], [1000.1, 4.0]]),
    ]
    pitfalls = pitfalls_of("running_moments")
    return run_check("Exercise 10.4", fn, reference=running_moments, cases=cases, pitfalls=pitfalls, tolerance=1e-9)
