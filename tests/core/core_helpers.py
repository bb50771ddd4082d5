"""What the tests of `ppo_edu.core` share: random rollouts, one valid value for every argument name, groups of functions."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from ppo_edu import core

Rollout = dict[str, Tensor]

T, N, A = 5, 3, 4  # the shape of what `arguments` builds: steps, environments, actions

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]
DTYPES = [torch.float32, torch.float64]

FUNCTIONS = [name for name in core.__all__ if inspect.isfunction(getattr(core, name)) and name != "value_checks"]


def row(*numbers: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One environment, time first: [T, 1]."""
    return torch.tensor(numbers, dtype=dtype)[:, None]


def flags(*rows: int, of: int) -> Tensor:
    """[of, 1] bool, True in the given rows."""
    result = torch.zeros(of, 1, dtype=torch.bool)
    result[list(rows)] = True
    return result


def floats(*numbers: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


def random_rollout(seed: int, T: int = 12, N: int = 3, dtype: torch.dtype = torch.float64) -> Rollout:
    """A rollout with ends of all kinds. `next_values` is `values` one row later, except where an episode or the rollout ends."""
    g = torch.Generator().manual_seed(seed)
    rewards, values, next_values = (torch.randn(T, N, generator=g, dtype=dtype) for _ in range(3))
    terminated, truncated = (torch.rand(T, N, generator=g) < 0.15 for _ in range(2))
    goes_on = ~(terminated | truncated)[:-1]
    next_values[:-1] = torch.where(goes_on, values[1:], next_values[:-1])
    return {"rewards": rewards, "values": values, "next_values": next_values, "terminated": terminated, "truncated": truncated}


def rollouts(max_T: int = 8, max_N: int = 3) -> st.SearchStrategy[Rollout]:
    """Hypothesis: rollouts of all small sizes."""
    return st.builds(random_rollout, seed=st.integers(0, 10**6), T=st.integers(1, max_T), N=st.integers(1, max_N))


unit_interval = st.floats(0.0, 1.0, allow_subnormal=False)


def call(function: Callable[..., Tensor], rollout: Rollout, **constants: Any) -> Tensor:
    """Call a function with those entries of the rollout that it asks for; `next_values` is also the bootstrap."""
    offered = {**rollout, "bootstrap": rollout["next_values"], **constants}
    return function(**{name: offered[name] for name in inspect.signature(function).parameters})


# Every function of rewards and values, with constants at which each of its terms matters.
ROLLOUT_FUNCTIONS: dict[str, Callable[[Rollout], Tensor]] = {
    "discounted_return": lambda r: call(core.discounted_return, r, gamma=0.9),
    "td_residual": lambda r: call(core.td_residual, r, gamma=0.9),
    "n_step_return": lambda r: call(core.n_step_return, r, gamma=0.9, n=3),
    "lambda_return": lambda r: call(core.lambda_return, r, gamma=0.9, lam=0.8),
    "gae": lambda r: call(core.gae, r, gamma=0.9, lam=0.8),
}

# Every statistic that takes a mask: name -> names of its tensors. Those in LEARNED get gradient.
MASKED = {
    "policy_gradient_loss": ("log_probs", "advantages"),
    "surrogate_loss": ("log_probs", "old_log_probs", "advantages"),
    "clipped_surrogate_loss": ("log_probs", "old_log_probs", "advantages"),
    "value_loss": ("values", "returns", "old_values"),
    "entropy_bonus": ("logits",),
    "approx_kl": ("log_probs", "old_log_probs"),
    "clip_fraction": ("log_probs", "old_log_probs"),
    "effective_sample_size": ("log_probs", "old_log_probs"),
    "explained_variance": ("values", "returns"),
    "masked_mean": ("x",),
    "masked_var": ("x",),
    "whiten": ("x",),
}

# Which arguments of which function receive gradient: the contract of the design page, section 3.
LEARNED = {
    "discounted_return": (),
    "td_residual": (),
    "n_step_return": (),
    "lambda_return": (),
    "gae": (),
    "clip_fraction": (),
    "explained_variance": (),
    "effective_sample_size": (),
    "probability_ratio": ("log_probs",),
    "policy_gradient_loss": ("log_probs",),
    "surrogate_loss": ("log_probs",),
    "clipped_surrogate_loss": ("log_probs",),
    "value_loss": ("values",),
    "entropy_bonus": ("logits",),
    "approx_kl": ("log_probs",),
    "kl_categorical": ("logits_p", "logits_q"),
    "kl_estimate": ("log_probs", "ref_log_probs"),
    "masked_mean": ("x",),
    "masked_var": ("x",),
    "whiten": ("x",),
}


def arguments(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> dict[str, Any]:
    """Valid arguments for any function of core, every optional one given. Equal names mean equal things throughout core."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(device, dtype)

    pool = random_rollout(seed, T, N, dtype)
    pool |= {"bootstrap": pool["next_values"], "returns": pool["rewards"] + pool["values"]}
    pool = {key: x.to(device) for key, x in pool.items()}
    pool |= {key: normal(T, N) for key in ("x", "advantages", "old_values")}
    pool |= {key: normal(T, N, A) for key in ("logits", "logits_p", "logits_q")}
    pool |= {key: normal(T, N, scale=0.3) - 2.0 for key in ("log_probs", "old_log_probs", "ref_log_probs")}
    pool["mask"] = (torch.rand(T, N, generator=g) < 0.7).to(device)
    constants = {"gamma": 0.9, "lam": 0.8, "n": 2, "clip_range": 0.2, "kind": "k3", "shift_mean": True}
    offered = {**pool, **constants}
    return {key: offered[key] for key in inspect.signature(getattr(core, name)).parameters}
