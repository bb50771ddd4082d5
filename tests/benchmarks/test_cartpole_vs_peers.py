"""The race on CartPole: one rule and one clock for all sides, and a summary that is that of the runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import cartpole_ppo_edu, cartpole_race
from benchmarks.cartpole_race import CHECK_EVERY, EPISODES, Outcome, Race, greedy_returns, orthogonal
from benchmarks.cartpole_vs_peers import NAME, PROGRAMS, readme_table, summarise
from ppo_edu.control import evaluate
from ppo_edu.control.networks import CategoricalPolicy
from ppo_edu.teach import load_result


def outcome(seconds, env_steps=20_480, *, solved=True, warm_up_seconds=2.0):
    return Outcome(solved, seconds, env_steps, env_steps, warm_up_seconds)


def test_summary_is_that_of_the_committed_runs():
    result = load_result(NAME)
    outcomes = {name: [Outcome(**run) for run in runs] for name, runs in result["runs"].items()}
    assert summarise(outcomes) == result["summary"]
    assert list(result["summary"]) == list(PROGRAMS)


def test_a_run_that_was_not_solved_counts_as_infinitely_slow():
    row = summarise({"sbx": [outcome(1.0), outcome(2.0, solved=False), outcome(4.0)]})["sbx"]
    assert row["solved"] == 2
    assert row["median_seconds"] == 4.0
    assert row["median_steps_per_second"] == 10_240
    assert row["median_warm_up_seconds"] == 2.0


def test_the_table_names_each_peer_with_its_version():
    summary = summarise({"ppo_edu": [outcome(0.5)], "sbx": [outcome(2.0, 30_720, warm_up_seconds=6.5)]})
    versions = {"ppo_edu": {"torch": "2"}, "sbx": {"sbx-rl": "0.28.0", "jax": "0.10"}}
    meta = {"date": "2026-01-01", "processor": "a processor", "versions": {"torch": "2"}}
    lines = readme_table({"summary": summary, "versions": versions, "metadata": meta}).splitlines()
    assert lines[2] == "| ppo_edu | 1 of 1 | 0.50 | 1.0 | 20,480 | 1.0 | 40,960 | 2.0 s |"
    assert lines[3] == "| sbx-rl 0.28.0 | 1 of 1 | 2.00 | 4.0 | 30,720 | 1.5 | 15,360 | 6.5 s |"


@pytest.mark.parametrize("seed", range(3))
def test_the_common_evaluation_is_that_of_the_package(seed):
    torch.manual_seed(seed)
    policy = CategoricalPolicy(4, 2, (8,))
    nn.init.normal_(policy.actor[-1].weight)  # not the near-uniform start, so that episodes differ
    returns = greedy_returns(lambda observations: policy.mode(torch.from_numpy(observations)).numpy(), seed=seed)
    assert sorted(returns) == sorted(evaluate(policy, "CartPole-v1", episodes=EPISODES, seed=seed))
    assert returns.std() > 0


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    hand = SimpleNamespace(time=0.0)
    monkeypatch.setattr(cartpole_race.time, "perf_counter", lambda: hand.time)
    return hand


def test_the_race_ends_at_the_second_pass_in_a_row_and_evaluations_are_not_timed(monkeypatch, clock):
    means = iter([480.0, 100.0, 480.0, 480.0])

    def evaluated(act, seed):
        clock.time += 1000.0
        return np.array([next(means)])

    monkeypatch.setattr(cartpole_race, "greedy_returns", evaluated)
    race = Race(seed=0, max_steps=100_000)
    ends = []
    for env_steps in (CHECK_EVERY - 1, *(k * CHECK_EVERY for k in (1, 2, 3, 4))):
        clock.time += 1.0
        ends.append(race.over(env_steps, None))
    assert ends == [False, False, False, False, True]  # the first was not due: nothing was evaluated
    assert race.outcome() == Outcome(solved=True, seconds=5.0, env_steps=4 * CHECK_EVERY, calls=4 * CHECK_EVERY)


def test_the_race_ends_with_its_budget(monkeypatch):
    monkeypatch.setattr(cartpole_race, "greedy_returns", lambda act, seed: np.array([10.0]))
    race = Race(seed=0, max_steps=CHECK_EVERY)
    assert not race.over(CHECK_EVERY - 8, None)
    assert race.over(CHECK_EVERY + 8, None)
    assert not race.outcome().solved
    assert race.outcome(calls=9_999).calls == 9_999


def test_each_check_has_fresh_episodes(monkeypatch):
    seeds = []
    monkeypatch.setattr(cartpole_race, "greedy_returns", lambda act, seed: seeds.append(seed) or np.array([0.0]))
    for seed in (0, 1):
        race = Race(seed, 100_000)
        for k in range(1, 49):
            race.over(k * CHECK_EVERY, None)
    assert len(seeds) == len(set(seeds)) == 96


def test_a_program_warms_up_and_prints_what_the_second_training_did(capsys, clock):
    budgets = []

    def run(seed, max_steps):
        budgets.append(max_steps)
        clock.time += 7.0
        return outcome(float(seed), max_steps)

    cartpole_race.main(run, "torch", argv=["--seed", "3", "--max-steps", "8192"])
    printed = json.loads(capsys.readouterr().out)
    assert budgets == [CHECK_EVERY, 8192]
    assert Outcome(**printed["outcome"]) == Outcome(True, 3.0, 8192, 8192, warm_up_seconds=7.0)
    assert printed["versions"] == {"torch": torch.__version__}


def test_our_side_trains_and_counts_reset_rows_as_calls():
    result = cartpole_ppo_edu.run(seed=0, max_steps=2 * CHECK_EVERY)
    assert 2 * CHECK_EVERY <= result.env_steps < result.calls < 1.2 * result.env_steps
    assert result.seconds > 0


def test_orthogonal_initialisation():
    network = orthogonal(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), output_gain=0.01)
    torch.testing.assert_close(network[0].weight.T @ network[0].weight, 2.0 * torch.eye(4))
    torch.testing.assert_close(network[2].weight @ network[2].weight.T, 1e-4 * torch.eye(2))
    assert not network[0].bias.any()
    assert not network[2].bias.any()
