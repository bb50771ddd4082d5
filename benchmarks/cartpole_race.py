"""What every side of `cartpole_vs_peers` is asked, how it is timed, and the settings that the peers share.

Needs gymnasium, numpy and torch alone, since it runs in each peer's own environment.

The question: after every 2,048 environment steps, does the greedy policy reach a mean return of 475 over 20 fresh episodes?
A run ends at the second pass in a row, since a single pass is often luck, or when its budget is spent.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import torch
from torch import nn

THRESHOLD = 475.0
CHECK_EVERY = 2048
EPISODES = 20

# The peers' settings: what stable-baselines3's model zoo publishes for PPO on CartPole-v1, and the library's own defaults.
# One minibatch is the whole rollout; learning rate and clip range fall linearly to 0 over the budget.
NUM_ENVS, NUM_STEPS, EPOCHS = 8, 32, 20
LEARNING_RATE, ADAM_EPS, CLIP_RANGE = 1e-3, 1e-5, 0.2
GAMMA, LAM, VALUE_COEF, ENTROPY_COEF, MAX_GRAD_NORM = 0.98, 0.8, 0.5, 0.0, 0.5
HIDDEN_SIZES = (64, 64)  # of actor and critic each, with tanh

Act = Callable[[np.ndarray], np.ndarray]  # observations [N, 4] -> the most probable actions [N]


@dataclass(frozen=True)
class Outcome:
    """One training until two passes in a row (or until the budget ran out)."""

    solved: bool
    seconds: float  # training only
    env_steps: int  # transitions that were trained on
    calls: int  # environment calls times environments, reset rows included
    warm_up_seconds: float = 0.0  # the process's first `CHECK_EVERY` steps, a training thrown away: it imports and compiles


def greedy_returns(act: Act, seed: int) -> np.ndarray:
    """Undiscounted returns of `EPISODES` fresh episodes of CartPole-v1, one in each environment."""
    envs = gym.make_vec("CartPole-v1", num_envs=EPISODES)
    observations, _ = envs.reset(seed=seed)
    returns, running = np.zeros(EPISODES), np.ones(EPISODES, dtype=bool)
    while running.any():
        observations, rewards, terminated, truncated, _ = envs.step(act(observations))
        returns += rewards * running
        running &= ~(terminated | truncated)
    envs.close()
    return returns


class Race:
    """One run of one side: a clock that stands still during evaluations, and the rule that ends the run."""

    def __init__(self, seed: int, max_steps: int) -> None:
        """The clock starts here."""
        self.seed, self.max_steps = seed, max_steps
        self.solved, self.seconds, self.env_steps = False, 0.0, 0
        self.next_check, self.passes = CHECK_EVERY, 0
        self.resumed = time.perf_counter()

    def over(self, env_steps: int, act: Act) -> bool:
        """To be asked after each update: whether the run ends here. Evaluates when a check is due."""
        self.seconds += time.perf_counter() - self.resumed
        self.env_steps = env_steps
        if env_steps >= self.next_check:
            returns = greedy_returns(act, seed=100_000 * (self.seed + 1) + self.next_check)
            self.next_check += CHECK_EVERY
            self.passes = self.passes + 1 if returns.mean() >= THRESHOLD else 0
            self.solved = self.passes >= 2
        self.resumed = time.perf_counter()
        return self.solved or env_steps >= self.max_steps

    def outcome(self, calls: int | None = None) -> Outcome:
        """What came of it; `calls` where reset rows make more of them than steps."""
        return Outcome(self.solved, self.seconds, self.env_steps, self.env_steps if calls is None else calls)


def orthogonal(network: nn.Module, output_gain: float) -> nn.Module:
    """Initialise in place as stable-baselines3 does: gain sqrt(2), `output_gain` in the last layer, biases 0."""
    *hidden, last = (module for module in network.modules() if isinstance(module, nn.Linear))
    for layer in hidden:
        nn.init.orthogonal_(layer.weight, np.sqrt(2))
    nn.init.orthogonal_(last.weight, output_gain)
    for layer in (*hidden, last):
        nn.init.zeros_(layer.bias)
    return network


def main(run: Callable[[int, int], Outcome], *packages: str, argv: list[str] | None = None) -> None:
    """A side's program: warm up, `run(seed, max_steps)`, print {"outcome": fields of Outcome, "versions": of `packages`} as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--max-steps", type=int, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    begun = time.perf_counter()
    run(args.seed, CHECK_EVERY)
    warm_up = time.perf_counter() - begun
    outcome = asdict(run(args.seed, args.max_steps)) | {"warm_up_seconds": warm_up}
    print(json.dumps({"outcome": outcome, "versions": {name: version(name) for name in packages}}))
