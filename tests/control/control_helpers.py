"""What the tests of the trainer share: environments whose every number is known, a small config, comparisons of weights."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from torch import Tensor
from torch.distributions import Categorical

from ppo_edu.control import Policy, PPOConfig
from ppo_edu.runs import Row


def tiny(**changes: Any) -> PPOConfig:
    """A CartPole run of 8 updates that takes about 0.05 s."""
    small = {"num_envs": 4, "num_steps": 16, "minibatch_size": 32, "epochs": 2, "hidden_sizes": (8,), "total_steps": 8 * 60}
    return PPOConfig(**(small | changes))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two modules agree bit for bit."""
    return same_tensors(a.state_dict(), b.state_dict())


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_seconds(log: list[Row]) -> list[str]:
    """A log without the one column that no two runs share; as text, in which NaN equals NaN."""
    return [str({name: x for name, x in row.items() if name != "seconds"}) for row in log]


# An environment whose episodes are known beforehand ---------------------------------------------------------------------


def script(env: int, episode: int) -> tuple[int, bool, bool]:
    """Length of an episode, whether it terminates, whether it is truncated (every seventh: both at once)."""
    length = 1 + (3 * env + 5 * episode) % 6
    kind = (env + episode) % 7
    return length, kind in (0, 2, 4, 6), kind in (1, 3, 5, 6)


def scripted_reward(env: int, episode: int, step: int, action: int) -> float:
    return 1.0 + 10.0 * env + 0.5 * episode + 0.25 * step - 100.0 * action


class ScriptedEnv(gym.Env):
    """Observes (which copy, which episode, which step); the copy is the seed of its first reset."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.env, self.episode, self.step_number = 0, -1, 0
        self.over = True

    def observe(self) -> np.ndarray:
        return np.array([self.env, self.episode, self.step_number], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.env, self.episode = seed, -1
        self.episode, self.step_number, self.over = self.episode + 1, 0, False
        return self.observe(), {}

    def step(self, action):
        assert not self.over, "a step was taken in an episode that is over"
        reward = scripted_reward(self.env, self.episode, self.step_number, int(action))
        self.step_number += 1
        length, terminates, truncates = script(self.env, self.episode)
        self.over = self.step_number == length
        return self.observe(), reward, self.over and terminates, self.over and truncates, {}


def scripted_envs(num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([ScriptedEnv] * num_envs)


@dataclass
class ExpectedRow:
    """What one row of one copy must be, worked out without Gymnasium."""

    observation: tuple[int, int, int]
    successor: tuple[int, int, int]
    reward: float
    terminated: bool
    truncated: bool
    valid: bool
    ended: list[tuple[float, int]] = field(default_factory=list)  # return and length of an episode that ends here


def expected_rows(env: int, actions: list[int]) -> list[ExpectedRow]:
    """Walk through the script of one copy, one row per action."""
    rows, episode, step, over, total = [], 0, 0, False, 0.0
    for action in actions:
        here = (env, episode, step)
        if over:
            episode, step, over, total = episode + 1, 0, False, 0.0
            rows.append(ExpectedRow(here, (env, episode, 0), 0.0, False, False, False))
            continue
        reward = scripted_reward(env, episode, step, action)
        length, terminates, truncates = script(env, episode)
        step, total, over = step + 1, total + reward, step + 1 == length
        ended = [(total, length)] if over else []
        rows.append(ExpectedRow(here, (env, episode, step), reward, over and terminates, over and truncates, True, ended))
    return rows


def known_value(observations: Tensor) -> Tensor:
    """A value that tells every scripted observation from every other."""
    return observations @ torch.tensor([1000.0, 10.0, 1.0])


class KnownPolicy(Policy):
    """On the scripted environment: V is `known_value`; action 1 with `probability`, or, if that is None, on odd steps only."""

    def __init__(self, probability: float | None = 0.3) -> None:
        super().__init__(3, 2, (4,))
        self.probability = probability

    def value(self, observations: Tensor) -> Tensor:
        return known_value(observations)

    def distribution(self, observations: Tensor) -> Categorical:
        ones = observations[..., 2] % 2 if self.probability is None else torch.full(observations.shape[:-1], self.probability)
        return Categorical(probs=torch.stack([1 - ones, ones], -1))


# Environments with one property each, registered so that `train` and `evaluate` can make them ---------------------------


class Bandit(gym.Env):
    """Episodes of one step; the action is the reward."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(1, dtype=np.float32), float(action), True, False, {}


