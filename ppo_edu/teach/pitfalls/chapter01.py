"""Mistakes about values and advantages on a table, and in value iteration. (Those about returns stand with the core functions.)

Tables: transition [S, A, S] (what is missing to 1 ends the episode), reward [S, A], pi [S, A].
"""

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall


def _solve(step: Tensor, reward: Tensor) -> Tensor:
    """x = reward + step @ x, for [S, S] and [S]."""
    return torch.linalg.solve(torch.eye(len(step), dtype=step.dtype) - step, reward)


def _values(transition: Tensor, reward: Tensor, pi: Tensor, gamma: float) -> Tensor:
    return _solve(gamma * torch.einsum("sa,sap->sp", pi, transition), (pi * reward).sum(-1))


def _action_values(transition: Tensor, reward: Tensor, pi: Tensor, gamma: float) -> Tensor:
    return reward + gamma * transition @ _values(transition, reward, pi, gamma)


def _iterate(transition: Tensor, reward: Tensor, gamma: float, combine, sweeps: int = 1000) -> Tensor:
    """V <- combine(reward [S, A], discounted value of the next state [S, A]), from V = 0."""
    values = torch.zeros_like(reward[:, 0])
    for _ in range(sweeps):
        values = combine(reward, gamma * transition @ values)
    return values


# state_values: V of a policy ------------------------------------------------------------------------------------------


@pitfall(
    "value-is-immediate-reward",
    target="state_values",
    mistake="the mean immediate reward: a value is the mean *return*, the future included",
    symptom="every state before the last one looks worthless, and the agent walks past nothing that pays late",
    exposed_by="two states in a row with the reward at the end",
)
def _immediate_reward(transition, reward, pi, gamma):
    return (pi * reward).sum(-1)


@pitfall(
    "value-sees-one-step",
    target="state_values",
    mistake="the immediate reward plus the discounted *reward* of the next state: the future ends after two steps",
    symptom="right for short episodes; the start of a long one never hears of the prize",
    exposed_by="three states in a row with the reward at the end",
)
def _two_rewards(transition, reward, pi, gamma):
    now = (pi * reward).sum(-1)
    return now + gamma * torch.einsum("sa,sap->sp", pi, transition) @ now


@pitfall(
    "value-of-the-best-action",
    target="state_values",
    mistake="the values of the *best* policy: a maximum over actions stands where the policy's mean belongs",
    symptom="a critic that promises what the policy does not keep; advantages are never positive",
    exposed_by="one state with two actions, both even",
)
def _best_action(transition, reward, pi, gamma):
    return _iterate(transition, reward, gamma, lambda r, later: (r + later).amax(-1))


@pitfall(
    "value-ignores-the-policy",
    target="state_values",
    mistake="the values of a policy that chooses evenly: actions are averaged without their probabilities",
    symptom="right before the first update, when the policy is nearly uniform, and wrong ever after",
    exposed_by="one state, a policy with probabilities 0.9 and 0.1",
)
def _even_average(transition, reward, pi, gamma):
    return _values(transition, reward, torch.full_like(pi, 1 / pi.shape[1]), gamma)


@pitfall(
    "value-discounts-the-first-reward",
    target="state_values",
    mistake="gamma times the right values: the first reward is discounted too",
    symptom="values too small by the factor gamma everywhere; nothing to see at gamma = 1",
    exposed_by="one state, one reward",
)
def _first_reward_discounted(transition, reward, pi, gamma):
    return gamma * _values(transition, reward, pi, gamma)


@pitfall(
    "value-flows-forwards",
    target="state_values",
    mistake="values passed from a state to its successors: the transition matrix is transposed",
    symptom="states after a reward look good instead of those before it",
    exposed_by="two states in a row with the reward at the end",
)
def _transposed(transition, reward, pi, gamma):
    return _solve(gamma * torch.einsum("sa,sap->ps", pi, transition), (pi * reward).sum(-1))


# advantages: A of a policy --------------------------------------------------------------------------------------------


