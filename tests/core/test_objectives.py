"""Objectives: every case by hand with its gradient, and the policy-gradient facts by exact enumeration."""

import math

import pytest
import torch
from core_helpers import floats
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ppo_edu.core import (
    clipped_surrogate_loss,
    entropy_bonus,
    policy_gradient_loss,
    probability_ratio,
    surrogate_loss,
    value_loss,
)

LN2 = math.log(2)


def loss_and_gradient(function, x):
    """A loss of one argument, and its gradient there."""
    x = x.detach().clone().requires_grad_()
    loss = function(x)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


# --- the ratio


def test_the_ratio_is_new_over_old():
    assert_close(probability_ratio(floats(0.6, 0.1).log(), floats(0.3, 0.2).log()), floats(2, 0.5))


def test_the_gradient_of_the_ratio_is_the_ratio():
    _, gradient = loss_and_gradient(lambda x: probability_ratio(x, floats(0.3).log()).sum(), floats(0.6).log())
    assert_close(gradient, floats(2))


# --- policy gradient


def test_policy_gradient_loss_by_hand():
    loss, gradient = loss_and_gradient(lambda x: policy_gradient_loss(x, floats(3, -1)), floats(-1, -2))
    assert_close(loss.item(), -((-1 * 3) + (-2 * -1)) / 2)
    assert_close(gradient, floats(-1.5, 0.5))  # descent raises the good action and lowers the bad one


def test_surrogate_loss_by_hand():
    loss, gradient = loss_and_gradient(lambda x: surrogate_loss(x, floats(0.5, 0.5).log(), floats(3, -1)), floats(1.0, 0.25).log())
    assert_close(loss.item(), -(2 * 3 - 0.5 * 1) / 2)
    assert_close(gradient, floats(-3, 0.25))


# --- the clipped surrogate: the six cases of (ratio, sign of the advantage), clip range 0.2

SIX_CASES = [
    # ratio, advantage, loss = -min(ratio * A, clip(ratio) * A), d loss / d log pi
    (0.5, +2.0, -1.0, -1.0),  # too low and good: min(1.0, 1.6); pushed back up
    (0.5, -2.0, +1.6, 0.0),  # too low and bad: min(-1.0, -1.6); far enough down
    (1.0, +2.0, -2.0, -2.0),
    (1.0, -2.0, +2.0, +2.0),
    (1.5, +2.0, -2.4, 0.0),  # too high and good: min(3.0, 2.4); far enough up
    (1.5, -2.0, +3.0, +3.0),  # too high and bad: min(-3.0, -2.4); pushed back down
]


@pytest.mark.parametrize(("ratio", "advantage", "expected", "slope"), SIX_CASES)
def test_the_six_cases_of_the_clip(ratio, advantage, expected, slope):
    old = floats(-1.0)
    loss, gradient = loss_and_gradient(lambda x: clipped_surrogate_loss(x, old, floats(advantage), clip_range=0.2), old + math.log(ratio))
    assert_close(loss.item(), expected)
    assert_close(gradient.item(), slope)


def test_the_six_cases_in_one_batch():
    ratios, advantages, losses, slopes = (floats(*column) for column in zip(*SIX_CASES, strict=True))
    loss, gradient = loss_and_gradient(lambda x: clipped_surrogate_loss(x, torch.zeros_like(x), advantages, clip_range=0.2), ratios.log())
    assert_close(loss, losses.mean())
    assert_close(gradient, slopes / 6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "clip_range", "expected"),
    [(1.3, 1.0, 0.1, -1.1), (1.3, 1.0, 0.4, -1.3), (0.7, -1.0, 0.1, 0.9), (0.7, -1.0, 0.4, 0.7), (3.5, 1.0, 2.0, -3.0)],
)
def test_the_clip_range_is_the_distance_from_1_on_both_sides(ratio, advantage, clip_range, expected):
    loss = clipped_surrogate_loss(floats(ratio).log(), floats(0), floats(advantage), clip_range=clip_range)
    assert_close(loss.item(), expected)


batches = st.integers(0, 10**6)


def random_batch(seed, size=20, spread=0.5):
    g = torch.Generator().manual_seed(seed)
    log_probs, noise, advantages = (torch.randn(size, generator=g, dtype=torch.float64) for _ in range(3))
    return log_probs - 2, log_probs - 2 + spread * noise, advantages