class ShortOrLong(Bandit):
    """A fair coin at reset makes the episode 1 or 20 steps long; each step pays 1: the mean return is 10.5."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.left = 20 if self.np_random.random() < 0.5 else 1
        return observation, info

    def step(self, action):
        self.left -= 1
        return np.zeros(1, dtype=np.float32), 1.0, self.left == 0, False, {}


class Endless(Bandit):
    """Never ends, whatever one does."""

    def step(self, action):
        return np.zeros(1, dtype=np.float32), 0.0, False, False, {}


class Faulty(Bandit):
    """Returns `reward` and `observation` from its third step on."""

    def __init__(self, reward: float = 0.0, observation: float = 0.0) -> None:
        self.reward, self.observation, self.steps = reward, observation, 0

    def step(self, action):
        self.steps += 1
        broken = self.steps >= 3
        observation = np.full(1, self.observation if broken else 0.0, dtype=np.float32)
        return observation, self.reward if broken else 0.0, False, False, {}


class Image(Bandit):
    observation_space = spaces.Box(0, 255, (8, 8, 3), dtype=np.uint8)

    def reset(self, *, seed=None, options=None):
        return np.zeros((8, 8, 3), dtype=np.uint8), {}


class TwoActions(Bandit):
    action_space = spaces.MultiDiscrete([2, 2])


class ActionsFromOne(Bandit):
    action_space = spaces.Discrete(2, start=1)


ACTIONS_SEEN: list[np.ndarray] = []


class TwoReals(Bandit):
    """Notes the actions that it gets; never ends before its time limit."""

    action_space = spaces.Box(np.array([-2.0, 0.0], dtype=np.float32), np.array([2.0, 5.0], dtype=np.float32))

    def step(self, action):
        ACTIONS_SEEN.append(np.array(action))
        return np.zeros(1, dtype=np.float32), 1.0, False, False, {}


class Target(Bandit):
    """One step, whose action pays the less the further it is from the target."""

    action_space = spaces.Box(-2.0, 2.0, (1,))

    def __init__(self, target: float) -> None:
        self.target = target

    def step(self, action):
        assert self.action_space.contains(action)
        return np.zeros(1, dtype=np.float32), -float((action[0] - self.target) ** 2), True, False, {}


CLOSED: list[str] = []


class Closing(Bandit):
    """Notes that it was closed."""

    def close(self):
        CLOSED.append("closed")


def _register() -> None:
    entries = {
        "Scripted-v0": ScriptedEnv,
        "Bandit-v0": Bandit,
        "ShortOrLong-v0": ShortOrLong,
        "Endless-v0": Endless,
        "NaNReward-v0": lambda: Faulty(reward=float("nan")),
        "Image-v0": Image,
        "TwoActions-v0": TwoActions,
        "TargetPlus-v0": lambda: Target(1.5),
        "TargetMinus-v0": lambda: Target(-1.0),
        "ActionsFromOne-v0": ActionsFromOne,
        "Closing-v0": Closing,
    }
    for name, entry in entries.items():
        if name not in gym.registry:
            gym.register(name, entry_point=entry, disable_env_checker=True)
    if "Box-v0" not in gym.registry:
        gym.register("Box-v0", entry_point=TwoReals, max_episode_steps=40, disable_env_checker=True)


_register()
