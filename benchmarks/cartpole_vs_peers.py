"""How long until CartPole-v1 is solved: this package against stable-baselines3, in one run, on one torch thread.

    python -m benchmarks.cartpole_vs_peers [--seeds 5] [--max-steps 100000] [--output FILE]

Both sides are asked the same question: after every 2,048 environment steps, does a greedy evaluation over 20 fresh
episodes reach a mean return of 475? The run ends at the second pass in a row, since a single pass is often luck.
Reported: wall seconds (evaluation excluded) and environment steps until then, and training steps per second.
The two trainers alternate, seed by seed, so that both meet the same weather on a noisy machine.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.metadata import machine_metadata
from benchmarks.report import data_path, write_block, write_json
from ppo_edu.control import PPOConfig, TrainState, evaluate, train

THRESHOLD = 475.0
CHECK_EVERY = 2048
EVALUATION_EPISODES = 20
NAME = "cartpole_vs_peers"  # of the stored result and of the table in the README


class Watch:
    """Evaluates a learning policy every `CHECK_EVERY` steps and notes when it passed twice in a row."""

    def __init__(self, seed: int) -> None:
        self.seed, self.next_check, self.passes = seed, CHECK_EVERY, 0

    def solved(self, env_steps: int, policy: object) -> bool:
        """Whether this check, if one is due, is the second pass in a row."""
        if env_steps < self.next_check:
            return False
        returns = evaluate(policy, "CartPole-v1", episodes=EVALUATION_EPISODES, seed=100_000 * (self.seed + 1) + self.next_check)
        self.next_check += CHECK_EVERY
        self.passes = self.passes + 1 if returns.mean() >= THRESHOLD else 0
        return self.passes >= 2


@dataclass(frozen=True)
class Outcome:
    """One training until two passes in a row (or until the budget ran out)."""

    solved: bool
    seconds: float  # training only
    env_steps: int  # transitions that were trained on
    calls: int  # environment calls times environments, reset rows included


def run_ppo_edu(seed: int, max_steps: int) -> Outcome:
    """This package with its default config; the budget only ends a run that does not solve the task."""
    config = PPOConfig()
    watch = Watch(seed)
    solved = False

    def callback(state: TrainState) -> bool:
        nonlocal solved
        solved = watch.solved(state.env_steps, state.policy)
        return solved or state.env_steps >= max_steps

    result = train(config, seed=seed, callback=callback, progress=False)
    calls = len(result.log) * config.num_envs * config.num_steps
    return Outcome(solved, result.seconds, result.env_steps, calls)


def run_stable_baselines3(seed: int, max_steps: int) -> Outcome:
    """stable-baselines3's PPO with the tuned CartPole settings that its own model zoo publishes."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class GreedyPolicy:
        """The interface that `evaluate` asks for, around an SB3 model."""

        def __init__(self, model: PPO) -> None:
            self.model = model

        def mode(self, observations: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self.model.predict(observations.numpy(), deterministic=True)[0])

    class Check(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.watch, self.solved, self.excluded = Watch(seed), False, 0.0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:  # after the update of the previous rollout
            begun = time.perf_counter()
            self.solved = self.solved or self.watch.solved(self.num_timesteps, GreedyPolicy(self.model))
            self.excluded += time.perf_counter() - begun
            if self.solved:
                raise StopIteration

    env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
    begun = time.perf_counter()
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        ent_coef=0.0,
        learning_rate=lambda remaining: 1e-3 * remaining,
        clip_range=lambda remaining: 0.2 * remaining,
        seed=seed,
        device="cpu",
    )
    check = Check()
    with contextlib.suppress(StopIteration):
        model.learn(max_steps, callback=check)
    seconds = time.perf_counter() - begun - check.excluded
    return Outcome(check.solved, seconds, model.num_timesteps, model.num_timesteps)


CONTENDERS: dict[str, Callable[[int, int], Outcome]] = {"ppo_edu": run_ppo_edu, "stable_baselines3": run_stable_baselines3}


