"""Checkers of chapter 9: what to know of a batch's probability ratios, and of a critic."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppo_edu.core import effective_sample_size, explained_variance, probability_ratio
from ppo_edu.teach.checks.engine import Case, CheckResult, run_check
from ppo_edu.teach.pitfalls import pitfalls_of


def ratio_statistics(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    r"""Mean ratio; the largest factor by which any probability has grown or shrunk; the effective share of the samples.

        mean(rho),    exp(max |log rho|),    (sum rho)^2 / (n sum rho^2)

    All three are 1 where the policy has not moved. Shapes: [B], [B] -> [3].
    """
    furthest = (log_probs - old_log_probs).abs().max().exp()
    share = effective_sample_size(log_probs, old_log_probs) / len(log_probs)
    return torch.stack([probability_ratio(log_probs, old_log_probs).mean(), furthest, share])


def check_ratio_statistics(fn: Callable) -> CheckResult:
    """Exercise 9.2: `fn(log_probs [B], old_log_probs [B]) -> [3]`: mean ratio, furthest factor, effective share."""

    def case(title: str, ratios: Sequence[float]) -> Case:
        old = torch.tensor([-1.0, -2.0, -0.5, -1.5, -3.0][: len(ratios)])
        return Case(title, {"log_probs": old + torch.tensor(ratios).log(), "old_log_probs": old})

    cases = [
        case("the policy has not moved", [1.0, 1.0, 1.0]),
        case("one action has become twice as probable", [1.0, 2.0]),
        case("one action has nearly vanished", [1.0, 1.0, 0.05]),
        case("one action up and one down by the same factor", [2.0, 0.5]),
        case("five ratios", [0.7, 1.0, 1.4, 0.2, 1.1]),
    ]
    pitfalls = pitfalls_of("ratio_statistics")
    return run_check("Exercise 9.2", fn, reference=ratio_statistics, cases=cases, pitfalls=pitfalls, tolerance=1e-4)


def critic_report(values: Tensor, returns: Tensor) -> Tensor:
    r"""Bias, root mean squared error and explained variance of a critic, the first two in units of the return.

        bias = mean(V - R),    rms^2 = mean((V - R)^2) = bias^2 + (1 - EV) Var(R)

    Shapes: [B], [B] -> [3].
    """
    error = values - returns
    return torch.stack([error.mean(), error.square().mean().sqrt(), explained_variance(values, returns)])


def check_critic_report(fn: Callable) -> CheckResult:
    """Exercise 9.3: `fn(values [B], returns [B]) -> [3]`: bias, root mean squared error, explained variance."""

    def case(title: str, values: Sequence[float], returns: Sequence[float]) -> Case:
        return Case(title, {"values": torch.tensor(values), "returns": torch.tensor(returns)})

    cases = [
        case("a perfect critic", [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]),
        case("a critic that is 2 too high everywhere", [3.0, 4.0, 6.0], [1.0, 2.0, 4.0]),
        case("a critic that is right on average only", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0]),
        case("a critic with a bias and a spread", [5.0, 1.0, 4.0, 9.0], [1.0, 2.0, 4.0, 8.0]),
    ]
    pitfalls = pitfalls_of("critic_report")
    return run_check("Exercise 9.3", fn, reference=critic_report, cases=cases, pitfalls=pitfalls, tolerance=1e-4)
