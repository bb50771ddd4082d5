"""Actor and critic networks: small multilayer perceptrons and the distribution the actor parametrises."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.nn.functional import softplus

from ppo_edu.control.normalization import ObservationNormalizer


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
    """An actor pi(a|s) and a critic V(s). Subclasses say which distribution the actor's output means.

    `output_gain`: size of the actor's last layer; 0.01 makes the first policy nearly the same whatever the observation, so
    that it explores. `shared_network`: one trunk of hidden layers under two linear heads, instead of two networks without
    a common weight. `normalize_observations`: both see observations on their running scale.
    """

    def __init__(
        self,
        num_observations: int,
        num_outputs: int,
        hidden_sizes: Sequence[int],
        *,
        orthogonal: bool = True,
        output_gain: float = 0.01,
        shared_network: bool = False,
        normalize_observations: bool = False,
    ) -> None:
        super().__init__()
        self.num_observations = num_observations
        self.normalizer = ObservationNormalizer(num_observations) if normalize_observations else nn.Identity()
        self.trunk: nn.Module = nn.Identity()
        sizes = [num_observations, *hidden_sizes]
        if shared_network and hidden_sizes:
            self.trunk = nn.Sequential(mlp(sizes, output_gain=math.sqrt(2), orthogonal=orthogonal), nn.Tanh())
            sizes = sizes[-1:]
        self.actor = mlp([*sizes, num_outputs], output_gain=output_gain, orthogonal=orthogonal)
        self.critic = mlp([*sizes, 1], output_gain=1.0, orthogonal=orthogonal)

    def features(self, observations: Tensor) -> Tensor:  # [..., D] -> [..., F]
        """What actor and critic see."""
        return self.trunk(self.normalizer(observations))

    def distribution(self, observations: Tensor) -> Distribution:  # [..., D] -> batch shape [...]
        """pi(.|s): a distribution whose `log_prob(actions)` and `entropy()` have shape [...]."""
        raise TypeError("Policy leaves the distribution to its subclasses")

    def mode(self, observations: Tensor) -> Tensor:  # [..., D] -> [...], with one more axis for a Box
        """What a greedy evaluation plays: the distribution's mode."""
        return self.distribution(observations).mode

    def value(self, observations: Tensor) -> Tensor:  # [..., D] -> [...]
        """V(s)."""
        return self.critic(self.features(observations)).squeeze(-1)

    def to_environment(self, actions: Tensor) -> np.ndarray:
        """What the environment gets for these actions of the distribution."""
        return actions.numpy()

    def observe(self, observations: Tensor) -> None:  # [B, D]
        """Take observations into the running statistics, where the policy keeps any."""
        if isinstance(self.normalizer, ObservationNormalizer):
            self.normalizer.update(observations)


class CategoricalPolicy(Policy):
    """A policy over a finite set of actions: the actor's outputs are logits."""

    def distribution(self, observations: Tensor) -> Categorical:
        return Categorical(logits=self.actor(self.features(observations)), validate_args=False)


