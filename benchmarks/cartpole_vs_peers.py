"""How long until CartPole-v1 is solved: this package against its peers, in one run, one thread each.

    python -m benchmarks.cartpole_vs_peers [--seeds 5] [--max-steps 100000] [--sbx-python PATH] [--tianshou-python PATH] [--output FILE]

All sides are asked the same question by the same code, `cartpole_race.py`: after every 2,048 environment steps, does a greedy
evaluation over 20 fresh episodes reach a mean return of 475, twice in a row? This package runs with its defaults, its peers
(`peers/`) with one set of settings: those that stable-baselines3's model zoo publishes for this task.

Every run is a process of its own, and the sides take turns, seed by seed, so that all meet the same weather on a noisy machine.
A process first trains for 2,048 steps and throws the result away: imports, first calls and compilation (sbx, tianshou) are
reported apart, as the warm-up. Evaluation is not timed on any side, nor, on the peers', the building of networks.

sbx (Stable-Baselines in JAX) and tianshou live in environments of their own, named by `--sbx-python` or SBX_PYTHON and
`--tianshou-python` or TIANSHOU_PYTHON (how to make them: `peers/stable_baselines.py`, `peers/tianshou_ppo.py`). Without one
that side is skipped, and the result does not replace a stored one that has it.

The JSON, `ppo_edu/teach/data/cartpole_vs_peers.json`:

    question, command, metadata   what was asked, how, on which machine, with which versions
    versions                      {side: {package: version}}
    runs                          {side: [one per seed: the fields of `cartpole_race.Outcome`]}
    summary                       {side: medians over the seeds, see `summarise`}
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.cartpole_race import CHECK_EVERY, EPISODES, THRESHOLD, Outcome
from benchmarks.metadata import machine_metadata
from benchmarks.report import store
from benchmarks.sides import add_interpreters, interpreters, run_program

NAME = "cartpole_vs_peers"  # of the stored result and of the table in the README
PROGRAMS = {
    "ppo_edu": ["benchmarks.cartpole_ppo_edu"],
    "stable_baselines3": ["benchmarks.peers.stable_baselines", "stable_baselines3"],
    "sbx": ["benchmarks.peers.stable_baselines", "sbx"],
    "torchrl": ["benchmarks.peers.torchrl_ppo"],
    "tianshou": ["benchmarks.peers.tianshou_ppo"],
}


def summarise(outcomes: dict[str, list[Outcome]]) -> dict[str, dict[str, float]]:
    """Medians over seeds, per side; a run that was not solved counts as infinitely slow."""
    summary = {}
    for side, runs in outcomes.items():
        summary[side] = {
            "solved": sum(run.solved for run in runs),
            "runs": len(runs),
            "median_seconds": statistics.median(run.seconds if run.solved else float("inf") for run in runs),
            "median_env_steps": statistics.median(run.env_steps if run.solved else float("inf") for run in runs),
            "median_steps_per_second": statistics.median(run.env_steps / run.seconds for run in runs),
            "median_calls_per_second": statistics.median(run.calls / run.seconds for run in runs),
            "median_warm_up_seconds": statistics.median(run.warm_up_seconds for run in runs),
        }
    return summary


def readme_table(result: dict[str, Any]) -> str:
    """The stored result as the README shows it."""
    ours = result["summary"]["ppo_edu"]
    lines = [
        "| | solved | seconds | times ours | environment steps | times ours | steps per second | warm-up, not counted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, row in result["summary"].items():
        package, version = next(iter(result["versions"][side].items()))  # a peer names itself first
        name = side if side == "ppo_edu" else f"{package} {version}"
        lines.append(
            f"| {name} | {row['solved']} of {row['runs']} | {row['median_seconds']:.2f} | "
            f"{row['median_seconds'] / ours['median_seconds']:.1f} | {row['median_env_steps']:,.0f} | "
            f"{row['median_env_steps'] / ours['median_env_steps']:.1f} | {row['median_steps_per_second']:,.0f} | "
            f"{row['median_warm_up_seconds']:.1f} s |"
        )
    meta = result["metadata"]
    return "\n".join(lines) + f"\n\nMeasured {meta['date']} on {meta['processor']}, one thread, torch {meta['versions']['torch']}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-steps", type=int, default=100_000)
    add_interpreters(parser, sbx="sbx-rl", tianshou="tianshou")
    parser.add_argument("--output", type=Path, help="default: the package's data, if no side is lost")
    args = parser.parse_args()

    pythons = interpreters(parser, args, PROGRAMS)
    torch.set_num_threads(1)  # as on every side: the metadata says so
    metadata = machine_metadata("gymnasium")
    runs: dict[str, list[Outcome]] = {side: [] for side in pythons}
    versions: dict[str, dict[str, str]] = {}
    for seed in range(args.seeds):
        for side, python in pythons.items():
            printed = run_program(side, python, PROGRAMS[side], "--seed", str(seed), "--max-steps", str(args.max_steps))
            outcome, versions[side] = Outcome(**printed["outcome"]), printed["versions"]
            runs[side].append(outcome)
            print(f"seed {seed} {side:20}{outcome.seconds:8.2f} s {outcome.env_steps:7d} steps, solved {outcome.solved}", flush=True)
    result = {
        "question": f"greedy return over {EPISODES} episodes >= {THRESHOLD} twice in a row, checked every {CHECK_EVERY} steps",
        "command": f"python -m benchmarks.cartpole_vs_peers --seeds {args.seeds} --max-steps {args.max_steps}",
        "metadata": metadata,
        "versions": versions,
        "summary": summarise(runs),
        "runs": {side: [vars(run) for run in outcomes] for side, outcomes in runs.items()},
    }
    print(readme_table(result))
    store(NAME, result, readme_table(result), args.output)


if __name__ == "__main__":
    main()
