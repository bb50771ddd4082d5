"""Running statistics, so that observations and rewards have the same scale whatever units an environment counts in."""

import torch
from torch import Tensor, nn

from ppo_edu.core.validation import check_count, check_finite, check_flag, check_float, check_unit_interval, describe

LIMIT = 10.0  # standard deviations: a normalised observation further out is clipped
EPS = 1e-8  # added to a variance, so that what never varies is not divided by zero


class RunningMoments(nn.Module):
    r"""Mean and variance of all rows seen so far, whatever the batches in which they came.

        n = n_a + n_b                                 a: all rows before, b: the new ones
        delta = mean_b - mean_a
        mean = mean_a + delta * n_b / n
        S = S_a + S_b + delta^2 * n_a * n_b / n       S: sum of squared deviations from the mean; the variance is S / n

    In float64: a sum of squares would lose its digits where the mean is large beside the spread. Before the first row the
    mean is 0 and the variance 1. The buffers are saved with the module.

    Source: Chan, Golub and LeVeque 1979 (Stanford report STAN-CS-79-773), who merge two samples; Welford 1962 is the case n_b = 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        check_count(size=size)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))

    @property
    def variance(self) -> Tensor:  # [D]
        """Mean squared deviation from the mean (ddof 0)."""
        return self.squares / self.count if self.count else torch.ones_like(self.squares)

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:  # [B, D]
        """Take these rows in. Raises: ValueError for another shape or dtype, or a number that is not finite."""
        check_float(rows=rows)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(f"rows must have shape [B, {len(self.mean)}], got {describe(rows)}")
        check_finite(rows=rows)
        rows = rows.double()
        mean, size = rows.mean(0), len(rows)
        delta, count = mean - self.mean, self.count + size
        self.squares += (rows - mean).square().sum(0) + delta.square() * self.count * size / count
        self.mean += delta * size / count
        self.count.copy_(count)


class ObservationNormalizer(RunningMoments):
    """Observations less their running mean, divided by their running standard deviation, clipped to +-10.

    A part of the policy: whoever has the policy, evaluation and checkpoints too, has the numbers that it was trained with.
    It changes only in `update`, which the trainer calls between two rollouts, so that one and the same policy acts,
    reports its log-probabilities and starts the update. (OpenAI's Baselines change it at every step.)

    Source: Huang et al. 2022, continuous actions, details 6 and 7; Engstrom et al. 2020 (arXiv:2005.12729), section 3.
    """

    def forward(self, observations: Tensor) -> Tensor:  # [..., D] -> [..., D]
        """Observations on the common scale, clipped."""
        scaled = (observations - self.mean) / (self.variance + EPS).sqrt()
        return scaled.clamp(-LIMIT, LIMIT).to(observations.dtype)


class RewardNormalizer(nn.Module):
    r"""Rewards divided by the running standard deviation of the discounted return so far.

        G_t = gamma * (1 - done_{t-1}) * G_{t-1} + r_t          for each environment
        r_t / sqrt(Var[G] + 1e-8)                               one variance over all rows and environments

    G looks back, so that it is known at once; it is a yardstick, no target. Only the scale changes: taking a mean off
    would pay or charge for every step of an episode's length, and so change which policy is best.

    Source: Huang et al. 2022, continuous actions, detail 8; Engstrom et al. 2020, algorithm 1. Their clip at +-10
    (detail 9) is left out, since it changes the task as well.
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        super().__init__()
        check_count(num_envs=num_envs)
        check_unit_interval(gamma=gamma)
        self.gamma = gamma
        self.moments = RunningMoments(1)
        self.register_buffer("discounted", torch.zeros(num_envs, dtype=torch.float64))  # [N] G where the last rollout ended

    @torch.no_grad()
    def forward(self, rewards: Tensor, done: Tensor, valid: Tensor) -> Tensor:  # [T, N] each -> [T, N]
        """Take a rollout's rewards in and scale them. `done`: the episode ended on this row; `valid`: no reset row.

        Raises: ValueError naming the argument.
        """
        check_float(rewards=rewards)
        if rewards.ndim != 2 or rewards.shape[1] != len(self.discounted):
            raise ValueError(f"rewards must have shape [T, {len(self.discounted)}], got {describe(rewards)}")
        check_flag(rewards.shape, rewards.device, done=done, valid=valid)
        returns = torch.empty_like(rewards, dtype=torch.float64)
        for t in range(len(rewards)):
            self.discounted.mul_(self.gamma).add_(rewards[t])
            returns[t] = self.discounted
            self.discounted.masked_fill_(done[t], 0.0)
        self.moments.update(returns[valid].unsqueeze(-1))
        return (rewards / (self.moments.variance + EPS).sqrt()).to(rewards.dtype)
