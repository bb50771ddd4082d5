"""Actor-critic on a table, many runs at once: one learner per column, all with their own parameters and their own luck.

For the experiments of the first chapters, where one run proves nothing and the exact J of every policy is known.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_edu.core import discounted_return, entropy_bonus, policy_gradient_loss, value_checks, value_loss
from ppo_edu.teach.exact import MDP, objective, softmax_policy


@dataclass(frozen=True)
class Runs:
    """What R independent runs leave behind."""

    updates: Tensor  # [K] int64: after how many updates `objective` was recorded
    objective: Tensor  # [K, R] the exact J
    logits: Tensor  # [R, S, A] at the end
    values: Tensor  # [R, S] the critic at the end


def actor_critic(
    mdp: MDP,
    *,
    runs: int,
    batch_size: int,  # episodes per update and run
    updates: int,
    learning_rate: float,  # of the actor
    critic_rate: float = 0.0,  # of the critic; 0: V stays 0, no baseline
    entropy_coef: float = 0.0,
    warm_up: int = 0,  # first updates, which move the critic alone
    logits: Tensor | None = None,  # [S, A] the start; None: uniform
    optimizer: Callable = torch.optim.SGD,
    record_every: int = 1,  # updates
    seed: int = 0,
) -> Runs:
    r"""Policy gradient ascent with a learned baseline.

    Each run descends the mean over its episodes of

        sum_t ( -gamma^t * (G_t - V(s_t)) * log pi(a_t|s_t)
                + 0.5 * (V(s_t) - G_t)^2
                - entropy_coef * H(pi(.|s_t)) )

    with G_t - V(s_t) held fixed. All episodes must end by themselves.

    Source: Sutton & Barto 2018, section 13.4 (REINFORCE with baseline);
    the bonus: Williams & Peng 1991.
    """
    S, _ = mdp.size
    start = mdp.uniform_logits() if logits is None else logits
    theta = start.repeat(runs, 1, 1).requires_grad_()
    values = torch.zeros(runs, S, dtype=torch.float64, requires_grad=True)
    actor = {"params": [theta], "lr": 0.0}  # until the warm-up is over
    critic = {"params": [values], "lr": critic_rate}
    optim = optimizer([actor, critic])
    generator = torch.Generator().manual_seed(seed)
    run = torch.arange(runs).repeat_interleave(batch_size)
    recorded = {}
    with value_checks(False):
        for update in range(updates):
            if update % record_every == 0:
                recorded[update] = theta.detach().clone()
            if update == warm_up:
                optim.param_groups[0]["lr"] = learning_rate
            pi = softmax_policy(theta.detach())
            states, actions, rewards, terminated, mask = _sample(mdp, pi, run, generator)
            returns = discounted_return(rewards, terminated, torch.zeros_like(mask), gamma=mdp.gamma)
            discount = mdp.gamma ** torch.arange(len(states), dtype=torch.float64)[:, None]

            log_probs = torch.log_softmax(theta, dim=-1)[run, states, actions]
            baseline = values[run, states]
            advantages = (returns - baseline).detach()
            loss = policy_gradient_loss(log_probs, discount * advantages, mask=mask)
            loss = loss + value_loss(baseline, returns, mask=mask)
            loss = loss - entropy_coef * entropy_bonus(theta[run, states], mask)

            optim.zero_grad()
            # from a mean over steps to a mean over each run's episodes
            (loss * mask.sum() / batch_size).backward()
            optim.step()
    recorded[updates] = theta.detach()
    policies = softmax_policy(torch.stack(list(recorded.values())))
    exact_j = torch.vmap(torch.vmap(lambda pi: objective(mdp, pi)))
    return Runs(torch.tensor(list(recorded)), exact_j(policies), theta.detach(), values.detach())


def _sample(mdp: MDP, pi: Tensor, run: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """One episode per entry of `run`, under that run's policy pi[run] [S, A]: states, actions, rewards, terminated, mask, all [T, N].

    Draws by the inverse of the distribution function, from uniform numbers alone: the same on every machine.
    """
    S, A = mdp.size

    def draw(probabilities: Tensor) -> Tensor:
        u = torch.rand(len(run), 1, generator=generator, dtype=torch.float64)
        return (u > probabilities.cumsum(-1)).sum(-1)

    state = draw(mdp.start.expand(len(run), S)).clamp(max=S - 1)
    alive = torch.ones(len(run), dtype=torch.bool)
    rows = []
    while alive.any():
        action = draw(pi[run, state]).clamp(max=A - 1)
        following = draw(mdp.transition[state, action])  # S where the episode ends
        ends = alive & (following == S)
        rows.append((state, action, torch.where(alive, mdp.reward[state, action], 0.0), ends, alive))
        alive = alive & ~ends
        state = torch.where(alive, following, 0)
    states, actions, rewards, terminated, mask = map(torch.stack, zip(*rows, strict=True))
    return states, actions, rewards, terminated, mask
