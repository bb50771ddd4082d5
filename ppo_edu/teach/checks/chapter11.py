"""Checkers of chapter 11: log-probabilities of a response, its mask, position ids under left padding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppo_edu.teach.checks.engine import Case, CheckResult, call_by_position, run_check
from ppo_edu.teach.pitfalls import pitfalls_of


def response_log_probs(logits: Tensor, input_ids: Tensor, prompt_length: int) -> Tensor:
    """log pi of each response token: the logits at position j predict the token at j + 1."""
    log_probs = torch.log_softmax(logits[:, prompt_length - 1 : -1], dim=-1)
    return log_probs.gather(-1, input_ids[:, prompt_length:, None]).squeeze(-1)


def check_response_log_probs(fn: Callable) -> CheckResult:
    """Exercise 11.2: `fn(logits [B, L, V], input_ids [B, L], prompt_length) -> [B, L - prompt_length]`."""

    def case(title: str, probabilities: list, input_ids: list, prompt_length: int) -> Case:
        logits = torch.tensor(probabilities).log() + 1.0  # logits are log-probabilities up to a constant
        return Case(title, {"logits": logits, "input_ids": torch.tensor(input_ids), "prompt_length": prompt_length})

    random = torch.Generator().manual_seed(0)
    large = {
        "logits": torch.randn(3, 6, 4, generator=random),
        "input_ids": torch.randint(4, (3, 6), generator=random),
        "prompt_length": 3,
    }
    cases = [
        case("one prompt token, one response token", [[[0.25, 0.75], [0.5, 0.5]]], [[1, 0]], 1),
        case("one prompt token, two response tokens", [[[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]], [[0, 1, 1]], 1),
        case(
            "two prompt tokens, three tokens to choose from",
            [[[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.8, 0.1, 0.1]]],
            [[2, 1, 0, 2]],
            2,
        ),
        Case("three sequences at once", large),
    ]
    return run_check("Exercise 11.2", fn, reference=response_log_probs, cases=cases, pitfalls=pitfalls_of("response_log_probs"))


def response_mask(tokens: Tensor, eos: int) -> Tensor:
    """True up to the first end token, which belongs to the response; True everywhere where none came."""
    is_end = tokens == eos
    return is_end.cumsum(1) - is_end.long() == 0


def check_response_mask(fn: Callable) -> CheckResult:
    """Exercise 11.3: `fn(tokens [B, T], eos) -> [B, T]` bool, True on the response with its end token, False after it."""

    def case(title: str, tokens: list, eos: int = 2) -> Case:
        return Case(title, {"tokens": torch.tensor(tokens), "eos": eos})

    cases = [
        case("a response that fills its columns", [[0, 1, 2]]),
        case("a short response, padded with the end token", [[0, 2, 2, 2]]),
        case("a short response, padded with another token", [[1, 2, 3, 3]]),
        case("an empty response", [[2, 2, 2]]),
        case("a response cut before its end", [[0, 1, 0]]),
        case("something was written after the end", [[0, 2, 1, 2, 0]]),
        case("four responses, another end token", [[3, 0, 0, 0], [0, 0, 0, 0], [1, 2, 3, 1], [3, 2, 1, 0]], eos=0),
    ]
    return run_check("Exercise 11.3", fn, reference=response_mask, cases=cases, pitfalls=pitfalls_of("response_mask"))


def position_ids(attention_mask: Tensor) -> Tensor:
    """How many real tokens stand before each token."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def check_position_ids(fn: Callable) -> CheckResult:
    """Exercise 11.4: `fn(attention_mask [B, L] bool) -> [B, L]` int; what it gives to padding does not count."""

    def call(fn: Callable, arguments: dict[str, Any]) -> Any:
        result = call_by_position(fn, arguments)
        mask = arguments["attention_mask"]
        if isinstance(result, Tensor) and result.layout == torch.strided and result.shape == mask.shape:
            return torch.where(mask, result, torch.zeros_like(result))
        return result

    def case(title: str, attention_mask: list) -> Case:
        return Case(title, {"attention_mask": torch.tensor(attention_mask, dtype=torch.bool)})

    cases = [
        case("no padding", [[1, 1, 1]]),
        case("two pads before the prompt", [[0, 0, 1, 1]]),
        case("pads on both sides", [[0, 1, 1, 1, 0, 0]]),
        case("three prompts of different length", [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
    ]
    return run_check("Exercise 11.4", fn, reference=position_ids, cases=cases, pitfalls=pitfalls_of("position_ids"), call=call)
