"""Generalised advantage estimation. What it shares with the returns is tested in test_returns.py, the oracles in test_oracles.py."""

import pytest
import torch
from core_helpers import flags, random_rollout, rollouts, row, unit_interval
from hypothesis import given
from torch.testing import assert_close

from ppo_edu.core import discounted_return, gae, td_residual

NAN = float("nan")


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        # gamma = lambda = 1/2. Deltas: 1 + 4/2 - 2 = 1, 2 + 6/2 - 4 = 1, 3 + 8/2 - 6 = 1; each step back adds a quarter
        ((), (), row(1.3125, 1.25, 1)),
        ((1,), (), row(0.5, -2, 1)),  # delta_1 = 2 - 4, and row 2 stays out: 1 - 2/4
        ((), (1,), row(1.25, 1, 1)),  # delta_1 keeps its bootstrap, and row 2 stays out
        ((1,), (1,), row(0.5, -2, 1)),
        ((2,), (), row(1.0625, 0.25, -3)),
        ((), (2,), row(1.3125, 1.25, 1)),
    ],
)
def test_gae_by_hand(terminated, truncated, expected):
    next_values = row(4, 6, 8)
    next_values[list(terminated)] = NAN
    result = gae(row(1, 2, 3), row(2, 4, 6), next_values, flags(*terminated, of=3), flags(*truncated, of=3), gamma=0.5, lam=0.5)
    assert_close(result, expected)


@given(r=rollouts(), gamma=unit_interval)
def test_lambda_0_is_the_td_residual(r, gamma):
    residual = td_residual(r["rewards"], r["values"], r["next_values"], r["terminated"], gamma=gamma)
    assert_close(gae(**r, gamma=gamma, lam=0.0), residual)


@given(r=rollouts(), gamma=unit_interval)
def test_lambda_1_is_the_monte_carlo_return_minus_the_value(r, gamma):
    returns = discounted_return(r["rewards"], r["terminated"], r["truncated"], gamma=gamma, bootstrap=r["next_values"])
    assert_close(gae(**r, gamma=gamma, lam=1.0), returns - r["values"])


@given(r=rollouts(), gamma=unit_interval, lam=unit_interval)
def test_a_perfect_critic_of_a_deterministic_world_leaves_no_advantage(r, gamma, lam):
    """If V satisfies V(s_t) = r_t + gamma * V(s_{t+1}) along the rollout, there is no surprise."""
    returns = discounted_return(r["rewards"], r["terminated"], r["truncated"], gamma=gamma, bootstrap=r["next_values"])
    r["next_values"][:-1] = torch.where((r["terminated"] | r["truncated"])[:-1], r["next_values"][:-1], returns[1:])
    r["values"] = returns
    assert_close(gae(**r, gamma=gamma, lam=lam), torch.zeros_like(returns))


def test_only_the_product_of_gamma_and_lambda_weighs_later_surprises():
    """With values of 0 the residual is the reward, so A_0 = r_0 + (gamma lambda) r_1 + (gamma lambda)^2 r_2."""
    none, zeros = flags(of=3), row(0, 0, 0)
    a, b = (gae(row(1, 10, 100), zeros, zeros, none, none, gamma=g, lam=l) for g, l in [(0.5, 0.8), (0.8, 0.5)])
    assert_close(a, b)
    assert_close(a[0].item(), 1 + 4 + 16.0)


@pytest.mark.parametrize("seed", range(5))
def test_an_advantage_rises_with_its_reward_and_falls_with_its_value(seed):
    r = random_rollout(seed)
    base = gae(**r, gamma=0.9, lam=0.95)
    assert_close(gae(**{**r, "rewards": r["rewards"] + 1.0}, gamma=0.9, lam=0.0) - gae(**r, gamma=0.9, lam=0.0), torch.ones_like(base))
    raised = {**r, "values": r["values"].clone()}
    raised["values"][4] += 1.0  # next_values stays: only the baseline of row 4 moves
    assert_close(gae(**raised, gamma=0.9, lam=0.95)[4], base[4] - 1.0)
