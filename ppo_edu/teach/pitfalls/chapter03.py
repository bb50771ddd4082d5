"""Mistakes around baselines: the best one, one that has seen its own episode, gradients between actor and critic, entropy."""

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall
from ppo_edu.teach.pitfalls.padding import kept

# optimal_baseline: the number that makes the variance smallest ---------------------------------------------------------


@pitfall(
    "value-as-optimal-baseline",
    target="optimal_baseline",
    mistake="the plain mean reward, V: the best guess of the return, but not the baseline of smallest variance",
    symptom="none in the mean; once the policy prefers an action, more noise than needed",
    exposed_by="two arms of unequal probability: the optimal baseline weighs each reward by the other arm's probability",
)
def _mean_reward(probabilities: Tensor, rewards: Tensor) -> Tensor:
    return (probabilities * rewards).sum()


@pitfall(
    "baseline-not-weighted-by-the-policy",
    target="optimal_baseline",
    mistake="a mean over the actions weighted by the squared score alone, as if all actions were sampled equally often",
    symptom="actions that hardly ever happen rule the baseline; more noise than needed",
    exposed_by="an arm that is nearly certain",
)
def _not_sampled(probabilities: Tensor, rewards: Tensor) -> Tensor:
    weights = 1 - 2 * probabilities + probabilities.square().sum()
    return (weights * rewards).sum() / weights.sum()


@pitfall(
    "score-not-squared",
    target="optimal_baseline",
    mistake="a mean weighted by the norm of the score instead of its square",
    symptom="somewhat more noise than needed; nothing visible in the mean",
    exposed_by="the derivative of the variance at the result is not 0",
)
def _norm_not_squared(probabilities: Tensor, rewards: Tensor) -> Tensor:
    weights = probabilities * (1 - 2 * probabilities + probabilities.square().sum()).sqrt()
    return (weights * rewards).sum() / weights.sum()


@pitfall(
    "score-of-the-own-logit-only",
    target="optimal_baseline",
    mistake="a mean weighted by the score's own component (1 - pi(a))^2: the other logits move too when an action is taken",
    symptom="right for two actions, off for three and more",
    exposed_by="three arms",
)
def _own_component(probabilities: Tensor, rewards: Tensor) -> Tensor:
    weights = probabilities * (1 - probabilities).square()
    return (weights * rewards).sum() / weights.sum()


@pitfall(
    "score-of-the-probabilities",
    target="optimal_baseline",
    mistake="the baseline that is optimal if the probabilities themselves were the parameters, whose score is 1 / pi(a)",
    symptom="rare actions rule the baseline",
    exposed_by="an arm that is nearly certain",
)
def _probabilities_as_parameters(probabilities: Tensor, rewards: Tensor) -> Tensor:
    weights = 1 / probabilities
    return (weights * rewards).sum() / weights.sum()


# leave_one_out: a baseline from the batch that has not seen its own episode ---------------------------------------------


@pitfall(
    "batch-mean-as-baseline",
    target="leave_one_out",
    mistake="the mean of the whole batch, in which each episode's own return takes part",
    symptom="the gradient shrinks by the factor 1 - 1/B; with one episode it is 0",
    exposed_by="enumerating batches of two: the mean estimate is half of the gradient",
)
def _whole_batch(returns: Tensor) -> Tensor:
    return returns.mean().expand_as(returns).clone()


@pitfall(
    "leave-one-out-divided-by-all",
    target="leave_one_out",
    mistake="the sum of the other returns divided by the size of the whole batch",
    symptom="unbiased, but the baseline is too small by the factor 1 - 1/B",
    exposed_by="episodes of equal return must leave nothing over",
)
def _divided_by_all(returns: Tensor) -> Tensor:
    return (returns.sum() - returns) / len(returns)


@pitfall(
    "advantage-instead-of-baseline",
    target="leave_one_out",
    mistake="what is left of the return *after* the baseline is subtracted, not the baseline",
    symptom="subtracted once more, the weight of each episode is what the others returned",
    exposed_by="episodes of equal return: the baseline is that return, not 0",
)
def _already_subtracted(returns: Tensor) -> Tensor:
    return returns - (returns.sum() - returns) / (len(returns) - 1)


# actor_critic_loss: two losses in one graph -----------------------------------------------------------------------------


def _half_square(x: Tensor) -> Tensor:
    return 0.5 * x.square().mean()


@pitfall(
    "critic-trained-by-the-policy-loss",
    target="actor_critic_loss",
    mistake="a loss whose advantages are not detached: the policy loss trains the critic too",
    symptom="the critic settles above the truth by the policy's entropy over value_coef; explained variance hardly notices",
    exposed_by="the gradient of the policy loss with respect to the values must be 0",
    discussed="https://github.com/keras-team/keras-io/issues/194",
)
def _advantages_attached(log_probs: Tensor, values: Tensor, returns: Tensor, value_coef: float) -> Tensor:
    return -(log_probs * (returns - values)).mean() + value_coef * _half_square(values - returns)


