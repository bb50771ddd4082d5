"""Exercise checkers: `check_NAME(your_function)` runs it on small cases, shows the smallest one that fails, and, where the
wrong answer is a known one, names the mistake.

A checker runs nothing but the function it is given, on copies of its cases; exceptions, wrong types and shapes, and changes to
the arguments are reported, not raised. It looks at the clock between cases and stops a slow function there.
"""

from collections.abc import Callable

from ppo_edu.teach.checks.chapter01 import check_advantages, check_state_values, check_value_iteration
from ppo_edu.teach.checks.chapter02 import check_pooled_loss, check_reward_to_go, check_score
from ppo_edu.teach.checks.chapter03 import check_actor_critic_loss, check_entropy, check_leave_one_out, check_optimal_baseline
from ppo_edu.teach.checks.chapter04 import check_lambda_weights, check_sb3_rewards, check_td_residual
from ppo_edu.teach.checks.chapter05 import check_effective_sample_size, check_kl_penalty_update, check_natural_step
from ppo_edu.teach.checks.chapter06 import check_dual_clip, check_g_form, check_value_clip
from ppo_edu.teach.checks.chapter07 import check_annealed, check_explained_variance, check_valid_rows
from ppo_edu.teach.checks.chapter08 import check_interquartile_mean, check_probability_of_improvement
from ppo_edu.teach.checks.chapter09 import check_critic_report, check_ratio_statistics
from ppo_edu.teach.checks.chapter10 import check_gaussian_log_prob, check_running_moments, check_squashed_log_prob
from ppo_edu.teach.checks.chapter11 import check_position_ids, check_response_log_probs, check_response_mask
from ppo_edu.teach.checks.chapter12 import check_last_token_score, check_preference_loss
from ppo_edu.teach.checks.chapter13 import check_accumulated_loss, check_kl_loss, check_masked_whitening, check_token_rewards
from ppo_edu.teach.checks.chapter14 import check_state_bytes, check_token_step_seconds, check_truncated_surrogate
from ppo_edu.teach.checks.core import (
    check_clipped_surrogate,
    check_discounted_return,
    check_gae,
    check_kl_estimate,
    check_policy_gradient,
)
from ppo_edu.teach.checks.engine import Case, CheckResult, run_check

__all__ = [
    "CHECKERS",
    "Case",
    "CheckResult",
    "check_accumulated_loss",
    "check_actor_critic_loss",
    "check_advantages",
    "check_annealed",
    "check_clipped_surrogate",
    "check_critic_report",
    "check_discounted_return",
    "check_dual_clip",
    "check_effective_sample_size",
    "check_entropy",
    "check_explained_variance",
    "check_g_form",
    "check_gae",
    "check_gaussian_log_prob",
    "check_interquartile_mean",
    "check_kl_estimate",
    "check_kl_loss",
    "check_kl_penalty_update",
    "check_lambda_weights",
    "check_last_token_score",
    "check_leave_one_out",
    "check_masked_whitening",
    "check_natural_step",
    "check_optimal_baseline",
    "check_policy_gradient",
    "check_pooled_loss",
    "check_position_ids",
    "check_preference_loss",
    "check_probability_of_improvement",
    "check_ratio_statistics",
    "check_response_log_probs",
    "check_response_mask",
    "check_reward_to_go",
    "check_running_moments",
    "check_sb3_rewards",
    "check_score",
    "check_squashed_log_prob",
    "check_state_bytes",
    "check_state_values",
    "check_td_residual",
    "check_token_rewards",
    "check_token_step_seconds",
    "check_truncated_surrogate",
    "check_valid_rows",
    "check_value_clip",
    "check_value_iteration",
    "run_check",
]

# By the name of the function that each one checks, which is also the `target` of its pitfalls.
CHECKERS: dict[str, Callable[[Callable], CheckResult]] = {
    name.removeprefix("check_"): globals()[name] for name in __all__ if name.startswith("check_")
}
