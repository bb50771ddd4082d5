"""Probes: tasks so small that the right values and actions are known, to find out which part of a trainer is broken.

Each probe isolates one part. A trainer that fails an early one is broken there, whatever happens in the later ones.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch

from ppo_edu.control.networks import Policy
from ppo_edu.control.ppo import PPOConfig, train
from ppo_edu.core.validation import describe

GAMMA = 0.5  # of all probes: far from 1, so that discounting shows
STEPS = 6_000  # per probe
TOLERANCE = 0.15  # of a value; the mistakes move values by 0.3 and more


class ProbeEnv(gym.Env, ABC):
    """One number to see, two actions. Subclasses say what happens."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    observation = 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.observation = self.first_observation()
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward, ends = self.outcome(int(action))
        return self._seen(), reward, ends, False, {}

    def first_observation(self) -> float:
        """What an episode begins with."""
        return 0.0

    @abstractmethod
    def outcome(self, action: int) -> tuple[float, bool]:
        """Reward, and whether the episode ends. May change `observation`."""

    def _seen(self) -> np.ndarray:
        return np.array([self.observation], dtype=np.float32)


class ConstantReward(ProbeEnv):
    """Every step pays 1 and ends the episode: V = 1. Counts the actions that it sees."""

    actions: ClassVar[Counter[int]] = Counter()

    def outcome(self, action: int) -> tuple[float, bool]:
        ConstantReward.actions[action] += 1
        return 1.0, True


class ObservationReward(ProbeEnv):
    """The observation, 1 or -1, is the reward, and the episode ends: V(s) = s."""

    def first_observation(self) -> float:
        """What an episode begins with."""
        return float(self.np_random.choice([-1.0, 1.0]))

    def outcome(self, action: int) -> tuple[float, bool]:
        return self.observation, True


class DelayedReward(ProbeEnv):
    """Two steps, -1 and then 1, of which only the second pays: V(1) = 1, V(-1) = gamma."""

    def first_observation(self) -> float:
        """What an episode begins with."""
        return -1.0

    def outcome(self, action: int) -> tuple[float, bool]:
        paid = self.observation == 1.0
        self.observation = 1.0
        return float(paid), paid


class EndlessReward(ProbeEnv):
    """Every step pays 1 and nothing ends but by the time limit: V = 1 / (1 - gamma)."""

    def outcome(self, action: int) -> tuple[float, bool]:
        return 1.0, False


class ActionReward(ProbeEnv):
    """Action 1 pays 1, action 0 costs 1."""

    def outcome(self, action: int) -> tuple[float, bool]:
        return 2.0 * action - 1.0, True


class MatchingAction(ObservationReward):
    """The action that matches the observation (1 for 1, 0 for -1) pays 1, the other costs 1."""

    def outcome(self, action: int) -> tuple[float, bool]:
        return (2.0 * action - 1.0) * self.observation, True


class EarlyAction(ProbeEnv):
    """Two steps; the second pays 1 or costs 1, as the *first* action chose."""

    def outcome(self, action: int) -> tuple[float, bool]:
        if self.observation == 0.0:
            self.observation = 2.0 * action - 1.0
            return 0.0, False
        return self.observation, True


TIME_LIMIT = 5
ENVIRONMENTS = (ConstantReward, ObservationReward, DelayedReward, EndlessReward, ActionReward, MatchingAction, EarlyAction)


def environment_id(kind: type[ProbeEnv]) -> str:
    """What Gymnasium knows a probe by."""
    return f"ppo_edu/{kind.__name__}-v0"


for _kind in ENVIRONMENTS:
    _limit = TIME_LIMIT if _kind is EndlessReward else None
    gym.register(environment_id(_kind), entry_point=_kind, max_episode_steps=_limit, disable_env_checker=True)


@dataclass(frozen=True)
class Measurement:
    """One number that a trained policy or critic should have."""

    probe: str
    quantity: str
    found: float
    expected: float

    @property
    def ok(self) -> bool:
        """Whether the number is near enough."""
        return abs(self.found - self.expected) <= TOLERANCE

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.probe:18}{self.quantity:34}{self.found:7.2f}, expected {self.expected:5.2f}"


@dataclass(frozen=True)
class ProbeReport:
    """What the probes found."""

    measurements: list[Measurement]
    suspect: str | None  # the part that is most likely broken; None: all is as it must be
    explanation: str

    def __str__(self) -> str:
        verdict = f"Suspect: {self.suspect}. {self.explanation}" if self.suspect else self.explanation
        return "\n".join([*map(str, self.measurements), verdict])


TrainFn = Callable[..., Any]  # called as `train` is; its result has a `.policy` and, where it counts them, `.env_steps`


