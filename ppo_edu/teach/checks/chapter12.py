"""Checkers of chapter 12: the loss of comparisons, the place of a response's score."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ppo_edu.teach.checks.engine import Case, CheckResult, run_check, with_gradients
from ppo_edu.teach.pitfalls import pitfalls_of


def preference_loss(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    """Mean of -p log sigmoid(d) - (1 - p) log sigmoid(-d) with d = first - second."""
    difference = first - second
    return -(targets * F.logsigmoid(difference) + (1 - targets) * F.logsigmoid(-difference)).mean()


def check_preference_loss(fn: Callable) -> CheckResult:
    """Exercise 12.2: `fn(first [B], second [B], targets [B]) -> scalar`, with its gradients with respect to both scores."""

    def case(title: str, first: list[float], second: list[float], targets: list[float]) -> Case:
        return Case(title, {"first": torch.tensor(first), "second": torch.tensor(second), "targets": torch.tensor(targets)})

    cases = [
        case("the first is better and was preferred", [1.0], [0.0], [1.0]),
        case("the first is better and the second was preferred", [1.0], [0.0], [0.0]),
        case("a tie between unequal scores", [1.0], [-1.0], [0.5]),
        case("both scores raised by 3: only their difference counts", [4.0], [3.0], [1.0]),
        case("three comparisons, one of each answer", [1.0, 0.5, -2.0], [0.0, 2.0, 0.3], [1.0, 0.0, 0.5]),
        case("a gap of 120 that turned out wrong: the loss is 120", [120.0], [0.0], [0.0]),
    ]
    call = with_gradients(of=("first", "second"))
    return run_check("Exercise 12.2", fn, reference=preference_loss, cases=cases, pitfalls=pitfalls_of("preference_loss"), call=call)


def last_token_score(scores: Tensor, mask: Tensor) -> Tensor:
    """The score at the last token that counts in each row."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(1)
    return scores.gather(1, last[:, None]).squeeze(1)


def check_last_token_score(fn: Callable) -> CheckResult:
    """Exercise 12.3: `fn(scores [B, L], mask [B, L] bool) -> [B]`, the score at the last token that the mask counts."""

    def case(title: str, scores: Sequence[Sequence[float]], mask: Sequence[Sequence[int]]) -> Case:
        return Case(title, {"scores": torch.tensor(scores), "mask": torch.tensor(mask, dtype=torch.bool)})

    cases = [
        case("one token", [[0.5, 2.0]], [[1, 0]]),
        case("no padding", [[1.0, -2.0, 3.0]], [[1, 1, 1]]),
        case("padding on the right", [[1.0, 2.0, 4.0, 8.0]], [[1, 1, 0, 0]]),
        case("padding on the left", [[1.0, 2.0, 4.0, 8.0]], [[0, 0, 1, 1]]),
        case(
            "prompts padded on the left, responses on the right",
            [[1.0, 2.0, 4.0, 8.0, 16.0], [3.0, 1.0, -5.0, 2.0, 7.0], [9.0, 6.0, -1.0, 2.0, 5.0]],
            [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]],
        ),
    ]
    return run_check("Exercise 12.3", fn, reference=last_token_score, cases=cases, pitfalls=pitfalls_of("last_token_score"))
