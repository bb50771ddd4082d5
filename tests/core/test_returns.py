"""Returns: rows one can check on paper, the identities between the four functions, and what no rollout may do."""

import pytest
import torch
from core_helpers import ROLLOUT_FUNCTIONS, flags, random_rollout, rollouts, row, unit_interval
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ppo_edu.core import discounted_return, gae, lambda_return, n_step_return, td_residual

NAN = float("nan")

# --- by hand; gamma is 1/2 throughout


def test_a_reward_at_the_end_is_discounted_once_per_step_back():
    none = flags(of=3)
    assert_close(discounted_return(row(0, 0, 1), none, none, gamma=0.5), row(0.25, 0.5, 1))


def test_a_reward_at_the_start_is_credited_to_no_later_step():
    none = flags(of=3)
    assert_close(discounted_return(row(1, 0, 0), none, none, gamma=0.5), row(1, 0, 0))


@pytest.mark.parametrize(
    ("terminated", "truncated", "bootstrap", "expected"),
    [
        # the last row bootstraps 4: 1 + 4/2 = 3, then 1 + 3/2 = 2.5, then 1 + 2.5/2 = 2.25
        ((), (), row(NAN, NAN, 4), row(2.25, 2.5, 3)),
        # terminated at row 1: it ends there with its reward
        ((1,), (), row(NAN, NAN, 4), row(1.5, 1, 3)),
        # truncated at row 1: 1 + 10/2 = 6, then 1 + 6/2 = 4
        ((), (1,), row(NAN, 10, 4), row(4, 6, 3)),
        # both at row 1: terminated wins
        ((1,), (1,), row(NAN, NAN, 4), row(1.5, 1, 3)),
        # terminated on the last row: nothing is bootstrapped there
        ((2,), (), row(NAN, NAN, NAN), row(1.75, 1.5, 1)),
        # truncated on the last row: bootstrapped like a row that is not done
        ((), (2,), row(NAN, NAN, 4), row(2.25, 2.5, 3)),
        # no bootstrap given: 0
        ((), (1,), None, row(1.5, 1, 1)),
    ],
)
def test_discounted_return_by_hand(terminated, truncated, bootstrap, expected):
    result = discounted_return(row(1, 1, 1), flags(*terminated, of=3), flags(*truncated, of=3), gamma=0.5, bootstrap=bootstrap)
    assert_close(result, expected)


def test_td_residual_by_hand():
    # 1 + 5/2 - 3 = 0.5; terminated: 2 - 4 = -2
    result = td_residual(row(1, 2), row(3, 4), row(5, NAN), flags(1, of=2), gamma=0.5)
    assert_close(result, row(0.5, -2))


@pytest.mark.parametrize(
    ("n", "terminated", "truncated", "expected"),
    [
        (1, (), (), row(1 + 5, 2 + 10, 4 + 15, 8 + 20)),
        (2, (), (), row(1 + 1 + 5, 2 + 2 + 7.5, 4 + 4 + 10, 28)),  # V two steps ahead, worth a quarter
        (3, (), (), row(1 + 1 + 1 + 3.75, 2 + 2 + 2 + 5, 18, 28)),
        (2, (), (1,), row(7, 12, 18, 28)),  # row 1 bootstraps its own successor and looks no further
        (2, (1,), (), row(2, 2, 18, 28)),  # row 1 is worth its reward
        (3, (1,), (1,), row(2, 2, 18, 28)),  # terminated wins
        (2, (3,), (), row(7, 11.5, 8, 8)),  # terminal on the last row
    ],
)
def test_n_step_return_by_hand(n, terminated, truncated, expected):
    next_values = row(10, 20, 30, 40)
    next_values[list(terminated)] = NAN
    result = n_step_return(row(1, 2, 4, 8), next_values, flags(*terminated, of=4), flags(*truncated, of=4), gamma=0.5, n=n)
    assert_close(result, expected)


def test_lambda_return_by_hand():
    # deltas: 1 + 4/2 - 3 = 0 and 2 + 6/2 - 4 = 1; advantages with gamma * lambda = 1/4: 0.25 and 1
    none = flags(of=2)
    result = lambda_return(row(1, 2), row(3, 4), row(4, 6), none, none, gamma=0.5, lam=0.5)
    assert_close(result, row(3.25, 5))


# --- identities


@given(r=rollouts(), gamma=unit_interval)
def test_the_one_step_return_is_the_td_target(r, gamma):
    one_step = n_step_return(r["rewards"], r["next_values"], r["terminated"], r["truncated"], gamma=gamma, n=1)
    residual = td_residual(r["rewards"], r["values"], r["next_values"], r["terminated"], gamma=gamma)
    assert_close(one_step - r["values"], residual)


@given(r=rollouts(), gamma=unit_interval, extra=st.integers(0, 3))
def test_n_of_at_least_t_is_the_discounted_return(r, gamma, extra):
    n_step = n_step_return(r["rewards"], r["next_values"], r["terminated"], r["truncated"], gamma=gamma, n=len(r["rewards"]) + extra)
    monte_carlo = discounted_return(r["rewards"], r["terminated"], r["truncated"], gamma=gamma, bootstrap=r["next_values"])
    assert_close(n_step, monte_carlo)


