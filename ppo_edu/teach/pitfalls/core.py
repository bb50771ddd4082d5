"""Mistakes in the mathematics of `ppo_edu.core`: returns, advantages, losses, the KL divergence, masks, diagnostics."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from ppo_edu.core.validation import check_float
from ppo_edu.teach.pitfalls.catalogue import pitfall
from ppo_edu.teach.pitfalls.padding import kept

# gae: advantages from rewards, values and the two flags --------------------------------------------------------------


def _backward_sum(deltas: Tensor, cut: Tensor, factor: float) -> Tensor:
    """sums_t = deltas_t + factor * sums_{t+1}, where `cut` nothing flows back."""
    sums = torch.empty_like(deltas)
    following = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        following = deltas[t] + factor * torch.where(cut[t], 0.0, following)
        sums[t] = following
    return sums


def _deltas(rewards: Tensor, values: Tensor, next_values: Tensor, no_future: Tensor, gamma: float) -> Tensor:
    return rewards + gamma * torch.where(no_future, 0.0, next_values) - values


@pitfall(
    "truncation-as-termination",
    target="gae",
    mistake="GAE with truncation treated as termination: nothing is bootstrapped at a time limit",
    symptom="the better the policy, the more episodes reach the limit, and the lower their last states are valued",
    exposed_by="an episode cut on a row whose successor has a value",
    discussed="https://github.com/vwxyzjn/cleanrl/issues/457",
)
def _truncation_as_termination(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    done = terminated | truncated
    return _backward_sum(_deltas(rewards, values, next_values, done, gamma), done, gamma * lam)


@pitfall(
    "termination-as-truncation",
    target="gae",
    mistake="GAE with termination treated as truncation: it bootstraps at a terminal state, where there is no future",
    symptom="failing looks no worse than going on; the critic's values drift upwards",
    exposed_by="a terminal row, also as the last row of the rollout",
    discussed="https://github.com/thu-ml/tianshou/issues/869",
)
def _termination_as_truncation(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    none = torch.zeros_like(terminated)
    return _backward_sum(_deltas(rewards, values, next_values, none, gamma), terminated | truncated, gamma * lam)


@pitfall(
    "ends-ignored",
    target="gae",
    mistake="GAE that ignores both flags: it bootstraps at terminal states, and the next episode flows back into this one",
    symptom="advantages depend on an episode that has nothing to do with them",
    exposed_by="an end in the middle of the rollout",
    discussed="https://github.com/walkinglabs/hands-on-modern-rl/issues/63",
)
def _ends_ignored(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    none = torch.zeros_like(terminated)
    return _backward_sum(_deltas(rewards, values, next_values, none, gamma), none, gamma * lam)


@pitfall(
    "trace-crosses-the-end",
    target="gae",
    mistake="GAE whose residuals stop at the end of an episode, while its trace does not: the next episode's advantage flows back",
    symptom="advantages before an end depend on the episode after it",
    exposed_by="change the next episode: nothing before the end may move",
    discussed="https://github.com/vietnh1009/Super-mario-bros-PPO-pytorch/issues/21",
)
def _trace_crosses_the_end(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    return _backward_sum(_deltas(rewards, values, next_values, terminated, gamma), torch.zeros_like(terminated), gamma * lam)


@pitfall(
    "trace-crosses-a-truncation",
    target="gae",
    mistake="GAE whose trace is cut where `terminated` only: over a truncation the next episode's advantage flows back",
    symptom="advantages before a time limit depend on the episode after it",
    exposed_by="change what follows a truncation: nothing before it may move",
    discussed="https://github.com/Toni-SM/skrl/issues/449",
)
def _trace_crosses_a_truncation(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    return _backward_sum(_deltas(rewards, values, next_values, terminated, gamma), terminated, gamma * lam)


@pitfall(
    "trace-without-lambda",
    target="gae",
    mistake="GAE with gamma alone in the trace: lambda is missing, so it is always the Monte Carlo end",
    symptom="noisy advantages, and lambda changes nothing",
    exposed_by="lambda 0 must give the residuals",
)
def _trace_without_lambda(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    return _backward_sum(_deltas(rewards, values, next_values, terminated, gamma), terminated | truncated, gamma)


@pitfall(
    "trace-without-gamma",
    target="gae",
    mistake="GAE with lambda alone in the trace: gamma is missing",
    symptom="later rewards count too much; at lambda 1 the result is no discounted return",
    exposed_by="two rows with gamma below 1",
)
def _trace_without_gamma(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    return _backward_sum(_deltas(rewards, values, next_values, terminated, gamma), terminated | truncated, lam)


@pitfall(
    "advantages-summed-forwards",
    target="gae",
    mistake="residuals summed forwards in time: each step is credited with what came before it",
    symptom="actions are blamed for the past; learning does not get off the ground",
    exposed_by="a single reward on the last row",
)
def _advantages_summed_forwards(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    deltas = _deltas(rewards, values, next_values, terminated, gamma)
    done = terminated | truncated
    started = torch.cat([torch.ones_like(done[:1]), done[:-1]])
    return _backward_sum(deltas.flip(0), started.flip(0), gamma * lam).flip(0)


@pitfall(
    "advantages-shifted-by-one",
    target="gae",
    mistake="GAE shifted by one row: step t gets the advantage of step t + 1",
    symptom="credit goes to the action before the right one; slow or no learning",
    exposed_by="a single row",
)
def _advantages_shifted(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    deltas = _deltas(rewards, values, next_values, terminated, gamma)
    advantages = _backward_sum(deltas, terminated | truncated, gamma * lam)
    return torch.cat([advantages[1:], torch.zeros_like(advantages[:1])])


@pitfall(
    "reward-minus-value",
    target="gae",
    mistake="reward minus value, r - V(s): one reward is not a return",
    symptom="the policy grabs what is near; rewards further off are never found",
    exposed_by="a successor that has a value",
)
def _reward_minus_value(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    return rewards - values


@pitfall(
    "value-sign-reversed",
    target="gae",
    mistake="GAE from residuals of the wrong sign, V(s) + gamma V(s') - r: reward enters as a cost",
    symptom="values feed on themselves and run off without bound, and the policy avoids reward",
    exposed_by="a reward of 1 with values of 0",
)
def _value_sign_reversed(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    deltas = values + gamma * torch.where(terminated, 0.0, next_values) - rewards
    return _backward_sum(deltas, terminated | truncated, gamma * lam)


@pitfall(
    "lambda-return-for-advantage",
    target="gae",
    mistake="the lambda-return: V(s) was not subtracted in the end (or was added to the advantages)",
    symptom="the target, advantages + values, holds the value twice: values climb beyond any return; the variance is that of no baseline",
    exposed_by="a state whose value is not 0",
)
def _lambda_return(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    deltas = _deltas(rewards, values, next_values, terminated, gamma)
    return _backward_sum(deltas, terminated | truncated, gamma * lam) + values


@pitfall(
    "product-lets-nan-through",
    target="gae",
    mistake="GAE that multiplies by (1 - terminated) instead of choosing with `where`: 0 * nan is nan",
    symptom="one undefined value at a terminal state turns the whole rollout into NaN",
    exposed_by="NaN as the value after a terminal row",
)
def _product(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    future = (~terminated).to(rewards.dtype) * next_values
    return _backward_sum(rewards + gamma * future - values, terminated | truncated, gamma * lam)


@pitfall(
    "changes-next-values-in-place",
    target="gae",
    mistake="GAE that writes into the caller's `next_values`: right this time, but the data is changed for whoever uses it next",
    symptom="nothing until something else reads `next_values`, and finds 0 at terminal states",
    exposed_by="the arguments before and after the call",
)
def _in_place(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    next_values[terminated] = 0.0
    return _backward_sum(rewards + gamma * next_values - values, terminated | truncated, gamma * lam)


@pitfall(
    "bootstraps-from-the-reset-state",
    target="gae",
    mistake="GAE with values[t + 1] in place of next_values[t]: after a truncation that is the value of another episode's first state",
    symptom="nothing where a reset has a row of its own, as in Gymnasium; else the last states of cut episodes are valued like first ones",
    exposed_by="a truncation in the middle of the rollout",
)
def _values_shifted(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    shifted = torch.cat([values[1:], next_values[-1:]])
    return _backward_sum(_deltas(rewards, values, shifted, terminated, gamma), terminated | truncated, gamma * lam)


@pitfall(
    "last-row-not-bootstrapped",
    target="gae",
    mistake="GAE that takes the last row of the rollout for the end of an episode: its successor's value is missing",
    symptom="the shorter the rollout, the more the future is undervalued",
    exposed_by="a single row that ends nothing",
    discussed="https://github.com/DLR-RM/stable-baselines3/pull/185",
)
def _last_row_not_bootstrapped(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    no_future = terminated.clone()
    no_future[-1] |= ~truncated[-1]
    return _backward_sum(_deltas(rewards, values, next_values, no_future, gamma), terminated | truncated, gamma * lam)


@pitfall(
    "terminal-last-row-bootstrapped",
    target="gae",
    mistake="GAE that bootstraps at the last row of the rollout although the episode terminated there: the value of nothing",
    symptom="failures that happen to fall on the end of a rollout go unpunished",
    exposed_by="a terminal row as the last row of the rollout",
    discussed="https://github.com/openai/spinningup/pull/233",
)
def _terminal_last_row(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    no_future = torch.cat([terminated[:-1], torch.zeros_like(terminated[-1:])])
    return _backward_sum(_deltas(rewards, values, next_values, no_future, gamma), terminated | truncated, gamma * lam)


@pitfall(
    "advantages-carry-gradient",
    target="ppo_edu.core.advantages.gae",
    mistake="the right advantages with the values' graph still attached: what is computed from them moves the critic",
    symptom="nothing where values are stored without a graph, as here; else the policy's loss trains the critic, whose target moves along",
    exposed_by="the gradient with respect to the values must be 0",
)
def _attached(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    return _backward_sum(_deltas(rewards, values, next_values, terminated, gamma), terminated | truncated, gamma * lam)


# discounted_return: reward-to-go with the two flags -------------------------------------------------------------------


def _returns(rewards: Tensor, terminated: Tensor, cut: Tensor, bootstrap: Tensor | None, gamma: float) -> Tensor:
    """Reward-to-go that takes `bootstrap` where `cut`, and nothing where `terminated`."""
    if bootstrap is None:
        bootstrap = torch.zeros_like(rewards)
    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        future = torch.where(terminated[t], 0.0, torch.where(cut[t], bootstrap[t], following))
        following = rewards[t] + gamma * future
        returns[t] = following
    return returns


def _and_last_row(flag: Tensor) -> Tensor:
    return torch.cat([flag[:-1], torch.ones_like(flag[-1:])])


@pitfall(
    "returns-summed-forwards",
    target="discounted_return",
    mistake="rewards summed forwards in time: each step is credited with the past",
    symptom="late actions look best, whatever they did",
    exposed_by="rewards 0, 0, 1",
    discussed="https://github.com/PacktPublishing/Tensorflow-2-Reinforcement-Learning-Cookbook/issues/27",
)
def _returns_forwards(rewards, terminated, truncated, *, gamma, bootstrap=None):
    done = terminated | truncated
    started = torch.cat([torch.ones_like(done[:1]), done[:-1]])
    return _backward_sum(rewards.flip(0), started.flip(0), gamma).flip(0)


@pitfall(
    "returns-shifted-by-one",
    target="discounted_return",
    mistake="returns shifted by one row: the step's own reward is missing",
    symptom="an action never sees the reward that it earned",
    exposed_by="a single row",
    discussed="https://github.com/openai/spinningup/issues/50",
)
def _returns_shifted(rewards, terminated, truncated, *, gamma, bootstrap=None):
    returns = _returns(rewards, terminated, _and_last_row(truncated), bootstrap, gamma)
    return torch.cat([returns[1:], torch.zeros_like(returns[:1])])


@pitfall(
    "immediate-reward-only",
    target="discounted_return",
    mistake="the immediate reward alone: the future is missing",
    symptom="the policy and the critic see one step far",
    exposed_by="rewards 0, 0, 1",
    discussed="https://github.com/hunkim/ReinforcementZeroToAll/issues/1",
)
def _immediate_reward(rewards, terminated, truncated, *, gamma, bootstrap=None):
    return rewards.clone()


@pitfall(
    "returns-undiscounted",
    target="discounted_return",
    mistake="the sum of the rewards to come, without gamma",
    symptom="values grow with the length of the episode",
    exposed_by="two rows with gamma below 1",
)
def _undiscounted(rewards, terminated, truncated, *, gamma, bootstrap=None):
    return _returns(rewards, terminated, _and_last_row(truncated), bootstrap, 1.0)


@pitfall(
    "returns-cross-the-end",
    target="discounted_return",
    mistake="returns that run on through the ends of episodes",
    symptom="an episode is credited with the next one's rewards",
    exposed_by="an end in the middle of the rollout",
)
def _returns_cross(rewards, terminated, truncated, *, gamma, bootstrap=None):
    none = torch.zeros_like(terminated)
    return _returns(rewards, none, _and_last_row(none), bootstrap, gamma)


@pitfall(
    "discounted-from-the-first-row",
    target="discounted_return",
    mistake="rewards discounted from the first row of the rollout (gamma^t r_t summed), not from the step that asks",
    symptom="the later a row in the rollout, the less it counts and the lower its target",
    exposed_by="the last row's return is its own reward",
)
def _discounted_from_the_start(rewards, terminated, truncated, *, gamma, bootstrap=None):
    returns = _returns(rewards, terminated, _and_last_row(truncated), bootstrap, gamma)
    return returns * (gamma ** torch.arange(len(rewards), dtype=rewards.dtype))[:, None]


@pitfall(
    "return-of-the-whole-rollout",
    target="discounted_return",
    mistake="the first row's return, given to every row: an action is credited with rewards from before it",
    symptom="unbiased where one rollout is one episode, but needlessly noisy; wrong with several episodes",
    exposed_by="two rows: the second must not see the first one's reward",
    discussed="https://github.com/huggingface/deep-rl-class/pull/95",
)
def _whole_rollout(rewards, terminated, truncated, *, gamma, bootstrap=None):
    return _returns(rewards, terminated, _and_last_row(truncated), bootstrap, gamma)[:1].expand_as(rewards).clone()


@pitfall(
    "returns-bootstrap-at-termination",
    target="discounted_return",
    mistake="returns that bootstrap at a terminal state, where there is no future",
    symptom="failing is worth as much as going on",
    exposed_by="a terminal row with a bootstrap value",
)
def _bootstrap_at_termination(rewards, terminated, truncated, *, gamma, bootstrap=None):
    return _returns(rewards, torch.zeros_like(terminated), _and_last_row(terminated | truncated), bootstrap, gamma)


@pitfall(
    "returns-truncation-as-termination",
    target="discounted_return",
    mistake="returns with truncation treated as termination: the value of the cut-off future is missing",
    symptom="the last states before a time limit look worthless",
    exposed_by="a truncated row with a bootstrap value",
    discussed="https://arxiv.org/abs/1712.00378",
)
def _truncation_not_bootstrapped(rewards, terminated, truncated, *, gamma, bootstrap=None):
    return _returns(rewards, terminated | truncated, _and_last_row(truncated), bootstrap, gamma)


@pitfall(
    "returns-last-row-as-end",
    target="discounted_return",
    mistake="returns that take the last row of the rollout for the end of the episode: the bootstrap is missing there",
    symptom="the shorter the rollout, the lower the returns",
    exposed_by="a last row that ends nothing, with a bootstrap value",
)
def _last_row_as_end(rewards, terminated, truncated, *, gamma, bootstrap=None):
    return _returns(rewards, terminated, truncated, bootstrap, gamma)


@pitfall(
    "bootstrap-undiscounted",
    target="discounted_return",
    mistake="returns whose bootstrap is not discounted: r + V in place of r + gamma V",
    symptom="values creep upwards from update to update",
    exposed_by="one truncated row",
)
def _bootstrap_undiscounted(rewards, terminated, truncated, *, gamma, bootstrap=None):
    if bootstrap is not None:
        bootstrap = bootstrap / gamma
    return _returns(rewards, terminated, _and_last_row(truncated), bootstrap, gamma)


# n_step_return and lambda_return: the targets between ------------------------------------------------------------------


def _n_steps(rewards: Tensor, next_values: Tensor, terminated: Tensor, ends: Tensor, gamma: float, n: int) -> Tensor:
    """n rewards, then the critic; the sum stops where `ends` and at the last row."""
    one_step = rewards + gamma * torch.where(terminated, 0.0, next_values)
    ends = _and_last_row(ends)
    returns = one_step
    for _ in range(min(n, len(rewards)) - 1):
        returns = torch.where(ends, one_step, rewards + gamma * returns.roll(-1, dims=0))
    return returns


@pitfall(
    "n-steps-counted-from-zero",
    target="ppo_edu.core.returns.n_step_return",
    mistake="a return of n + 1 steps: the steps are counted from 0",
    symptom="more variance and less bias than n promises; nothing breaks",
    exposed_by="n = 1 must be the one-step target",
)
def _one_step_more(rewards, next_values, terminated, truncated, *, gamma, n):
    return _n_steps(rewards, next_values, terminated, terminated | truncated, gamma, n + 1)


@pitfall(
    "n-steps-run-over-the-end",
    target="ppo_edu.core.returns.n_step_return",
    mistake="n-step returns that run on into the next episode when this one ends sooner",
    symptom="the last n steps of every episode are valued by another episode's rewards",
    exposed_by="change the next episode: nothing before the end may move",
)
def _over_the_end(rewards, next_values, terminated, truncated, *, gamma, n):
    return _n_steps(rewards, next_values, terminated, torch.zeros_like(terminated), gamma, n)


@pitfall(
    "advantage-for-lambda-return",
    target="ppo_edu.core.returns.lambda_return",
    mistake="the advantage where its sum with the value is asked for: the critic's target is how wrong it was",
    symptom="the critic settles far too low: at half of the truth with lambda 1 and whole episodes, lower with a smaller lambda",
    exposed_by="one row whose value is not 0",
)
def _advantage_as_target(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    return _backward_sum(_deltas(rewards, values, next_values, terminated, gamma), terminated | truncated, gamma * lam)


# policy_gradient: the loss whose gradient is minus the policy gradient ------------------------------------------------


@pitfall(
    "policy-gradient-sign",
    target="policy_gradient",
    mistake="the loss without its minus sign: an optimiser that descends makes good actions rarer",
    symptom="the return falls as soon as learning starts, and stays down",
    exposed_by="one action with a positive advantage: its log-probability must rise",
)
def _policy_gradient_sign(log_probs, advantages, *, mask=None):
    log_probs, advantages = kept(mask, log_probs, advantages)
    return (log_probs * advantages.detach()).mean()


@pitfall(
    "advantages-not-detached",
    target="policy_gradient",
    mistake="the right loss with the advantages still attached: the policy's loss trains the critic, too",
    symptom="values settle too high, by the policy's entropy over value_coef; explained variance hardly notices",
    exposed_by="the gradient with respect to the advantages must be 0",
    discussed="https://github.com/astariul/encode-attend-navigate-pytorch/issues/2",
)
def _policy_gradient_attached(log_probs, advantages, *, mask=None):
    log_probs, advantages = kept(mask, log_probs, advantages)
    return -(log_probs * advantages).mean()


@pitfall(
    "sum-over-samples",
    target="policy_gradient",
    mistake="the sum over the samples instead of the mean",
    symptom="the gradient grows with the batch: with plain gradient descent a learning rate fits one batch size only",
    exposed_by="two equal samples must give the loss of one",
)
def _policy_gradient_sum(log_probs, advantages, *, mask=None):
    log_probs, advantages = kept(mask, log_probs, advantages)
    return -(log_probs * advantages.detach()).sum()


@pitfall(
    "probability-for-log-probability",
    target="policy_gradient",
    mistake="a loss with the probability in place of the log-probability: the score is weighted by pi once too often",
    symptom="rare actions hardly learn, however good they are",
    exposed_by="one sample: the gradient is minus its advantage, whatever its probability",
)
def _policy_gradient_probability(log_probs, advantages, *, mask=None):
    log_probs, advantages = kept(mask, log_probs, advantages)
    return -(log_probs.exp() * advantages.detach()).mean()


@pitfall(
    "advantages-squared",
    target="policy_gradient",
    mistake="a loss with the squared advantage: its sign is lost, and every sampled action is pushed up",
    symptom="the policy moves towards surprises, good and bad alike, and the return does not rise",
    exposed_by="one action with a negative advantage: its log-probability must fall",
)
def _policy_gradient_squared(log_probs, advantages, *, mask=None):
    log_probs, advantages = kept(mask, log_probs, advantages)
    return -(log_probs * advantages.detach().square()).mean()


@pitfall(
    "loss-squared",
    target="policy_gradient",
    mistake="the mean of the squared products, (log pi * A)^2: the sign of the advantage is lost",
    symptom="every sampled action is pushed up, a rare one most: the policy stays near uniform and learns nothing",
    exposed_by="the sign of the gradient for A = 1 and for A = -1",
)
def _policy_gradient_loss_squared(log_probs, advantages, *, mask=None):
    log_probs, advantages = kept(mask, log_probs, advantages)
    return (log_probs * advantages.detach()).square().mean()


@pitfall(
    "mean-advantage",
    target="policy_gradient",
    mistake="the mean log-probability times the mean advantage: every sample gets the same credit",
    symptom="no learning; with normalised advantages exactly none",
    exposed_by="two samples with advantages 1 and -1",
    discussed="https://github.com/Farama-Foundation/Gymnasium/issues/1336",
)
def _policy_gradient_mean_advantage(log_probs, advantages, *, mask=None):
    log_probs, advantages = kept(mask, log_probs, advantages)
    return -log_probs.mean() * advantages.detach().mean()


@pitfall(
    "log-probs-detached",
    target="policy_gradient",
    mistake="the right value without a gradient: the log-probabilities were detached (or stored under no_grad)",
    symptom="the gradient's norm is 0 and nothing is learned",
    exposed_by="the gradient with respect to log_probs",
)
def _policy_gradient_detached(log_probs, advantages, *, mask=None):
    log_probs, advantages = kept(mask, log_probs, advantages)
    return -(log_probs.detach() * advantages.detach()).mean()


# probability_ratio and surrogate_loss: what the clip is put on ----------------------------------------------------------


@pitfall(
    "ratio-over-the-whole-distribution",
    target="ppo_edu.core.objectives.probability_ratio",
    mistake="a ratio that takes shapes as they come: [B, A] of the whole distribution against [B] of the actions taken broadcasts",
    symptom="no error, a loss that is a mean over actions that were not taken, and hardly any learning",
    exposed_by="log-probabilities of two different shapes must be refused",
    discussed="https://github.com/RITCHIEHuang/DeepRL_Algorithms/issues/13",
)
def _broadcast_ratio(log_probs, old_log_probs):
    check_float(log_probs=log_probs, old_log_probs=old_log_probs)  # of numbers, but not of one shape
    return torch.exp(log_probs - old_log_probs.detach())


@pitfall(
    "ratio-of-old-to-new",
    target="ppo_edu.core.objectives.probability_ratio",
    mistake="the ratio upside down, old over new",
    symptom="every first ratio is 1, as it should be; then good actions become rarer",
    exposed_by="a policy that has moved: the ratio must be new over old",
)
def _old_to_new(log_probs, old_log_probs):
    return torch.exp(old_log_probs.detach() - log_probs)


@pitfall(
    "surrogate-without-ratio",
    target="ppo_edu.core.objectives.surrogate_loss",
    mistake="the policy-gradient loss on samples of the old policy: the ratio that corrects for it is missing",
    symptom="right in the first step of each update, and more wrong with every further epoch",
    exposed_by="a policy that has moved: the gradient is ratio times advantage",
)
def _without_ratio(log_probs, old_log_probs, advantages, *, mask=None):
    log_probs, advantages = kept(mask, log_probs, advantages)
    return -(log_probs * advantages.detach()).mean()


# clipped_surrogate: PPO's objective, negated --------------------------------------------------------------------------


def _clipped_variant(combine: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """A loss -mean(combine(ratio, clipped ratio, advantages)) with the signature of the clipped surrogate."""

    def loss(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
        log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
        ratio = torch.exp(log_probs - old_log_probs.detach())
        return -combine(ratio, ratio.clamp(1 - clip_range, 1 + clip_range), advantages.detach()).mean()

    return loss


pitfall(
    "clipped-sign",
    target="clipped_surrogate",
    mistake="the clipped objective without the minus sign of a loss: descending on it makes good actions rarer",
    symptom="the return falls as soon as learning starts",
    exposed_by="a ratio of 1 with a positive advantage: the log-probability must rise",
)(_clipped_variant(lambda ratio, clipped, A: -torch.minimum(ratio * A, clipped * A)))

pitfall(
    "max-for-min",
    target="clipped_surrogate",
    mistake="the larger of the two terms in place of the smaller: an optimistic bound, which the clip does not hold back",
    symptom="the ratio runs away on the side where it should stop, and stops where it should come back",
    exposed_by="ratio 1.5 with A = 1, and ratio 0.5 with A = 1",
    discussed="https://github.com/openai/baselines/issues/1156",
)(_clipped_variant(lambda ratio, clipped, A: torch.maximum(ratio * A, clipped * A)))

pitfall(
    "clip-without-min",
    target="clipped_surrogate",
    mistake="the clipped term alone, without the min: no gradient on either side of the interval",
    symptom="a ratio that moved the wrong way is never pulled back",
    exposed_by="ratio 0.5 with A = 1, and ratio 1.5 with A = -1: both still have a gradient",
)(_clipped_variant(lambda ratio, clipped, A: clipped * A))

pitfall(
    "advantage-outside-the-min",
    target="clipped_surrogate",
    mistake="A * min(ratio, clipped ratio): the advantage was pulled out of the min, which turns it round where A is negative",
    symptom="bad actions that became likelier are not pushed back, and those that became rarer are pushed on for ever",
    exposed_by="both sides of the interval with A = -1",
    discussed="https://github.com/takuseno/ppo/issues/3",
)(_clipped_variant(lambda ratio, clipped, A: torch.minimum(ratio, clipped) * A))

pitfall(
    "mean-advantage-outside-the-min",
    target="clipped_surrogate",
    mistake="the mean advantage times min(ratio, clipped ratio): all samples get one and the same credit",
    symptom="little learning, since normalised advantages have a mean near 0; none where each minibatch normalises its own",
    exposed_by="two samples with advantages of different size",
)(_clipped_variant(lambda ratio, clipped, A: torch.minimum(ratio, clipped) * A.mean()))

pitfall(
    "unclipped-surrogate",
    target="clipped_surrogate",
    mistake="the surrogate without a clip: ratio * A",
    symptom="several epochs on one batch carry the policy far away, and its entropy collapses",
    exposed_by="ratio 1.5 with A = 1: no gradient may be left",
)(_clipped_variant(lambda ratio, clipped, A: ratio * A))


@pitfall(
    "clip-on-the-advantage",
    target="clipped_surrogate",
    mistake="a clip on the advantage, min(ratio * A, ratio * clip(A)): the clip belongs on the ratio",
    symptom="nothing holds the ratio; large positive advantages lose their size",
    exposed_by="an advantage of 2 with a ratio of 1",
)
def _clip_on_the_advantage(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    A, ratio = advantages.detach(), torch.exp(log_probs - old_log_probs.detach())
    return -torch.minimum(ratio * A, ratio * A.clamp(1 - clip_range, 1 + clip_range)).mean()


@pitfall(
    "ratio-inverted",
    target="clipped_surrogate",
    mistake="the clipped surrogate with the ratio upside down, old over new: good actions become rarer",
    symptom="the return falls; the first value of the loss is right, since every ratio is 1",
    exposed_by="the sign of the gradient at a ratio of 1",
    discussed="https://github.com/openai/baselines/issues/652",
)
def _ratio_inverted(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    A, ratio = advantages.detach(), torch.exp(old_log_probs.detach() - log_probs)
    return -torch.minimum(ratio * A, ratio.clamp(1 - clip_range, 1 + clip_range) * A).mean()


@pitfall(
    "ratio-detached",
    target="clipped_surrogate",
    mistake="the right value without a gradient: the ratio was detached (or computed under no_grad)",
    symptom="the actor gets no gradient and never moves, while the critic learns",
    exposed_by="the gradient with respect to log_probs",
    discussed="https://github.com/seungeunrho/minimalRL/issues/33",
)
def _ratio_detached(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    A, ratio = advantages.detach(), torch.exp(log_probs - old_log_probs).detach()
    return -torch.minimum(ratio * A, ratio.clamp(1 - clip_range, 1 + clip_range) * A).mean()


@pitfall(
    "old-probability-for-the-ratio",
    target="clipped_surrogate",
    mistake="the old probability in place of the ratio: the new policy does not occur in the loss",
    symptom="the gradient's norm is 0 and nothing is learned",
    exposed_by="the gradient with respect to log_probs",
)
def _old_probability(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    A, old = advantages.detach(), old_log_probs.detach().exp()
    return -torch.minimum(old * A, old.clamp(1 - clip_range, 1 + clip_range) * A).mean()


@pitfall(
    "log-ratio-clipped",
    target="clipped_surrogate",
    mistake="the clipped surrogate with the logarithm of the ratio clipped to [-eps, eps]: the interval is [e^-eps, e^eps]",
    symptom="at eps = 0.2 almost nothing; the larger eps, the wider and the more lopsided the interval",
    exposed_by="the value at ratio 1.5 with A = 1 is -(1 + eps)",
)
def _log_ratio_clipped(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    A, log_ratio = advantages.detach(), log_probs - old_log_probs.detach()
    return -torch.minimum(log_ratio.exp() * A, log_ratio.clamp(-clip_range, clip_range).exp() * A).mean()


@pitfall(
    "ratio-without-exp",
    target="clipped_surrogate",
    mistake="the clipped surrogate with the difference of the log-probabilities as the ratio: the exponential is missing",
    symptom="every first ratio is 0 instead of 1, below the interval: the clip acts from the first step on",
    exposed_by="equal policies: the loss is minus the mean advantage",
)
def _ratio_without_exp(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    A, ratio = advantages.detach(), log_probs - old_log_probs.detach()
    return -torch.minimum(ratio * A, ratio.clamp(1 - clip_range, 1 + clip_range) * A).mean()


@pitfall(
    "ratio-of-log-probabilities",
    target="clipped_surrogate",
    mistake="the clipped surrogate with the log-probabilities divided by each other: the ratio is that of the probabilities",
    symptom="every first ratio is 1, and the gradient points the wrong way: the return falls; NaN once a log-probability rounds to 0",
    exposed_by="the sign of the gradient at a ratio of 1",
)
def _ratio_of_log_probabilities(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    A, ratio = advantages.detach(), log_probs / old_log_probs.detach()
    return -torch.minimum(ratio * A, ratio.clamp(1 - clip_range, 1 + clip_range) * A).mean()


@pitfall(
    "clipped-advantages-not-detached",
    target="clipped_surrogate",
    mistake="the right loss with the advantages still attached: the policy's loss trains the critic, too",
    symptom="values settle too low, by about 1 / value_coef, so that all actions look good; explained variance hardly notices",
    exposed_by="the gradient with respect to the advantages must be 0",
)
def _clipped_attached(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    ratio = torch.exp(log_probs - old_log_probs.detach())
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages).mean()


@pitfall(
    "old-log-probs-not-detached",
    target="clipped_surrogate",
    mistake="the right loss with the old log-probabilities still attached to the graph that made them",
    symptom="where both sides come from one network, the two gradients cancel and nothing is learned",
    exposed_by="the gradient with respect to old_log_probs must be 0",
)
def _old_attached(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    A, ratio = advantages.detach(), torch.exp(log_probs - old_log_probs)
    return -torch.minimum(ratio * A, ratio.clamp(1 - clip_range, 1 + clip_range) * A).mean()


@pitfall(
    "clipped-sum-over-samples",
    target="clipped_surrogate",
    mistake="the sum over the samples instead of the mean",
    symptom="the gradient grows with the minibatch; Adam and a clipped norm hide most of it",
    exposed_by="a minibatch of two",
)
def _clipped_sum(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    log_probs, old_log_probs, advantages = kept(mask, log_probs, old_log_probs, advantages)
    A, ratio = advantages.detach(), torch.exp(log_probs - old_log_probs.detach())
    return -torch.minimum(ratio * A, ratio.clamp(1 - clip_range, 1 + clip_range) * A).sum()


# kl_estimate: k1, k2 and k3 from samples of pi ------------------------------------------------------------------------


def _kl_variant(k1: Callable | None = None, k2: Callable | None = None, k3: Callable | None = None) -> Callable:
    """The three estimators as functions of log pi_ref - log pi; what is given replaces the right one."""
    right = {"k1": lambda d: -d, "k2": lambda d: 0.5 * d.square(), "k3": lambda d: torch.expm1(d) - d}
    kinds = right | {name: f for name, f in (("k1", k1), ("k2", k2), ("k3", k3)) if f is not None}

    def estimate(log_probs, ref_log_probs, kind="k1"):
        return kinds[kind](ref_log_probs - log_probs)

    return estimate


pitfall(
    "k1-sign-reversed",
    target="kl_estimate",
    mistake="k1 with the sign reversed, log pi_ref - log pi: its mean is minus the KL divergence",
    symptom="as a penalty it rewards drifting away from the reference",
    exposed_by="a sample that pi likes better than the reference does: k1 is positive",
)(_kl_variant(k1=lambda d: d))

pitfall(
    "k2-without-one-half",
    target="kl_estimate",
    mistake="k2 without the factor one half",
    symptom="about twice the KL divergence",
    exposed_by="close distributions, where k2 and k3 agree",
)(_kl_variant(k2=lambda d: d.square()))

pitfall(
    "k3-difference-reversed",
    target="kl_estimate",
    mistake="k3 with the difference reversed, e^(log pi - log pi_ref) - 1 - (log pi - log pi_ref)",
    symptom="never negative, so it looks healthy, but on samples of pi its mean is not KL(pi || pi_ref)",
    exposed_by="its mean under pi against the exact KL divergence",
)(_kl_variant(k3=lambda d: torch.expm1(-d) + d))

pitfall(
    "kl-direction-reversed",
    target="kl_estimate",
    mistake="all three estimators with pi and the reference exchanged",
    symptom="k1 is negative on average, and k3 estimates another quantity",
    exposed_by="a sample that pi likes better than the reference does: k1 is positive",
)(_kl_variant(k1=lambda d: d, k3=lambda d: torch.expm1(-d) + d))

pitfall(
    "k3-without-the-minus-one",
    target="kl_estimate",
    mistake="k3 without the - 1: each sample is too large by 1",
    symptom="a KL divergence of 1 nat between equal policies",
    exposed_by="equal log-probabilities give 0",
)(_kl_variant(k3=lambda d: d.exp() - d))

pitfall(
    "k1-made-positive",
    target="kl_estimate",
    mistake="k1 with its absolute value taken: single samples of k1 may be negative, and their mean needs that",
    symptom="too large, most of all where the policies are close",
    exposed_by="a sample that the reference likes better",
    discussed="https://github.com/openai/spinningup/issues/292",
)(_kl_variant(k1=lambda d: d.abs()))


@pitfall(
    "log-probs-taken-for-probabilities",
    target="kl_estimate",
    mistake="estimates that take the logarithm once more: they were given log-probabilities and expected probabilities",
    symptom="NaN: a log-probability is negative and has no logarithm",
    exposed_by="any sample",
)
def _kl_of_logs(log_probs, ref_log_probs, kind="k1"):
    return _kl_variant()(torch.log(log_probs), torch.log(ref_log_probs), kind)


@pitfall(
    "probabilities-taken-for-log-probs",
    target="kl_estimate",
    mistake="estimates from the difference of the probabilities instead of the log-probabilities",
    symptom="far too small, above all for rare actions",
    exposed_by="any sample with unequal probabilities",
    discussed="https://github.com/pytorch/pytorch/issues/10033",
)
def _kl_of_probabilities(log_probs, ref_log_probs, kind="k1"):
    return _kl_variant()(log_probs.exp(), ref_log_probs.exp(), kind)


@pitfall(
    "samples-weighted-by-probability",
    target="kl_estimate",
    mistake="estimates multiplied by pi(a|s): samples of pi are weighted by its probability already",
    symptom="too small, and the more so the more actions there are",
    exposed_by="one sample: k1 is the log-ratio itself",
)
def _kl_weighted(log_probs, ref_log_probs, kind="k1"):
    return log_probs.exp() * _kl_variant()(log_probs, ref_log_probs, kind)


@pitfall(
    "kl-averaged",
    target="kl_estimate",
    mistake="the mean of the estimates: one number where one per sample is asked for",
    symptom="a reward penalty that is the same for every token",
    exposed_by="the shape of the result",
)
def _kl_mean(log_probs, ref_log_probs, kind="k1"):
    return _kl_variant()(log_probs, ref_log_probs, kind).mean()


# kl_categorical: exact, from logits ---------------------------------------------------------------------------------


@pitfall(
    "kl-arguments-exchanged",
    target="ppo_edu.core.kl.kl_categorical",
    mistake="KL(q || p) in place of KL(p || q), as one gets from a library function that takes its arguments the other way round",
    symptom="a positive number of the right size; as a penalty it leads to another policy",
    exposed_by="two unequal distributions by hand, in both directions",
    discussed="https://github.com/pytorch/pytorch/issues/57459",
)
def _kl_exchanged(logits_p, logits_q):
    return kl_divergence(Categorical(logits=logits_q, validate_args=False), Categorical(logits=logits_p, validate_args=False))


@pitfall(
    "kl-averaged-over-actions",
    target="ppo_edu.core.kl.kl_categorical",
    mistake="the mean of p (log p - log q) over the actions instead of the sum: the KL divided by their number",
    symptom="a divergence that looks small, and smaller the larger the vocabulary",
    exposed_by="two unequal coins by hand",
    discussed="https://github.com/pytorch/pytorch/issues/2259",
)
def _kl_over_actions(logits_p, logits_q):
    p, q = Categorical(logits=logits_p, validate_args=False), Categorical(logits=logits_q, validate_args=False)
    return kl_divergence(p, q) / logits_p.shape[-1]


# AdaptiveKLCoefficient.updated: Ziegler's controller ----------------------------------------------------------------


@pitfall(
    "controller-steers-away",
    target="ppo_edu.core.kl.AdaptiveKLCoefficient.updated",
    mistake="a controller of the wrong sign: too large a KL makes the penalty cheaper",
    symptom="the KL runs away, or the coefficient grows for ever while nothing moves",
    exposed_by="a KL far above the target must raise the coefficient",
)
def _controller_sign(self, kl_per_sequence, n):
    error = min(max(1.0 - kl_per_sequence / self.target, -0.2), 0.2)
    return replace(self, value=self.value * (1.0 + error * n / self.horizon))


@pitfall(
    "controller-unclipped",
    target="ppo_edu.core.kl.AdaptiveKLCoefficient.updated",
    mistake="a controller whose error is not clipped to 0.2",
    symptom="one batch with a large KL multiplies the coefficient, and the policy freezes",
    exposed_by="a KL of ten times the target",
)
def _controller_unclipped(self, kl_per_sequence, n):
    return replace(self, value=self.value * (1.0 + (kl_per_sequence / self.target - 1.0) * n / self.horizon))


@pitfall(
    "controller-ignores-the-batch-size",
    target="ppo_edu.core.kl.AdaptiveKLCoefficient.updated",
    mistake="a controller that makes the same step for one sequence and for a hundred",
    symptom="the horizon is counted in updates instead of sequences; another batch size needs another horizon",
    exposed_by="two batch sizes",
)
def _controller_per_update(self, kl_per_sequence, n):
    error = min(max(kl_per_sequence / self.target - 1.0, -0.2), 0.2)
    return replace(self, value=self.value * (1.0 + error / self.horizon))


# masked_mean and masked_var: every statistic stands on them ---------------------------------------------------------


@pitfall(
    "mask-as-a-factor",
    target="ppo_edu.core.masking.masked_mean",
    mistake="a masked mean that multiplies by the mask: 0 * nan is nan",
    symptom="whatever a network says of padding may turn the loss into NaN",
    exposed_by="NaN in the padding",
)
def _mask_as_factor(x, mask=None):
    return x.mean() if mask is None else (x * mask).sum() / mask.sum()


@pitfall(
    "masked-mean-over-everything",
    target="ppo_edu.core.masking.masked_mean",
    mistake="a masked sum divided by the number of all entries, padding included",
    symptom="every loss and statistic shrinks with the share of padding",
    exposed_by="a longer padding must change nothing",
)
def _mean_over_everything(x, mask=None):
    return x.mean() if mask is None else torch.where(mask, x, 0.0).mean()


@pitfall(
    "variance-of-the-population",
    target="ppo_edu.core.masking.masked_var",
    mistake="the variance divided by n instead of n - 1",
    symptom="nothing in a large batch; one success in a group of two has a spread of 0.5 where the unbiased one is 0.71",
    exposed_by="two entries by hand",
)
def _population_variance(x, mask=None):
    (x,) = kept(mask, x)
    return x.var(correction=0)


# approx_kl and clip_fraction: how far an update went ------------------------------------------------------------------


@pitfall(
    "approximate-kl-sign",
    target="ppo_edu.core.diagnostics.approx_kl",
    mistake="the estimate with the log-ratio turned round, log pi - log pi_old, although the old policy sampled",
    symptom="k1 comes out negative on average, and a target_kl never stops anything; k3 is off by little and still stops",
    exposed_by="its mean over samples of the old policy against the exact KL(old || new)",
    discussed="https://github.com/huggingface/trl/pull/168",
)
def _approximate_kl_sign(log_probs, old_log_probs, *, kind="k3", mask=None):
    log_probs, old_log_probs = kept(mask, log_probs, old_log_probs)
    return _kl_variant()(log_probs, old_log_probs.detach(), kind).mean()


@pitfall(
    "clip-fraction-above-only",
    target="ppo_edu.core.diagnostics.clip_fraction",
    mistake="the share of ratios above 1 + eps: those below 1 - eps are not counted",
    symptom="half of what published codes report at the same settings, or less",
    exposed_by="a ratio of 0.5",
)
def _clip_fraction_above(log_probs, old_log_probs, *, clip_range, mask=None):
    log_probs, old_log_probs = kept(mask, log_probs, old_log_probs)
    return (torch.exp(log_probs - old_log_probs) > 1 + clip_range).to(log_probs.dtype).mean()


@pitfall(
    "clip-fraction-of-the-log-ratio",
    target="ppo_edu.core.diagnostics.clip_fraction",
    mistake="the share of log-ratios beyond eps: the interval is [e^-eps, e^eps]",
    symptom="at eps = 0.2 hardly a difference; it grows with eps",
    exposed_by="a ratio of 0.81 at eps = 0.2 has not left the interval",
)
def _clip_fraction_log(log_probs, old_log_probs, *, clip_range, mask=None):
    log_probs, old_log_probs = kept(mask, log_probs, old_log_probs)
    return ((log_probs - old_log_probs).abs() > clip_range).to(log_probs.dtype).mean()
