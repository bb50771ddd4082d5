"""Diagnostics: numbers that tell a healthy update from a sick one. All are scalars; samples come from the old policy."""

from typing import Literal

import torch
from torch import Tensor

from ppo_edu.core.kl import kl_estimate
from ppo_edu.core.masking import masked_mean, masked_var, prepare
from ppo_edu.core.objectives import probability_ratio
from ppo_edu.core.validation import check_positive


def approx_kl(
    log_probs: Tensor,  # log pi(a|s)
    old_log_probs: Tensor,  # log pi_old(a|s) of the policy that acted, detached
    *,
    kind: Literal["k1", "k2", "k3"] = "k3",
    mask: Tensor | None = None,  # bool
) -> Tensor:
    r"""Mean estimate of KL(pi_old || pi), in nats, from actions of the *old* policy. Keeps autograd in log_probs.

    The roles are those of `kl_estimate` reversed: here the old policy sampled. k1 = log pi_old - log pi can come out
    negative by chance; k3 = (ratio - 1) - log ratio cannot.

    Source: Schulman 2020, "Approximating KL divergence"; Huang et al. 2022, detail 12 (debug variables).
    Returns: scalar. Raises: ValueError naming the argument.
    """
    log_probs, old_log_probs = prepare(mask, log_probs=log_probs, old_log_probs=old_log_probs)
    return masked_mean(kl_estimate(old_log_probs.detach(), log_probs, kind), mask)


@torch.no_grad()
def clip_fraction(
    log_probs: Tensor,  # log pi(a|s)
    old_log_probs: Tensor,  # log pi_old(a|s)
    *,
    clip_range: float,
    mask: Tensor | None = None,  # bool
) -> Tensor:
    r"""Share of samples whose ratio has left [1 - clip_range, 1 + clip_range], whatever the sign of the advantage.

    Not all of them have lost their gradient: see `clipped_surrogate_loss`.

    Returns: scalar in [0, 1], detached. Raises: ValueError naming the argument.
    """
    check_positive(clip_range=clip_range)
    log_probs, old_log_probs = prepare(mask, log_probs=log_probs, old_log_probs=old_log_probs)
    ratio = probability_ratio(log_probs, old_log_probs)
    outside = (ratio - 1.0).abs() > clip_range
    return masked_mean(outside.to(ratio.dtype), mask)


@torch.no_grad()
def explained_variance(
    values: Tensor,  # V(s) that were predicted
    returns: Tensor,  # what came
    *,
    mask: Tensor | None = None,  # bool
) -> Tensor:
    r"""Share of the variance of the returns that the critic explains: 1 - Var(R - V) / Var(R).

    1 is perfect, 0 is no better than a constant, below 0 is worse than a constant. A constant shift of V is not seen.
    Where the returns do not vary the quotient is undefined: 1 if the error does not vary either, else 0
    (the convention of scikit-learn's `explained_variance_score`).

    Returns: scalar of at most 1, detached. Raises: ValueError, also for fewer than two entries that count.
    """
    values, returns = prepare(mask, at_least=2, values=values, returns=returns)
    error_var, return_var = masked_var(returns - values, mask), masked_var(returns, mask)
    undefined = torch.where(error_var > 0, 0.0, 1.0).to(error_var.dtype)
    return torch.where(return_var > 0, 1.0 - error_var / return_var, undefined)


@torch.no_grad()
def effective_sample_size(
    log_probs: Tensor,  # log pi(a|s)
    old_log_probs: Tensor,  # log pi_old(a|s)
    *,
    mask: Tensor | None = None,  # bool
) -> Tensor:
    r"""Kish's effective number of samples under importance weights w = pi / pi_old: (sum w)^2 / sum w^2.

    n samples of the old policy tell about as much on the new one as this many of its own: n at ratio 1, towards 1
    when a single ratio dominates.

    Source: Kish 1965; Owen 2013, "Monte Carlo theory, methods and examples", section 9.3.
    Returns: scalar in [1, n], detached. Raises: ValueError naming the argument.
    """
    log_probs, old_log_probs = prepare(mask, log_probs=log_probs, old_log_probs=old_log_probs)
    log_weights = log_probs - old_log_probs
    if mask is not None:
        log_weights = log_weights.masked_fill(~mask, float("-inf"))
    log_weights = log_weights.flatten()
    return torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0))
