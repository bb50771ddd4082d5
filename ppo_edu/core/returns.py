"""Returns: what came after each step, from pure sampling (Monte Carlo) to pure bootstrapping (TD).

All arguments are [T, N], time first; all results are [T, N] and detached. Two flags, two questions:
`terminated`: is there a future to value? `terminated | truncated` (done): does the next row belong to another episode?
"""

import torch
from torch import Tensor

from ppo_edu.core.advantages import gae
from ppo_edu.core.validation import check_count, check_finite, check_float, check_rollout, check_unit_interval


@torch.no_grad()
def discounted_return(
    rewards: Tensor,  # [T, N]
    terminated: Tensor,  # [T, N] bool: no future exists
    truncated: Tensor,  # [T, N] bool: the episode was cut, its future exists
    *,
    gamma: float,
    bootstrap: Tensor | None = None,  # [T, N] V of the true successor; None means 0
) -> Tensor:
    r"""Discounted return (reward-to-go) of every step.

        G_t = r_t + gamma * G_{t+1}                 inside an episode
        G_t = r_t                                   where terminated
        G_t = r_t + gamma * bootstrap_t             where truncated, and on a last row that is not done

    `bootstrap` is read in those places only and may be anything elsewhere, NaN included.

    Source: Sutton & Barto 2018, equations 3.8 and 3.9; bootstrapping at a time limit: Pardo et al. 2018 (arXiv:1712.00378), equation 8.
    Returns: [T, N], detached. Raises: ValueError naming the argument (shape, dtype, range, NaN or infinity).
    """
    check_float(rewards=rewards)
    if bootstrap is None:
        bootstrap = torch.zeros_like(rewards)
    check_rollout("rewards", rewards, terminated, truncated, bootstrap=bootstrap)
    check_unit_interval(gamma=gamma)
    cut = truncated.clone()
    cut[-1] = True
    cut &= ~terminated
    check_finite(rewards=rewards)
    check_finite(cut, bootstrap=bootstrap)

    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        future = torch.where(cut[t], bootstrap[t], torch.where(terminated[t], 0.0, following))
        following = rewards[t] + gamma * future
        returns[t] = following
    return returns


@torch.no_grad()
def td_residual(
    rewards: Tensor,  # [T, N]
    values: Tensor,  # [T, N] V(s_t)
    next_values: Tensor,  # [T, N] V(s_{t+1}) of the true successor, before any reset
    terminated: Tensor,  # [T, N] bool
    *,
    gamma: float,
) -> Tensor:
    r"""Temporal-difference residual, the surprise of one step.

        delta_t = r_t + gamma * (1 - terminated_t) * V(s_{t+1}) - V(s_t)

    `next_values` may be anything, NaN included, where `terminated`.

    Source: Sutton & Barto 2018, equation 6.5; Schulman et al. 2016 (arXiv:1506.02438), section 3.
    Returns: [T, N], detached. Raises: ValueError naming the argument.
    """
    return _one_step_target(rewards, values, next_values, terminated, gamma) - values


@torch.no_grad()
def n_step_return(
    rewards: Tensor,  # [T, N]
    next_values: Tensor,  # [T, N] V(s_{t+1}) of the true successor
    terminated: Tensor,  # [T, N] bool
    truncated: Tensor,  # [T, N] bool
    *,
    gamma: float,
    n: int,
) -> Tensor:
    r"""n-step return: n rewards, then the critic.

        G_t^(1) = r_t + gamma * (1 - terminated_t) * V(s_{t+1})
        G_t^(n) = r_t + gamma * G_{t+1}^(n-1)       G_t^(1) where the episode or the rollout ends at t

    The sum ends after n steps, at done or at the last row, and bootstraps there unless `terminated`.

    Source: Sutton & Barto 2018, equation 7.1; Schulman et al. 2016 (arXiv:1506.02438), equations 11 to 15.
    Returns: [T, N], detached. Raises: ValueError naming the argument.
    """
    one_step = _one_step_target(rewards, rewards, next_values, terminated, gamma)
    check_rollout("rewards", rewards, terminated, truncated)
    check_count(n=n)
    ends = terminated | truncated
    ends[-1] = True
    returns = one_step
    for _ in range(min(n, len(rewards)) - 1):
        returns = torch.where(ends, one_step, rewards + gamma * returns.roll(-1, dims=0))
    return returns


@torch.no_grad()
def lambda_return(
    rewards: Tensor,  # [T, N]
    values: Tensor,  # [T, N] V(s_t)
    next_values: Tensor,  # [T, N] V(s_{t+1}) of the true successor
    terminated: Tensor,  # [T, N] bool
    truncated: Tensor,  # [T, N] bool
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    r"""Lambda-return: the exponentially weighted mean of all n-step returns; the usual target of the critic.

        G_t^lambda = A_t^GAE + V(s_t) = (1 - lambda) * sum_{n >= 1} lambda^(n-1) * G_t^(n)

    (in an unbroken trajectory; at an end, the remaining weight goes to the longest n-step return).

    Source: Sutton & Barto 2018, equations 12.2 and 12.3.
    Returns: [T, N], detached. Raises: ValueError naming the argument.
    """
    return gae(rewards, values, next_values, terminated, truncated, gamma=gamma, lam=lam) + values


def _one_step_target(rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """r_t + gamma * (1 - terminated_t) * V(s_{t+1}), after checking the arguments."""
    check_rollout("rewards", rewards, terminated, values=values, next_values=next_values)
    check_unit_interval(gamma=gamma)
    check_finite(rewards=rewards, values=values)
    check_finite(~terminated, next_values=next_values)
    return rewards + gamma * torch.where(terminated, 0.0, next_values)  # where, not a product: 0 * nan would leak
