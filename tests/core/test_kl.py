"""KL divergence: by hand, and every claim about its estimators by a sum over all actions instead of sampling."""

import dataclasses
import math

import pytest
import torch
from core_helpers import floats
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ppo_edu.core import AdaptiveKLCoefficient, FixedKLCoefficient, approx_kl, kl_categorical, kl_estimate

LN2 = math.log(2)
seeds = st.integers(0, 10**6)


def two_policies(seed, actions=6, distance=1.0):
    """Logits of a policy and of a reference near or far from it."""
    g = torch.Generator().manual_seed(seed)
    logits, other = (torch.randn(actions, generator=g, dtype=torch.float64) for _ in range(2))
    return logits, logits + distance * other


def expectation(logits, ref_logits, kind):
    """E over the actions of pi of the estimate: exact."""
    log_p, log_ref = torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1)
    return (log_p.exp() * kl_estimate(log_p, log_ref, kind)).sum()


# --- exact


def test_kl_by_hand_in_both_directions():
    p, q = floats(1 / 2, 1 / 2).log(), floats(1 / 4, 3 / 4).log()
    assert_close(kl_categorical(p, q).item(), 0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert_close(kl_categorical(q, p).item(), 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))


def test_one_kl_per_row():
    p, q = floats(0.5, 0.5, 0.5, 0.5).log().reshape(2, 2), floats(0.5, 0.5, 0.25, 0.75).log().reshape(2, 2)
    assert_close(kl_categorical(p, q), floats(0, 0.5 * math.log(4 / 3)))


@given(seed=seeds, shift=st.floats(-50, 50))
def test_kl_of_a_policy_with_itself_is_0_and_else_above(seed, shift):
    p, q = two_policies(seed)
    assert_close(kl_categorical(p, p + shift).item(), 0.0, atol=1e-12, rtol=0)
    assert kl_categorical(p, q) > 0


def test_an_action_that_p_forbids_costs_nothing_and_one_that_only_q_forbids_costs_infinity():
    p, q = floats(1, 0).log(), floats(0.5, 0.5).log()
    assert_close(kl_categorical(p, q).item(), LN2)
    assert kl_categorical(q, p) == math.inf
    assert kl_categorical(p, p) == 0


def test_gradients_are_finite_where_both_forbid_an_action():
    p, q = floats(0.5, 0.5, 0).log().requires_grad_(), floats(0.25, 0.75, 0).log().requires_grad_()
    kl_categorical(p, q).backward()
    assert_close(q.grad, floats(0.25 - 0.5, 0.75 - 0.5, 0))  # d KL(p||q) / d logits_q = q - p
    assert torch.isfinite(p.grad).all()
    assert p.grad[2] == 0


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_kl_of_extreme_logits_is_finite(scale):
    p = (scale * floats(1, 0, -1)).requires_grad_()
    kl = kl_categorical(p, floats(0, 0, 0))
    kl.backward()
    assert_close(kl.item(), math.log(3))
    assert torch.isfinite(p.grad).all()


# --- the three estimators


def test_estimates_by_hand():
    log_probs, ref_log_probs = floats(0.5, 0.5).log(), floats(0.25, 1.0).log()  # log ratios -ln 2 and +ln 2
    assert_close(kl_estimate(log_probs, ref_log_probs, "k1"), floats(LN2, -LN2))  # a single sample may be negative
    assert_close(kl_estimate(log_probs, ref_log_probs, "k2"), floats(LN2**2 / 2, LN2**2 / 2))
    assert_close(kl_estimate(log_probs, ref_log_probs, "k3"), floats(0.5 - 1 + LN2, 2 - 1 - LN2))
    assert torch.equal(kl_estimate(log_probs, ref_log_probs), kl_estimate(log_probs, ref_log_probs, "k1"))


@given(seed=seeds)
def test_k1_and_k3_are_unbiased(seed):
    p, ref = two_policies(seed)
    exact = kl_categorical(p, ref)
    assert_close(expectation(p, ref, "k1"), exact)
    assert_close(expectation(p, ref, "k3"), exact)


def test_k2_is_biased_but_agrees_to_second_order():
    """Halving the distance divides KL by about 4 and the bias of k2 by about 8."""
    bias = []
    for distance in (0.1, 0.05):
        p, ref = two_policies(0, distance=distance)
        bias.append((expectation(p, ref, "k2") - kl_categorical(p, ref)).item())
        assert abs(bias[-1]) > 1e-6
    assert 6 < bias[0] / bias[1] < 10


@given(seed=seeds)
def test_k2_and_k3_are_never_negative(seed):
    p, ref = (torch.log_softmax(x, -1) for x in two_policies(seed))
    assert (kl_estimate(p, ref, "k2") >= 0).all()
    assert (kl_estimate(p, ref, "k3") >= 0).all()


def test_k3_with_the_difference_reversed_estimates_something_else():
    p, ref = two_policies(1)
    log_p, log_ref = torch.log_softmax(p, -1), torch.log_softmax(ref, -1)
    reversed_k3 = (log_p.exp() * kl_estimate(log_ref, log_p, "k3")).sum()
    exact = kl_categorical(p, ref)
    assert abs(reversed_k3 - exact) > 0.3 * exact


@pytest.mark.parametrize("difference", [1e-3, 1e-5])
def test_k3_keeps_its_digits_near_0_in_float32(difference):
    """exp(x) - 1 cancels in float32; expm1 does not."""
    k3 = kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.0 + difference]), "k3").item()
    rounded = (torch.tensor(-1.0 + difference) - torch.tensor(-1.0)).item()  # what float32 makes of the difference
    assert k3 >= 0
    assert_close(k3, math.expm1(rounded) - rounded, atol=6e-8 * difference, rtol=0)


