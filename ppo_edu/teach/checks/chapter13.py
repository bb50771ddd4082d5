"""Checkers of chapter 13: rewards per token, whitening under a mask, the KL as a loss, a loss computed in parts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppo_edu.core import kl_estimate, masked_mean, whiten
from ppo_edu.teach.checks.engine import Case, CheckResult, keyword_only, run_check, with_gradients
from ppo_edu.teach.pitfalls import pitfalls_of


def _mask(lengths: Sequence[int]) -> Tensor:
    """[B, T] bool: True on the first `lengths[b]` tokens of each row."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def token_rewards(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """The score on the last real token, and on each real token the penalty -kl_coef * (log pi - log pi_ref)."""
    steps = torch.arange(mask.shape[1])
    is_last = steps == mask.sum(1, keepdim=True) - 1
    penalised = torch.where(is_last, scores[:, None], 0.0) - kl_coef * (log_probs - ref_log_probs)
    return torch.where(mask, penalised, 0.0)


def check_token_rewards(fn: Callable) -> CheckResult:
    """Exercise 13.2: `fn(scores [B], log_probs [B, T], ref_log_probs [B, T], mask [B, T], *, kl_coef) -> [B, T]`, padding 0."""

    def case(title: str, scores: list[float], ratios: list[list[float]], lengths: list[int], kl_coef: float) -> Case:
        log_ratios = torch.tensor(ratios)
        tensors = {"scores": torch.tensor(scores), "log_probs": log_ratios - 2.0, "ref_log_probs": torch.full_like(log_ratios, -2.0)}
        return Case(title, tensors | {"mask": _mask(lengths), "kl_coef": kl_coef})

    cases = [
        case("one response of one token, no price on KL", [1.0], [[0.5]], [1], 0.0),
        case("two tokens, no price on KL", [1.0], [[0.5, 0.5]], [2], 0.0),
        case("one token that the policy likes more than the reference", [0.0], [[0.5]], [1], 0.1),
        case("one token that the policy likes less", [0.0], [[-0.5]], [1], 0.1),
        case("two tokens, KL on both", [2.0], [[0.5, 1.0]], [2], 0.2),
        case("a short response beside a long one, no price on KL", [1.0, 2.0], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [1, 3], 0.0),
        case("something stands in the padding", [1.0, -1.0], [[0.5, -0.3, 7.0], [0.2, 0.1, -0.4]], [2, 3], 0.5),
    ]
    return run_check(
        "Exercise 13.2",
        fn,
        reference=token_rewards,
        cases=cases,
        pitfalls=pitfalls_of("token_rewards"),
        call=keyword_only("kl_coef"),
    )


def check_masked_whitening(fn: Callable) -> CheckResult:
    """Exercise 13.3: `fn(advantages [B, T], mask [B, T]) -> [B, T]`: mean 0, standard deviation 1 over the real tokens, padding 0."""

    def case(title: str, advantages: list[list[float]], lengths: list[int]) -> Case:
        return Case(title, {"advantages": torch.tensor(advantages), "mask": _mask(lengths)})

    cases = [
        case("two responses, no padding, mean 0", [[1.0, -1.0], [2.0, -2.0]], [2, 2]),
        case("two responses, no padding", [[1.0, 3.0], [5.0, 9.0]], [2, 2]),
        case("a short response, zeros in the padding", [[4.0, 0.0, 0.0], [1.0, 2.0, 3.0]], [1, 3]),
        case("a short response, something in the padding", [[4.0, 2.0, 50.0], [1.0, -2.0, 3.0]], [2, 3]),
    ]
    return run_check("Exercise 13.3", fn, reference=whiten, cases=cases, pitfalls=pitfalls_of("masked_whitening"))


def kl_loss(log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor) -> Tensor:
    """k2 of whole responses, weighted by their detached ratio, summed and divided by the number of tokens."""
    total, old, reference = (torch.where(mask, x, 0.0).sum(1) for x in (log_probs, old_log_probs, ref_log_probs))
    weight = torch.exp(total - old).detach()
    return (weight * kl_estimate(total, reference.detach(), "k2")).sum() / mask.sum()


def check_kl_loss(fn: Callable) -> CheckResult:
    """Exercise 13.4: `fn(log_probs, old_log_probs, ref_log_probs, mask) -> loss`, all [B, T], by value and gradient in log_probs."""

    def case(title: str, log_probs: list, old_log_probs: list, ref_log_probs: list, lengths: list[int]) -> Case:
        names = ("log_probs", "old_log_probs", "ref_log_probs")
        tensors = {name: torch.tensor(x) for name, x in zip(names, (log_probs, old_log_probs, ref_log_probs), strict=True)}
        return Case(title, tensors | {"mask": _mask(lengths)})

    cases = [
        case("one token, the policy where it sampled", [[-1.0]], [[-1.0]], [[-2.0]], [1]),
        case("one token, the policy has moved", [[-1.0]], [[-1.5]], [[-2.0]], [1]),
        case("two tokens, the policy where it sampled", [[-1.0, -0.5]], [[-1.0, -0.5]], [[-2.0, -1.0]], [2]),
        case(
            "two responses, padding, moved",
            [[-1.0, -0.5, -9.0], [-1.0, -2.0, -0.1]],
            [[-1.2, -0.4, -3.0], [-0.8, -1.9, -0.2]],
            [[-2.0, -0.3, -5.0], [-0.5, -1.0, -0.7]],
            [2, 3],
        ),
    ]
    return run_check(
        "Exercise 13.4",
        fn,
        reference=kl_loss,
        cases=cases,
        pitfalls=pitfalls_of("kl_loss"),
        call=with_gradients(of=("log_probs",)),
    )


def accumulated_loss(losses: Tensor, mask: Tensor, parts: int) -> Tensor:
    """The masked mean, whatever the number of parts."""
    return masked_mean(losses, mask)


def check_accumulated_loss(fn: Callable) -> CheckResult:
    """Exercise 13.5: `fn(losses [B, T], mask [B, T], parts) -> scalar`: rows in consecutive parts, the sum is the mean over all tokens."""

    def case(title: str, losses: list[list[float]], lengths: list[int], parts: int) -> Case:
        return Case(title, {"losses": torch.tensor(losses), "mask": _mask(lengths), "parts": parts})

    four = [[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [5.0, 6.0, 0.0], [7.0, 0.0, 0.0]]
    cases = [
        case("one response, one part", [[1.0, 3.0]], [2], 1),
        case("two responses of equal length, one part", [[1.0, 3.0], [5.0, 7.0]], [2, 2], 1),
        case("the same in two parts", [[1.0, 3.0], [5.0, 7.0]], [2, 2], 2),
        case("a short and a long response, one part", [[1.0, 3.0], [5.0, 0.0]], [2, 1], 1),
        case("the same in two parts", [[1.0, 3.0], [5.0, 0.0]], [2, 1], 2),
        case("four responses in two parts", four, [3, 1, 2, 1], 2),
    ]
    return run_check("Exercise 13.5", fn, reference=accumulated_loss, cases=cases, pitfalls=pitfalls_of("accumulated_loss"))
