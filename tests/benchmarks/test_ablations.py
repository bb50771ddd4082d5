"""The grid of chapter 8: a run is scored as it should be, each variant changes one thing, and the stored grid is that of the script."""

import math
from dataclasses import asdict, replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from benchmarks import ablations
from benchmarks.ablations import TASKS, VARIANTS, Task, curve, points, truncation_is_an_end, unclipped
from ppo_edu.control import PPOConfig
from ppo_edu.core import clipped_surrogate_loss, gae
from ppo_edu.teach import load_result
from ppo_edu.teach.statistics import interquartile_mean

TINY = Task(PPOConfig(total_steps=256, num_envs=4, num_steps=16, minibatch_size=32, epochs=1), random=20.0, threshold=30.0)


@pytest.fixture(scope="module")
def stored():
    return load_result(ablations.NAME)


# Runs -------------------------------------------------------------------------------------------------------------------


def test_a_run_is_scored_and_is_the_same_again():
    first, again = (ablations.run(TINY, VARIANTS["baseline"], seed=0) for _ in range(2))
    assert first | {"seconds": 0} == again | {"seconds": 0}
    assert len(first["curve"]) == ablations.POINTS
    assert ablations.run(TINY, VARIANTS["baseline"], seed=1)["curve"] != first["curve"]


def test_a_curve_is_the_mean_between_its_points_and_unknown_where_no_episode_ended():
    steps = np.array([1.0, 5.0, 6.0, 100.0])
    found = curve(steps, np.array([2.0, 4.0, math.nan, 9.0]), 100)
    assert points(100)[:2] == [5.0, 10.0]
    assert found[:2] == [3.0, None]  # (0, 5] holds both ends' numbers, (5, 10] none that is known
    assert found[-1] == 9.0
    assert found[2:-1] == [None] * (ablations.POINTS - 3)


def test_a_threshold_that_is_never_reached_is_stored_as_null():
    never = ablations.run(replace(TINY, threshold=600.0), VARIANTS["baseline"], seed=0)
    assert never["steps_to_threshold"] is None
    assert ablations.run(replace(TINY, threshold=1.0), VARIANTS["baseline"], seed=0)["steps_to_threshold"] <= 256


@pytest.mark.parametrize(("task", "episodes", "within"), [("CartPole", 400, 3.0), ("Acrobot", 100, 6.0)])
def test_the_score_of_random_play_is_what_random_play_earns(task, episodes, within):
    env, returns = gym.make(TASKS[task].config.env_id), []
    env.action_space.seed(0)
    for episode in range(episodes):
        env.reset(seed=episode)
        returns.append(0.0)
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            returns[-1] += reward
            ended = terminated or truncated
    env.close()
    assert np.mean(returns) == pytest.approx(TASKS[task].random, abs=within)


def test_a_kept_run_is_known_by_its_config():
    task, one_epoch = TASKS["CartPole"], VARIANTS["one epoch"]
    same = replace(task, config=PPOConfig())
    faster = replace(task, config=PPOConfig(learning_rate=0.02))
    assert ablations.fingerprint(task, one_epoch) == ablations.fingerprint(same, one_epoch)
    others = [(faster, one_epoch), (task, VARIANTS["twice the epochs"]), (task, VARIANTS["no clip"]), (task, VARIANTS["baseline"])]
    assert len({ablations.fingerprint(*pair) for pair in [(task, one_epoch), *others]}) == 5


# Variants ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "baseline"])
def test_a_variant_changes_one_thing(task, name):
    config, variant = TASKS[task].config, VARIANTS[name]
    changes = {k: v for k, v in variant.changes(config).items() if asdict(config)[k] != v}
    assert len(changes) + len(variant.functions) == 1
    replace(config, **changes)  # which refuses what is no config


def test_the_baseline_changes_nothing():
    assert VARIANTS["baseline"].changes(PPOConfig()) == VARIANTS["baseline"].functions == {}


def test_no_clip_is_the_clip_with_an_infinite_range():
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = torch.randn(3, 50, generator=generator)
    expected = clipped_surrogate_loss(new, old, advantages, clip_range=1e9)
    torch.testing.assert_close(unclipped(new, old, advantages, clip_range=0.2), expected)
    assert unclipped(new, old, advantages, clip_range=0.2) != clipped_surrogate_loss(new, old, advantages, clip_range=0.2)


def test_truncation_as_an_end_bootstraps_nothing_there():
    rewards, values, after = torch.ones(3, 1), torch.zeros(3, 1), torch.full((3, 1), 10.0)
    no, cut = torch.zeros(3, 1, dtype=torch.bool), torch.tensor([[False], [True], [False]])
    found = truncation_is_an_end(rewards, values, after, no, cut, gamma=0.5, lam=0.0)
    assert found.flatten().tolist() == [6.0, 1.0, 6.0]
    assert gae(rewards, values, after, no, cut, gamma=0.5, lam=0.0).flatten().tolist() == [6.0, 6.0, 6.0]


# The stored grid --------------------------------------------------------------------------------------------------------


def test_the_stored_grid_is_that_of_the_script(stored):
    assert stored["variants"] == {name: variant.what for name, variant in VARIANTS.items()}
    assert {"date", "processor", "versions"} <= stored["metadata"].keys()
    assert len(stored["seeds"]) >= 10
    for name, task in TASKS.items():
        config = stored["tasks"][name]["config"]
        assert replace(PPOConfig(), **config) == task.config
        assert (stored["tasks"][name]["random"], stored["tasks"][name]["threshold"]) == (task.random, task.threshold)
        assert {len(runs) for runs in stored["runs"][name].values()} == {len(stored["seeds"])}


def test_stored_scores_are_those_of_their_curves(stored):
    """A curve has 20 points, the score was taken from the whole log: they agree to a few hundredths."""
    for name, task in stored["tasks"].items():
        at = np.array(stored["points"][name])
        for runs in stored["runs"][name].values():
            for run in runs:
                returns = np.array(run["curve"], dtype=float)
                known = np.isfinite(returns)  # between points, and before the first one from random play
                levels = np.interp(at, [0, *at[known]], [task["random"], *returns[known]])
                roughly = (levels.mean() - task["random"]) / (task["threshold"] - task["random"])
                assert run["auc"] == pytest.approx(roughly, abs=0.06)


def test_what_the_chapter_leans_on(stored):
    middle = {name: interquartile_mean([run["auc"] for run in stored["runs"]["CartPole"][name]]) for name in ("baseline", "no clip")}
    assert middle["baseline"] > 2 * middle["no clip"]
