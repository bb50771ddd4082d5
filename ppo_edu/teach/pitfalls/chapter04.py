"""Mistakes in the parts of the advantage estimator: the residual, the weights of the n-step returns, the folded bootstrap."""

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall

# td_residual: the surprise of one step --------------------------------------------------------------------------------


def _future(next_values: Tensor, terminated: Tensor) -> Tensor:
    return torch.where(terminated, 0.0, next_values)


@pitfall(
    "residual-bootstraps-at-termination",
    target="td_residual",
    mistake="a residual that bootstraps at a terminal state, where there is no future",
    symptom="failing looks no worse than going on; the critic's values drift upwards",
    exposed_by="a terminal row",
)
def _bootstrap_at_termination(rewards, values, next_values, terminated, *, gamma):
    return rewards + gamma * next_values - values


@pitfall(
    "residual-reward-sign-reversed",
    target="td_residual",
    mistake="V(s) + gamma V(s') - r: the reward enters as a cost",
    symptom="the policy avoids reward",
    exposed_by="a reward of 1 with values of 0",
)
def _reward_as_cost(rewards, values, next_values, terminated, *, gamma):
    return values + gamma * _future(next_values, terminated) - rewards


@pitfall(
    "residual-negated",
    target="td_residual",
    mistake="expected minus got: the residual with its sign reversed",
    symptom="good surprises are punished; a target of residual + value drives the critic away from the truth as well",
    exposed_by="a reward of 1 with values of 0",
)
def _negated(rewards, values, next_values, terminated, *, gamma):
    return values - rewards - gamma * _future(next_values, terminated)


@pitfall(
    "target-for-residual",
    target="td_residual",
    mistake="the one-step target r + gamma V(s'): what was expected is not subtracted",
    symptom="the critic's target, residual + value, holds the value twice and climbs; the variance is that of no baseline",
    exposed_by="a state whose value is not 0",
)
def _target_only(rewards, values, next_values, terminated, *, gamma):
    return rewards + gamma * _future(next_values, terminated)


@pitfall(
    "residual-without-successor",
    target="td_residual",
    mistake="r - V(s): the value of the next state is missing, and one reward is not a return",
    symptom="the policy grabs what is near; rewards further off are never found",
    exposed_by="a successor that has a value",
)
def _no_successor(rewards, values, next_values, terminated, *, gamma):
    return rewards - values


@pitfall(
    "residual-multiplies-nan",
    target="td_residual",
    mistake="a residual that multiplies by (1 - terminated) instead of choosing with `where`: 0 * nan is nan",
    symptom="one undefined value at a terminal state turns the whole rollout into NaN",
    exposed_by="NaN as the value after a terminal row",
)
def _product(rewards, values, next_values, terminated, *, gamma):
    return rewards + gamma * (~terminated).to(rewards.dtype) * next_values - values


# lambda_weights: how much each n-step return counts in the lambda-return ----------------------------------------------


def _geometric(length: int, lam: float) -> Tensor:
    """1, lam, lam^2, ..."""
    return lam ** torch.arange(length, dtype=torch.float64)


@pitfall(
    "remaining-weight-dropped",
    target="lambda_weights",
    mistake="(1 - lambda) lambda^(n-1) for every n, the last one too: the weights do not sum to 1",
    symptom="returns come out too small towards the end of each episode; at lambda 1 everything is 0",
    exposed_by="the sum of the weights",
)
def _rest_dropped(length: int, lam: float) -> Tensor:
    return (1 - lam) * _geometric(length, lam)


@pitfall(
    "remaining-weight-spread-out",
    target="lambda_weights",
    mistake="geometric weights divided by their sum: the remaining weight is spread over all n instead of going to the longest",
    symptom="lambda 1 is a plain mean of all n-step returns and no longer Monte Carlo, so that the critic's error stays in",
    exposed_by="lambda 1 must give the longest return alone",
)
def _normalised(length: int, lam: float) -> Tensor:
    weights = _geometric(length, lam)
    return weights / weights.sum()