@given(seed=batches, clip_range=st.floats(0.01, 2))
def test_the_clipped_loss_is_never_below_the_unclipped_one(seed, clip_range):
    log_probs, old_log_probs, advantages = random_batch(seed)
    for i in range(len(advantages)):
        sample = log_probs[i : i + 1], old_log_probs[i : i + 1], advantages[i : i + 1]
        assert clipped_surrogate_loss(*sample, clip_range=clip_range) >= surrogate_loss(*sample)


@given(seed=batches)
def test_inside_the_interval_the_clip_changes_nothing(seed):
    log_probs, old_log_probs, advantages = random_batch(seed, spread=0.01)
    clipped = loss_and_gradient(lambda x: clipped_surrogate_loss(x, old_log_probs, advantages, clip_range=0.2), log_probs)
    plain = loss_and_gradient(lambda x: surrogate_loss(x, old_log_probs, advantages), log_probs)
    assert_close(clipped, plain)


@given(seed=batches)
def test_at_ratio_1_both_surrogates_have_the_policy_gradient(seed):
    log_probs, _, advantages = random_batch(seed)
    _, expected = loss_and_gradient(lambda x: policy_gradient_loss(x, advantages), log_probs)
    _, plain = loss_and_gradient(lambda x: surrogate_loss(x, log_probs, advantages), log_probs)
    _, clipped = loss_and_gradient(lambda x: clipped_surrogate_loss(x, log_probs, advantages, clip_range=0.2), log_probs)
    assert_close(plain, expected)
    assert_close(clipped, expected)


@given(seed=batches)
def test_a_step_down_each_loss_makes_good_actions_likelier_and_bad_ones_less(seed):
    _, _, advantages = random_batch(seed)
    old = torch.full_like(advantages, -1.0)
    for loss in (
        lambda x: policy_gradient_loss(x, advantages),
        lambda x: surrogate_loss(x, old, advantages),
        lambda x: clipped_surrogate_loss(x, old, advantages, clip_range=0.2),
    ):
        _, gradient = loss_and_gradient(loss, old)
        assert torch.equal((-gradient).sign(), advantages.sign())


# --- facts about expectations, by enumeration: a bandit with four actions and a softmax policy

LOGITS = floats(0.3, -0.5, 1.0, 0.0)
REWARDS = floats(1.0, 2.0, -1.0, 0.5)


def expected_gradient(advantages):
    """E over actions of the gradient that one sampled action gives: exact, no sampling."""
    logits = LOGITS.clone().requires_grad_()
    log_probs = torch.log_softmax(logits, 0)
    total = torch.zeros_like(LOGITS)
    for action, probability in enumerate(log_probs.exp().detach()):
        loss = policy_gradient_loss(log_probs[action : action + 1], advantages[action : action + 1])
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        total += probability * gradient
    return total


def test_the_expected_gradient_is_minus_the_gradient_of_the_expected_reward():
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((torch.softmax(logits, 0) * REWARDS).sum(), logits)
    assert_close(expected_gradient(REWARDS), -gradient)


@given(baseline=st.floats(-100, 100))
def test_a_constant_baseline_changes_no_expected_gradient(baseline):
    assert_close(expected_gradient(REWARDS - baseline), expected_gradient(REWARDS), atol=1e-12, rtol=1e-7)


def test_a_baseline_that_depends_on_the_action_does_change_it():
    assert not torch.allclose(expected_gradient(REWARDS - floats(1, 0, 0, 0)), expected_gradient(REWARDS))


def test_an_action_below_average_falls_though_its_reward_is_positive():
    """Two equally likely actions with rewards 1 and 2: the exact gradient of J is (-1/4, +1/4)."""
    logits = floats(0, 0).requires_grad_()
    log_probs = torch.log_softmax(logits, 0)
    loss = policy_gradient_loss(log_probs, floats(1, 2))  # the mean of both is the expectation
    loss.backward()
    assert_close(-logits.grad, floats(-0.25, 0.25))


def test_the_surrogate_of_old_samples_is_the_expectation_under_the_new_policy():
    old_counts = [1, 2, 4, 1]  # each action as often as the old policy, (1, 2, 4, 1) / 8, takes it
    actions = torch.tensor([a for a, count in enumerate(old_counts) for _ in range(count)])
    old_log_probs = (floats(*old_counts) / 8).log()[actions]
    new = torch.softmax(LOGITS, 0)
    loss = surrogate_loss(new.log()[actions], old_log_probs, REWARDS[actions])
    assert_close(-loss, (new * REWARDS).sum())


# --- the critic

