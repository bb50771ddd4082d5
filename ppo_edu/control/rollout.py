"""Rollouts: T steps of N environments, with every flag that the mathematics needs kept apart."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from ppo_edu.control.networks import Policy


@dataclass(frozen=True)
class Rollout:
    """What N environments went through in T steps, time first. Floats are float32.

    Gymnasium resets an environment on the step *after* its episode ended: that step ignores the action, pays 0 and
    returns the first observation of the next episode. Such a row is no transition; `valid` is False there.
    """

    observations: Tensor  # [T, N, D] s_t, what the policy saw
    actions: Tensor  # [T, N, ...] a_t as it was sampled, before `to_environment`
    log_probs: Tensor  # [T, N] log pi_old(a_t|s_t), by the policy that acted
    rewards: Tensor  # [T, N] r_t
    values: Tensor  # [T, N] V(s_t)
    next_values: Tensor  # [T, N] V of the observation that step t returned: at an episode's end, of its final observation
    terminated: Tensor  # [T, N] bool: the task ended, no future exists
    truncated: Tensor  # [T, N] bool: a time limit cut the episode, its future exists
    valid: Tensor  # [T, N] bool: False on reset rows
    episode_returns: np.ndarray  # [episodes] undiscounted returns of the episodes that ended here
    episode_lengths: np.ndarray  # [episodes] steps


class Collector:
    """Vector environments and where they stand between two rollouts.

    `done` is carried from rollout to rollout: an episode that ended on the last row makes row 0 of the next a reset row.
    """

    def __init__(self, envs: VectorEnv, seed: int) -> None:
        self.envs = envs
        self.observations: np.ndarray = envs.reset(seed=seed)[0]  # [N, D]
        self.done = np.zeros(envs.num_envs, dtype=bool)
        self.running_return = np.zeros(envs.num_envs)
        self.running_length = np.zeros(envs.num_envs, dtype=np.int64)

    def collect(self, policy: Policy, num_steps: int) -> Rollout:
        """Act `num_steps` times in every environment.

        Raises: ValueError when an environment returns a reward or an observation that is not finite.
        """
        T, N = num_steps, self.envs.num_envs
        observations = np.empty((T + 1, *self.observations.shape), dtype=np.float32)
        rewards = np.empty((T, N), dtype=np.float32)
        valid, terminated, truncated = (np.empty((T, N), dtype=bool) for _ in range(3))
        actions = []
        for t in range(T):
            observations[t] = self.observations
            _check_finite("observation", observations[t], t)
            valid[t] = ~self.done
            actions.append(sample_actions(policy, observations[t]))
            self.observations, rewards[t], terminated[t], truncated[t], _ = self.envs.step(policy.to_environment(actions[t]))
            _check_finite("reward", rewards[t], t)
            self.done = terminated[t] | truncated[t]
        observations[T] = self.observations
        _check_finite("observation", observations[T], T)
        returns, lengths = self._finished_episodes(rewards, valid, terminated | truncated)

        seen = torch.from_numpy(observations)
        taken = torch.stack(actions)
        with torch.no_grad():  # one batch for the whole rollout: the policy has not changed since it acted
            values = policy.value(seen)
            log_probs = policy.distribution(seen[:-1]).log_prob(taken)
        flags = (torch.from_numpy(x) for x in (terminated, truncated, valid))
        next_values = values[1:].clone()  # no memory shared with values: a reader's advantage_fn may write into its arguments
        return Rollout(seen[:-1], taken, log_probs, torch.from_numpy(rewards), values[:-1], next_values, *flags, returns, lengths)

    def _finished_episodes(self, rewards: np.ndarray, valid: np.ndarray, done: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns and lengths of the episodes that ended in these rows; reset rows count for neither."""
        returns, lengths = [], []
        for t in range(len(rewards)):
            self.running_return += rewards[t]  # a reset row pays 0
            self.running_length += valid[t]
            if done[t].any():
                returns.append(self.running_return[done[t]])
                lengths.append(self.running_length[done[t]])
                self.running_return[done[t]] = 0.0
                self.running_length[done[t]] = 0
        return (np.concatenate(returns), np.concatenate(lengths)) if returns else (np.empty(0), np.empty(0, dtype=np.int64))


@torch.inference_mode()
def sample_actions(policy: Policy, observations: np.ndarray) -> Tensor:
    """One sampled action per environment: exploration is the policy's own randomness, never argmax."""
    return policy.distribution(torch.from_numpy(observations)).sample()


def _check_finite(name: str, x: np.ndarray, t: int) -> None:
    """`x` [N, ...] is what the environments returned; a policy cannot even sample from a NaN."""
    if not np.isfinite(x).all():
        n = np.argwhere(~np.isfinite(x))[0, 0]
        raise ValueError(f"{name} must be finite, got {x[n]} from environment {n} at row {t} of the rollout")
