"""Statistics over the entries that count: `mask` is True where an entry counts, None means everywhere."""

import torch
from torch import Tensor

from ppo_edu.core.validation import check_bool, check_finite, check_float, check_like, check_mask


def fill_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` with 0 where the mask is False, so that padding (NaN included) reaches neither the value nor the gradient."""
    return x if mask is None else torch.where(mask, x, 0.0)


def prepare(mask: Tensor | None, *, at_least: int = 1, **tensors: Tensor) -> list[Tensor]:
    """Check that the tensors are alike and finite where they count, and replace what does not count by 0."""
    (name, first), *others = tensors.items()
    check_like(name, first, **dict(others))
    check_mask(mask, first.shape, first.device, at_least=at_least, of=name)
    check_finite(mask, **tensors)
    return [fill_masked(x, mask) for x in tensors.values()]


def masked_mean(
    x: Tensor,  # any shape
    mask: Tensor | None = None,  # bool, shape of x
) -> Tensor:
    r"""Mean over the entries that count: sum(x * mask) / sum(mask). Keeps autograd.

    Returns: scalar. Raises: ValueError for a wrong shape or dtype, a NaN that counts, or a mask that is False everywhere.
    """
    check_float(x=x)
    check_mask(mask, x.shape, x.device)
    check_finite(mask, x=x)
    return x.mean() if mask is None else fill_masked(x, mask).sum() / mask.sum()


def masked_var(
    x: Tensor,  # any shape
    mask: Tensor | None = None,  # bool, shape of x
) -> Tensor:
    r"""Unbiased variance (ddof 1) over the entries that count: sum((x - mean)^2 * mask) / (sum(mask) - 1). Keeps autograd.

    Returns: scalar. Raises: ValueError, also for fewer than two entries that count.
    """
    check_float(x=x)
    check_mask(mask, x.shape, x.device, at_least=2)
    centred = fill_masked(x - _mean_in_two_steps(x, mask), mask)
    count = x.numel() if mask is None else mask.sum()
    return centred.square().sum() / (count - 1)


def whiten(
    x: Tensor,  # any shape
    mask: Tensor | None = None,  # bool, shape of x
    *,
    shift_mean: bool = True,
) -> Tensor:
    r"""Scale to unit standard deviation and, unless told otherwise, to zero mean.

        y = (x - mean) / (std + 1e-8)          std unbiased (ddof 1); with shift_mean=False the mean is added back

    Masked entries come out 0 and influence nothing. A constant `x` gives zeros, not NaN.

    Returns: shape of x. Raises: ValueError, also for fewer than two entries that count.
    """
    check_bool(shift_mean=shift_mean)
    var = masked_var(x, mask)
    x = fill_masked(x, mask)  # first, so that no NaN reaches the gradient either
    mean = _mean_in_two_steps(x, mask)
    whitened = (x - mean) / (var.sqrt() + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return fill_masked(whitened, mask)


def _mean_in_two_steps(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean, exact for a constant `x`: one float32 sum errs by a few units in the last place, and a spread of that size
    passes for a real one (seven times 0.1 would whiten to seven times -0.41)."""
    mean = masked_mean(x, mask)
    return mean + masked_mean(x - mean, mask)
