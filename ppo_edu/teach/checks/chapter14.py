"""Checkers of chapter 14: the least time of a token step, the memory of what is trained, a surrogate for a sampler of other rounding."""

from collections.abc import Callable

import torch
from torch import Tensor

from ppo_edu.core import probability_ratio
from ppo_edu.teach.checks.engine import Case, CheckResult, keyword_only, run_check, with_gradients
from ppo_edu.teach.pitfalls import pitfalls_of


def token_step_seconds(
    weights: int, bytes_per_number: int, sequences: int, cache_bytes: int, *, bandwidth: float, matrix_rate: float
) -> float:
    """The roofline of a token step: it reads the weights once and each sequence's cache, and computes 2 operations per weight and token."""
    read = weights * bytes_per_number + sequences * cache_bytes
    return max(read / bandwidth, 2 * weights * sequences / matrix_rate)


def check_token_step_seconds(fn: Callable) -> CheckResult:
    """Exercise 14.2: `fn(weights, bytes_per_number, sequences, cache_bytes, *, bandwidth, matrix_rate) -> seconds`, no less is possible."""

    def case(title: str, sequences: int, cache_bytes: int, bytes_per_number: int = 2, matrix_rate: float = 1e6) -> Case:
        counts = {"weights": 1000, "bytes_per_number": bytes_per_number, "sequences": sequences, "cache_bytes": cache_bytes}
        return Case(title, counts | {"bandwidth": 1e4, "matrix_rate": matrix_rate})

    cases = [
        case("one sequence, no cache, a device that multiplies fast", 1, 0),
        case("two sequences, no cache", 2, 0),
        case("one sequence, both times equal", 1, 0, matrix_rate=1e4),
        case("one sequence, a cache as large as the weights", 1, 2000),
        case("three sequences, each with a cache, float32", 3, 1000, bytes_per_number=4),
        case("a batch that the operations bound", 500, 10),
    ]
    return run_check(
        "Exercise 14.2",
        fn,
        reference=token_step_seconds,
        cases=cases,
        pitfalls=pitfalls_of("token_step_seconds"),
        call=keyword_only("bandwidth", "matrix_rate"),
    )


def state_bytes(parameters: int, trained: int, *, own_reference: bool, decoding_copy: bool) -> int:
    """4 bytes per weight, 4 + 8 per trained one (gradient, Adam's moments), 4 for a copied reference, 2 for a bfloat16 copy."""
    return 4 * parameters + 12 * trained + 4 * parameters * (not own_reference) + 2 * parameters * decoding_copy


def check_state_bytes(fn: Callable) -> CheckResult:
    """Exercise 14.3: `fn(parameters, trained, *, own_reference, decoding_copy) -> bytes` that are there all the time."""

    def case(title: str, parameters: int, trained: int, own_reference: bool, decoding_copy: bool) -> Case:
        switches = {"own_reference": own_reference, "decoding_copy": decoding_copy}
        return Case(title, {"parameters": parameters, "trained": trained} | switches)

    cases = [
        case("a frozen model that is its own reference", 100, 0, True, False),
        case("all parameters trained, a frozen copy as reference, no decoding copy", 100, 100, False, False),
        case("all parameters trained, with a decoding copy", 100, 100, False, True),
        case("an adapter of 3 parameters on 100, its own reference", 103, 3, True, True),
        case("half of the parameters trained", 100, 50, False, True),
    ]
    return run_check(
        "Exercise 14.3",
        fn,
        reference=state_bytes,
        cases=cases,
        pitfalls=pitfalls_of("state_bytes"),
        call=keyword_only("own_reference", "decoding_copy"),
    )


def truncated_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, sampling_log_probs: Tensor, advantages: Tensor, *, clip_range: float, cap: float
) -> Tensor:
    """-mean(min(pi_old / mu, cap) * clipped surrogate around pi_old), for samples of mu."""
    ratio = probability_ratio(log_probs, old_log_probs)
    clipped = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    weight = torch.exp(old_log_probs - sampling_log_probs).clamp(max=cap)
    return -(weight * clipped).mean()


def check_truncated_surrogate(fn: Callable) -> CheckResult:
    """Exercise 14.4: `fn(log_probs, old_log_probs, sampling_log_probs, advantages, *, clip_range, cap) -> loss`, flat [N], by value and
    gradient in log_probs."""

    def case(title: str, log_probs: list[float], old: list[float], sampling: list[float], advantages: list[float]) -> Case:
        names = ("log_probs", "old_log_probs", "sampling_log_probs", "advantages")
        tensors = {name: torch.tensor(x) for name, x in zip(names, (log_probs, old, sampling, advantages), strict=True)}
        return Case(title, tensors | {"clip_range": 0.2, "cap": 2.0})

    cases = [
        case("one token, all three policies alike", [-1.0], [-1.0], [-1.0], [1.0]),
        case("the policy has moved out of the clip, the sampler is exact", [-0.5], [-1.0], [-1.0], [1.0]),
        case("the policy has not moved, the sampler was rounded", [-1.0], [-1.0], [-1.1], [1.0]),
        case("the sampler was rounded the other way", [-1.0], [-1.0], [-0.9], [-1.0]),
        case("a token that the sampler found far less likely", [-1.0, -2.0], [-1.0, -2.0], [-3.0, -2.0], [1.0, -1.0]),
        case("three tokens, all policies different", [-0.5, -1.6, -2.0], [-1.0, -1.5, -2.2], [-1.1, -1.4, -3.5], [1.0, -2.0, 0.5]),
    ]
    return run_check(
        "Exercise 14.4",
        fn,
        reference=truncated_surrogate,
        cases=cases,
        pitfalls=pitfalls_of("truncated_surrogate"),
        call=with_gradients(keyword_only("clip_range", "cap"), of=("log_probs",)),
    )