@pitfall(
    "critic-target-carries-the-values",
    target="actor_critic_loss",
    mistake="a value loss whose target is advantages + values with the values still attached: its gradient cancels to exactly zero",
    symptom="the value loss is reported as usual and the critic never moves",
    exposed_by="the gradient of the value loss with respect to the values",
)
def _target_attached(log_probs: Tensor, values: Tensor, returns: Tensor, value_coef: float) -> Tensor:
    advantages = (returns - values).detach()
    return -(log_probs * advantages).mean() + value_coef * _half_square(values - (advantages + values))


@pitfall(
    "policy-loss-climbs-down",
    target="actor_critic_loss",
    mistake="a policy loss of the wrong sign (or advantages values - returns): minimising it makes good actions rarer",
    symptom="the return falls from the first update on",
    exposed_by="one step on an action that was better than expected must raise its probability",
)
def _policy_sign(log_probs: Tensor, values: Tensor, returns: Tensor, value_coef: float) -> Tensor:
    return (log_probs * (returns - values).detach()).mean() + value_coef * _half_square(values - returns)


@pitfall(
    "advantage-as-critic-target",
    target="actor_critic_loss",
    mistake="a critic trained towards the advantage instead of the return",
    symptom="the values settle at half of the truth",
    exposed_by="a critic that is right must not be moved",
)
def _advantage_target(log_probs: Tensor, values: Tensor, returns: Tensor, value_coef: float) -> Tensor:
    advantages = (returns - values).detach()
    return -(log_probs * advantages).mean() + value_coef * _half_square(values - advantages)


@pitfall(
    "value-loss-without-one-half",
    target="actor_critic_loss",
    mistake="a value loss without the factor 0.5, which doubles the weight of the critic",
    symptom="harmless alone; settings copied from elsewhere mean something else",
    exposed_by="the gradient with respect to a value is value_coef * (V - G) / B",
)
def _no_half(log_probs: Tensor, values: Tensor, returns: Tensor, value_coef: float) -> Tensor:
    return -(log_probs * (returns - values).detach()).mean() + value_coef * (values - returns).square().mean()


# entropy: how random the policy is --------------------------------------------------------------------------------------


@pitfall(
    "entropy-sign",
    target="entropy",
    mistake="the sum of p log p: minus the entropy",
    symptom="the bonus punishes randomness; entropy collapses faster with a larger coefficient",
    exposed_by="a fair coin has entropy +ln 2; one ascent step must raise it",
    discussed="https://github.com/LuEE-C/PPO-Keras/issues/4",
)
def _negative_entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    (logits,) = kept(mask, logits)
    log_probs = torch.log_softmax(logits, dim=-1)
    return (log_probs.exp() * log_probs).sum(-1).mean()


@pitfall(
    "entropy-of-the-logits",
    target="entropy",
    mistake="- sum p * logit: logits in the place of log-probabilities",
    symptom="grows without bound as all logits shift together; the bonus pushes them down for ever",
    exposed_by="a constant added to all logits changes nothing",
)
def _logits_for_log_probs(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    (logits,) = kept(mask, logits)
    return -(torch.softmax(logits, dim=-1) * logits).sum(-1).mean()


@pitfall(
    "entropy-in-bits",
    target="entropy",
    mistake="the entropy in bits (logarithm to base 2) instead of nats",
    symptom="the coefficient acts 1.44 times as strongly as published ones",
    exposed_by="a fair coin has 0.693 nats",
)
def _bits(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    (logits,) = kept(mask, logits)
    log_probs = torch.log_softmax(logits, dim=-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean() / 0.6931471805599453


@pitfall(
    "entropy-averaged-over-actions",
    target="entropy",
    mistake="a mean over states *and* actions: the entropy divided by the number of actions",
    symptom="the bonus fades as the number of actions grows; with a vocabulary it is nothing",
    exposed_by="a fair coin has 0.693 nats, not 0.347",
)
def _mean_over_actions(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    (logits,) = kept(mask, logits)
    log_probs = torch.log_softmax(logits, dim=-1)
    return -(log_probs.exp() * log_probs).mean()


@pitfall(
    "entropy-summed-over-states",
    target="entropy",
    mistake="a sum over the states of the batch instead of their mean",
    symptom="the bonus grows with the batch and drowns the reward",
    exposed_by="two copies of a state have the entropy of one",
)
def _sum_over_states(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    (logits,) = kept(mask, logits)
    log_probs = torch.log_softmax(logits, dim=-1)
    return -(log_probs.exp() * log_probs).sum()
