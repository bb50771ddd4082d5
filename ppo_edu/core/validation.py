"""Argument checks shared by the functions of `ppo_edu.core`.

Shape, dtype and device checks cost nothing and always run. Checks that read values (NaN, ranges of tensors, empty masks)
would make a GPU wait, so they are skipped while `torch.compile` traces and can be switched off with `value_checks(False)`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_check_values: ContextVar[bool] = ContextVar("check_values", default=True)


@contextmanager
def value_checks(enabled: bool) -> Iterator[None]:
    """Switch the checks that read tensor values on or off inside a `with` block."""
    check_bool(enabled=enabled)
    token = _check_values.set(enabled)
    try:
        yield
    finally:
        _check_values.reset(token)


def reads_values() -> bool:
    """Whether checks that read tensor values run now."""
    return not torch.compiler.is_compiling() and _check_values.get()


def describe(x: object) -> str:
    """What came: shape and dtype of a tensor, type and value of anything else."""
    if isinstance(x, Tensor):
        return f"shape {list(x.shape)}, dtype {str(x.dtype).removeprefix('torch.')} on {x.device}"
    return f"{type(x).__name__} {x!r}"


def check_float(**tensors: Tensor) -> None:
    """Each argument must be a floating-point tensor with at least one entry."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {describe(x)}")
        if x.numel() == 0:
            raise ValueError(f"{name} must have at least one entry, got {describe(x)}")


def check_like(reference_name: str, reference: Tensor, **tensors: Tensor) -> None:
    """Each argument must share the reference's shape, dtype and device. Nothing is broadcast, cast or moved."""
    check_float(**{reference_name: reference}, **tensors)
    for name, x in tensors.items():
        if x.shape != reference.shape or x.dtype != reference.dtype or x.device != reference.device:
            raise ValueError(f"{name} must match {reference_name} in shape, dtype and device ({describe(reference)}), got {describe(x)}")


def check_flag(shape: torch.Size, device: torch.device, **tensors: Tensor) -> None:
    """Each argument must be a bool tensor of the given shape and device."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or x.dtype != torch.bool or x.shape != shape or x.device != device:
            raise ValueError(f"{name} must be a bool tensor of shape {list(shape)} on {device}, got {describe(x)}")


def check_mask(mask: Tensor | None, shape: torch.Size, device: torch.device, *, at_least: int = 1, of: str = "x") -> None:
    """`mask` must be None or a bool tensor of the given shape with at least `at_least` True entries; `of` names what it masks."""
    if mask is None:
        if math.prod(shape) < at_least:
            raise ValueError(f"{of} must have at least {at_least} entries, got shape {list(shape)}")
        return
    check_flag(shape, device, mask=mask)
    if reads_values() and (count := int(mask.sum())) < at_least:
        raise ValueError(f"mask must have at least {at_least} True entries, got {count} of {mask.numel()}")


def check_finite(mask: Tensor | None = None, **tensors: Tensor) -> None:
    """Each argument must be free of NaN and infinity, where `mask` (if any) is True."""
    if not reads_values():
        return
    for name, x in tensors.items():
        bad = ~torch.isfinite(x)
        if mask is not None:
            bad = bad & mask
        if bad.any():
            where = bad.nonzero()[0].tolist()
            raise ValueError(f"{name} must be finite, got {x[tuple(where)].item()} at index {where} ({int(bad.sum())} such)")


def check_logits(mask: Tensor | None = None, **tensors: Tensor) -> None:
    """Each argument holds logits: no NaN, no +infinity, and at least one finite entry per row (-infinity forbids an action)."""
    check_float(**tensors)
    for name, x in tensors.items():
        if x.ndim == 0:
            raise ValueError(f"{name} must have shape [..., actions], got {describe(x)}")
        check_mask(mask, x.shape[:-1], x.device)
        if not reads_values():
            continue
        bad = (x.isnan() | x.isposinf()).any(-1) | x.isneginf().all(-1)
        if mask is not None:
            bad = bad & mask
        if bad.any():
            raise ValueError(f"{name} must be finite (or -inf for a forbidden action, not for all), see row {bad.nonzero()[0].tolist()}")


def check_rollout(
    first_name: str,
    first: Tensor,  # [T, N]
    *flags: Tensor,  # [T, N] bool: terminated and, where it matters, truncated
    **tensors: Tensor,  # [T, N]
) -> None:
    """All arguments must be [T, N]: `first` and `tensors` floating point and alike, the flags bool."""
    check_float(**{first_name: first})
    if first.ndim != 2:
        raise ValueError(f"{first_name} must have shape [T, N], time first (x[:, None] for one environment), got {describe(first)}")
    check_like(first_name, first, **tensors)
    check_flag(first.shape, first.device, **dict(zip(("terminated", "truncated"), flags, strict=False)))


def check_unit_interval(**numbers: float) -> None:
    """Each argument must be a number in [0, 1]."""
    for name, x in numbers.items():
        if not is_number(x) or not 0.0 <= x <= 1.0:
            raise ValueError(f"{name} must be a number in [0, 1], got {describe(x)}")


def check_positive(**numbers: float) -> None:
    """Each argument must be a finite number above 0."""
    for name, x in numbers.items():
        if not is_number(x) or not (0.0 < x < math.inf):
            raise ValueError(f"{name} must be a finite number above 0, got {describe(x)}")


def check_nonnegative(**numbers: float) -> None:
    """Each argument must be a finite number of at least 0."""
    for name, x in numbers.items():
        if not is_number(x) or not 0.0 <= x < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {describe(x)}")


def check_number(**numbers: float) -> None:
    """Each argument must be a finite number."""
    for name, x in numbers.items():
        if not is_number(x) or not -math.inf < x < math.inf:
            raise ValueError(f"{name} must be a finite number, got {describe(x)}")


def check_count(**counts: int) -> None:
    """Each argument must be an int of at least 1."""
    for name, x in counts.items():
        if not isinstance(x, int) or isinstance(x, bool) or x < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {describe(x)}")


def check_bool(**flags: bool) -> None:
    """Each argument must be True or False, so that a tensor or a mask in the wrong place is not taken for yes."""
    for name, x in flags.items():
        if not isinstance(x, bool):
            raise ValueError(f"{name} must be True or False, got {describe(x)}")


def is_number(x: object) -> bool:
    """Whether x is an int or a float (a bool is neither here)."""
    return isinstance(x, int | float) and not isinstance(x, bool)