# --- the estimators as losses on fresh samples: what their gradients are, by enumeration


def expected_loss_gradient(p, ref, kind):
    """E over actions of the gradient of the estimate: the samples carry no gradient of their own."""
    logits = p.clone().requires_grad_()
    log_p, log_ref = torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)
    (gradient,) = torch.autograd.grad((log_p.exp().detach() * kl_estimate(log_p, log_ref, kind)).sum(), logits)
    return gradient


def gradient_of(function, p):
    logits = p.clone().requires_grad_()
    return torch.autograd.grad(function(logits), logits)[0]


@given(seed=seeds)
def test_gradients_of_the_estimators_as_losses(seed):
    p, ref = two_policies(seed)
    assert_close(expected_loss_gradient(p, ref, "k1"), torch.zeros_like(p), atol=1e-12, rtol=0)  # useless
    assert_close(expected_loss_gradient(p, ref, "k2"), gradient_of(lambda x: kl_categorical(x, ref), p))
    assert_close(expected_loss_gradient(p, ref, "k3"), gradient_of(lambda x: kl_categorical(ref, x), p))


def test_a_step_down_k2_and_k3_moves_towards_the_reference():
    p, ref = two_policies(3)
    for kind in ("k2", "k3"):
        assert kl_categorical(p - 0.05 * expected_loss_gradient(p, ref, kind), ref) < kl_categorical(p, ref)


# --- approx_kl: samples of the old policy


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_approx_kl_estimates_kl_of_old_to_new(kind):
    counts = [1, 2, 4, 1]  # the old policy is (1, 2, 4, 1) / 8, and the batch holds each action that often
    actions = torch.tensor([a for a, count in enumerate(counts) for _ in range(count)])
    old, new = (floats(*counts) / 8).log(), torch.log_softmax(floats(2.0, -1.5, 0.0, 1.0), -1)
    estimate = approx_kl(new[actions], old[actions], kind=kind)
    assert_close(estimate, kl_categorical(old, new))
    assert abs(estimate - kl_categorical(new, old)) > 0.1


def test_approx_kl_by_hand():
    new, old = floats(0.5, 0.5).log(), floats(0.25, 1.0).log()  # ratios 2 and 1/2
    assert_close(approx_kl(new, old, kind="k1").item(), 0.0, atol=1e-12, rtol=0)
    assert_close(approx_kl(new, old, kind="k2").item(), LN2**2 / 2)
    assert_close(approx_kl(new, old, kind="k3").item(), ((2 - 1 - LN2) + (0.5 - 1 + LN2)) / 2)
    assert torch.equal(approx_kl(new, old), approx_kl(new, old, kind="k3"))


def test_k1_can_come_out_negative_and_k3_cannot():
    new, old = floats(-0.5), floats(-1.0)
    assert approx_kl(new, old, kind="k1") < 0 < approx_kl(new, old, kind="k3")


# --- coefficients


@pytest.mark.parametrize(
    ("kl_per_sequence", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1 + 0.1 * 256 / 10_000),  # 10 % above
        (5.4, 1 - 0.1 * 256 / 10_000),  # 10 % below
        (7.2, 1 + 0.2 * 256 / 10_000),  # 20 % above: the edge of the clip
        (60.0, 1 + 0.2 * 256 / 10_000),  # far above: clipped
        (0.0, 1 - 0.2 * 256 / 10_000),  # far below: clipped
        (-3.0, 1 - 0.2 * 256 / 10_000),  # an estimate may come out negative
    ],
)
def test_zieglers_rule_by_hand(kl_per_sequence, factor):
    coefficient = AdaptiveKLCoefficient(value=0.1, target=6.0, horizon=10_000)
    assert_close(coefficient.updated(kl_per_sequence, n=256).value, 0.1 * factor, rtol=1e-12, atol=0)


def test_the_adaptive_coefficient_counts_nats_per_sequence():
    """The same 0.5 nats per token are on target at six tokens, too little at three, too much at twelve."""
    coefficient = AdaptiveKLCoefficient(value=0.1, target=3.0, horizon=100)
    for tokens, sign in [(6, 0), (3, -1), (12, +1)]:
        per_sequence = kl_estimate(torch.full((tokens, 4), -1.0), torch.full((tokens, 4), -1.5), "k1").sum(0).mean().item()
        change = coefficient.updated(per_sequence, n=4).value - coefficient.value
        assert (change > 0) - (change < 0) == sign


def test_a_full_error_over_the_horizon_changes_the_value_by_a_fifth():
    coefficient = AdaptiveKLCoefficient(value=1.0, target=2.0, horizon=50)
    assert_close(coefficient.updated(100.0, n=50).value, 1.2)
    assert coefficient.updated(100.0, n=50) == AdaptiveKLCoefficient(value=1.2, target=2.0, horizon=50)


def test_coefficients_are_frozen_and_updating_makes_a_new_one():
    adaptive, fixed = AdaptiveKLCoefficient(value=0.1, target=6.0, horizon=100), FixedKLCoefficient(0.1)
    adaptive.updated(60.0, n=10)
    assert adaptive == AdaptiveKLCoefficient(value=0.1, target=6.0, horizon=100)
    assert fixed.updated(60.0, n=10) == fixed == FixedKLCoefficient(0.1)
    for coefficient in (adaptive, fixed):
        with pytest.raises(dataclasses.FrozenInstanceError):
            coefficient.value = 0.2
