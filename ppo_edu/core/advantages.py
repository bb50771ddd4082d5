"""Generalised advantage estimation: the one function that both CartPole and the language model call."""

import torch
from torch import Tensor

from ppo_edu.core.validation import check_finite, check_rollout, check_unit_interval


@torch.no_grad()
def gae(
    rewards: Tensor,  # [T, N]
    values: Tensor,  # [T, N] V(s_t)
    next_values: Tensor,  # [T, N] V(s_{t+1}) of the true successor, before any reset
    terminated: Tensor,  # [T, N] bool: no future exists
    truncated: Tensor,  # [T, N] bool: the episode was cut, its future exists
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    r"""Generalised advantage estimates.

        delta_t = r_t + gamma * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
        A_t     = delta_t + gamma * lam * (1 - done_t) * A_{t+1}

    Two flags, two questions. `terminated`: is there a future to value? If not, nothing is bootstrapped.
    `done` (either flag): is row t+1 another episode? If so, its advantage must not flow back.

    Source: Schulman et al. 2016 (arXiv:1506.02438), equations 11 to 16, cut at T as in PPO (arXiv:1707.06347), equations 11 and 12.
    The two flags are ours: the papers write one unbroken trajectory.

    `next_values` may be anything, NaN included, where `terminated`.

    Returns: [T, N], detached; `advantages + values` is the lambda-return.
    Raises: ValueError naming the argument: shape, dtype, range, NaN or infinity.
    """
    check_rollout("rewards", rewards, terminated, truncated, values=values, next_values=next_values)
    check_unit_interval(gamma=gamma, lam=lam)
    check_finite(rewards=rewards, values=values)
    check_finite(~terminated, next_values=next_values)
    bootstrap = torch.where(terminated, 0.0, next_values)  # where, not a product: 0 * nan would leak
    deltas = rewards + gamma * bootstrap - values
    done = terminated | truncated
    advantages = torch.empty_like(deltas)
    following = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        following = deltas[t] + gamma * lam * torch.where(done[t], 0.0, following)
        advantages[t] = following
    return advantages
