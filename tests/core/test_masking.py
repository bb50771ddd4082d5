"""Masked statistics by hand, whitening, and the rule for every function with a mask: what is masked does not exist."""

import pytest
import torch
from core_helpers import MASKED, arguments, floats
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ppo_edu import core
from ppo_edu.core import masked_mean, masked_var, whiten

NAN, INF = float("nan"), float("inf")


def test_mean_and_variance_by_hand():
    x, mask = floats(1, 3, NAN, 8), torch.tensor([True, True, False, True])
    assert_close(masked_mean(x, mask).item(), 4.0)
    assert_close(masked_var(x, mask).item(), (9 + 1 + 16) / 2)  # divided by 3 - 1
    assert_close(masked_mean(x[:2]).item(), 2.0)
    assert_close(masked_var(x[:2]).item(), 2.0)


def test_whiten_by_hand():
    x, mask = floats(1, NAN, 3, 5), torch.tensor([True, False, True, True])
    assert_close(whiten(x, mask), floats(-1, 0, 1 - 1, 1))  # mean 3, unbiased standard deviation 2
    assert_close(whiten(x, mask, shift_mean=False), floats(2, 0, 3, 4))  # the mean of 3 is added back; padding stays 0


def test_whiten_knows_no_rows():
    """Two responses, a good and a bad one: whitened one by one they would be equally good."""
    x = floats(1, 2, 3, 10, 20, 30)
    assert_close(whiten(x.reshape(2, 3)).flatten(), whiten(x))
    assert (whiten(x)[:3] < whiten(x)[3:].min()).all()


