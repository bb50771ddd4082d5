"""The mathematics of PPO: pure functions on tensors, shared by classic control and language models."""

from ppo_edu.core.advantages import gae
from ppo_edu.core.diagnostics import approx_kl, clip_fraction, effective_sample_size, explained_variance
from ppo_edu.core.kl import AdaptiveKLCoefficient, FixedKLCoefficient, kl_categorical, kl_estimate
from ppo_edu.core.masking import masked_mean, masked_var, whiten
from ppo_edu.core.objectives import (
    clipped_surrogate_loss,
    entropy_bonus,
    policy_gradient_loss,
    probability_ratio,
    surrogate_loss,
    value_loss,
)
from ppo_edu.core.returns import discounted_return, lambda_return, n_step_return, td_residual
from ppo_edu.core.validation import value_checks

__all__ = [
    "AdaptiveKLCoefficient",
    "FixedKLCoefficient",
    "approx_kl",
    "clip_fraction",
    "clipped_surrogate_loss",
    "discounted_return",
    "effective_sample_size",
    "entropy_bonus",
    "explained_variance",
    "gae",
    "kl_categorical",
    "kl_estimate",
    "lambda_return",
    "masked_mean",
    "masked_var",
    "n_step_return",
    "policy_gradient_loss",
    "probability_ratio",
    "surrogate_loss",
    "td_residual",
    "value_checks",
    "value_loss",
    "whiten",
]
