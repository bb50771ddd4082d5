"""Checkers of chapter 2: the score of a softmax, the reward-to-go, the mean over the steps of a batch of episodes."""

from collections.abc import Callable

import torch
from torch import Tensor

from ppo_edu.core import discounted_return, policy_gradient_loss
from ppo_edu.teach.checks.engine import Case, CheckResult, run_check, with_gradients
from ppo_edu.teach.exact import score as table_score
from ppo_edu.teach.pitfalls import pitfalls_of


def score(logits: Tensor, action: int) -> Tensor:
    """The gradient [A] of log softmax(logits)[action] with respect to the logits [A]."""
    return table_score(torch.softmax(logits, -1)[None], torch.tensor(0), torch.tensor(action))[0]


def check_score(fn: Callable) -> CheckResult:
    """Exercise 2.2: `fn(logits [A], action) -> [A]`, the gradient of log pi(action) for pi = softmax(logits)."""
    cases = [
        Case(title, {"logits": torch.tensor(logits), "action": action})
        for title, logits, action in [
            ("two actions, both even", [0.0, 0.0], 0),
            ("the other action", [0.0, 0.0], 1),
            ("three actions, all even", [0.0, 0.0, 0.0], 1),
            ("a rare action", [2.0, 0.0, -1.0], 2),
            ("logits shifted by a constant: the same policy", [12.0, 10.0, 9.0], 2),
        ]
    ]
    return run_check("Exercise 2.2", fn, reference=score, cases=cases, pitfalls=pitfalls_of("score"))


def reward_to_go(rewards: Tensor, gamma: float) -> Tensor:
    """G_t [T] of one episode that ends with its last reward: sum_{k >= t} gamma^(k - t) r_k."""
    terminated = torch.zeros(len(rewards), 1, dtype=torch.bool)
    terminated[-1] = True
    return discounted_return(rewards[:, None], terminated, torch.zeros_like(terminated), gamma=gamma)[:, 0]


def check_reward_to_go(fn: Callable) -> CheckResult:
    """Exercise 2.3: `fn(rewards [T], gamma) -> [T]`, the discounted return from each step of one episode."""
    cases = [
        Case(title, {"rewards": torch.tensor(rewards), "gamma": gamma})
        for title, rewards, gamma in [
            ("one step", [2.0], 0.5),
            ("a single reward at the end", [0.0, 0.0, 1.0], 0.5),
            ("a single reward at the start", [1.0, 0.0, 0.0], 0.5),
            ("no discount", [1.0, 2.0, 4.0], 1.0),
            ("gamma 0: the rewards themselves", [1.0, 2.0, 4.0], 0.0),
            ("four rewards", [1.0, -2.0, 3.0, 0.5], 0.9),
        ]
    ]
    return run_check("Exercise 2.3", fn, reference=reward_to_go, cases=cases, pitfalls=pitfalls_of("reward_to_go"))


def pooled_loss(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Minus the mean of log pi(a_t|s_t) * weight_t over all steps that happened, of whichever episode."""
    return policy_gradient_loss(log_probs, weights, mask=mask)


def check_pooled_loss(fn: Callable) -> CheckResult:
    """Exercise 2.5: `fn(log_probs [T, N], weights [T, N], mask [T, N]) -> loss`, the mean over all real steps, to be minimised."""

    def case(title: str, probabilities: list, weights: list, mask: list) -> Case:
        flags = torch.tensor(mask, dtype=torch.bool)
        return Case(title, {"log_probs": torch.tensor(probabilities).log(), "weights": torch.tensor(weights), "mask": flags})

    cases = [
        case("one episode of one step", [[0.5]], [[1.0]], [[1]]),
        case("one episode of two steps", [[0.5], [0.25]], [[1.0], [2.0]], [[1], [1]]),
        case("one step, and a row of padding", [[0.5], [1.0]], [[2.0], [0.0]], [[1], [0]]),
        case("one step, and something in the padding", [[0.5], [0.2]], [[2.0], [7.0]], [[1], [0]]),
        case(
            "an episode of one step beside one of three",
            [[0.5, 0.5], [0.2, 0.25], [0.2, 0.1]],
            [[2.0, 1.0], [7.0, 1.0], [7.0, -3.0]],
            [[1, 1], [0, 1], [0, 1]],
        ),
    ]
    return run_check(
        "Exercise 2.5",
        fn,
        reference=pooled_loss,
        cases=cases,
        pitfalls=pitfalls_of("pooled_loss"),
        call=with_gradients(of=("log_probs",)),
    )
