"""Evaluation: undiscounted returns of whole episodes."""

import numpy as np
import torch

from ppo_edu.control.envs import make_envs
from ppo_edu.control.networks import Policy, greedy_or_sampled

MAX_ENVS = 100


def evaluate(policy: Policy, env_id: str, *, episodes: int = 100, seed: int = 0, greedy: bool = True) -> np.ndarray:
    """Undiscounted returns of `episodes` fresh episodes, [episodes].

    Episodes are allotted to environments beforehand: taking the first to finish would favour short ones.
    `greedy`: play the most probable action; False: sample, reproducibly, without touching torch's global random state.

    Raises: ValueError naming the argument.
    """
    if not isinstance(episodes, int) or isinstance(episodes, bool) or episodes < 1:
        raise ValueError(f"episodes must be an int of at least 1, got {episodes!r}")
    envs = make_envs(env_id, min(episodes, MAX_ENVS))
    quota = np.full(envs.num_envs, episodes // envs.num_envs)
    quota[: episodes % envs.num_envs] += 1
    returns: list[float] = []
    running = np.zeros(envs.num_envs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        observations, _ = envs.reset(seed=seed)
        while quota.any():
            actions = greedy_or_sampled(policy, torch.from_numpy(observations).float(), greedy)
            observations, rewards, terminated, truncated, _ = envs.step(actions.numpy())
            running += rewards  # a reset row pays 0
            done = terminated | truncated
            returns += running[done & (quota > 0)].tolist()
            quota -= done & (quota > 0)
            running[done] = 0.0
    envs.close()
    return np.array(returns)