def probe(config: PPOConfig | None = None, *, seed: int = 0, train_fn: TrainFn = train, **functions: Callable[..., Any]) -> ProbeReport:
    """Train on each probe, compare what was learned with the known answers, and say which part is broken.

    `config`: the choices to try; task, number of steps and discount are the probes' own; annealing, and what changes the
    units of rewards or actions, is off. A config that does not learn the probes in `STEPS` steps is suspected as well.
    `functions`: your own `advantage_fn`, `policy_loss_fn`; or `train_fn`, your own trainer, called as `train` is.
    A trainer that raises FloatingPointError or whose numbers are not finite is reported as diverged.

    Raises: ValueError for a bad argument.
    """
    if config is not None and not isinstance(config, PPOConfig):
        raise ValueError(f"config must be a PPOConfig or None, got {describe(config)}")
    config = replace(
        config or PPOConfig(),
        total_steps=STEPS,
        gamma=GAMMA,
        anneal_learning_rate=False,
        anneal_clip_range=False,
        normalize_rewards=False,
        squash_actions=False,
    )
    ConstantReward.actions.clear()
    try:
        results = {
            kind: train_fn(replace(config, env_id=environment_id(kind)), seed=seed, progress=False, **functions) for kind in ENVIRONMENTS
        }
    except FloatingPointError as error:
        return ProbeReport([], "the numbers", f"Training did not stay finite: {error}.")
    policies = {kind: result.policy for kind, result in results.items()}
    tried = ConstantReward.actions
    counted = getattr(results[ConstantReward], "env_steps", tried.total())
    measurements = [
        _measure(ConstantReward, "V of a state that pays 1 and ends", _value(policies[ConstantReward], 0.0), 1.0),
        _measure(ObservationReward, "V of observation 1", _value(policies[ObservationReward], 1.0), 1.0),
        _measure(ObservationReward, "V of observation -1", _value(policies[ObservationReward], -1.0), -1.0),
        _measure(DelayedReward, "V one step before the reward", _value(policies[DelayedReward], 1.0), 1.0),
        _measure(DelayedReward, "V two steps before the reward", _value(policies[DelayedReward], -1.0), GAMMA),
        _measure(EndlessReward, "V where 1 is paid for ever", _value(policies[EndlessReward], 0.0), 1.0 / (1.0 - GAMMA)),
        _measure(ActionReward, "probability of the paid action", _probability(policies[ActionReward], 0.0), 1.0),
        _measure(MatchingAction, "probability of 1 after 1", _probability(policies[MatchingAction], 1.0), 1.0),
        _measure(MatchingAction, "probability of 1 after -1", _probability(policies[MatchingAction], -1.0), 0.0),
        _measure(EarlyAction, "probability of the early action", _probability(policies[EarlyAction], 0.0), 1.0),
    ]
    rarest = min(tried[0], tried[1]) / max(1, tried.total())
    return ProbeReport(measurements, *_verdict(measurements, rarest, counted > tried.total()))


def _measure(kind: type[ProbeEnv], quantity: str, found: float, expected: float) -> Measurement:
    return Measurement(kind.__name__, quantity, found, expected)


@torch.no_grad()
def _value(policy: Policy, observation: float) -> float:
    return float(policy.value(torch.tensor([[observation]]))[0])


@torch.no_grad()
def _probability(policy: Policy, observation: float) -> float:
    """Of action 1."""
    return float(policy.distribution(torch.tensor([[observation]])).log_prob(torch.tensor([1])).exp()[0])


def _verdict(measurements: list[Measurement], rarest: float, phantom_steps: bool) -> tuple[str | None, str]:
    """From failed probes to the part they point at: the first rule that fits, from the simplest probe to the hardest.

    `rarest`: share of the action that was tried less, where nothing favours one. `phantom_steps`: more were counted than taken.
    """
    found = [m.found for m in measurements]
    ok = [m.ok for m in measurements]
    constant, plus, minus, late, early, _, paid, *_ = found

    def near(x: float, target: float) -> bool:
        return abs(x - target) <= TOLERANCE

    if not np.isfinite(found).all():
        return "the numbers", "Training did not stay finite: look for a division by zero, a logarithm of zero or too large a step."
    if rarest < 0.02:
        return "exploration", "While collecting, only one action was ever tried: actions must be sampled from the policy, not its mode."
    if phantom_steps:
        return "reset rows", "More steps are counted than were taken: the one on which an environment resets is no transition."
    if constant > 1.0 + TOLERANCE:
        return "episode ends", "A value is added after a terminal step, where there is no future."
    if not ok[0] and plus > 0.25 and minus < -0.25:
        return "episode ends", "The advantage's trace runs on across the end of an episode: what follows belongs to another one."
    if near(constant, 0.0):
        return "critic", "Even a constant is not learned: look at the value loss, its target and whether its gradient reaches the critic."
    if not ok[0]:
        return "advantage", "Rewards are credited to the wrong step: look for an index that is off by one."
    if not (ok[1] and ok[2]):
        return "rows", "The critic learns a mean but not which observation has which value: observations and returns are not aligned."
    if not ok[4] and near(early, late):
        return "discount", "Waiting costs nothing: gamma is missing."
    if not ok[4] and ok[9]:
        return "critic", "Its target is the reward alone: the value of what follows is missing from the returns."
    if not (ok[3] and ok[4]):
        return "advantage", "A reward one step later does not reach the state before: look at the advantage's bootstrap and its trace."
    if not ok[5]:
        return "time limits", "An episode that a time limit cut is treated as if it had ended: its last value is to be bootstrapped."
    if paid < 0.5 - TOLERANCE:
        return "policy loss", "The action that pays becomes rarer: a sign is reversed."
    if not ok[6]:
        return "policy loss", "The action that pays does not become frequent: no gradient, or a wrong one, reaches the actor."
    if not (ok[7] and ok[8]):
        return "rows", "The policy learns one action but not which observation asks for which: rows of the batch are not aligned."
    if not ok[9]:
        return "advantage", "Reward does not reach the action that earned it a step before: look at the advantage's trace."
    return None, "All probes are as they must be."
