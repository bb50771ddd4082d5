"""Kullback-Leibler divergence: exact for categoricals, estimated from samples, and the coefficients that weigh it."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ppo_edu.core.validation import check_finite, check_like, check_logits, check_nonnegative, check_positive, describe, is_number


def kl_categorical(
    logits_p: Tensor,  # [..., A]
    logits_q: Tensor,  # [..., A]
) -> Tensor:
    r"""Exact KL(p || q) of categorical distributions, in nats: sum_a p(a) * (log p(a) - log q(a)). Keeps autograd.

    Actions that p forbids contribute 0; an action that only q forbids makes it infinite.

    Source: Kullback & Leibler 1951; Cover & Thomas 2006, equation 2.26.
    Returns: [...]. Raises: ValueError naming the argument.
    """
    check_like("logits_p", logits_p, logits_q=logits_q)
    check_logits(logits_p=logits_p, logits_q=logits_q)
    log_p, log_q = torch.log_softmax(logits_p, -1), torch.log_softmax(logits_q, -1)
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(-1)


def kl_estimate(
    log_probs: Tensor,  # log pi(a|s) of actions sampled from pi
    ref_log_probs: Tensor,  # log pi_ref(a|s) of the same actions
    kind: Literal["k1", "k2", "k3"] = "k1",
) -> Tensor:
    r"""Estimates of KL(pi || pi_ref), one per sample; the samples must come from pi. Keeps autograd.

        log_ratio = log pi_ref - log pi
        k1 = -log_ratio                         unbiased, high variance, may be negative
        k2 = 0.5 * log_ratio^2                  biased, low variance, never negative
        k3 = exp(log_ratio) - 1 - log_ratio     unbiased, never negative; its variance can be infinite

    Source: Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html).
    As a *loss* the three differ from what they estimate: see chapter 13.
    Returns: shape of log_probs, in nats. Raises: ValueError naming the argument.
    """
    check_like("log_probs", log_probs, ref_log_probs=ref_log_probs)
    check_finite(log_probs=log_probs, ref_log_probs=ref_log_probs)
    log_ratio = ref_log_probs - log_probs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    if kind == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"kind must be 'k1', 'k2' or 'k3', got {kind!r}")


@dataclass(frozen=True)
class FixedKLCoefficient:
    """A KL coefficient that never changes. `value` is reward per nat, at least 0."""

    value: float

    def __post_init__(self) -> None:
        check_nonnegative(value=self.value)

    def updated(self, kl_per_sequence: float, n: int) -> "FixedKLCoefficient":
        """The coefficient after `n` more sequences whose mean KL was `kl_per_sequence` nats: unchanged."""
        return self


@dataclass(frozen=True)
class AdaptiveKLCoefficient:
    r"""A KL coefficient steered so that the KL per sequence meets a target.

        error  = clip(kl_per_sequence / target - 1, -0.2, 0.2)
        value' = value * (1 + error * n / horizon)

    `value`: reward per nat. `target`: nats per sequence (not per token). `horizon`: sequences over which a full error
    of 0.2 changes the value by 20 %; at least n, or the value could jump.

    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, whose K_beta is n / horizon.
    """

    value: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        check_nonnegative(value=self.value)
        check_positive(target=self.target, horizon=self.horizon)

    def updated(self, kl_per_sequence: float, n: int) -> "AdaptiveKLCoefficient":
        """The coefficient after `n` more sequences whose mean KL was `kl_per_sequence` nats."""
        if not is_number(kl_per_sequence) or not abs(kl_per_sequence) < float("inf"):
            raise ValueError(f"kl_per_sequence must be a finite number, got {describe(kl_per_sequence)}")
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= self.horizon:
            raise ValueError(f"n must be an int from 1 to horizon ({self.horizon}), got {describe(n)}")
        error = min(max(kl_per_sequence / self.target - 1.0, -0.2), 0.2)
        return replace(self, value=self.value * (1.0 + error * n / self.horizon))
