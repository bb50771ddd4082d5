"""The five stored runs on Pendulum: made with the preset as it is now, and solved by at least four."""

import dataclasses
import json

import pytest

from benchmarks import pendulum
from ppo_edu.control import PPOConfig
from ppo_edu.control.presets import PENDULUM
from ppo_edu.teach import load_result


@pytest.fixture(scope="module")
def stored():
    return load_result(pendulum.NAME)


def test_the_stored_result_says_how_it_was_made(stored):
    assert stored["command"] == "python -m benchmarks.pendulum --seeds 5"
    assert {"date", "processor", "versions"} <= stored["metadata"].keys()


def test_it_was_made_with_the_preset_as_it_is_now(stored):
    assert stored["config"] == json.loads(json.dumps(dataclasses.asdict(PENDULUM)))


def test_at_least_four_of_five_seeds_reach_the_bar(stored):
    assert [run["seed"] for run in stored["runs"]] == [run["seed"] for run in stored["switched_runs"]] == list(range(5))
    assert sum(run["mean_return"] >= -200 for run in stored["runs"]) >= 4


def test_a_run_is_reported_with_the_updates_in_which_episodes_ended():
    row = pendulum.run_seed(PPOConfig(env_id="Pendulum-v1", total_steps=900, num_envs=2, num_steps=150, minibatch_size=150), 0)
    assert row["seed"] == 0
    assert row["worst_return"] <= row["mean_return"] < 0
    assert len(row["curve"]["env_steps"]) == len(row["curve"]["episode_return"]) == 2  # of three rollouts, step 200 lies in two
