"""Evaluation: undiscounted returns of whole episodes."""

from contextlib import closing

import numpy as np
import torch

from ppo_edu.control.envs import make_envs
from ppo_edu.control.networks import Policy, greedy_or_sampled
from ppo_edu.core.validation import check_count
from ppo_edu.runs import seeded

MAX_ENVS = 100
MAX_LENGTH = 20_000  # steps: an episode this long is taken to be endless


def evaluate(policy: Policy, env_id: str, *, episodes: int = 100, seed: int = 0, greedy: bool = True) -> np.ndarray:
    """Undiscounted returns of `episodes` fresh episodes, [episodes].

    Episodes are allotted to environments beforehand: taking the first to finish would favour short ones.
    `greedy`: play the policy's mode (the most probable action, the Gaussian's mean); False: sample, reproducibly, without
    touching torch's global random state.

    Raises: ValueError naming the argument; also for an environment without a time limit in which the policy never ends.
    """
    check_count(episodes=episodes)
    num_envs = min(episodes, MAX_ENVS)
    quota = np.full(num_envs, episodes // num_envs)
    quota[: episodes % num_envs] += 1
    returns: list[float] = []
    running, length = np.zeros(num_envs), np.zeros(num_envs)
    with seeded(seed), closing(make_envs(env_id, num_envs)) as envs:
        observations, _ = envs.reset(seed=seed)
        while quota.any():
            actions = greedy_or_sampled(policy, torch.from_numpy(observations).float(), greedy)
            observations, rewards, terminated, truncated, _ = envs.step(policy.to_environment(actions))
            running += rewards  # a reset row pays 0
            length += 1
            done = terminated | truncated
            returns += running[done & (quota > 0)].tolist()
            quota -= done & (quota > 0)
            running[done] = length[done] = 0.0
            if length.max() > MAX_LENGTH:
                raise ValueError(f"env_id must name an environment whose episodes end, got {env_id!r}: one passed {MAX_LENGTH} steps")
    return np.array(returns)
