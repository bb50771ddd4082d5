"""Which details of PPO matter: each switched off (or on) alone, over many seeds, on CartPole and Acrobot.

    python -m benchmarks.ablations [--seeds 10] [--variants NAME ...] [--output FILE] [--runs FOLDER]

A variant is the task's own config with one change. Each run is scored by the area under its learning curve, on a scale
where random play is 0 and the threshold 1 (`ppo_edu.teach.statistics.normalized_auc`): final returns saturate. The curve is
the mean return of the episodes that ended in each update, sampled actions included.

Runs are independent, and each is kept in the folder (under its config) as soon as it is done, so an interrupted call continues where it
stopped. Tasks, variants and seeds take turns, seeds outermost, so that a stop leaves all variants equally well measured.

The JSON, `ppo_edu/teach/data/ablations.json`:

    question, command, metadata
    tasks      {task: {"env_id", "total_steps", "random": mean return of random play, "threshold", "config": the changed fields}}
    variants   {name: what is changed, in words}
    seeds      list
    runs       {task: {variant: [one per seed: {"auc", "steps_to_threshold" (null: never), "final": mean return of the last
               tenth (null: no episode ended there), "seconds", "curve": returns at `points` (null where no episode had ended)}]}}
    points     {task: environment steps of the curves' points}
"""

import argparse
import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.metadata import machine_metadata
from benchmarks.report import ROOT, data_path, write_json
from ppo_edu.control import PPOConfig, train
from ppo_edu.core import clipped_surrogate_loss, gae, surrogate_loss
from ppo_edu.teach.statistics import normalized_auc, steps_to_threshold

NAME = "ablations"
POINTS = 20  # of a stored curve


@dataclass(frozen=True)
class Task:
    """An environment, its own config, and the scale on which its returns are scored."""

    config: PPOConfig
    random: float  # mean return of random play: measured over 2,562 and 100 episodes
    threshold: float


TASKS = {
    "CartPole": Task(PPOConfig(), random=22.4, threshold=475.0),
    "Acrobot": Task(
        PPOConfig(env_id="Acrobot-v1", total_steps=60_000, num_envs=16, num_steps=128, learning_rate=3e-3, normalize_rewards=True),
        random=-500.0,
        threshold=-100.0,
    ),
}


def truncation_is_an_end(rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor, **k: Any) -> Tensor:
    """GAE that bootstraps nothing where a time limit cut the episode."""
    return gae(rewards, values, next_values, terminated | truncated, torch.zeros_like(truncated), **k)


def unclipped(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip_range: float, mask: Tensor | None = None) -> Tensor:
    """The surrogate without its clip."""
    return surrogate_loss(log_probs, old_log_probs, advantages, mask=mask)


@dataclass(frozen=True)
class Variant:
    """One change to a task's config, or to a function of the trainer."""

    what: str
    changes: Callable[[PPOConfig], dict[str, Any]] = lambda config: {}
    functions: dict[str, Callable[..., Tensor]] = field(default_factory=dict)


