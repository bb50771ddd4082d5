"""This package's side of `cartpole_vs_peers`: the defaults of `ppo_edu.control`.

python -m benchmarks.cartpole_ppo_edu --seed 0 --max-steps 100000
"""

import numpy as np
import torch

from benchmarks.cartpole_race import Outcome, Race, main
from ppo_edu.control import PPOConfig, TrainState, train


def run(seed: int, max_steps: int) -> Outcome:
    """One training; the budget only ends a run that does not solve the task, since the learning rate follows `total_steps`."""
    config = PPOConfig()
    race = Race(seed, max_steps)

    def callback(state: TrainState) -> bool:
        @torch.no_grad()
        def act(observations: np.ndarray) -> np.ndarray:
            return state.policy.mode(torch.from_numpy(observations)).numpy()

        return race.over(state.env_steps, act)

    result = train(config, seed=seed, callback=callback, progress=False)
    return race.outcome(calls=len(result.log) * config.num_envs * config.num_steps)


if __name__ == "__main__":
    main(run, "torch")
