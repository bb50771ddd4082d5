"""Making vector environments, and saving where the vectorised CartPole stands."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from control_helpers import CLOSED, Closing
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ppo_edu.control.envs import environment_tensors, make_envs, restore_environment


def test_cartpole_comes_in_its_vectorised_form_and_other_environments_one_by_one():
    assert isinstance(make_envs("CartPole-v1", 3).unwrapped, CartPoleVectorEnv)
    assert isinstance(make_envs("Acrobot-v1", 3).unwrapped, SyncVectorEnv)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_an_environment_that_resets_in_another_way_is_refused_and_closed(mode):
    name = f"Resets{mode.name.title().replace('_', '')}-v0"
    gym.register(name, entry_point=Closing, vector_entry_point=lambda num_envs: SyncVectorEnv([Closing] * num_envs, autoreset_mode=mode))
    CLOSED.clear()
    with pytest.raises(ValueError, match=f"env_id must name an environment with next-step autoreset, got '{name}'"):
        make_envs(name, 2)
    assert len(CLOSED) == 2
    del gym.registry[name]


@pytest.mark.parametrize("steps", [0, 1, 20, 57])
def test_a_restored_cartpole_goes_on_as_the_saved_one_through_resets_and_time_limits(steps):
    saved, restored = (gym.make_vec("CartPole-v1", num_envs=6, max_episode_steps=25) for _ in range(2))
    rng = np.random.default_rng(0)
    saved.reset(seed=1)
    restored.reset(seed=2)
    for _ in range(steps):
        saved.step(rng.integers(2, size=6))
    tensors = {name: x.clone() for name, x in environment_tensors(saved).items()}
    assert all(isinstance(x, torch.Tensor) for x in tensors.values())
    restore_environment(restored, tensors)
    done = np.zeros(2)
    for _ in range(60):
        actions = rng.integers(2, size=6)
        a, b = saved.step(actions), restored.step(actions)
        assert all(np.array_equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
        done += a[2].sum(), a[3].sum()
    assert (done > 0).all(), "some episodes must have terminated and some been truncated"


def test_saved_states_are_copies():
    envs = make_envs("CartPole-v1", 2)
    envs.reset(seed=0)
    tensors = environment_tensors(envs)
    before = {name: x.clone() for name, x in tensors.items()}
    envs.step(np.array([0, 1]))
    assert all(torch.equal(x, before[name]) for name, x in tensors.items())


def test_an_environment_that_keeps_its_state_to_itself_has_none():
    assert environment_tensors(make_envs("Acrobot-v1", 1)) is None
