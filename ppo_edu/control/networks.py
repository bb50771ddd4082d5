"""Actor and critic networks: two small multilayer perceptrons and the distribution the actor parametrises."""

import math
from collections.abc import Sequence
from itertools import pairwise

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution


def mlp(sizes: Sequence[int], *, output_gain: float, orthogonal: bool = True) -> nn.Sequential:
    """Tanh multilayer perceptron with layer widths `sizes`, no activation after the last.

    Orthogonal initialisation with gain sqrt(2) in hidden layers and `output_gain` in the last, biases 0
    (Saxe et al. 2014; Huang et al. 2022, detail 2); `orthogonal=False` keeps torch's default.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.Linear(fan_in, fan_out)
        if orthogonal:
            nn.init.orthogonal_(linear.weight, output_gain if last else math.sqrt(2))
            nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, nn.Tanh()]
    return nn.Sequential(*layers)


class Policy(nn.Module):
    """An actor pi(a|s) and a critic V(s) without shared weights. Subclasses say which distribution the actor's output means."""

    def __init__(self, num_observations: int, num_outputs: int, hidden_sizes: Sequence[int], *, orthogonal: bool = True) -> None:
        super().__init__()
        # Output gain 0.01: the first policy is nearly uniform, so that it explores whatever the observation.
        self.actor = mlp([num_observations, *hidden_sizes, num_outputs], output_gain=0.01, orthogonal=orthogonal)
        self.critic = mlp([num_observations, *hidden_sizes, 1], output_gain=1.0, orthogonal=orthogonal)

    def distribution(self, observations: Tensor) -> Distribution:  # [..., D] -> batch shape [...]
        """pi(.|s): a distribution whose `log_prob(actions)` and `entropy()` have shape [...]."""
        raise TypeError("Policy leaves the distribution to its subclasses")

    def mode(self, observations: Tensor) -> Tensor:  # [..., D] -> [...]
        """The most probable action: what a greedy evaluation plays."""
        return self.distribution(observations).mode

    def value(self, observations: Tensor) -> Tensor:  # [..., D] -> [...]
        """V(s)."""
        return self.critic(observations).squeeze(-1)


class CategoricalPolicy(Policy):
    """A policy over a finite set of actions: the actor's outputs are logits."""

    def distribution(self, observations: Tensor) -> Categorical:
        return Categorical(logits=self.actor(observations), validate_args=False)


def make_policy(observation_space: gym.Space, action_space: gym.Space, hidden_sizes: Sequence[int], *, orthogonal: bool = True) -> Policy:
    """The policy that fits one environment's spaces: observations a vector (Box of one axis), actions Discrete.

    Raises: ValueError naming the space that does not fit.
    """
    if not isinstance(observation_space, gym.spaces.Box) or len(observation_space.shape) != 1:
        raise ValueError(f"the environment's observations must be vectors (a Box with one axis), got {observation_space}")
    if not isinstance(action_space, gym.spaces.Discrete) or action_space.start != 0:
        raise ValueError(f"a categorical policy needs Discrete actions counted from 0, the environment has {action_space}")
    return CategoricalPolicy(observation_space.shape[0], int(action_space.n), hidden_sizes, orthogonal=orthogonal)


@torch.no_grad()
def greedy_or_sampled(policy: Policy, observations: Tensor, greedy: bool) -> Tensor:
    """Actions for a batch of observations: the mode of the policy, or a sample from it."""
    return policy.mode(observations) if greedy else policy.distribution(observations).sample()