@pitfall(
    "weights-of-the-residuals",
    target="lambda_weights",
    mistake="lambda^(n-1): the weights of the (discounted) residuals, not of the n-step returns",
    symptom="targets several times too large",
    exposed_by="the sum of the weights",
)
def _residual_weights(length: int, lam: float) -> Tensor:
    return _geometric(length, lam)


@pitfall(
    "lambda-backwards",
    target="lambda_weights",
    mistake="the weights with lambda and 1 - lambda exchanged: lambda 0 gives Monte Carlo and lambda 1 gives TD",
    symptom="the usual setting of 0.95 hardly looks past one step",
    exposed_by="lambda 0 must give the one-step return alone",
)
def _backwards(length: int, lam: float) -> Tensor:
    weights = lam * _geometric(length, 1 - lam)
    weights[-1] = (1 - lam) ** (length - 1)
    return weights


@pitfall(
    "weights-from-the-power-one",
    target="lambda_weights",
    mistake="(1 - lambda) lambda^n: the exponent starts at 1, and what is missing is given to the longest return",
    symptom="the critic is trusted less than lambda says; lambda 0 has no one-step return in it",
    exposed_by="lambda 0 must give the one-step return alone",
)
def _exponent_off_by_one(length: int, lam: float) -> Tensor:
    weights = (1 - lam) * lam * _geometric(length, lam)
    weights[-1] = 1 - weights[:-1].sum()
    return weights


# sb3_rewards: the bootstrap of a time limit folded into the reward ----------------------------------------------------


@pitfall(
    "folds-at-every-end",
    target="sb3_rewards",
    mistake="a bootstrap added at every end, terminal states included: the value of nothing",
    symptom="failing is worth as much as going on",
    exposed_by="a terminal row",
)
def _fold_at_done(rewards, next_values, terminated, truncated, *, gamma):
    return torch.where(terminated | truncated, rewards + gamma * next_values, rewards)


@pitfall(
    "folds-without-gamma",
    target="sb3_rewards",
    mistake="the final value added without gamma: it lies one step ahead",
    symptom="reaching the time limit looks slightly better than it is, by (1 - gamma) V",
    exposed_by="a truncated row with gamma below 1",
)
def _fold_undiscounted(rewards, next_values, terminated, truncated, *, gamma):
    return torch.where(truncated & ~terminated, rewards + next_values, rewards)


@pitfall(
    "folds-everywhere",
    target="sb3_rewards",
    mistake="the next state's value added on every row that has one: inside an episode the recursion adds it a second time",
    symptom="values grow without bound",
    exposed_by="a row inside an episode",
)
def _fold_everywhere(rewards, next_values, terminated, truncated, *, gamma):
    return torch.where(terminated, rewards, rewards + gamma * next_values)


@pitfall(
    "folds-where-both-flags-are-set",
    target="sb3_rewards",
    mistake="a bootstrap on rows that are terminated *and* truncated: a fall on the last allowed step is still a fall",
    symptom="rare: failures in the very last step go unpunished",
    exposed_by="a row with both flags",
    discussed="https://github.com/DexForce/EmbodiChain/pull/612",
)
def _fold_with_both_flags(rewards, next_values, terminated, truncated, *, gamma):
    return torch.where(truncated, rewards + gamma * next_values, rewards)


@pitfall(
    "folds-by-a-product",
    target="sb3_rewards",
    mistake="the bootstrap multiplied by a flag instead of chosen with `where`: 0 * nan is nan",
    symptom="one undefined value at a terminal state turns the whole rollout into NaN",
    exposed_by="NaN as the value after a terminal row",
)
def _fold_by_product(rewards, next_values, terminated, truncated, *, gamma):
    return rewards + gamma * (truncated & ~terminated).to(rewards.dtype) * next_values
