"""Evaluation: exactly the episodes that were asked for, without a bias for short ones, reproducibly."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from control_helpers import CLOSED, KnownPolicy, expected_rows
from torch.distributions import Categorical

from ppo_edu.control import evaluate, evaluation, make_policy
from ppo_edu.control.networks import Policy


class Always(Policy):
    """Action 1 with this probability, in any environment with two actions."""

    def __init__(self, probability: float) -> None:
        super().__init__(1, 2, ())
        self.probability = probability

    def distribution(self, observations):
        ones = torch.full(observations.shape[:-1], self.probability)
        return Categorical(probs=torch.stack([1 - ones, ones], -1))


def random_cartpole_policy(seed=0):
    torch.manual_seed(seed)
    env = gym.make("CartPole-v1")
    return make_policy(env.observation_space, env.action_space, (8,))


@pytest.mark.parametrize("episodes", [1, 2, 99, 100, 101, 130, 250])
def test_exactly_the_episodes_asked_for_are_returned(episodes):
    returns = evaluate(Always(0.5), "Bandit-v0", episodes=episodes, greedy=False)
    assert returns.shape == (episodes,)
    assert returns.dtype == np.float64
    assert set(returns) <= {0.0, 1.0}


def first_to_finish(policy, env_id, episodes, seed):
    """The biased way: as many environments, but whichever episode ends first counts."""
    envs = gym.make_vec(env_id, num_envs=min(episodes, 100))
    envs.reset(seed=seed)
    returns, running = [], np.zeros(envs.num_envs)
    while len(returns) < episodes:
        _, rewards, terminated, truncated, _ = envs.step(np.zeros(envs.num_envs, dtype=np.int64))
        running += rewards
        done = terminated | truncated
        returns += running[done].tolist()
        running[done] = 0.0
    return np.array(returns[:episodes])


@pytest.mark.parametrize("episodes", [100, 250])
def test_the_mean_is_unbiased_where_first_to_finish_favours_short_episodes(episodes):
    """Episodes return 1 or 20 with equal odds: mean 10.5, standard error 9.5 / sqrt(episodes)."""
    tolerance = 3.5 * 9.5 / np.sqrt(episodes)
    assert evaluate(Always(0.5), "ShortOrLong-v0", episodes=episodes).mean() == pytest.approx(10.5, abs=tolerance)
    assert first_to_finish(Always(0.5), "ShortOrLong-v0", episodes, seed=0).mean() < 10.5 - tolerance


def test_returns_are_those_of_whole_scripted_episodes():
    returns = evaluate(KnownPolicy(probability=0.0), "Scripted-v0", episodes=7, seed=0)
    want = [next(row.ended[0][0] for row in expected_rows(n, [0] * 10) if row.ended) for n in range(7)]
    assert sorted(returns) == sorted(want)


def test_a_policy_that_balances_to_the_time_limit_returns_500():
    class Balance(Policy):
        """A hand-made controller for CartPole."""

        def mode(self, observations):
            return (observations @ torch.tensor([0.1, 0.5, 5.0, 1.0]) > 0).long()

    assert (evaluate(Balance(4, 2, ()), "CartPole-v1", episodes=20) == 500.0).all()


@pytest.mark.parametrize("greedy", [True, False])
def test_the_same_seed_gives_the_same_episodes_and_another_gives_others(greedy):
    policy = random_cartpole_policy()
    first, again, other = (evaluate(policy, "CartPole-v1", episodes=30, seed=s, greedy=greedy) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_greedy_plays_the_mode_and_sampling_plays_the_distribution():
    policy = Always(0.8)
    assert evaluate(policy, "Bandit-v0", episodes=400, greedy=True).mean() == 1.0
    assert evaluate(policy, "Bandit-v0", episodes=400, greedy=False).mean() == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize("greedy", [True, False])
def test_the_callers_random_state_and_the_policy_stay_as_they_are(greedy):
    policy = random_cartpole_policy()
    state, weights = torch.get_rng_state(), policy.actor[0].weight.clone()
    evaluate(policy, "CartPole-v1", episodes=3, greedy=greedy)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(policy.actor[0].weight, weights)


@pytest.mark.parametrize("episodes", [0, -1, 2.0, True, None, "3", float("nan")])
def test_a_bad_number_of_episodes_is_refused(episodes):
    with pytest.raises(ValueError, match="episodes must be an int of at least 1"):
        evaluate(Always(0.5), "Bandit-v0", episodes=episodes)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an int"):
        evaluate(Always(0.5), "Bandit-v0", seed=seed)


def test_an_unknown_environment_is_refused():
    with pytest.raises(ValueError, match="env_id must name an environment"):
        evaluate(Always(0.5), "NoSuchEnvironment-v0")


def test_a_policy_for_other_observations_is_refused():
    with pytest.raises(ValueError, match=r"^policy must take the environment's observations, of size 6, got one for size 4"):
        evaluate(random_cartpole_policy(), "Acrobot-v1", episodes=2)


def test_an_episode_that_never_ends_is_an_error_and_not_a_hang(monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_LENGTH", 50)
    with pytest.raises(ValueError, match="env_id must name an environment whose episodes end, got 'Endless-v0'"):
        evaluate(Always(0.5), "Endless-v0", episodes=2)


def test_environments_are_closed_also_when_the_policy_fails():
    class Failing(Always):
        def mode(self, observations):
            raise RuntimeError("from the policy")

    CLOSED.clear()
    with pytest.raises(RuntimeError, match="from the policy"):
        evaluate(Failing(0.5), "Closing-v0", episodes=3)
    assert len(CLOSED) == 3
    evaluate(Always(0.5), "Closing-v0", episodes=2)
    assert len(CLOSED) == 5
