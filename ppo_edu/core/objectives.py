"""Objectives: from the policy-gradient loss to PPO's clipped surrogate, as scalars to minimise.

Every tensor argument has the same shape ([B], [T, N], [B, T], ...). What is learned keeps autograd; what is data
(old log-probabilities, advantages, returns, old values) is detached here, so that no gradient leaks through it.
Masked entries are replaced before any arithmetic: whatever stands there, NaN included, reaches neither loss nor gradient.
"""

import torch
from torch import Tensor

from ppo_edu.core.masking import fill_masked, masked_mean, prepare
from ppo_edu.core.validation import check_finite, check_like, check_logits, check_positive


def probability_ratio(
    log_probs: Tensor,  # log pi(a|s), keeps autograd
    old_log_probs: Tensor,  # log pi_old(a|s) of the policy that acted, detached
) -> Tensor:
    r"""Probability ratio of new to old policy for the actions taken: exp(log pi(a|s) - log pi_old(a|s)).

    Source: Schulman et al. 2017 (arXiv:1707.06347), section 3.
    Returns: shape of log_probs. Raises: ValueError naming the argument.
    """
    check_like("log_probs", log_probs, old_log_probs=old_log_probs)
    check_finite(log_probs=log_probs, old_log_probs=old_log_probs)
    ratio = torch.exp(log_probs - old_log_probs.detach())
    check_finite(**{"exp(log_probs - old_log_probs)": ratio})  # overflow: even a clipped sample's gradient would be 0 * inf
    return ratio


def policy_gradient_loss(
    log_probs: Tensor,  # log pi(a|s)
    advantages: Tensor,  # A(s, a), detached
    *,
    mask: Tensor | None = None,  # bool
) -> Tensor:
    r"""Loss whose gradient is minus the policy-gradient estimate; samples must come from the current policy.

        L = -mean(log pi(a|s) * A)

    Its value means nothing; only its gradient does.

    Source: Williams 1992; Schulman et al. 2017 (arXiv:1707.06347), equations 1 and 2.
    Returns: scalar. Raises: ValueError naming the argument.
    """
    log_probs, advantages = prepare(mask, log_probs=log_probs, advantages=advantages)
    return -masked_mean(log_probs * advantages.detach(), mask)


def surrogate_loss(
    log_probs: Tensor,  # log pi(a|s)
    old_log_probs: Tensor,  # log pi_old(a|s), detached
    advantages: Tensor,  # A(s, a) of the old policy, detached
    *,
    mask: Tensor | None = None,  # bool
) -> Tensor:
    r"""Importance-sampled objective, unclipped; samples come from the old policy.

        L = -mean(ratio * A)

    At pi = pi_old its gradient equals that of `policy_gradient_loss`.

    Source: Schulman et al. 2017 (arXiv:1707.06347), equation 6 (conservative policy iteration).
    Returns: scalar. Raises: ValueError naming the argument.
    """
    log_probs, old_log_probs, advantages = prepare(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    return -masked_mean(probability_ratio(log_probs, old_log_probs) * advantages.detach(), mask)


def clipped_surrogate_loss(
    log_probs: Tensor,  # log pi(a|s)
    old_log_probs: Tensor,  # log pi_old(a|s), detached
    advantages: Tensor,  # A(s, a) of the old policy, detached
    *,
    clip_range: float,
    mask: Tensor | None = None,  # bool
) -> Tensor:
    r"""PPO's clipped surrogate objective, negated.

        L = -mean(min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A))

    The min takes the worse of the two, sample by sample. The gradient of a sample vanishes in two cases only:
    ratio > 1 + clip_range with A > 0, and ratio < 1 - clip_range with A < 0.

    Source: Schulman et al. 2017 (arXiv:1707.06347), equation 7.
    Returns: scalar to minimise. Raises: ValueError naming the argument.
    """
    check_positive(clip_range=clip_range)
    log_probs, old_log_probs, advantages = prepare(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    advantages = advantages.detach()
    ratio = probability_ratio(log_probs, old_log_probs)
    clipped_ratio = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -masked_mean(torch.minimum(ratio * advantages, clipped_ratio * advantages), mask)


def value_loss(
    values: Tensor,  # V(s), keeps autograd
    returns: Tensor,  # target, detached
    *,
    old_values: Tensor | None = None,  # V_old(s), detached
    clip_range: float | None = None,
    mask: Tensor | None = None,  # bool
) -> Tensor:
    r"""Squared error of the critic, optionally with PPO's value clipping.

        L = mean(0.5 * (V - R)^2)
        L = mean(0.5 * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2))      with clip_range c

    With clipping the max, the worse of the two, is taken: a value that left the interval still gets pulled back.
    `clip_range` has the units of the return.

    Source: Schulman et al. 2017 (arXiv:1707.06347), equation 9; the clipped form is in the authors' code, not in the paper
    (Huang et al. 2022, detail 9).
    Returns: scalar. Raises: ValueError naming the argument.
    """
    if (old_values is None) != (clip_range is None):
        raise ValueError("old_values and clip_range must be given together: value clipping needs both")
    if clip_range is None:
        values, returns = prepare(mask, values=values, returns=returns)
        return masked_mean(0.5 * (values - returns.detach()).square(), mask)
    check_positive(clip_range=clip_range)
    values, returns, old_values = prepare(mask, values=values, returns=returns, old_values=old_values)
    returns, old_values = returns.detach(), old_values.detach()
    clipped_values = old_values + (values - old_values).clamp(-clip_range, clip_range)
    errors = torch.maximum((values - returns).square(), (clipped_values - returns).square())
    return masked_mean(0.5 * errors, mask)


def entropy_bonus(
    logits: Tensor,  # [..., A] unnormalised log-probabilities; -inf forbids an action
    mask: Tensor | None = None,  # [...] bool
) -> Tensor:
    r"""Mean entropy of categorical policies, in nats: mean(-sum_a pi(a|s) * log pi(a|s)). Larger is more random.

    It is a bonus: an objective adds it, a loss subtracts it.

    Source: Williams & Peng 1991; Schulman et al. 2017 (arXiv:1707.06347), equation 9.
    Returns: scalar. Raises: ValueError naming the argument.
    """
    check_logits(mask, logits=logits)
    if mask is not None:
        logits = fill_masked(logits, mask.unsqueeze(-1))
    log_probs = torch.log_softmax(logits, dim=-1)
    probs = log_probs.exp()
    entropies = -(probs * torch.where(probs > 0, log_probs, 0.0)).sum(-1)  # p * log p is 0 at p = 0
    return masked_mean(entropies, mask)
