"""What the tests of the PPO trainer share: a small run, a reward, comparisons of weights, logs and directories."""

import math
from pathlib import Path
from typing import Any

import torch
from lm_helpers import PROMPTS, make_lm, make_tokenizer
from torch import Tensor

from ppo_edu.lm import LMPPOConfig, PolicyWithValue, TrainResult, train_ppo
from ppo_edu.runs import CHECKPOINT_NAME, LOG_NAME, Row, load_checkpoint, read_log, seeded

MEASURED = ("seconds", "seconds_generation", "seconds_scoring", "seconds_update", "tokens_per_second", "peak_memory_mb")


def small(**changes: Any) -> LMPPOConfig:
    """A run of 6 updates that takes about 0.3 s."""
    settings = {"updates": 6, "batch_size": 8, "max_new_tokens": 5, "epochs": 2, "minibatches": 2, "learning_rate": 1e-2}
    return LMPPOConfig(**(settings | changes))


def make_policy(architecture: str = "gpt2", *, seed: int = 0, value: str = "shared", head: float = 0.0, **changes: Any) -> PolicyWithValue:
    """A tiny policy. `value`: "shared", or "separate" for a value model of its own; `head`: spread of the value head's weights."""
    value_model = make_lm(architecture, seed=seed + 100, **changes) if value == "separate" else None
    policy = PolicyWithValue(make_lm(architecture, seed=seed, **changes), value_model)
    with seeded(seed), torch.no_grad():
        for parameter in policy.value_head.parameters():
            parameter += head * torch.randn(parameter.shape)
    return policy


def count_a(prompts: list[str], responses: list[str]) -> Tensor:
    """One for each "a" of the response, and a hundredth for each character of the prompt."""
    return torch.tensor([response.split().count("a") + 0.01 * len(prompt) for prompt, response in zip(prompts, responses, strict=True)])


def run(policy: PolicyWithValue | None = None, config: LMPPOConfig | None = None, **options: Any) -> TrainResult:
    """`train_ppo` on six prompts of different length, without a progress bar; each argument can be replaced."""
    defaults = {"tokenizer": make_tokenizer(), "prompts": PROMPTS, "reward_fn": count_a, "progress": False}
    return train_ppo(policy or make_policy(), config=config or small(), **(defaults | options))


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the state."""
    return {name: x.clone() for name, x in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Euclidean distance of two sets of weights."""
    assert a.keys() == b.keys()
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in a))


def unmeasured(log: list[Row]) -> list[Row]:
    """A log without the columns that a clock or the operating system wrote."""
    return [{name: x for name, x in row.items() if name not in MEASURED} for row in log]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def saved(directory: Path) -> tuple[int, dict[str, Tensor]]:
    """Update and tensors (but the seconds it took) of a run's checkpoint."""
    checkpoint = load_checkpoint(directory / CHECKPOINT_NAME, kind="lm-ppo")
    return checkpoint.update, {name: x for name, x in checkpoint.tensors.items() if name != "seconds"}


def assert_same_run(a: Path, b: Path) -> None:
    """Two directories hold the same run: checkpoint and log, bit for bit."""
    (update_a, tensors_a), (update_b, tensors_b) = saved(a), saved(b)
    assert update_a == update_b
    assert same(tensors_a, tensors_b)
    assert unmeasured(read_log(a / LOG_NAME)) == unmeasured(read_log(b / LOG_NAME))
