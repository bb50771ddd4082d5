"""Mistakes with actions that are real numbers: Gaussian and squashed log-densities, running moments."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ppo_edu.teach.pitfalls.catalogue import pitfall

# gaussian_log_prob: the log-density of an action with several components -------------------------------------------------


def _components(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density of each component, [B, A]."""
    return -0.5 * ((actions - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)


@pitfall(
    "log-prob-of-what-was-sent",
    target="gaussian_log_prob",
    mistake="the density at the action that the environment got, after the clip: not that of what was sampled",
    symptom="the mean score is no longer 0, so that a baseline moves the gradient; the mean ratio drifts away from 1",
    exposed_by="a sample outside of the box",
    discussed="https://github.com/kuds/mesozoic-labs/pull/408",
)
def _of_what_was_sent(mean: Tensor, log_std: Tensor, sampled: Tensor, sent: Tensor) -> Tensor:
    return _components(mean, log_std, sent).sum(-1)


@pitfall(
    "log-probs-averaged-over-components",
    target="gaussian_log_prob",
    mistake="the mean over the components, where independence asks for their sum",
    symptom="the ratio is the A-th root of the true one: with 17 joints the clip range is as good as 17 times as wide",
    exposed_by="two components against a normal distribution in the plane",
    discussed="https://github.com/yifan123/flow_grpo/issues/143",
)
def _averaged(mean: Tensor, log_std: Tensor, sampled: Tensor, sent: Tensor) -> Tensor:
    return _components(mean, log_std, sampled).mean(-1)


@pitfall(
    "components-not-summed",
    target="gaussian_log_prob",
    mistake="one number for each component, [B, A]: nothing was summed",
    symptom="an error at best; with as many actions as rows, a silent broadcast",
    exposed_by="the shape of the result",
)
def _not_summed(mean: Tensor, log_std: Tensor, sampled: Tensor, sent: Tensor) -> Tensor:
    return _components(mean, log_std, sampled)


@pitfall(
    "spread-left-out-of-the-density",
    target="gaussian_log_prob",
    mistake="the exponent of the density alone: the term -log_std is missing",
    symptom="where advantages are mostly positive, log_std climbs without limit; whitened, Pendulum is learned all the same",
    exposed_by="the density must integrate to 1 for every spread",
)
def _without_spread(mean: Tensor, log_std: Tensor, sampled: Tensor, sent: Tensor) -> Tensor:
    return (_components(mean, log_std, sampled) + log_std).sum(-1)


@pitfall(
    "std-for-variance",
    target="gaussian_log_prob",
    mistake="the squared distance divided by the standard deviation, not by its square",
    symptom="none while log_std is 0; later the ratio follows another policy than the one that acts",
    exposed_by="a standard deviation other than 1",
)
def _std_for_variance(mean: Tensor, log_std: Tensor, sampled: Tensor, sent: Tensor) -> Tensor:
    return (-0.5 * (sampled - mean).square() / log_std.exp() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


@pitfall(
    "log-std-read-as-log-variance",
    target="gaussian_log_prob",
    mistake="a density whose variance is exp(log_std): the parameter read as the logarithm of the variance",
    symptom="none while log_std is 0; later the policy that acts is narrower or wider than the one that is trained",
    exposed_by="a standard deviation other than 1",
)
def _log_variance(mean: Tensor, log_std: Tensor, sampled: Tensor, sent: Tensor) -> Tensor:
    return _components(mean, log_std / 2, sampled).sum(-1)


# squashed_log_prob: the log-density of half_width * tanh(u) -----------------------------------------------------------------


def _log_tanh_derivative(u: Tensor) -> Tensor:
    return 2 * (math.log(2) - u - softplus(-2 * u))


@pitfall(
    "jacobian-left-out",
    target="squashed_log_prob",
    mistake="the log-density of u: nothing was done for the change of variables",
    symptom="none in the ratio; an entropy bonus that drives all actions to the edges of the box",
    exposed_by="the density must integrate to 1 over the box",
)
def _no_jacobian(mean: Tensor, log_std: Tensor, u: Tensor, half_width: Tensor) -> Tensor:
    return _components(mean, log_std, u).sum(-1)


@pitfall(
    "jacobian-with-the-wrong-sign",
    target="squashed_log_prob",
    mistake="log |da/du| added, where the density is divided by |da/du|",
    symptom="none in the ratio; the entropy is wrong by twice the correction",
    exposed_by="where tanh is flat, many u share few a: there the density must be higher",
)
def _added(mean: Tensor, log_std: Tensor, u: Tensor, half_width: Tensor) -> Tensor:
    return (_components(mean, log_std, u) + half_width.log() + _log_tanh_derivative(u)).sum(-1)


@pitfall(
    "box-width-left-out",
    target="squashed_log_prob",
    mistake="the log-density of tanh(u), before it is spread over the box: log(half_width) is missing",
    symptom="none in the ratio; entropies of two boxes cannot be compared",
    exposed_by="a box that is not [-1, 1]",
)
def _no_width(mean: Tensor, log_std: Tensor, u: Tensor, half_width: Tensor) -> Tensor:
    return (_components(mean, log_std, u) - _log_tanh_derivative(u)).sum(-1)


@pitfall(
    "tanh-derivative-as-written",
    target="squashed_log_prob",
    mistake="log(1 - tanh(u)^2) as it is written: infinite once tanh(u) rounds to 1",
    symptom="all is well until one action saturates; then NaN",
    exposed_by="u = 12 in float32",
    discussed="https://github.com/didriknielsen/survae_flows/pull/12",
)
def _as_written(mean: Tensor, log_std: Tensor, u: Tensor, half_width: Tensor) -> Tensor:
    return (_components(mean, log_std, u) - half_width.log() - torch.log(1 - torch.tanh(u).square())).sum(-1)


@pitfall(
    "tanh-derivative-with-an-epsilon",
    target="squashed_log_prob",
    mistake="log(1 - tanh(u)^2 + 1e-6): finite, and wrong wherever the action is close to an edge",
    symptom="nothing visible; the entropy is off once actions saturate, and its gradient ends there",
    exposed_by="u = 12, where the right logarithm is near -22.6 and this one -13.8",
)
def _epsilon(mean: Tensor, log_std: Tensor, u: Tensor, half_width: Tensor) -> Tensor:
    return (_components(mean, log_std, u) - half_width.log() - torch.log(1 - torch.tanh(u).square() + 1e-6)).sum(-1)


# running_moments: mean and variance of all rows, from those of the rows before and a new batch -------------------------------


def _merged(mean: Tensor, count: int, rows: Tensor, squares: Tensor, divisor: int | None = None) -> Tensor:
    """[2, D]: the right mean, and the variance from a sum of squared deviations."""
    total = count + len(rows)
    return torch.stack([mean + (rows.mean(0) - mean) * len(rows) / total, squares / (total if divisor is None else divisor)])


def _squares(x: Tensor, centre: Tensor) -> Tensor:
    return (x - centre).square().sum(0)


@pitfall(
    "drift-between-batches-left-out",
    target="running_moments",
    mistake="the two sums of squares added as if both batches had one mean: the term of delta^2 is missing",
    symptom="the scale is too small where the data drift, as they do while a policy learns",
    exposed_by="two batches of one row each",
)
def _no_drift(mean: Tensor, variance: Tensor, count: int, rows: Tensor) -> Tensor:
    return _merged(mean, count, rows, variance * count + _squares(rows, rows.mean(0)))


@pitfall(
    "squares-around-the-old-mean",
    target="running_moments",
    mistake="the new rows' squared distances from the *old* mean: n_b delta^2 in place of n_a n_b / n delta^2",
    symptom="the scale is too large after every drift; with the first batch it is badly off",
    exposed_by="a first batch whose mean is not 0",
)
def _around_old_mean(mean: Tensor, variance: Tensor, count: int, rows: Tensor) -> Tensor:
    return _merged(mean, count, rows, variance * count + _squares(rows, mean))


@pitfall(
    "batches-counted-alike",
    target="running_moments",
    mistake="old and new averaged half and half, however many rows each stands for",
    symptom="the statistics follow the last batch: observations are never on one scale for long",
    exposed_by="batches of different size",
)
def _half_and_half(mean: Tensor, variance: Tensor, count: int, rows: Tensor) -> Tensor:
    return torch.stack([(mean + rows.mean(0)) / 2, (variance + rows.var(0, correction=0)) / 2])


@pitfall(
    "unbiased-variance-merged",
    target="running_moments",
    mistake="the batch's variance with divisor n - 1 times its n rows",
    symptom="a little too large for small batches; NaN for a batch of one row",
    exposed_by="a batch of one row",
    discussed="https://github.com/DLR-RM/stable-baselines3/issues/265",
)
def _unbiased(mean: Tensor, variance: Tensor, count: int, rows: Tensor) -> Tensor:
    between = (rows.mean(0) - mean).square() * count * len(rows) / (count + len(rows))
    unbiased = rows.var(0) if len(rows) > 1 else torch.full_like(mean, math.nan)
    return _merged(mean, count, rows, variance * count + unbiased * len(rows) + between)


@pitfall(
    "variance-over-the-old-count",
    target="running_moments",
    mistake="the merged sum of squares divided by the number of rows before the merge",
    symptom="too large, most of all early in the run; infinite for the first batch",
    exposed_by="any batch that is large beside the rows before it",
)
def _old_count(mean: Tensor, variance: Tensor, count: int, rows: Tensor) -> Tensor:
    between = (rows.mean(0) - mean).square() * count * len(rows) / (count + len(rows))
    return _merged(mean, count, rows, variance * count + _squares(rows, rows.mean(0)) + between, divisor=count)
