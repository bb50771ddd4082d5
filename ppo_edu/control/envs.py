"""Vector environments: making them, and saving where they stand."""

import warnings

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from ppo_edu.control.text import TextEnv, register_text_env
from ppo_edu.runs import generator_tensor, restore_generator

__all__ = ["TextEnv", "environment_tensors", "make_envs", "register_text_env", "restore_environment", "warn_fresh_episodes"]


def make_envs(env_id: str, num_envs: int) -> VectorEnv:
    """`num_envs` copies of a Gymnasium environment that are stepped together and reset on the step *after* an episode's end.

    Uses the environment's own vectorised form where it has one (CartPole), else steps copies one by one. Discrete
    observations become one-hot vectors.

    Raises: ValueError for an unknown environment, or one that resets in another way.
    """
    try:
        envs = gym.make_vec(env_id, num_envs=num_envs)
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise ValueError(f"env_id must name an environment that Gymnasium can make, got {env_id!r}: {error}") from error
    if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        envs.close()
        raise ValueError(f"env_id must name an environment with next-step autoreset, got {env_id!r}: {envs.metadata.get('autoreset_mode')}")
    if isinstance(envs.single_observation_space, gym.spaces.Discrete):
        envs = gym.wrappers.vector.FlattenObservation(envs)
    return envs


def environment_tensors(envs: VectorEnv) -> dict[str, Tensor] | None:
    """Where the environments stand, as plain tensors; None where an environment keeps that to itself."""
    cartpole = envs.unwrapped
    if not isinstance(cartpole, CartPoleVectorEnv):
        return None
    arrays = {"state": cartpole.state, "steps": cartpole.steps, "prev_done": cartpole.prev_done}
    tensors = {f"env.{name}": torch.from_numpy(np.array(x)) for name, x in arrays.items()}
    return tensors | {"env.generator": generator_tensor(cartpole.np_random)}


def restore_environment(envs: VectorEnv, tensors: dict[str, Tensor]) -> None:
    """Put back what `environment_tensors` returned."""
    cartpole = envs.unwrapped
    for name in ("state", "steps", "prev_done"):
        setattr(cartpole, name, tensors[f"env.{name}"].numpy().copy())
    restore_generator(cartpole.np_random, tensors["env.generator"])


def warn_fresh_episodes(env_id: str) -> None:
    """Say that resuming cannot continue the episodes that were under way."""
    warnings.warn(f"the state of {env_id} cannot be saved: the resumed run starts fresh episodes", stacklevel=3)