class GaussianPolicy(Policy):
    """A policy over vectors of real numbers: a normal distribution for each component, independent of the others.

        a ~ N(mean(s), exp(log_std)^2)

    The actor gives the mean; `log_std` [A] is a parameter that does not depend on the state. An action is kept as it was
    sampled, and only the environment gets it clipped to its box: `log_prob` is then that of what was sampled. (The clipped
    action has another distribution, with lumps of probability on the box's edges; its density at the edge is no log_prob.)

    Source: Schulman et al. 2017 (arXiv:1707.06347), section 6.1; Huang et al. 2022, continuous actions, details 1 to 5.
    """

    def __init__(
        self, num_observations: int, box: gym.spaces.Box, hidden_sizes: Sequence[int], *, log_std_init: float = 0.0, **network: Any
    ) -> None:
        super().__init__(num_observations, box.shape[0], hidden_sizes, **network)
        self.box = box
        self.log_std = nn.Parameter(torch.full(box.shape, float(log_std_init)))

    def distribution(self, observations: Tensor) -> Independent:
        normal = Normal(self.actor(self.features(observations)), self.log_std.exp(), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def to_environment(self, actions: Tensor) -> np.ndarray:  # [..., A] -> [..., A]
        """The actions, clipped to the box; where it is unbounded, as they are."""
        return np.clip(actions.numpy(), self.box.low, self.box.high)


class SquashedGaussianPolicy(GaussianPolicy):
    """A policy over the inside of a bounded box: a Gaussian u, squashed by tanh.

        a = (low + high) / 2 + (high - low) / 2 * tanh(u)

    What is sampled, stored and given to `log_prob` is u, since tanh(u) rounds to 1 from u = 9 on and cannot be undone;
    the environment gets a. `log_prob` is the log-density of a. Greedy evaluation plays the a of u's mean.
    """

    def __init__(self, num_observations: int, box: gym.spaces.Box, hidden_sizes: Sequence[int], **options: Any) -> None:
        super().__init__(num_observations, box, hidden_sizes, **options)
        self.register_buffer("half_width", torch.from_numpy((box.high - box.low) / 2).float(), persistent=False)

    def distribution(self, observations: Tensor) -> "SquashedNormal":
        return SquashedNormal(self.actor(self.features(observations)), self.log_std.exp(), self.half_width)

    def to_environment(self, actions: Tensor) -> np.ndarray:  # [..., A] -> [..., A]
        """tanh of the actions, spread over the box."""
        low, high = self.box.low, self.box.high
        return np.clip((low + high) / 2 + (high - low) / 2 * np.tanh(actions.numpy()), low, high)  # clip: rounding alone


class SquashedNormal(Independent):
    r"""The distribution of a = half_width * tanh(u), wherever its centre, with u ~ N(mean, std^2); samples and arguments are u.

        log p(a) = log N(u; mean, std^2) - sum_i log |da_i / du_i|
        log |da/du| = log(half_width) + log(1 - tanh(u)^2)
        log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))       exact where 1 - tanh(u)^2 rounds to 0

    In a probability ratio the Jacobian cancels, since old and new policy are asked about the same u: PPO's surrogate does
    not notice a wrong one. Where log p stands alone, in an entropy bonus, it counts.

    The entropy has no closed form: H(a) = H(u) + E[log(da/du)], whose mean is taken by Gauss-Hermite quadrature.

    Source: Haarnoja et al. 2018 (arXiv:1801.01290), appendix C.
    """

    def __init__(self, mean: Tensor, std: Tensor, half_width: Tensor) -> None:  # [..., A], [A], [A]
        super().__init__(Normal(mean, std, validate_args=False), 1, validate_args=False)
        self.half_width = half_width

    def log_prob(self, u: Tensor) -> Tensor:  # [..., A] -> [...]
        return super().log_prob(u) - (self.half_width.log() + log_tanh_derivative(u)).sum(-1)

    def entropy(self) -> Tensor:  # [...]
        nodes, weights = (x.to(self.mean) for x in GAUSS_HERMITE)
        u = self.mean.unsqueeze(-1) + math.sqrt(2) * self.stddev.unsqueeze(-1) * nodes  # [..., A, 64]
        expected = (log_tanh_derivative(u) * weights).sum(-1) / math.sqrt(math.pi)
        return super().entropy() + (self.half_width.log() + expected).sum(-1)


GAUSS_HERMITE = tuple(map(torch.from_numpy, np.polynomial.hermite.hermgauss(64)))  # nodes and weights for exp(-x^2)


def log_tanh_derivative(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), to full precision for every u."""
    return 2 * (math.log(2) - u - softplus(-2 * u))


def make_policy(
    observation_space: gym.Space,
    action_space: gym.Space,
    hidden_sizes: Sequence[int],
    *,
    squash_actions: bool = False,
    log_std_init: float = 0.0,
    **network: Any,
) -> Policy:
    """The policy that fits one environment's spaces: observations a vector, actions Discrete or a Box of one axis.

    `squash_actions`, `log_std_init`: for a Box. `network`: the options of `Policy`.

    Raises: ValueError naming the space that does not fit.
    """
    if not isinstance(observation_space, gym.spaces.Box) or len(observation_space.shape) != 1:
        raise ValueError(f"the environment's observations must be vectors (a Box with one axis), got {observation_space}")
    num_observations = observation_space.shape[0]
    if isinstance(action_space, gym.spaces.Box) and len(action_space.shape) == 1 and np.issubdtype(action_space.dtype, np.floating):
        if squash_actions and not action_space.is_bounded():
            raise ValueError(f"squash_actions needs a Box with finite bounds, the environment's actions are {action_space}")
        kind = SquashedGaussianPolicy if squash_actions else GaussianPolicy
        return kind(num_observations, action_space, hidden_sizes, log_std_init=log_std_init, **network)
    if not isinstance(action_space, gym.spaces.Discrete) or action_space.start != 0:
        raise ValueError(f"actions must be Discrete, counted from 0, or a Box of floats with one axis, the environment has {action_space}")
    if squash_actions:
        raise ValueError(f"squash_actions needs a Box with finite bounds, the environment's actions are {action_space}")
    return CategoricalPolicy(num_observations, int(action_space.n), hidden_sizes, **network)


@torch.no_grad()
def greedy_or_sampled(policy: Policy, observations: Tensor, greedy: bool) -> Tensor:
    """Actions for a batch of observations [B, D]: the mode of the policy, or a sample from it.

    Raises: ValueError for a policy of other observations.
    """
    size = observations.shape[-1]
    if size != policy.num_observations:
        raise ValueError(f"policy must take the environment's observations, of size {size}, got one for size {policy.num_observations}")
    return policy.mode(observations) if greedy else policy.distribution(observations).sample()
