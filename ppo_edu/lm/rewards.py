"""Where reward lives in a response: a score on its last token, a KL penalty on each, and the border to `ppo_edu.core`.

A response is an episode. Arrays here are [B, T] (sequence, token); `core` wants time first, so they are transposed once.
"""

from typing import Literal

import torch
from torch import Tensor

from ppo_edu.core import gae, kl_estimate
from ppo_edu.core.validation import check_finite, check_flag, check_float, check_like, check_mask, check_nonnegative, describe, reads_values


def last_token(mask: Tensor) -> Tensor:
    """True at the last token that counts in each row of a mask [B, T]; rows must have at least one."""
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask & ~following


def token_rewards(
    scores: Tensor,  # [B] of the whole responses
    log_probs: Tensor,  # [B, T] log pi of the sampled tokens, under the policy that sampled them
    ref_log_probs: Tensor,  # [B, T] log pi_ref of the same tokens
    mask: Tensor,  # [B, T] bool
    *,
    kl_coef: float,
) -> Tensor:
    r"""Reward per token: the score on the last real token, and on each token a penalty for leaving the reference.

        r_t = [t is last] * score - kl_coef * (log pi(y_t|..) - log pi_ref(y_t|..))

    The penalty is k1: summed over a response its mean is KL(pi || pi_ref). Padding gets 0.

    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2 (equation 2); per token as in Ouyang et al. 2022 (arXiv:2203.02155).
    Returns: [B, T], detached. Raises: ValueError naming the argument.
    """
    check_nonnegative(kl_coef=kl_coef)
    _check_batch(mask, log_probs=log_probs, ref_log_probs=ref_log_probs)
    check_float(scores=scores)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores must have shape [{len(mask)}], one per response, got {describe(scores)}")
    check_finite(scores=scores)
    with torch.no_grad():
        penalties = kl_coef * kl_estimate(torch.where(mask, log_probs, 0.0), torch.where(mask, ref_log_probs, 0.0), "k1")
        return torch.where(last_token(mask), scores.to(log_probs.dtype)[:, None], 0.0) - penalties


def response_advantages(
    rewards: Tensor,  # [B, T]
    values: Tensor,  # [B, T] V of the text before each token
    mask: Tensor,  # [B, T] bool
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    r"""GAE over responses, each an episode that ends with its last real token.

    A response cut at the length limit ends there too: the limit is part of the task, so nothing is bootstrapped.
    Padding is one-token episodes of reward and value 0: it gets advantage 0 and passes nothing back.

    Returns: [B, T], detached; with `values` added, the critic's target. Raises: ValueError naming the argument.
    """
    _check_batch(mask, rewards=rewards, values=values)
    rewards, values = (torch.where(mask, x, 0.0).detach() for x in (rewards, values))
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    terminated = last_token(mask) | ~mask
    episodes = [x.T for x in (rewards, values, next_values, terminated, torch.zeros_like(mask))]  # to [T, N]
    return gae(*episodes, gamma=gamma, lam=lam).T


def sequence_kl(
    log_probs: Tensor,  # [B, T] log pi, of tokens sampled from pi
    ref_log_probs: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
) -> Tensor:
    r"""Estimate of KL(pi || pi_ref) in nats per sequence: sum_t (log pi - log pi_ref), one per response, [B]. May be negative."""
    _check_batch(mask, log_probs=log_probs, ref_log_probs=ref_log_probs)
    return torch.where(mask, log_probs - ref_log_probs, 0.0).sum(1)


def kl_loss(
    log_probs: Tensor,  # [B, T] log pi, keeps autograd
    old_log_probs: Tensor,  # [B, T] of the policy that sampled
    ref_log_probs: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
    *,
    kind: Literal["k2", "k3"] = "k2",
) -> Tensor:
    r"""KL to the reference as a loss: what its *gradient* does is what counts, and that depends on the estimator.

        w = exp(sum_t log pi - sum_t log pi_old), detached        the response's ratio: samples come from pi_old
        L = sum over responses of w * k(sum_t log pi, sum_t log pi_ref), divided by the number of tokens

    k2: the expected gradient is that of KL(pi || pi_ref), the direction that the penalty in the reward has.
    k3: it is that of KL(pi_ref || pi), the reverse, whose optimum is another policy. k1 is not offered: on fresh
    samples its gradient has mean zero. The sums run over whole responses because a token also answers for the KL of
    the tokens after it. Divided by tokens, as the policy loss is a mean over tokens: their balance is then that of
    reward and KL per response.

    Source: chapter 13; Schulman 2020, "Approximating KL divergence", for the estimators.
    Returns: scalar. Raises: ValueError naming the argument.
    """
    if kind not in ("k2", "k3"):
        raise ValueError(f"kind must be 'k2' or 'k3', got {kind!r}")
    _check_batch(mask, log_probs=log_probs, old_log_probs=old_log_probs, ref_log_probs=ref_log_probs)
    total, old_total, ref_total = (torch.where(mask, x, 0.0).sum(1) for x in (log_probs, old_log_probs, ref_log_probs))
    weight = torch.exp(total.detach() - old_total.detach())
    return (weight * kl_estimate(total, ref_total.detach(), kind)).sum() / mask.sum()


def _check_batch(mask: Tensor, **tensors: Tensor) -> None:
    """Everything must be [B, T] and alike, finite where the mask counts, and every response must have tokens, without a gap."""
    (name, first), *others = tensors.items()
    check_like(name, first, **dict(others))
    if first.ndim != 2:
        raise ValueError(f"{name} must have shape [B, T], one row per response, got {describe(first)}")
    check_flag(first.shape, first.device, mask=mask)
    check_mask(mask, first.shape, first.device, of=name)
    if reads_values() and bool((last_token(mask).sum(1) != 1).any()):
        row = int((last_token(mask).sum(1) != 1).nonzero()[0])
        raise ValueError(f"mask must be True on one unbroken run of tokens in each row, got {mask[row].int().tolist()} in row {row}")
    check_finite(mask, **tensors)