@pytest.mark.parametrize("use_mask", [False, True])
@given(seed=st.integers(0, 10**6), size=st.integers(2, 30), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_whitened_entries_have_mean_0_and_unbiased_spread_1(use_mask, seed, size, scale, shift):
    g = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(size, generator=g, dtype=torch.float64) + shift
    mask = torch.rand(size, generator=g) < 0.5
    mask[:2] = True
    counted = whiten(x, mask)[mask] if use_mask else whiten(x)
    assert_close(counted.mean().item(), 0.0, atol=1e-6, rtol=0)
    assert_close(counted.std(correction=1).item(), 1.0, atol=1e-3, rtol=0)  # 1e-8 is added to the spread


def test_without_shift_the_mean_stays_and_the_order_too():
    x = floats(3, 1, 4, 1, 5)
    result = whiten(x, shift_mean=False)
    assert_close(result.mean(), x.mean())
    assert_close(result.std(correction=1).item(), 1.0)
    assert torch.equal(result.argsort(stable=True), x.argsort(stable=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1000.1, 1e-30])
@pytest.mark.parametrize("size", [2, 7, 100, 4096])
def test_a_constant_batch_whitens_to_exactly_0(dtype, value, size):
    """The float32 mean of seven 0.1 is not 0.1; a spread made of that error must not be blown up to 1."""
    x = torch.full((size,), value, dtype=dtype)
    mask = torch.arange(size) % 3 < 2
    assert not whiten(x).any()
    assert not whiten(torch.where(mask, x, 55.5), mask).any()
    assert masked_var(x) == 0


def test_masked_entries_of_whiten_are_0_even_without_shift():
    x, mask = torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.arange(50) < 20
    assert not whiten(x, mask, shift_mean=False)[20:].any()
    assert whiten(x, mask, shift_mean=False)[:20].all()


# --- every function with a mask

every_masked = pytest.mark.parametrize("name", MASKED)


def value_and_gradients(name, given_arguments):
    """The result, and the gradients with respect to all tensors (None where none flows)."""
    leaves = {key: given_arguments[key].detach().clone().requires_grad_() for key in MASKED[name]}
    result = getattr(core, name)(**{**given_arguments, **leaves})
    if result.requires_grad:
        weights = torch.arange(1.0, 1.0 + result.numel(), dtype=result.dtype).reshape(result.shape)
        (result * weights).sum().backward()
    return result.detach(), {key: leaf.grad for key, leaf in leaves.items()}


def padded(name, kwargs, garbage):
    """The same arguments with `garbage` wherever the mask is False."""
    mask = kwargs["mask"]
    where = {key: mask[..., None] if key == "logits" else mask for key in MASKED[name]}
    return {**kwargs, **{key: torch.where(where[key], kwargs[key], garbage) for key in MASKED[name]}}


@every_masked
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30, -5.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_stands_in_the_padding_changes_neither_value_nor_gradient(name, garbage, seed):
    kwargs = arguments(name, seed=seed)
    clean, clean_gradients = value_and_gradients(name, kwargs)
    spoilt, spoilt_gradients = value_and_gradients(name, padded(name, kwargs, garbage))
    assert torch.equal(clean, spoilt)
    for key, gradient in spoilt_gradients.items():
        assert (gradient is None) == (clean_gradients[key] is None)
        if gradient is not None:
            assert torch.equal(gradient, clean_gradients[key])
            assert not gradient[~kwargs["mask"]].any()  # exactly 0


@every_masked
@pytest.mark.parametrize("seed", range(3))
def test_a_masked_batch_equals_the_batch_of_what_counts(name, seed):
    kwargs = arguments(name, seed=seed)
    mask = kwargs["mask"]
    compact = {**kwargs, "mask": None, **{key: kwargs[key][mask] for key in MASKED[name]}}
    (a, a_gradients), (b, b_gradients) = value_and_gradients(name, kwargs), value_and_gradients(name, compact)
    if name == "whiten":
        assert_close(a[mask], b)
        return  # the gradients were weighted by position
    assert_close(a, b)
    for key in MASKED[name]:
        if a_gradients[key] is not None:
            assert_close(a_gradients[key][mask], b_gradients[key])


@every_masked
@given(extra=st.integers(1, 4), garbage=st.sampled_from([0.0, NAN, -INF, 3.0]))
def test_the_length_of_the_padding_does_not_matter(name, extra, garbage):
    kwargs = arguments(name)
    longer = {
        key: torch.cat([x, torch.full((extra, *x.shape[1:]), False if key == "mask" else garbage, dtype=x.dtype)])
        if isinstance(x, torch.Tensor)
        else x
        for key, x in kwargs.items()
    }
    function = getattr(core, name)
    assert_close(function(**longer)[: len(kwargs["mask"])] if name == "whiten" else function(**longer), function(**kwargs))


@every_masked
def test_a_mask_that_is_true_everywhere_equals_no_mask(name):
    kwargs = arguments(name)
    function = getattr(core, name)
    assert_close(function(**{**kwargs, "mask": torch.ones_like(kwargs["mask"])}), function(**{**kwargs, "mask": None}))


@every_masked
def test_the_mask_matters(name):
    """Guards the tests above: a function that ignored its mask would pass none of them, but only if the entries differ."""
    kwargs = arguments(name)
    function = getattr(core, name)
    assert not torch.equal(function(**kwargs), function(**{**kwargs, "mask": None}))


def test_weighted_micro_batches_add_up_to_the_whole_batch():
    """Means of parts do not average to the mean of the whole; weighted by their counts they do."""
    kwargs = arguments("clipped_surrogate_loss")
    whole, total = core.clipped_surrogate_loss(**kwargs), kwargs["mask"].sum()
    parts, weighted = [], []
    for rows in (slice(0, 2), slice(2, 5)):
        part = {key: x[rows] if isinstance(x, torch.Tensor) else x for key, x in kwargs.items()}
        parts.append(core.clipped_surrogate_loss(**part))
        weighted.append(parts[-1] * part["mask"].sum() / total)
    assert_close(sum(weighted), whole)
    assert not torch.allclose(sum(parts) / 2, whole)
