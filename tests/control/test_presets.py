"""The presets solve their tasks: a short band for every change, several seeds under `make verify`."""

import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest

from ppo_edu.control import evaluate, presets, train
from ppo_edu.control.presets import ACROBOT, CARTPOLE, PENDULUM, TEXT

# task: preset, mean return of 100 greedy episodes that counts as solved, seeds of five that must reach it
BARS = {"acrobot": (ACROBOT, -100.0, 4), "pendulum": (PENDULUM, -200.0, 4), "text": (TEXT, 0.95, 5)}


def test_each_preset_is_of_a_task_of_its_own():
    configs = [CARTPOLE, ACROBOT, PENDULUM, TEXT]
    assert len({config.env_id for config in configs}) == 4
    assert all(config.env_id in gym.registry for config in configs)
    assert [x for x in vars(presets).values() if isinstance(x, type(CARTPOLE))] == configs


def test_a_quarter_of_the_pendulum_run_learns_to_swing_up():
    """Doing nothing earns about -1200 on average, a solution -150."""
    result = train(replace(PENDULUM, total_steps=40_000), progress=False)
    assert evaluate(result.policy, "Pendulum-v1", episodes=50, seed=1).mean() >= -700


@pytest.mark.verify
@pytest.mark.parametrize("name", BARS)
def test_presets_solve_their_tasks_over_five_seeds(name):
    config, bar, enough = BARS[name]
    rows = []
    for seed in range(5):
        result = train(config, seed=seed, progress=False)
        mean = float(evaluate(result.policy, config.env_id, episodes=100, seed=1000 + seed).mean())
        rows.append({"seed": seed, "mean_return": mean, "env_steps": result.env_steps, "seconds": round(result.seconds, 2)})
    path = Path(__file__).parents[2] / "_build" / "verify" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"what": f"greedy return over 100 fresh episodes, preset for {name}", "runs": rows}, indent=2) + "\n")
    assert sum(row["mean_return"] >= bar for row in rows) >= enough
