"""Mistakes in the diagnostics themselves: statistics of the ratio, and what is reported of a critic."""

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall

# ratio_statistics: mean ratio, the largest factor by which a probability changed, the effective share of the samples -------


def _ratio_report(ratio: Tensor, furthest: Tensor) -> Tensor:
    return torch.stack([ratio.mean(), furthest, ratio.sum().square() / ratio.square().sum() / len(ratio)])


@pitfall(
    "statistics-of-the-inverse-ratio",
    target="ratio_statistics",
    mistake="statistics of old over new, the ratio upside down",
    symptom="the mean stands above 1 after every update, and an action that vanishes dominates all else",
    exposed_by="an action that has become twice as probable has ratio 2",
)
def _inverse(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    ratio = torch.exp(old_log_probs - log_probs)
    return _ratio_report(ratio, ratio.log().abs().max().exp())


@pitfall(
    "furthest-upwards-only",
    target="ratio_statistics",
    mistake="the largest ratio as the furthest change: a probability that shrank is never seen",
    symptom="a policy that gives actions up looks as if it stood still",
    exposed_by="one ratio of 0.05 among ones",
)
def _upwards_only(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    ratio = torch.exp(log_probs - old_log_probs)
    return _ratio_report(ratio, ratio.max())


@pitfall(
    "furthest-as-a-difference",
    target="ratio_statistics",
    mistake="the largest |ratio - 1| as the furthest change: no fall in probability counts for more than 1",
    symptom="halved and doubled, the same step in opposite directions, look different",
    exposed_by="one ratio of 2 and one of 0.5",
)
def _as_difference(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    ratio = torch.exp(log_probs - old_log_probs)
    return _ratio_report(ratio, (ratio - 1).abs().max())


@pitfall(
    "effective-number-for-share",
    target="ratio_statistics",
    mistake="the effective *number* of samples, not divided by how many there are",
    symptom="minibatches of different size cannot be compared, and 30 looks like plenty",
    exposed_by="a policy that has not moved has share 1",
)
def _number(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    ratio = torch.exp(log_probs - old_log_probs)
    return _ratio_report(ratio, ratio.log().abs().max().exp()) * torch.tensor([1.0, 1.0, len(ratio)])


@pitfall(
    "statistics-of-the-log-ratio",
    target="ratio_statistics",
    mistake="statistics of the logarithm of the ratio: the exponential is missing",
    symptom="the mean, which is minus the k1 estimate of the KL, stands near 0 instead of 1",
    exposed_by="a policy that has not moved has ratio 1",
)
def _of_the_log(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    log_ratio = log_probs - old_log_probs
    return _ratio_report(log_ratio, log_ratio.abs().max())


# critic_report: bias, root mean squared error, explained variance ---------------------------------------------------------


def _critic_report(bias: Tensor, rms: Tensor, explained: Tensor) -> Tensor:
    return torch.stack([bias, rms, explained])


def _explained(error: Tensor, returns: Tensor) -> Tensor:
    return 1 - error.var() / returns.var()


@pitfall(
    "bias-with-the-sign-reversed",
    target="critic_report",
    mistake="returns minus values as the bias: a critic that is too high is reported as too low",
    symptom="one looks for what makes values too small, and they are too large",
    exposed_by="a critic that is 2 too high everywhere",
)
def _reversed_bias(values: Tensor, returns: Tensor) -> Tensor:
    error = values - returns
    return _critic_report(-error.mean(), error.square().mean().sqrt(), _explained(error, returns))


@pitfall(
    "value-loss-for-an-error",
    target="critic_report",
    mistake="half of the mean squared error, as the value loss is logged, without the root: squared units",
    symptom="an error of 10 looks like 50, and one of 0.1 like 0.005",
    exposed_by="a critic that is 2 too high everywhere has an error of 2",
)
def _half_square(values: Tensor, returns: Tensor) -> Tensor:
    error = values - returns
    return _critic_report(error.mean(), 0.5 * error.square().mean(), _explained(error, returns))


@pitfall(
    "spread-for-an-error",
    target="critic_report",
    mistake="the standard deviation of the error in the place of its root mean square: the bias is not in it",
    symptom="a critic that is wrong by the same amount everywhere looks perfect",
    exposed_by="a critic that is 2 too high everywhere",
)
def _spread(values: Tensor, returns: Tensor) -> Tensor:
    error = values - returns
    return _critic_report(error.mean(), error.std(correction=0), _explained(error, returns))


@pitfall(
    "bias-counted-as-unexplained",
    target="critic_report",
    mistake="one minus the mean squared error over the variance of the returns as the explained variance: the bias is counted in",
    symptom="explained variance below 0 for a critic that ranks the states as it should",
    exposed_by="values moved by a constant explain just as much",
)
def _counted_in(values: Tensor, returns: Tensor) -> Tensor:
    error = values - returns
    mean_square = error.square().mean()
    return _critic_report(error.mean(), mean_square.sqrt(), 1 - mean_square / returns.var(correction=0))
