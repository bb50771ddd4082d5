"""PPO with a penalty on the KL divergence in place of a clip, on a table, many runs at once.

For the experiment of chapter 5, where the exact J of every policy is known.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ppo_edu.core import gae, kl_categorical, masked_mean, surrogate_loss, value_checks
from ppo_edu.teach.exact import MDP, objective, sample_episodes, softmax_policy, state_values


@dataclass(frozen=True)
class PenaltyRuns:
    """What R independent runs of K updates leave behind, all [K, R]."""

    objective: Tensor  # the exact J after each update
    kl: Tensor  # nats: how far each update moved, on the states of its batch
    coefficient: Tensor  # the one that the update used


@dataclass(frozen=True)
class Batch:
    """N episodes of each of R runs: [T, R, N]. `run` [R, 1] is the number of the run, to look up tables [R, S, ...]."""

    run: Tensor
    states: Tensor
    actions: Tensor
    advantages: Tensor
    mask: Tensor


def kl_penalty_update(coefficient: float, kl: float, target: float) -> float:
    r"""The adaptive coefficient after an update that moved `kl` nats.

        coefficient / 2   if kl < target / 1.5
        coefficient * 2   if kl > target * 1.5

    and unchanged between. Source: Schulman et al. 2017 (arXiv:1707.06347), section 4.
    """
    if kl < target / 1.5:
        return coefficient / 2
    if kl > target * 1.5:
        return coefficient * 2
    return coefficient


def collect(mdp: MDP, pi: Tensor, episodes: int, *, seed: int) -> Batch:
    """`episodes` episodes under each of the policies pi [R, S, A], with advantages from a perfect critic and lambda = 1."""
    rows = []
    for r, policy in enumerate(pi):
        e = sample_episodes(mdp, policy, episodes, seed=seed * len(pi) + r)
        values, next_values = e.look_up(state_values(mdp, policy))
        advantages = gae(e.rewards, values, next_values, e.terminated, e.truncated, gamma=mdp.gamma, lam=1.0)
        rows.append((e.states, e.actions, advantages, e.mask))
    return Batch(torch.arange(len(pi))[:, None], *(pad_sequence(list(x)) for x in zip(*rows, strict=True)))


def improve(
    logits: Tensor,  # [R, S, A]
    batch: Batch,
    coefficient: Tensor,  # [R]
    *,
    steps: int,
    learning_rate: float,
) -> tuple[Tensor, Tensor]:
    r"""Adam steps on one batch. Each run minimises, over the steps of its batch,

        mean(-ratio * A + coefficient * KL(pi_old(.|s) || pi(.|s)))

    (The mean is taken over all runs at once; Adam does not mind the scale.)
    Source: Schulman et al. 2017 (arXiv:1707.06347), equation 8, negated.
    Returns: the new logits [R, S, A] and the mean KL [R] in nats.
    """
    run, states, actions = batch.run, batch.states, batch.actions
    advantages, mask = batch.advantages, batch.mask
    taken = (run, states, actions)
    old = torch.log_softmax(logits, dim=-1)
    theta = logits.clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=learning_rate)
    for _ in range(steps):
        new = torch.log_softmax(theta, dim=-1)
        loss = surrogate_loss(new[taken], old[taken], advantages, mask=mask)
        kl = kl_categorical(old[run, states], new[run, states])
        loss = loss + masked_mean(coefficient[run] * kl, mask)
        adam.zero_grad()
        loss.backward()
        adam.step()
    new = torch.log_softmax(theta.detach(), dim=-1)
    kl = kl_categorical(old[run, states], new[run, states])
    kl = torch.where(mask, kl, 0.0).sum((0, 2)) / mask.sum((0, 2))
    return theta.detach(), kl


def kl_penalty_ppo(
    mdp: MDP,
    logits: Tensor,  # [S, A]: where every run starts
    *,
    coefficient: float,
    update_coefficient: Callable[[float, float], float],  # (coefficient, kl) -> the next coefficient
    runs: int = 20,
    updates: int = 40,
    episodes: int = 32,  # per update and run
    steps: int = 50,  # of Adam per update
    learning_rate: float = 0.1,
    seed: int = 0,
) -> PenaltyRuns:
    """Collect, improve, adapt the coefficient; again. All episodes must end by themselves.

    Source: Schulman et al. 2017 (arXiv:1707.06347), section 4.
    """
    theta = logits.repeat(runs, 1, 1)
    beta = torch.full((runs,), coefficient, dtype=theta.dtype)
    recorded = []
    with value_checks(False):
        for update in range(updates):
            batch = collect(mdp, softmax_policy(theta), episodes, seed=seed * updates + update)
            theta, kl = improve(theta, batch, beta, steps=steps, learning_rate=learning_rate)
            J = torch.stack([objective(mdp, pi) for pi in softmax_policy(theta)])
            recorded.append((J, kl, beta))
            pairs = zip(beta.tolist(), kl.tolist(), strict=True)
            beta = torch.tensor([update_coefficient(*pair) for pair in pairs], dtype=theta.dtype)
    return PenaltyRuns(*(torch.stack(x) for x in zip(*recorded, strict=True)))