@pitfall(
    "advantage-is-reward-minus-value",
    target="advantages",
    mistake="reward minus V(s): the one-step reward is not the return of the action, so Q must stand there",
    symptom="every action before the last one looks bad, most of all in the best states",
    exposed_by="two states in a row with the reward at the end",
)
def _reward_minus_value(transition, reward, pi, gamma):
    return reward - _values(transition, reward, pi, gamma)[:, None]


@pitfall(
    "advantage-is-reward-minus-weighted-reward",
    target="advantages",
    mistake="r - pi * r: a recipe from a table that circulates; it compares with nothing, and its mean under pi is not 0",
    symptom="an action loses its advantage by becoming likely, and where rewards are positive no action is ever blamed",
    exposed_by="one state with two actions: the mean under pi must be 0",
)
def _reward_minus_weighted(transition, reward, pi, gamma):
    return reward - pi * reward


@pitfall(
    "advantage-against-the-best-action",
    target="advantages",
    mistake="Q minus its maximum: the comparison is with the policy's *mean*, not with its best action",
    symptom="no advantage is positive, so nothing is ever made likelier for its own sake",
    exposed_by="one state with two actions: one advantage must be positive",
)
def _against_the_best(transition, reward, pi, gamma):
    q = _action_values(transition, reward, pi, gamma)
    return q - q.amax(-1, keepdim=True)


@pitfall(
    "advantage-against-the-plain-mean",
    target="advantages",
    mistake="Q minus its plain mean over the actions: the mean must be weighted by the policy",
    symptom="right while the policy is uniform; later the mean under the policy is not 0, which adds noise but no bias",
    exposed_by="one state, a policy with probabilities 0.9 and 0.1",
)
def _against_the_plain_mean(transition, reward, pi, gamma):
    q = _action_values(transition, reward, pi, gamma)
    return q - q.mean(-1, keepdim=True)


@pitfall(
    "advantage-sign-reversed",
    target="advantages",
    mistake="V - Q: the sign is reversed",
    symptom="the return falls from the first update on",
    exposed_by="one state with two actions: the better one has the positive advantage",
)
def _sign_reversed(transition, reward, pi, gamma):
    q = _action_values(transition, reward, pi, gamma)
    return (pi * q).sum(-1, keepdim=True) - q


# value_iteration: V of the best policy --------------------------------------------------------------------------------


@pitfall(
    "iteration-stops-after-one-sweep",
    target="value_iteration",
    mistake="a single sweep: the largest immediate reward",
    symptom="the agent takes whatever lies nearest",
    exposed_by="two states in a row with the reward at the end",
)
def _one_sweep(transition, reward, gamma):
    return reward.amax(-1)


@pitfall(
    "iteration-averages",
    target="value_iteration",
    mistake="the values of a policy that chooses evenly: a mean over actions stands where the maximum belongs",
    symptom="values far too small; the greedy policy drawn from them may still be right",
    exposed_by="one state with two actions",
)
def _averages(transition, reward, gamma):
    return _iterate(transition, reward, gamma, lambda r, later: (r + later).mean(-1))


@pitfall(
    "two-maxima",
    target="value_iteration",
    mistake="the largest reward plus the largest future, each from an action of its own: one action must serve for both",
    symptom="values that no policy reaches: the cake eaten and kept",
    exposed_by="a choice between a reward now that ends the episode and a larger one later",
)
def _two_maxima(transition, reward, gamma):
    return _iterate(transition, reward, gamma, lambda r, later: r.amax(-1) + later.amax(-1))


@pitfall(
    "greedy-on-the-reward",
    target="value_iteration",
    mistake="the values of the policy that takes the largest immediate reward in each state",
    symptom="a distraction next to the start is taken every time, and the prize never seen",
    exposed_by="a choice between a reward now that ends the episode and a larger one later",
)
def _greedy_on_reward(transition, reward, gamma):
    pi = torch.nn.functional.one_hot(reward.argmax(-1), reward.shape[1]).to(reward.dtype)
    return _values(transition, reward, pi, gamma)