VARIANTS = {
    "baseline": Variant("nothing"),
    "no clip": Variant("the surrogate without its clip", functions={"policy_loss_fn": unclipped}),
    "no advantage normalisation": Variant("advantages are not whitened", lambda c: {"normalize_advantages": False}),
    "default initialisation": Variant("torch's initialisation instead of orthogonal", lambda c: {"orthogonal_init": False}),
    "output gain 1": Variant("the actor's last layer starts with gain 1, not 0.01", lambda c: {"output_gain": 1.0}),
    "Adam epsilon 1e-8": Variant("torch's default instead of 1e-5", lambda c: {"adam_eps": 1e-8}),
    "constant learning rate": Variant("the learning rate is not lowered", lambda c: {"anneal_learning_rate": False}),
    "annealed clip range": Variant("the clip range is lowered to 0", lambda c: {"anneal_clip_range": True}),
    "value clipping": Variant("the critic's change is clipped to 0.2", lambda c: {"value_clip_range": 0.2}),
    "no gradient clipping": Variant("gradients keep their norm", lambda c: {"max_grad_norm": None}),
    "truncation as an end": Variant("nothing is bootstrapped at a time limit", functions={"advantage_fn": truncation_is_an_end}),
    "one epoch": Variant("each rollout is used once", lambda c: {"epochs": 1}),
    "twice the epochs": Variant("each rollout is used twice as often", lambda c: {"epochs": 2 * c.epochs}),
    "one minibatch": Variant("one optimiser step per epoch", lambda c: {"minibatch_size": c.num_envs * c.num_steps}),
    "four times the minibatches": Variant("minibatches of a quarter", lambda c: {"minibatch_size": c.minibatch_size // 4}),
    "shared network": Variant("actor and critic share their hidden layers", lambda c: {"shared_network": True}),
    "observation normalisation": Variant(
        "observations are shifted and scaled",
        lambda c: {"normalize_observations": True},
    ),
    "reward scaling toggled": Variant(
        "rewards are divided by the spread of returns on CartPole, and are not on Acrobot",
        lambda c: {"normalize_rewards": not c.normalize_rewards},
    ),
    "target KL 0.02": Variant("epochs stop at an approximate KL of 0.02", lambda c: {"target_kl": 0.02}),
}


def run(task: Task, variant: Variant, seed: int) -> dict[str, Any]:
    """Train once; what is stored of it."""
    config = replace(task.config, **variant.changes(task.config))
    begun = time.perf_counter()
    result = train(config, seed=seed, progress=False, **{"policy_loss_fn": clipped_surrogate_loss, **variant.functions})
    seconds = time.perf_counter() - begun
    steps = np.array([min(row["env_steps"], config.total_steps) for row in result.log], dtype=float)
    returns = np.array([row["episode_return"] for row in result.log])
    reached = steps_to_threshold(steps, returns, threshold=task.threshold)
    last = returns[-max(1, len(returns) // 10) :]
    last = last[np.isfinite(last)]
    return {
        "auc": normalized_auc(steps, returns, random=task.random, threshold=task.threshold, total_steps=config.total_steps),
        "steps_to_threshold": None if math.isinf(reached) else reached,
        "final": float(last.mean()) if len(last) else None,
        "seconds": round(seconds, 2),
        "curve": curve(steps, returns, config.total_steps),
    }


def fingerprint(task: Task, variant: Variant) -> str:
    """Eight digits that change with the config, so that no run of an older one is taken for it."""
    return f"{zlib.crc32(repr((task, variant.changes(task.config), [*variant.functions])).encode()):08x}"


def points(total_steps: int) -> list[float]:
    """Environment steps at which curves are stored."""
    return [total_steps * (i + 1) / POINTS for i in range(POINTS)]


def curve(steps: np.ndarray, returns: np.ndarray, total_steps: int) -> list[float | None]:
    """Mean return between one point and the next; None where no episode ended."""
    edges = [0.0, *points(total_steps)]
    bins = [returns[(steps > low) & (steps <= high) & np.isfinite(returns)] for low, high in pairwise(edges)]
    return [round(float(x.mean()), 2) if len(x) else None for x in bins]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--runs", type=Path, default=ROOT / "_build" / NAME, help="where finished runs are kept")
    parser.add_argument("--output", type=Path, default=data_path(NAME))
    args = parser.parse_args()

    torch.set_num_threads(1)
    args.runs.mkdir(parents=True, exist_ok=True)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {task: {name: [] for name in args.variants} for task in TASKS}
    for seed in range(args.seeds):
        for task_name, task in TASKS.items():
            for name in args.variants:
                path = args.runs / f"{task_name} {name} {seed} {fingerprint(task, VARIANTS[name])}.json"
                if not path.exists():
                    path.write_text(json.dumps(run(task, VARIANTS[name], seed)))
                    print(f"seed {seed} {task_name:9} {name:28} auc {json.loads(path.read_text())['auc']:.3f}", flush=True)
                runs[task_name][name].append(json.loads(path.read_text()))
    which = "" if args.variants == list(VARIANTS) else " --variants " + " ".join(f"'{name}'" for name in args.variants)
    result = {
        "question": "area under the learning curve, random play 0 and the threshold 1, with one detail changed at a time",
        "command": f"python -m benchmarks.ablations --seeds {args.seeds}{which}",
        "metadata": machine_metadata("gymnasium"),
        "tasks": {
            name: {
                "env_id": task.config.env_id,
                "total_steps": task.config.total_steps,
                "random": task.random,
                "threshold": task.threshold,
                "config": {k: v for k, v in vars(task.config).items() if v != vars(PPOConfig())[k]},
            }
            for name, task in TASKS.items()
        },
        "variants": {name: VARIANTS[name].what for name in args.variants},
        "seeds": list(range(args.seeds)),
        "points": {name: points(task.config.total_steps) for name, task in TASKS.items()},
        "runs": runs,
    }
    write_json(result, args.output)


if __name__ == "__main__":
    main()
