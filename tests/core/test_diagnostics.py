"""Diagnostics by hand and at their limits. approx_kl is in test_kl.py."""

import pytest
import torch
from core_helpers import floats
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ppo_edu.core import clip_fraction, effective_sample_size, explained_variance

seeds = st.integers(0, 10**6)


def test_clip_fraction_counts_ratios_outside_on_both_sides():
    ratios = floats(0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0, 0.9)
    assert clip_fraction(ratios.log(), torch.zeros_like(ratios), clip_range=0.2) == 4 / 8
    assert clip_fraction(ratios.log(), torch.zeros_like(ratios), clip_range=0.6) == 1 / 8


def test_the_clip_fraction_is_about_new_over_old():
    """Ratio 1.25 has left [0.78, 1.22]; its inverse, 0.8, has not."""
    assert clip_fraction(floats(1.25).log(), floats(1.0).log(), clip_range=0.22) == 1
    assert clip_fraction(floats(1.0).log(), floats(1.25).log(), clip_range=0.22) == 0


def test_nothing_is_clipped_when_the_policy_has_not_moved():
    assert clip_fraction(floats(-1, -2), floats(-1, -2), clip_range=1e-6) == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (floats(1, 2, 3, 4), 1.0),  # perfect
        (floats(11, 12, 13, 14), 1.0),  # a constant shift is not seen
        (floats(0, 0, 0, 0), 0.0),  # no better than a constant
        (floats(4, 3, 2, 1), -3.0),  # the errors -3, -1, 1, 3 have four times the variance
        (floats(0.5, 1.0, 1.5, 2.0), 0.75),  # half of it right: the error has a quarter of the variance
    ],
)
def test_explained_variance_by_hand(values, expected):
    assert_close(explained_variance(values, floats(1, 2, 3, 4)).item(), expected)


def test_explained_variance_is_relative_to_the_returns_not_to_the_values():
    # errors 1, 2, 3, -6 with variance 50/3; returns with variance 5/3
    assert_close(explained_variance(floats(0, 0, 0, 10), floats(1, 2, 3, 4)).item(), -9.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 0.1, 1000.1])
def test_explained_variance_of_constant_returns_is_0_or_1_and_never_minus_a_billion(dtype, level):
    returns = torch.full((100,), level, dtype=dtype)
    assert explained_variance(torch.arange(100, dtype=dtype), returns) == 0
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full_like(returns, 7.0), returns) == 1


@given(seed=seeds, scale=st.floats(0.01, 100))
def test_explained_variance_is_at_most_1_and_has_no_unit(seed, scale):
    values, returns = torch.randn(2, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    result = explained_variance(values, returns)
    assert result <= 1
    assert_close(explained_variance(scale * values, scale * returns), result)


def test_effective_sample_size_by_hand():
    weights = floats(1, 1, 2)  # (1 + 1 + 2)^2 / (1 + 1 + 4) = 16/6
    assert_close(effective_sample_size(weights.log(), torch.zeros_like(weights)).item(), 16 / 6)


def test_the_effective_sample_size_is_n_at_ratio_1_and_1_when_one_ratio_dominates():
    equal = torch.full((10,), -1.0)
    assert_close(effective_sample_size(equal, equal).item(), 10.0)
    assert_close(effective_sample_size(floats(500, 0, 0), floats(0, 0, 0)).item(), 1.0)  # exp(500) would overflow float32


@given(seed=seeds, shift=st.floats(-5, 5))
def test_the_effective_sample_size_lies_between_1_and_n_and_ignores_a_common_factor(seed, shift):
    new, old = torch.randn(2, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    result = effective_sample_size(new, old)
    assert 1 <= result <= 10
    assert_close(effective_sample_size(new + shift, old), result)
