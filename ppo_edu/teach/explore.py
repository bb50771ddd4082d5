"""The numbers behind the site's three interactive figures, and the same figures drawn once, for a notebook on its own.

Each function returns what the page shows for the same settings, computed with `ppo_edu.core`; a test in a browser
compares the two. The figures themselves are in book/_extra/explorables.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppo_edu.core import clipped_surrogate_loss, kl_categorical, kl_estimate, td_residual
from ppo_edu.core import gae as core_gae
from ppo_edu.teach.plots import BLUE, COLOURS, GREEN, RED

# The clipped objective -----------------------------------------------------------------------------------------------

CASES = (
    "A = 0: nothing to learn from this sample",
    "A > 0, ratio below the interval: the gradient pulls it back up",
    "A > 0, ratio inside the interval: the gradient pushes it up",
    "A > 0, ratio above the interval: clipped, no gradient",
    "A < 0, ratio below the interval: clipped, no gradient",
    "A < 0, ratio inside the interval: the gradient pushes it down",
    "A < 0, ratio above the interval: the gradient pushes it back down",
)


def clip(epsilon: float = 0.2, advantage: float = 1.0, ratio: float = 1.5) -> dict[str, Any]:
    """PPO's objective for one sample: `objective` = min(`unclipped`, `clipped`), its gradients and which of the six cases it is.

    `slope` is the derivative in the ratio, `gradient` the one in log pi (slope times ratio), which training uses.
    The ends of the interval [1 - epsilon, 1 + epsilon] belong to it.
    """
    advantages = torch.tensor([advantage], dtype=torch.float64)
    # A hair towards ratio 1, so that rounding does not push a ratio on the edge of the interval out of it.
    log_probs = torch.tensor([ratio], dtype=torch.float64).log().mul(1 - 1e-13).requires_grad_()
    objective = -clipped_surrogate_loss(log_probs, torch.zeros_like(log_probs), advantages, clip_range=epsilon)
    (gradient,) = torch.autograd.grad(objective, log_probs)
    clipped_ratio = min(max(ratio, 1 - epsilon), 1 + epsilon)
    side = 0 if ratio < 1 - epsilon - 1e-9 else 2 if ratio > 1 + epsilon + 1e-9 else 1
    case = 0 if advantage == 0 else (1 if advantage > 0 else 4) + side
    numbers = {
        "unclipped": ratio * advantage,
        "clipped": clipped_ratio * advantage,
        "objective": objective.item(),
        "slope": gradient.item() / ratio,
        "gradient": gradient.item(),
    }
    return {name: round(x, 12) for name, x in numbers.items()} | {"case": case, "meaning": CASES[case]}


def plot_clip(epsilon: float = 0.2, advantage: float = 1.0, ratio: float = 1.5) -> Figure:
    """The objective as a function of the ratio, with the interval and one sample marked."""
    shown = clip(epsilon, advantage, ratio)
    ratios = np.unique(np.concatenate([np.linspace(0.01, 2, 200), [1 - epsilon, 1 + epsilon]]))
    curve = [clip(epsilon, advantage, float(x))["objective"] for x in ratios]
    figure, axes = plt.subplots(figsize=(7.0, 3.2))
    axes.axvspan(1 - epsilon, 1 + epsilon, color=BLUE, alpha=0.10, linewidth=0)
    axes.plot(ratios, ratios * advantage, "--", color="#767676", linewidth=1.2, label="without a clip: $\\rho A$")
    axes.plot(ratios, curve, color=BLUE, label="clipped objective")
    axes.plot(ratio, shown["objective"], "o", color=RED, markersize=8, zorder=3)
    axes.set_xlabel("probability ratio $\\rho$")
    axes.set_ylabel("objective of one sample")
    axes.set_title(f"{shown['meaning']} (slope {shown['slope']:g})", size=10)
    axes.legend()
    return figure


# Generalised advantage estimation ------------------------------------------------------------------------------------

NAN = float("nan")

# Eight steps of one environment: an episode of three steps that terminates, one of three that is truncated, and the
# start of a third. next_values is NaN where there is no successor; after row 5 it is the value of the state in which
# the episode was cut, 4, not of the reset state in row 6, which is 1.
REWARDS = (1.0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 2.0)
VALUES = (2.0, 1.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0)
NEXT_VALUES = (1.0, 3.0, NAN, 2.0, 3.0, 4.0, 2.0, 1.0)
TERMINATED = (False, False, True, False, False, False, False, False)
TRUNCATED = (False, False, False, False, False, True, False, False)


def _column(x: Sequence[float] | Sequence[bool]) -> Tensor:
    """[T, 1]."""
    return torch.tensor(x, dtype=torch.bool if isinstance(x[0], bool) else torch.float64)[:, None]


def gae(gamma: float = 0.9, lam: float = 0.8) -> dict[str, Any]:
    """GAE on the eight steps above: `residuals` [T], `weights` [T, T] of each residual in each advantage, `advantages` [T].

    advantages[t] = sum_k weights[t][k] * residuals[k], and weights[t][k] = (gamma * lam)^(k - t) up to the end of t's episode.
    """
    rewards, values, next_values = _column(REWARDS), _column(VALUES), _column(NEXT_VALUES)
    terminated, truncated = _column(TERMINATED), _column(TRUNCATED)
    residuals = td_residual(rewards, values, next_values, terminated, gamma=gamma)
    advantages = core_gae(rewards, values, next_values, terminated, truncated, gamma=gamma, lam=lam)
    # The advantages of a rollout whose only residual is 1 on row k are the weights of row k: all k side by side.
    T = len(REWARDS)
    one, none = torch.eye(T, dtype=torch.float64), torch.zeros(T, T, dtype=torch.float64)
    weights = core_gae(one, none, none, terminated.expand(T, T), truncated.expand(T, T), gamma=gamma, lam=lam)
    return {"residuals": residuals[:, 0].tolist(), "weights": weights.tolist(), "advantages": advantages[:, 0].tolist()}


def plot_gae(gamma: float = 0.9, lam: float = 0.8, step: int = 0) -> Figure:
    """Residuals, their weights in the advantage of one step, and all advantages, above each other."""
    shown = gae(gamma, lam)
    steps = np.arange(len(REWARDS))
    panels = {
        "TD residuals $\\delta_t$": (shown["residuals"], BLUE),
        f"their weights in the advantage of step {step}": (shown["weights"][step], GREEN),
        "advantages $\\hat A_t$": (shown["advantages"], RED),
    }
    figure, grid = plt.subplots(3, 1, figsize=(7.0, 5.4), sharex=True)
    for axes, (title, (numbers, colour)) in zip(grid, panels.items(), strict=True):
        bars = axes.bar(steps, numbers, color=colour, width=0.6)
        axes.bar_label(bars, labels=[f"{x:.2f}" if x else "" for x in numbers], size=8.5, padding=2)
        axes.axhline(0, color="#444444", linewidth=0.8)
        axes.set_title(title, size=10)
        axes.margins(y=0.25)
        axes.grid(axis="x", visible=False)
        axes.set_axisbelow(True)
        for ends, style in ((TERMINATED, "-"), (TRUNCATED, ":")):
            axes.axvline(ends.index(True) + 0.5, color="#444444", linestyle=style, linewidth=1.4)
    grid[-1].set_xlabel("step $t$ (solid line: the episode terminates; dotted: it is truncated)")
    return figure


# KL estimators -------------------------------------------------------------------------------------------------------

KINDS = ("k1", "k2", "k3")
LOGITS_P = (1.0, 0.0, -1.0)
LOGITS_Q = (0.0, 0.0, 0.0)


def uniforms(seed: int, n: int) -> list[float]:
    """`n` pseudo-random numbers in [0, 1): the generator mulberry32, which the page runs in JavaScript, bit for bit."""
    state, numbers = seed & 0xFFFFFFFF, []
    for _ in range(n):
        state = (state + 0x6D2B79F5) & 0xFFFFFFFF
        x = ((state ^ (state >> 15)) * (state | 1)) & 0xFFFFFFFF
        x ^= (x + (((x ^ (x >> 7)) * (x | 61)) & 0xFFFFFFFF)) & 0xFFFFFFFF
        numbers.append((x ^ (x >> 14)) / 2**32)
    return numbers


def kl(logits_p: Sequence[float] = LOGITS_P, logits_q: Sequence[float] = LOGITS_Q, seed: int = 1, n: int = 100) -> dict[str, Any]:
    """KL(p || q) exactly and from `n` samples of p: `exact`, the `samples`, and the running means `k1`, `k2` and `k3` [n].

    `expectation` and `spread` are the exact mean and standard deviation of one sample of each estimator.
    """
    p_logits, q_logits = (torch.tensor(x, dtype=torch.float64) for x in (logits_p, logits_q))
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    p = log_p.exp()
    last = len(p) - 1
    samples = torch.searchsorted(p.cumsum(0), torch.tensor(uniforms(seed, n), dtype=torch.float64), right=True).clamp(max=last)
    shown: dict[str, Any] = {"exact": kl_categorical(p_logits, q_logits).item(), "samples": samples.tolist()}
    shown |= {"expectation": {}, "spread": {}}
    for kind in KINDS:
        each = kl_estimate(log_p, log_q, kind)  # of every outcome
        mean = (p * each).sum()
        shown["expectation"][kind] = mean.item()
        shown["spread"][kind] = (p * (each - mean).square()).sum().sqrt().item()
        shown[kind] = (each[samples].cumsum(0) / torch.arange(1, n + 1)).tolist()
    return shown


def plot_kl(logits_p: Sequence[float] = LOGITS_P, logits_q: Sequence[float] = LOGITS_Q, seed: int = 1, n: int = 1000) -> Figure:
    """The two distributions, and the running means of the three estimators against the exact divergence."""
    shown = kl(logits_p, logits_q, seed, n)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.2), width_ratios=(1, 2.2))
    outcomes = np.arange(len(logits_p))
    for shift, name, logits, colour in ((-0.2, "$p$", logits_p, BLUE), (0.2, "$q$", logits_q, "#999999")):
        probabilities = torch.tensor(logits, dtype=torch.float64).softmax(-1).numpy()
        left.bar(outcomes + shift, probabilities, width=0.38, color=colour, label=name)
    left.set_xticks(outcomes, [chr(ord("a") + i) for i in outcomes])
    left.set_xlabel("outcome")
    left.set_ylabel("probability")
    left.set_ylim(0, 1)
    left.set_axisbelow(True)
    left.legend()
    for kind, colour in zip(KINDS, (COLOURS[0], COLOURS[3], COLOURS[2]), strict=True):
        right.plot(np.arange(1, n + 1), shown[kind], color=colour, label=f"${kind[0]}_{kind[1]}$")
    right.axhline(shown["exact"], color="black", linestyle="--", linewidth=1.2, label="exact")
    right.set_xscale("log")
    right.xaxis.set_major_formatter("{x:g}")
    right.set_xlabel("samples of $p$")
    right.set_ylabel("running mean in nats")
    right.legend(ncols=4, loc="upper right")
    return figure
