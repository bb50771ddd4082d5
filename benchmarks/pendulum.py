"""Pendulum-v1 with the preset, several seeds: the learning curve of each and what its final policy earns.

    python -m benchmarks.pendulum [--seeds 5] [--output FILE]

The same with observation normalisation switched the other way. Whoever changes the preset runs this again, and then chapter 10.
"""

import argparse
import dataclasses
import math
from pathlib import Path

import torch

from benchmarks.metadata import machine_metadata
from benchmarks.report import data_path, write_json
from ppo_edu.control import PPOConfig, evaluate, train
from ppo_edu.control.presets import PENDULUM

NAME = "pendulum"
EPISODES = 100


def run_seed(config: PPOConfig, seed: int) -> dict:
    """One training; its curve holds the updates in which episodes ended. Evaluated greedily on fresh episodes."""
    result = train(config, seed=seed, progress=False)
    returns = evaluate(result.policy, config.env_id, episodes=EPISODES, seed=1000 + seed)
    rows = [row for row in result.log if not math.isnan(row["episode_return"])]
    return {
        "seed": seed,
        "mean_return": round(float(returns.mean()), 1),
        "worst_return": round(float(returns.min()), 1),
        "seconds": round(result.seconds, 1),
        "curve": {
            "env_steps": [int(row["env_steps"]) for row in rows],
            "episode_return": [round(row["episode_return"], 1) for row in rows],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=data_path(NAME))
    args = parser.parse_args()
    torch.set_num_threads(1)
    switched = dataclasses.replace(PENDULUM, normalize_observations=not PENDULUM.normalize_observations)
    runs: dict[str, list[dict]] = {"runs": [], "switched_runs": []}
    for name, config in zip(runs, (PENDULUM, switched), strict=True):
        for seed in range(args.seeds):
            runs[name].append(run_seed(config, seed))
            print(name, {key: x for key, x in runs[name][-1].items() if key != "curve"}, flush=True)
    result = {
        "question": f"the preset for {PENDULUM.env_id}, {EPISODES} fresh greedy episodes per seed",
        "command": f"python -m benchmarks.pendulum --seeds {args.seeds}",
        "metadata": machine_metadata("gymnasium"),
        "config": dataclasses.asdict(PENDULUM),
        **runs,
    }
    write_json(result, args.output)


if __name__ == "__main__":
    main()
