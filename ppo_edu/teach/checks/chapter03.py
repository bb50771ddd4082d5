"""Checkers of chapter 3: the optimal baseline, the leave-one-out baseline, the loss of an actor-critic, entropy."""

from collections.abc import Callable

import torch
from torch import Tensor

from ppo_edu.core import entropy_bonus, policy_gradient_loss, value_loss
from ppo_edu.teach.checks.engine import Case, CheckResult, run_check, with_gradients
from ppo_edu.teach.exact import squared_scores
from ppo_edu.teach.pitfalls import pitfalls_of


def optimal_baseline(probabilities: Tensor, rewards: Tensor) -> Tensor:
    """The mean reward, weighted by the squared norm of the score of a softmax policy as well as by the probabilities."""
    weights = probabilities * squared_scores(probabilities)
    return (weights * rewards).sum() / weights.sum()


def check_optimal_baseline(fn: Callable) -> CheckResult:
    """Exercise 3.2: `fn(probabilities [A], rewards [A]) -> scalar`, for the logits of a softmax policy in one state."""

    def case(title: str, probabilities: list[float], rewards: list[float]) -> Case:
        return Case(title, {"probabilities": torch.tensor(probabilities), "rewards": torch.tensor(rewards)})

    cases = [
        case("both arms equally probable", [0.5, 0.5], [1.0, 2.0]),
        case("one arm preferred", [0.75, 0.25], [0.0, 1.0]),
        case("three arms", [0.5, 0.25, 0.25], [4.0, 0.0, 1.0]),
        case("a hundred points more for everyone", [0.5, 0.25, 0.25], [104.0, 100.0, 101.0]),
        case("four arms, one nearly certain", [0.85, 0.08, 0.05, 0.02], [1.0, -2.0, 0.5, 3.0]),
    ]
    return run_check("Exercise 3.2", fn, reference=optimal_baseline, cases=cases, pitfalls=pitfalls_of("optimal_baseline"))


def leave_one_out(returns: Tensor) -> Tensor:
    """For each episode the mean return of the others."""
    return (returns.sum() - returns) / (len(returns) - 1)


def check_leave_one_out(fn: Callable) -> CheckResult:
    """Exercise 3.3: `fn(returns [B]) -> [B]`, the baseline of each episode: the mean return of all the others."""
    cases = [
        Case(title, {"returns": torch.tensor(returns)})
        for title, returns in [
            ("two episodes", [1.0, 3.0]),
            ("two episodes of equal return", [2.0, 2.0]),
            ("three episodes", [0.0, 1.0, 5.0]),
            ("five episodes", [0.5, -1.0, 2.0, 0.0, 1.0]),
        ]
    ]
    return run_check("Exercise 3.3", fn, reference=leave_one_out, cases=cases, pitfalls=pitfalls_of("leave_one_out"))


def actor_critic_loss(log_probs: Tensor, values: Tensor, returns: Tensor, value_coef: float) -> Tensor:
    """The policy-gradient loss with the advantages held fixed, plus the weighted value loss."""
    return policy_gradient_loss(log_probs, returns - values) + value_coef * value_loss(values, returns)


def check_actor_critic_loss(fn: Callable) -> CheckResult:
    """Exercise 3.4: `fn(log_probs [B], values [B], returns [B], value_coef) -> scalar` to minimise, by value and by gradient."""

    def case(title: str, probabilities: list[float], values: list[float], returns: list[float], value_coef: float = 0.5) -> Case:
        tensors = {"log_probs": torch.tensor(probabilities).log(), "values": torch.tensor(values), "returns": torch.tensor(returns)}
        return Case(title, tensors | {"value_coef": value_coef})

    cases = [
        case("better than the critic expected", [0.5], [1.0], [3.0]),
        case("worse than the critic expected", [0.25], [2.0], [1.0]),
        case("as the critic expected: nothing pulls", [0.5], [2.0], [2.0]),
        case("a critic without weight", [0.5], [1.0], [3.0], 0.0),
        case("four steps", [0.5, 0.25, 0.1, 0.9], [1.0, 0.0, 2.0, -1.0], [2.0, -1.0, 2.5, 0.0], 2.0),
    ]
    return run_check(
        "Exercise 3.4",
        fn,
        reference=actor_critic_loss,
        cases=cases,
        pitfalls=pitfalls_of("actor_critic_loss"),
        call=with_gradients(of=("log_probs", "values")),
    )


def check_entropy(fn: Callable) -> CheckResult:
    """Exercise 3.5: `fn(logits [B, A]) -> scalar`, the mean entropy in nats, by value and by gradient."""

    def case(title: str, logits: list[list[float]]) -> Case:
        return Case(title, {"logits": torch.tensor(logits)})

    cases = [
        case("a fair coin", [[0.0, 0.0]]),
        case("a fair coin, logits shifted by 3", [[3.0, 3.0]]),
        case("a loaded coin", [[1.0, 0.0]]),
        case("three actions", [[2.0, 0.0, -1.0]]),
        case("two states", [[0.0, 0.0, 0.0], [4.0, 0.0, 1.0]]),
    ]
    call = with_gradients(result_name="value")
    return run_check("Exercise 3.5", fn, reference=entropy_bonus, cases=cases, pitfalls=pitfalls_of("entropy"), call=call)