@given(r=rollouts(), gamma=unit_interval, lam=unit_interval)
def test_the_lambda_return_is_the_weighted_sum_of_n_step_returns(r, gamma, lam):
    rewards, done = r["rewards"], r["terminated"] | r["truncated"]
    T, N = rewards.shape
    n_step = [n_step_return(rewards, r["next_values"], r["terminated"], r["truncated"], gamma=gamma, n=n) for n in range(1, T + 1)]
    expected = torch.zeros_like(rewards)
    for t in range(T):
        for i in range(N):
            to_the_end = next((k + 1 for k in range(T - t) if done[t + k, i]), T - t)
            for n in range(1, to_the_end):
                expected[t, i] += (1 - lam) * lam ** (n - 1) * n_step[n - 1][t, i]
            expected[t, i] += lam ** (to_the_end - 1) * n_step[to_the_end - 1][t, i]  # the longest takes all that is left
    result = lambda_return(**r, gamma=gamma, lam=lam)
    assert_close(result, expected)


@given(r=rollouts(), gamma=unit_interval, lam=unit_interval)
def test_the_lambda_return_is_advantage_plus_value(r, gamma, lam):
    assert_close(lambda_return(**r, gamma=gamma, lam=lam) - r["values"], gae(**r, gamma=gamma, lam=lam))


@given(r=rollouts())
def test_without_discount_a_return_is_the_next_reward(r):
    assert torch.equal(
        discounted_return(r["rewards"], r["terminated"], r["truncated"], gamma=0.0, bootstrap=r["next_values"]), r["rewards"]
    )


# --- what holds for every function of rewards and values, gae included

every_function = pytest.mark.parametrize("name", ROLLOUT_FUNCTIONS)


def changed(r, rows, by=100.0):
    """A copy with 100 added to every number in some rows."""
    copy = {name: x.clone() for name, x in r.items()}
    for name in ("rewards", "values", "next_values"):
        copy[name][rows] += by
    return copy


@every_function
@pytest.mark.parametrize("flag", ["terminated", "truncated"])
@given(r=rollouts(), data=st.data())
def test_the_next_episode_never_leaks_back(name, flag, r, data):
    end = data.draw(st.integers(0, len(r["rewards"]) - 1), label="end")
    r[flag][end] = True
    function = ROLLOUT_FUNCTIONS[name]
    a, b = function(r), function(changed(r, slice(end + 1, None)))
    assert torch.equal(a[: end + 1], b[: end + 1])
    assert end + 1 == len(a) or not torch.equal(a[end + 1 :], b[end + 1 :])


@every_function
@given(r=rollouts())
def test_the_past_is_irrelevant(name, r):
    function = ROLLOUT_FUNCTIONS[name]
    for k in range(len(r["rewards"])):
        assert torch.equal(function(r)[k:], function({key: x[k:] for key, x in r.items()}))


@every_function
@given(r=rollouts())
def test_what_stands_beyond_a_terminal_step_is_never_read(name, r):
    r["terminated"][-1] = True  # also on the last row
    function = ROLLOUT_FUNCTIONS[name]
    expected = function(r)
    for garbage in (NAN, float("inf"), 1e30):
        spoilt = {**r, "next_values": torch.where(r["terminated"], garbage, r["next_values"])}
        assert torch.equal(function(spoilt), expected)


@every_function
@given(r=rollouts())
def test_terminated_wins_over_truncated(name, r):
    function = ROLLOUT_FUNCTIONS[name]
    only_terminated = {**r, "truncated": r["truncated"] & ~r["terminated"]}
    both = {**r, "truncated": r["truncated"] | r["terminated"]}
    assert torch.equal(function(only_terminated), function(both))


@every_function
def test_truncation_differs_from_termination_by_the_bootstrap(name):
    r = {**random_rollout(0, T=4, N=1), "terminated": flags(of=4), "truncated": flags(1, of=4)}
    r["next_values"][1] = 3.0
    function = ROLLOUT_FUNCTIONS[name]
    as_truncated, as_terminated = function(r), function({**r, "terminated": flags(1, of=4)})
    assert_close(as_truncated[1] - as_terminated[1], torch.tensor([0.9 * 3.0], dtype=torch.float64))
    assert torch.equal(as_truncated[2:], as_terminated[2:])


@every_function
@given(r=rollouts(), c=st.floats(-10, 10))
def test_scaling_rewards_and_values_scales_the_result(name, r, c):
    function = ROLLOUT_FUNCTIONS[name]
    scaled = {key: x if x.dtype == torch.bool else c * x for key, x in r.items()}
    assert_close(function(scaled), c * function(r))


@every_function
@given(r=rollouts(), seed=st.integers(0, 100))
def test_permuting_environments_permutes_the_result(name, r, seed):
    function = ROLLOUT_FUNCTIONS[name]
    order = torch.randperm(r["rewards"].shape[1], generator=torch.Generator().manual_seed(seed))
    assert torch.equal(function({key: x[:, order] for key, x in r.items()}), function(r)[:, order])


@every_function
def test_an_environment_alone_gets_what_it_gets_among_others(name):
    r = random_rollout(1, T=9, N=4)
    function = ROLLOUT_FUNCTIONS[name]
    for i in range(4):
        assert torch.equal(function({key: x[:, i : i + 1] for key, x in r.items()}), function(r)[:, i : i + 1])


@every_function
@pytest.mark.parametrize(("terminated", "value"), [(True, 2.0), (False, 2.0 + 0.9 * 7.0)])
@pytest.mark.parametrize("truncated", [True, False])
def test_a_rollout_of_one_step(name, terminated, truncated, value):
    r = {"rewards": row(2), "values": row(5), "next_values": row(7)}
    r |= {"terminated": torch.tensor([[terminated]]), "truncated": torch.tensor([[truncated]])}
    baseline = 5.0 if name in ("td_residual", "gae") else 0.0
    assert_close(ROLLOUT_FUNCTIONS[name](r), row(value - baseline))
