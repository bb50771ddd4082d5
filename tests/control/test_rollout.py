"""Rollouts against environments whose episodes are known beforehand, and against Gymnasium's own statistics."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from control_helpers import Faulty, KnownPolicy, ScriptedEnv, expected_rows, known_value, scripted_envs
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch.testing import assert_close

from ppo_edu.control import Collector, Rollout, make_policy
from ppo_edu.control.envs import make_envs
from ppo_edu.control.rollout import sample_actions

N = 5


def collect(lengths, policy=None, num_envs=N) -> list[Rollout]:
    """Consecutive rollouts of the given lengths on the scripted environment."""
    torch.manual_seed(0)
    collector = Collector(scripted_envs(num_envs), seed=0)
    return [collector.collect(policy or KnownPolicy(), T) for T in lengths]


def joined(rollouts: list[Rollout], name: str) -> torch.Tensor:
    return torch.cat([getattr(r, name) for r in rollouts])


def expected(rollouts: list[Rollout], name: str) -> torch.Tensor:
    """[T, N] of one attribute of `ExpectedRow`, for the actions that were taken."""
    columns = [expected_rows(n, joined(rollouts, "actions")[:, n].tolist()) for n in range(N)]
    return torch.tensor([[getattr(row, name) for row in column] for column in columns]).transpose(0, 1)


# rollouts of 1 row: every row is the first and the last; 64: many episodes inside one
LENGTHS = [[64], [7, 9, 1, 1, 5, 13], [1] * 40]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", ["valid", "terminated", "truncated", "reward"])
def test_every_row_is_what_the_script_says(lengths, name):
    rollouts = collect(lengths)
    want = expected(rollouts, name)
    assert want.any(), "the script must show the case"
    assert torch.equal(joined(rollouts, "rewards" if name == "reward" else name), want)


def test_an_episode_that_ends_on_the_last_row_makes_the_next_rollouts_first_row_a_reset_row():
    first, second = collect([4, 9])
    ended = (first.terminated | first.truncated)[-1]
    assert ended.any()
    assert not ended.all()
    assert torch.equal(second.valid[0], ~ended)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_observations_are_what_the_policy_saw(lengths):
    rollouts = collect(lengths)
    assert torch.equal(joined(rollouts, "observations"), expected(rollouts, "observation").float())


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_next_values_are_those_of_the_true_successor_and_never_of_a_reset_observation(lengths):
    rollouts = collect(lengths)
    next_values, valid = joined(rollouts, "next_values"), joined(rollouts, "valid")
    want = known_value(expected(rollouts, "successor").float())
    assert torch.equal(next_values[valid], want[valid])
    done = joined(rollouts, "terminated") | joined(rollouts, "truncated")
    final_steps = expected(rollouts, "successor")[done][:, 2]
    assert (final_steps > 0).all(), "the successor of an episode's end is its final observation, not step 0 of the next"


def test_values_are_those_of_the_row_itself():
    rollouts = collect([30, 30])
    assert torch.equal(joined(rollouts, "values"), known_value(joined(rollouts, "observations")))


def test_writing_into_next_values_leaves_values_alone():
    (rollout,) = collect([10])
    before = rollout.values.clone()
    rollout.next_values.zero_()
    assert torch.equal(rollout.values, before)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_episode_returns_and_lengths_are_those_of_the_script(lengths):
    rollouts = collect(lengths)
    ended = [joined_rows for n in range(N) for joined_rows in expected_rows(n, joined(rollouts, "actions")[:, n].tolist())]
    want = sorted(pair for row in ended for pair in row.ended)
    got = sorted(pair for r in rollouts for pair in zip(r.episode_returns.tolist(), r.episode_lengths.tolist(), strict=True))
    assert got == want


@pytest.mark.parametrize("make", [lambda: gym.make_vec("CartPole-v1", num_envs=6), lambda: scripted_envs(6)], ids=["cartpole", "scripted"])
def test_episode_statistics_agree_with_gymnasiums_own(make):
    torch.manual_seed(1)
    envs = RecordEpisodeStatistics(make(), buffer_length=10_000)
    policy = make_policy(envs.single_observation_space, envs.single_action_space, (8,))
    collector = Collector(envs, seed=0)
    rollouts = [collector.collect(policy, T) for T in (50, 1, 1, 33, 90)]
    returns = np.concatenate([r.episode_returns for r in rollouts])
    lengths = np.concatenate([r.episode_lengths for r in rollouts])
    assert len(returns) > 20
    np.testing.assert_allclose(returns, np.array(envs.return_queue), rtol=1e-6)
    assert lengths.tolist() == list(envs.length_queue)


def test_valid_rows_of_the_vectorised_cartpole_are_those_that_paid():
    collector = Collector(make_envs("CartPole-v1", 8), seed=3)
    policy = make_policy(collector.envs.single_observation_space, collector.envs.single_action_space, (8,))
    for T in (40, 3, 60):
        rollout = collector.collect(policy, T)
        assert torch.equal(rollout.valid, rollout.rewards == 1.0)  # CartPole pays 1 for every step, 0 for a reset


def test_actions_are_chosen_from_the_observation_of_their_own_row():
    rollouts = collect([11, 20], KnownPolicy(probability=None))  # action 1 on odd steps, with certainty
    assert torch.equal(joined(rollouts, "actions"), (joined(rollouts, "observations")[..., 2] % 2).long())


def test_actions_are_sampled_with_the_policys_probabilities_and_not_its_argmax():
    torch.manual_seed(0)
    actions = sample_actions(KnownPolicy(probability=0.3), np.zeros((20_000, 3), dtype=np.float32))
    assert float(actions.float().mean()) == pytest.approx(0.3, abs=0.015)  # 4.6 standard errors


def test_log_probs_are_those_of_the_actions_under_the_policy_that_acted():
    torch.manual_seed(0)
    collector = Collector(scripted_envs(N), seed=0)
    policy = make_policy(ScriptedEnv.observation_space, ScriptedEnv.action_space, (8,))
    torch.nn.init.normal_(policy.actor[-1].weight)  # far from uniform
    rollout = collector.collect(policy, 30)
    with torch.no_grad():
        logits = policy.actor(rollout.observations).double()
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    picked = torch.where(rollout.actions == 1, probs[..., 1], probs[..., 0])
    assert_close(rollout.log_probs.double(), picked.log(), rtol=1e-5, atol=1e-6)
    assert not rollout.log_probs.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["reward", "observation"])
def test_a_number_that_is_not_finite_names_itself_its_environment_and_its_row(name, bad):
    envs = SyncVectorEnv([Faulty, lambda: Faulty(**{name: bad})])
    policy = make_policy(Faulty.observation_space, Faulty.action_space, (4,))
    row = 2 if name == "reward" else 3  # the observation that step 2 returned is row 3
    with pytest.raises(ValueError, match=rf"{name} must be finite, got .*{bad}.* from environment 1 at row {row}"):
        Collector(envs, seed=0).collect(policy, 10)


def test_a_bad_observation_that_ends_the_rollout_is_found_too():
    policy = make_policy(Faulty.observation_space, Faulty.action_space, (4,))
    collector = Collector(SyncVectorEnv([lambda: Faulty(observation=float("nan"))]), seed=0)
    with pytest.raises(ValueError, match="observation must be finite"):
        collector.collect(policy, 3)