def summarise(outcomes: dict[str, list[Outcome]]) -> dict[str, dict[str, float]]:
    """Medians over seeds, per contender; a run that was not solved counts as infinitely slow."""
    summary = {}
    for name, runs in outcomes.items():
        summary[name] = {
            "solved": sum(run.solved for run in runs),
            "runs": len(runs),
            "median_seconds": statistics.median(run.seconds if run.solved else float("inf") for run in runs),
            "median_env_steps": statistics.median(run.env_steps if run.solved else float("inf") for run in runs),
            "median_steps_per_second": statistics.median(run.env_steps / run.seconds for run in runs),
            "median_calls_per_second": statistics.median(run.calls / run.seconds for run in runs),
        }
    return summary


def table(summary: dict[str, dict[str, float]]) -> str:
    """The summary as text, with ratios to this package."""
    ours = summary["ppo_edu"]
    lines = [f"{'':20}{'solved':>8}{'seconds':>10}{'ratio':>8}{'steps':>10}{'ratio':>8}{'steps/s':>10}{'calls/s':>10}"]
    for name, row in summary.items():
        lines.append(
            f"{name:20}{row['solved']:>5.0f}/{row['runs']:.0f}{row['median_seconds']:>11.2f}"
            f"{row['median_seconds'] / ours['median_seconds']:>8.1f}{row['median_env_steps']:>10.0f}"
            f"{row['median_env_steps'] / ours['median_env_steps']:>8.2f}{row['median_steps_per_second']:>10.0f}"
            f"{row['median_calls_per_second']:>10.0f}"
        )
    return "\n".join(lines)


def readme_table(result: dict) -> str:
    """The stored result as the README shows it."""
    names = {"ppo_edu": "ppo_edu", "stable_baselines3": f"stable-baselines3 {result['metadata']['versions']['stable-baselines3']}"}
    ours = result["summary"]["ppo_edu"]
    lines = ["| | solved | seconds | times ours | environment steps | times ours | steps per second |", "|---|---|---|---|---|---|---|"]
    for name, row in result["summary"].items():
        lines.append(
            f"| {names[name]} | {row['solved']} of {row['runs']} | {row['median_seconds']:.2f} | "
            f"{row['median_seconds'] / ours['median_seconds']:.1f} | {row['median_env_steps']:,.0f} | "
            f"{row['median_env_steps'] / ours['median_env_steps']:.1f} | {row['median_steps_per_second']:,.0f} |"
        )
    meta = result["metadata"]
    return "\n".join(lines) + f"\n\nMeasured {meta['date']} on {meta['processor']}, torch {meta['versions']['torch']}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-steps", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=data_path(NAME))
    args = parser.parse_args()

    torch.set_num_threads(1)
    for contender in CONTENDERS.values():  # imports and first calls are not part of the race
        contender(0, CHECK_EVERY)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in CONTENDERS}
    for seed in range(args.seeds):
        for name, contender in CONTENDERS.items():
            outcome = contender(seed, args.max_steps)
            outcomes[name].append(outcome)
            print(f"seed {seed} {name:20}{outcome.seconds:8.2f} s {outcome.env_steps:7d} steps, solved {outcome.solved}", flush=True)
    summary = summarise(outcomes)
    print(table(summary))
    result = {
        "question": f"greedy return over {EVALUATION_EPISODES} episodes >= {THRESHOLD} twice in a row, checked every {CHECK_EVERY} steps",
        "command": f"python -m benchmarks.cartpole_vs_peers --seeds {args.seeds} --max-steps {args.max_steps}",
        "metadata": machine_metadata("gymnasium", "stable-baselines3"),
        "summary": summary,
        "runs": {name: [vars(run) for run in runs] for name, runs in outcomes.items()},
    }
    write_json(result, args.output)
    if args.output == data_path(NAME):
        write_block(NAME, readme_table(result))


if __name__ == "__main__":
    main()
