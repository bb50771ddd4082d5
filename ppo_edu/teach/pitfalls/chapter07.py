"""Mistakes around the training loop: reset rows, annealing, explained variance."""

import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import pitfall
from ppo_edu.teach.pitfalls.padding import kept

# valid_rows: which rows of an automatically resetting environment are real transitions ------------------------------


@pitfall(
    "reset-row-of-the-last-rollout",
    target="valid_rows",
    mistake="a mask that forgets episodes which ended on the last row of the *previous* rollout",
    symptom="whenever an episode ends on a rollout's last row, a transition that never happened is trained on; the losses look as always",
    exposed_by="two rollouts in a row, the first ending with an episode",
    discussed="https://github.com/Denys88/rl_games/pull/362",
)
def _forget_carried_done(terminated: Tensor, truncated: Tensor, carried_done: Tensor) -> Tensor:
    done = terminated | truncated
    return torch.cat([torch.ones_like(done[:1]), ~done[:-1]])


@pitfall(
    "last-step-masked-instead-of-reset-row",
    target="valid_rows",
    mistake="a mask that drops the last step of each episode and keeps the reset row after it",
    symptom="an episode's last action is never learned from, and a transition that never happened is; CartPole is learned all the same",
    exposed_by="the row where done is True must stay valid",
)
def _mask_the_done_row(terminated: Tensor, truncated: Tensor, carried_done: Tensor) -> Tensor:
    return ~(terminated | truncated)


@pitfall(
    "reset-after-termination-only",
    target="valid_rows",
    mistake="a mask that knows terminations but not time limits",
    symptom="shows up late: once episodes reach the time limit, reset rows enter the batch",
    exposed_by="an episode that ends by truncation",
)
def _ignore_truncation(terminated: Tensor, truncated: Tensor, carried_done: Tensor) -> Tensor:
    return ~torch.cat([carried_done[None], terminated[:-1]])


@pitfall(
    "reset-after-truncation-only",
    target="valid_rows",
    mistake="a mask that knows time limits but not terminations",
    symptom="reset rows are trained on from the first update, when episodes are shortest and resets most frequent",
    exposed_by="an episode that ends by termination",
)
def _ignore_termination(terminated: Tensor, truncated: Tensor, carried_done: Tensor) -> Tensor:
    return ~torch.cat([carried_done[None], truncated[:-1]])


@pitfall(
    "mask-inverted",
    target="valid_rows",
    mistake="the right mask inverted: True on the reset rows",
    symptom="the policy is trained on nothing but reset rows, whose reward is always 0",
    exposed_by="a rollout without any reset is valid everywhere",
)
def _invert_mask(terminated: Tensor, truncated: Tensor, carried_done: Tensor) -> Tensor:
    return torch.cat([carried_done[None], (terminated | truncated)[:-1]])


# explained_variance: does the critic know anything? -------------------------------------------------------------------


@pitfall(
    "squared-error-instead-of-variance",
    target="explained_variance",
    mistake="one minus the mean squared error over the variance of the returns (the coefficient of determination)",
    symptom="looks worse than it is while the critic is off by a constant",
    exposed_by="values shifted by a constant explain just as much",
)
def _r_squared(values: Tensor, returns: Tensor, *, mask: Tensor | None = None) -> Tensor:
    values, returns = kept(mask, values, returns)
    return 1 - (returns - values).square().mean() / returns.var(correction=0)


@pitfall(
    "variance-of-the-values-below",
    target="explained_variance",
    mistake="the error's variance divided by the variance of the *values*",
    symptom="minus infinity for a constant critic, which should score 0",
    exposed_by="values and returns exchanged",
    discussed="https://github.com/DLR-RM/stable-baselines3/issues/225",
)
def _divide_by_value_variance(values: Tensor, returns: Tensor, *, mask: Tensor | None = None) -> Tensor:
    values, returns = kept(mask, values, returns)
    return 1 - (returns - values).var() / values.var()


@pitfall(
    "unexplained-variance",
    target="explained_variance",
    mistake="the share that is *not* explained: the leading 1 - is missing",
    symptom="falls while the critic learns",
    exposed_by="a perfect critic scores 1",
)
def _unexplained(values: Tensor, returns: Tensor, *, mask: Tensor | None = None) -> Tensor:
    values, returns = kept(mask, values, returns)
    return (returns - values).var() / returns.var()


@pitfall(
    "squared-correlation",
    target="explained_variance",
    mistake="the squared correlation of values and returns",
    symptom="a critic with the wrong sign or the wrong scale looks perfect: 1 where it should be below 0",
    exposed_by="values with the sign reversed",
)
def _squared_correlation(values: Tensor, returns: Tensor, *, mask: Tensor | None = None) -> Tensor:
    values, returns = kept(mask, values, returns)
    return torch.corrcoef(torch.stack([values.flatten(), returns.flatten()]))[0, 1].square()


# annealed: a value lowered linearly to 0 over the run ---------------------------------------------------------------


@pitfall(
    "anneals-upwards",
    target="annealed",
    mistake="a schedule that rises from 0 instead of falling to it",
    symptom="next to nothing moves at first, and the largest updates come last",
    exposed_by="the value before the first step is the initial one",
)
def _anneal_upwards(initial: float, env_steps: int, total_steps: int) -> float:
    return initial * min(env_steps / total_steps, 1.0)


@pitfall(
    "anneals-below-zero",
    target="annealed",
    mistake="a schedule that goes on below 0 once the budget is overrun",
    symptom="the last update, which overshoots the budget, ascends the loss",
    exposed_by="env_steps above total_steps",
)
def _anneal_below_zero(initial: float, env_steps: int, total_steps: int) -> float:
    return initial * (1 - env_steps / total_steps)


@pitfall(
    "integer-division",
    target="annealed",
    mistake="a schedule with integer division: it stays at the initial value until the very end",
    symptom="no annealing at all; the last updates still take full steps",
    exposed_by="half of the steps gives half of the value",
)
def _integer_division(initial: float, env_steps: int, total_steps: int) -> float:
    return initial * max(1 - env_steps // total_steps, 0)