VALUE_CASES = [
    # value, old value, return, loss with clip range 0.2, slope
    (1.1, 1.0, 2.0, 0.405, -0.9),  # inside the interval: 0.5 * 0.81
    (2.0, 1.0, 2.0, 0.32, 0.0),  # moved too far to the target: the clipped 1.2 is worse, 0.5 * 0.64
    (0.0, 1.0, 2.0, 2.0, -2.0),  # moved away: the value itself is worse, and is pulled back
    (4.0, 1.0, 2.0, 2.0, 2.0),  # overshot: likewise
    (-1.0, 1.0, -1.0, 1.62, 0.0),  # too far down to the target: the clipped 0.8 is worse, 0.5 * 3.24
    (1.8, 1.0, 1.4, 0.08, 0.4),  # overshot by more than the clip: 0.5 * max(0.16, 0.04)
    (10.5, 10.0, 12.0, 1.62, 0.0),  # the clip is a distance, not a ratio: the clipped 10.2 is worse, 0.5 * 3.24
    (0.5, 0.0, 2.0, 1.62, 0.0),  # nor is a value of 0 held fast
]


@pytest.mark.parametrize(("value", "old_value", "target", "expected", "slope"), VALUE_CASES)
def test_the_clipped_value_loss_takes_the_worse_of_both(value, old_value, target, expected, slope):
    loss, gradient = loss_and_gradient(lambda v: value_loss(v, floats(target), old_values=floats(old_value), clip_range=0.2), floats(value))
    assert_close(loss.item(), expected)
    assert_close(gradient.item(), slope)


def test_the_plain_value_loss_is_half_the_mean_squared_error():
    loss, gradient = loss_and_gradient(lambda v: value_loss(v, floats(1, 5)), floats(3, 4))
    assert_close(loss.item(), (0.5 * 4 + 0.5 * 1) / 2)
    assert_close(gradient, floats(1, -0.5))


def test_without_clipping_too_the_target_gets_no_gradient_and_the_padding_does_not_exist():
    """The tests for all functions alike, in test_contract.py and test_masking.py, call value_loss with clipping."""
    values, returns = floats(3, 4, math.nan).requires_grad_(), floats(1, 5, math.inf).requires_grad_()
    loss = value_loss(values, returns, mask=torch.tensor([True, True, False]))
    loss.backward()
    assert_close(loss.item(), 1.25)
    assert_close(values.grad, floats(1, -0.5, 0))
    assert returns.grad is None


@given(seed=batches, clip_range=st.floats(0.01, 2))
def test_value_clipping_never_lowers_the_loss_and_a_wide_clip_changes_nothing(seed, clip_range):
    values, old_values, returns = random_batch(seed)
    plain = value_loss(values, returns)
    assert value_loss(values, returns, old_values=old_values, clip_range=clip_range) >= plain - 1e-12
    assert_close(value_loss(values, returns, old_values=old_values, clip_range=100.0), plain)


# --- entropy


@pytest.mark.parametrize(
    ("probabilities", "entropy"),
    [
        ([0.25, 0.25, 0.25, 0.25], 2 * LN2),
        ([0.5, 0.25, 0.25, 0.0], 1.5 * LN2),
        ([0.5, 0.5, 0.0, 0.0], LN2),
        ([1.0, 0.0, 0.0, 0.0], 0.0),
    ],
)
def test_entropy_by_hand(probabilities, entropy):
    """The logarithm of 0 is a logit of minus infinity: a forbidden action."""
    loss, gradient = loss_and_gradient(entropy_bonus, floats(*probabilities).log()[None])
    assert_close(loss.item(), entropy)
    assert torch.isfinite(gradient).all()
    assert not gradient[0, floats(*probabilities) == 0].any()


def test_the_entropy_is_averaged_over_rows():
    assert_close(entropy_bonus(floats(0.5, 0.5, 1.0, 0.0).log().reshape(2, 2)).item(), LN2 / 2)


def test_entropy_is_largest_for_the_uniform_policy_and_ignores_a_shift():
    assert_close(entropy_bonus(LOGITS), entropy_bonus(LOGITS + 7))
    assert 0 < entropy_bonus(LOGITS) < entropy_bonus(torch.zeros_like(LOGITS))


def test_one_step_of_ascent_on_the_bonus_raises_the_entropy():
    before, gradient = loss_and_gradient(entropy_bonus, LOGITS)
    assert entropy_bonus(LOGITS + 0.1 * gradient) > before


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_entropy_of_extreme_logits_is_finite(scale):
    entropy, gradient = loss_and_gradient(entropy_bonus, scale * LOGITS)
    assert_close(entropy.item(), 0.0)
    assert torch.isfinite(gradient).all()
