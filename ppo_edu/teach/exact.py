"""Small tabular decision problems on which every quantity of the course can be computed exactly, in float64.

Policies are tables: `logits` [S, A] are the parameters theta of a softmax policy, `pi` [S, A] its probabilities.
Episodes end where transition probability is missing: the row sum of P over the next state is the chance to go on. So no absorbing state
is needed, and the linear solves hold at gamma = 1 too, as long as every episode ends.

The problems are registered as Gymnasium environments (ids in `ENV_IDS`), so that `ppo_edu.control.train` runs on them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ppo_edu.control import Policy
from ppo_edu.core import discounted_return, kl_categorical


@dataclass(frozen=True)
class MDP:
    """A finite Markov decision process. S states, A actions, float64."""

    name: str
    transition: Tensor  # [S, A, S] P(s'|s, a); what is missing to 1 is the probability that the episode ends
    reward: Tensor  # [S, A] r(s, a)
    start: Tensor  # [S] distribution of the first state
    gamma: float
    states: tuple[str, ...]  # names
    actions: tuple[str, ...]

    def __post_init__(self) -> None:
        S, A = self.reward.shape
        shapes = {"transition": (S, A, S), "start": (S,)}
        for name, shape in shapes.items():
            x = getattr(self, name)
            if x.shape != shape or (x < 0).any():
                raise ValueError(f"{name} must have shape {list(shape)} and no negative entry, got shape {list(x.shape)}")
        if (self.transition.sum(-1) > 1 + 1e-9).any() or abs(float(self.start.sum()) - 1) > 1e-9:
            raise ValueError("transition must sum to at most 1 over the next state, and start to 1")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")

    @property
    def size(self) -> tuple[int, int]:
        """(S, A): the number of states and of actions."""
        S, A = self.reward.shape
        return S, A

    def uniform_logits(self) -> Tensor:
        """Parameters [S, A] of the uniform policy."""
        return torch.zeros(self.size, dtype=torch.float64)


# The problems ---------------------------------------------------------------------------------------------------------


def bandit(rewards: tuple[float, ...] = (1.0, 2.0)) -> MDP:
    """One state, one action per arm, and the episode is over. Arm i pays `rewards[i]`."""
    arms = len(rewards)
    return MDP(
        "bandit",
        torch.zeros(1, arms, 1, dtype=torch.float64),
        torch.tensor([rewards], dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        1.0,
        ("start",),
        tuple(f"arm {i}" for i in range(arms)),
    )


def chain(*, length: int = 4, distraction: float = 0.2, prize: float = 1.0, gamma: float = 0.9) -> MDP:
    """A row of states. `go` moves on and, from the last state, wins the prize; `stop` takes a small reward and ends.

    In every state the distraction is at hand and the prize is `length` steps from the start: a short-sighted learner stops.
    Every episode has at most `length` steps, so all of them can be enumerated.
    """
    transition = torch.zeros(length, 2, length, dtype=torch.float64)
    for s in range(length - 1):
        transition[s, 0, s + 1] = 1.0
    reward = torch.zeros(length, 2, dtype=torch.float64)
    reward[-1, 0] = prize
    reward[:, 1] = distraction
    start = torch.zeros(length, dtype=torch.float64)
    start[0] = 1.0
    return MDP("chain", transition, reward, start, gamma, tuple(f"s{s}" for s in range(length)), ("go", "stop"))


def maze(*, size: int = 3, prize: float = 10.0, gamma: float = 0.9) -> MDP:
    """A size x size room with the exit in the lower right corner: stepping onto it pays the prize and ends the episode.

    States are the other fields, counted row by row; the start is the upper left one. Walking into a wall stays put. No
    other reward: the discount alone makes a shorter way worth more.
    """
    exit_field = size * size - 1
    moves = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
    transition = torch.zeros(exit_field, 4, exit_field, dtype=torch.float64)
    reward = torch.zeros(exit_field, 4, dtype=torch.float64)
    for field in range(exit_field):
        row, col = divmod(field, size)
        for a, (down, right) in enumerate(moves.values()):
            target = min(max(row + down, 0), size - 1) * size + min(max(col + right, 0), size - 1)
            if target == exit_field:
                reward[field, a] = prize
            else:
                transition[field, a, target] = 1.0
    start = torch.zeros(exit_field, dtype=torch.float64)
    start[0] = 1.0
    names = tuple(f"({row}, {col})" for row, col in (divmod(field, size) for field in range(exit_field)))
    return MDP("maze", transition, reward, start, gamma, names, tuple(moves))


def text_reward(text: str) -> float:
    """The reward of a finished text of the two-letter language: 1 if it contains "ab", less 0.1 per letter."""
    return float("ab" in text) - 0.1 * len(text)


def language(*, max_letters: int = 3, reward_fn: Callable[[str], float] = text_reward) -> MDP:
    """A language of the letters a and b: a state is the text so far, an action writes a letter or stops.

    The reward comes once, for the finished text: at `stop`, or with the letter that fills `max_letters`. gamma is 1, as
    is usual for language models. Its 2^(max_letters + 1) - 1 responses form a tree that can be enumerated.
    """
    prefixes = [""]
    for length in range(1, max_letters):
        prefixes += [text + letter for text in prefixes if len(text) == length - 1 for letter in "ab"]
    index = {text: s for s, text in enumerate(prefixes)}
    transition = torch.zeros(len(prefixes), 3, len(prefixes), dtype=torch.float64)
    reward = torch.zeros(len(prefixes), 3, dtype=torch.float64)
    for text, s in index.items():
        for a, letter in enumerate("ab"):
            longer = text + letter
            if longer in index:
                transition[s, a, index[longer]] = 1.0
            else:
                reward[s, a] = reward_fn(longer)
        reward[s, 2] = reward_fn(text)
    start = torch.zeros(len(prefixes), dtype=torch.float64)
    start[0] = 1.0
    return MDP("language", transition, reward, start, 1.0, tuple(repr(text) for text in prefixes), ("a", "b", "stop"))


# Exact quantities -----------------------------------------------------------------------------------------------------


def softmax_policy(logits: Tensor) -> Tensor:
    """pi [S, A] from logits [S, A]."""
    return torch.softmax(logits, dim=-1)


def random_logits(mdp: MDP, seed: int, *, scale: float = 1.0) -> Tensor:
    """Parameters [S, A] of some policy: independent normal numbers of standard deviation `scale`."""
    return scale * torch.randn(mdp.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def state_values(mdp: MDP, pi: Tensor) -> Tensor:
    r"""State values [S], by solving (I - gamma P_pi) V = r_pi.

        V(s) = sum_a pi(a|s) (r(s, a) + gamma sum_s' P(s'|s, a) V(s'))

    Keeps autograd through `pi`. Source: Sutton & Barto 2018, equation 4.4 (the Bellman equation), section 4.1.
    """
    step = mdp.gamma * _state_transition(mdp, pi)
    return torch.linalg.solve(torch.eye(len(step), dtype=step.dtype) - step, (pi * mdp.reward).sum(-1))


def action_values(mdp: MDP, pi: Tensor) -> Tensor:
    r"""Action values [S, A].

        Q(s, a) = r(s, a) + gamma sum_s' P(s'|s, a) V(s')

    Source: Sutton & Barto 2018, section 3.5.
    """
    return mdp.reward + mdp.gamma * mdp.transition @ state_values(mdp, pi)


def advantages(mdp: MDP, pi: Tensor) -> Tensor:
    """A [S, A] = Q(s, a) - V(s); its mean under pi is 0 in every state."""
    return action_values(mdp, pi) - state_values(mdp, pi)[:, None]


def squared_scores(pi: Tensor) -> Tensor:
    r"""||grad log pi(a|s)||^2 [S, A] of a softmax table, with respect to its logits: 1 - 2 pi(a|s) + sum_b pi(b|s)^2."""
    return 1 - 2 * pi + pi.square().sum(-1, keepdim=True)


def optimal_baseline(mdp: MDP, pi: Tensor) -> Tensor:
    r"""The state-dependent baseline [S] with the smallest total variance of the policy-gradient estimate, for a softmax table.

        b(s) = E[||grad log pi(a|s)||^2 Q(s, a)] / E[||grad log pi(a|s)||^2],    a from pi(.|s)

    Optimal where no episode visits a state twice, so that each row of an estimate belongs to one visit.
    Source: Greensmith et al. 2004 (there for the average reward).
    """
    weights = pi * squared_scores(pi)
    return (weights * action_values(mdp, pi)).sum(-1) / weights.sum(-1)


def optimal_action_values(mdp: MDP, *, sweeps: int = 1000) -> Tensor:
    r"""Action values [S, A] of the best policy, by value iteration.

        Q(s, a) = r(s, a) + gamma sum_s' P(s'|s, a) max_a' Q(s', a')

    Source: Sutton & Barto 2018, equation 3.20 and section 4.4.
    """
    q = torch.zeros_like(mdp.reward)
    for _ in range(sweeps):
        q = mdp.reward + mdp.gamma * mdp.transition @ q.max(-1).values
    return q


def state_distribution(mdp: MDP, pi: Tensor) -> Tensor:
    r"""Discounted state visits d [S]: d(s) = sum_t gamma^t Pr(s_t = s), not normalised; its sum is the expected discounted length."""
    step = mdp.gamma * _state_transition(mdp, pi)
    return torch.linalg.solve(torch.eye(len(step), dtype=step.dtype) - step.T, mdp.start)


def objective(mdp: MDP, pi: Tensor) -> Tensor:
    """J: the expected discounted return from the start. Scalar; keeps autograd."""
    return mdp.start @ state_values(mdp, pi)


def return_variances(mdp: MDP, pi: Tensor) -> Tensor:
    r"""Variance [S] of the discounted return from each state: the mean of n sampled returns has 1/n of it.

        M(s) = sum_a pi(a|s) (r^2 + 2 gamma r sum_s' P V(s') + gamma^2 sum_s' P M(s')),    Var(s) = M(s) - V(s)^2

    M is the mean squared return; r, P belong to (s, a). Rewards are certain given (s, a). Source: Sobel 1982 (J. Appl. Prob. 19).
    """
    v = state_values(mdp, pi)
    step = mdp.gamma**2 * _state_transition(mdp, pi)
    now = mdp.reward.square() + 2 * mdp.gamma * mdp.reward * (mdp.transition @ v)
    squares = torch.linalg.solve(torch.eye(len(step), dtype=step.dtype) - step, (pi * now).sum(-1))
    return squares - v.square()


def policy_gradient(mdp: MDP, logits: Tensor) -> Tensor:
    """The gradient of J with respect to the logits [S, A], by autograd through the linear solve."""
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(objective(mdp, softmax_policy(logits)), logits)[0]


def finite_difference_gradient(mdp: MDP, logits: Tensor, *, step: float = 1e-5) -> Tensor:
    """The same gradient by central differences: it knows nothing of the theory."""
    gradient = torch.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        offset = torch.zeros_like(logits)
        offset[index] = step
        up, down = (objective(mdp, softmax_policy(logits + sign * offset)) for sign in (1, -1))
        gradient[index] = (up - down) / (2 * step)
    return gradient


def policy_gradient_theorem(mdp: MDP, logits: Tensor) -> Tensor:
    r"""The same gradient by the theorem: d(s) pi(a|s) A(s, a), for a softmax table.

    Source: Sutton et al. 1999, theorem 1, with the discounted distribution d.
    """
    pi = softmax_policy(logits)
    return state_distribution(mdp, pi)[:, None] * pi * advantages(mdp, pi)


def performance_difference(mdp: MDP, new: Tensor, old: Tensor) -> Tensor:
    r"""J(new) - J(old) by the lemma: sum_s d_new(s) sum_a new(a|s) A_old(s, a). Both policies [S, A].

    Source: Kakade & Langford 2002, lemma 6.1.
    """
    return state_distribution(mdp, new) @ (new * advantages(mdp, old)).sum(-1)


def surrogate(mdp: MDP, new: Tensor, old: Tensor) -> Tensor:
    r"""The local approximation J(old) + sum_s d_old(s) sum_a new(a|s) A_old(s, a): the lemma with the *old* state visits.

    Source: Schulman et al. 2015 (arXiv:1502.05477), equation 3. Keeps autograd through `new`.
    """
    old = old.detach()
    return objective(mdp, old) + state_distribution(mdp, old) @ (new * advantages(mdp, old)).sum(-1)


def clipped_surrogate(mdp: MDP, new: Tensor, old: Tensor, *, clip_range: float) -> Tensor:
    r"""The surrogate with PPO's clip on rho = new / old, over all states and actions instead of samples. Keeps autograd through `new`.

        J(old) + sum_s d_old(s) sum_a old(a|s) min(rho A_old(s, a), clip(rho, 1 - clip_range, 1 + clip_range) A_old(s, a))

    Source: Schulman et al. 2017 (arXiv:1707.06347), equation 7.
    """
    old = old.detach()
    ratio, advantage = new / old, advantages(mdp, old)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    each = old * torch.minimum(ratio * advantage, clipped * advantage)
    return objective(mdp, old) + state_distribution(mdp, old) @ each.sum(-1)


def state_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p(.|s) || q(.|s)) for every state, [S], from policies [S, A]."""
    return kl_categorical(p.log(), q.log())


def mean_kl(mdp: MDP, old: Tensor, new: Tensor) -> Tensor:
    r"""KL(old(.|s) || new(.|s)), averaged over the states that the old policy visits (discounted). Scalar; keeps autograd through `new`.

    Source: Schulman et al. 2015 (arXiv:1502.05477), section 4.
    """
    visits = state_distribution(mdp, old)
    return visits @ state_kl(old, new) / visits.sum()


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    r"""Total variation distance of two policies in every state, [S], from 0 to 1.

        TV(s) = 0.5 * sum_a |p(a|s) - q(a|s)|

    Source: Schulman et al. 2015 (arXiv:1502.05477), section 3.
    """
    return 0.5 * (p - q).abs().sum(-1)


def fisher_matrix(mdp: MDP, logits: Tensor) -> Tensor:
    r"""Fisher information of a softmax table, [S*A, S*A]: the mean over states (by their normalised visits) of diag(pi) - pi pi^T.

    It is the Hessian of the mean KL(pi_old || pi) at pi = pi_old. Source: Kakade 2001; Schulman et al. 2015, appendix C.
    """
    pi = softmax_policy(logits)
    visits = state_distribution(mdp, pi)
    blocks = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :]
    return torch.block_diag(*(visits / visits.sum())[:, None, None] * blocks)


def natural_step(gradient: Tensor, fisher: Tensor, max_kl: float) -> Tensor:
    r"""The step [n] that gains most to first order, gradient . step, while 0.5 * step . F step stays within `max_kl` (nats).

        step = sqrt(2 max_kl / (g . F^+ g)) F^+ g

    F^+ is the pseudo-inverse: a softmax table has directions that change no probability. `gradient` [n], `fisher` [n, n].
    Zero where the gradient is. Source: Schulman et al. 2015 (arXiv:1502.05477), appendix C; Kakade 2001.
    """
    direction = torch.linalg.pinv(fisher, hermitian=True) @ gradient
    squared = gradient @ direction
    return torch.zeros_like(gradient) if squared <= 0 else (2 * max_kl / squared).sqrt() * direction


def tabulate(policy: Policy, mdp: MDP) -> Tensor:
    """The table pi [S, A] of a network policy that was trained on one-hot states."""
    S, _ = mdp.size
    with torch.no_grad():
        return policy.distribution(torch.eye(S)).probs.double()


def _state_transition(mdp: MDP, pi: Tensor) -> Tensor:
    """P_pi [S, S]: from state to state under the policy."""
    return torch.einsum("sa,sap->sp", pi, mdp.transition)


# Episodes: enumerated or sampled, in the shapes that ppo_edu.core takes -------------------------------------------------


@dataclass(frozen=True)
class Episodes:
    """N episodes side by side, one per column, padded to the longest: T rows.

    `probabilities` weigh the columns: the true probability of each where all are enumerated, 1/N where they are sampled.
    A weighted sum over the columns is then an exact expectation, or a Monte Carlo estimate of it.
    """

    states: Tensor  # [T, N] int64
    actions: Tensor  # [T, N] int64
    rewards: Tensor  # [T, N]
    next_states: Tensor  # [T, N] int64; 0 where terminated
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool: cut by max_steps
    mask: Tensor  # [T, N] bool: False in the padding behind the end
    probabilities: Tensor  # [N]

    def look_up(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(values, next_values) [T, N] from a table of state values [S], as `gae` takes them."""
        return values[self.states], values[self.next_states]

    def mean(self, x: Tensor) -> Tensor:
        """Expectation of a quantity per episode, [N, ...] -> [...]."""
        return torch.einsum("n,n...->...", self.probabilities, x)

    def variance(self, x: Tensor) -> Tensor:
        """Variance (ddof 0) of a quantity per episode, [N, ...] -> [...]."""
        return self.mean((x - self.mean(x)).square())


def enumerate_episodes(mdp: MDP, pi: Tensor, *, max_steps: int = 20) -> Episodes:
    """Every possible episode with its probability. Only for problems whose episodes end: else the tree never does.

    Raises: ValueError if an episode can be longer than `max_steps`.
    """
    paths: list[tuple[float, list[tuple[int, int, int]]]] = []  # probability, [(s, a, s' or -1)]

    def extend(probability: float, state: int, steps: list[tuple[int, int, int]]) -> None:
        if len(steps) == max_steps:
            raise ValueError(f"max_steps must cover every episode of {mdp.name}, got {max_steps}")
        for action in range(mdp.size[1]):
            chosen = probability * float(pi[state, action])
            onward = mdp.transition[state, action]
            ending = 1.0 - float(onward.sum())
            if chosen * ending > 0:
                paths.append((chosen * ending, [*steps, (state, action, -1)]))
            for following in onward.nonzero().flatten().tolist():
                extend(chosen * float(onward[following]), following, [*steps, (state, action, following)])

    for state in mdp.start.nonzero().flatten().tolist():
        extend(float(mdp.start[state]), state, [])
    T, N = max(len(steps) for _, steps in paths), len(paths)
    table = torch.zeros(T, N, 3, dtype=torch.int64)
    mask = torch.zeros(T, N, dtype=torch.bool)
    for n, (_, steps) in enumerate(paths):
        table[: len(steps), n] = torch.tensor(steps)
        mask[: len(steps), n] = True
    probabilities = torch.tensor([probability for probability, _ in paths], dtype=torch.float64)
    return _episodes(mdp, *table.unbind(-1), mask, probabilities)


def sample_episodes(mdp: MDP, pi: Tensor, n: int, *, seed: int, max_steps: int = 100) -> Episodes:
    """`n` independent episodes under the policy; those that last `max_steps` are truncated there."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.multinomial(mdp.start, n, replacement=True, generator=generator)
    alive = torch.ones(n, dtype=torch.bool)
    ending = (1.0 - mdp.transition.sum(-1, keepdim=True)).clamp(min=0.0)
    outcomes = torch.cat([mdp.transition, ending], dim=-1)  # [S, A, S + 1], the last column ends the episode
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    while alive.any() and len(rows) < max_steps:
        action = torch.multinomial(pi[state], 1, generator=generator).squeeze(-1)
        following = torch.multinomial(outcomes[state, action], 1, generator=generator).squeeze(-1)
        following = torch.where(following == mdp.size[0], -1, following)
        rows.append((state, action, following, alive))
        alive = alive & (following >= 0)
        state = following.clamp(min=0)
    states, actions, next_states, mask = (torch.stack(column) for column in zip(*rows, strict=True))
    return _episodes(mdp, states, actions, next_states, mask, torch.full((n,), 1.0 / n, dtype=torch.float64))


def _episodes(mdp: MDP, states: Tensor, actions: Tensor, next_states: Tensor, mask: Tensor, probabilities: Tensor) -> Episodes:
    """Put steps (next state -1 at an end) into an `Episodes`, padding filled with zeros."""
    states, actions = (torch.where(mask, x, 0) for x in (states, actions))
    rewards = torch.where(mask, mdp.reward[states, actions], 0.0)
    terminated = mask & (next_states < 0)
    truncated = torch.zeros_like(mask)
    truncated[-1] = mask[-1] & ~terminated[-1]
    return Episodes(states, actions, rewards, next_states.clamp(min=0), terminated, truncated, mask, probabilities)


def response_texts(episodes: Episodes) -> list[str]:
    """What each episode of `language` wrote: its letters without the stop, one text per column."""
    lengths = episodes.mask.sum(0).tolist()
    return ["".join("ab"[a] for a in column[:n] if a < 2) for column, n in zip(episodes.actions.T.tolist(), lengths, strict=True)]


def score(pi: Tensor, states: Tensor, actions: Tensor) -> Tensor:
    r"""The gradient of log pi(a|s) with respect to the logits [S, A]: e_a - pi(.|s) in row s, 0 elsewhere. [...] -> [..., S, A]."""
    S, A = pi.shape
    row = torch.nn.functional.one_hot(actions, A).to(pi.dtype) - pi[states]
    return torch.nn.functional.one_hot(states, S).to(pi.dtype)[..., None] * row[..., None, :]


def gradient_estimates(pi: Tensor, episodes: Episodes, weights: Tensor) -> Tensor:
    r"""One estimate of the policy gradient per episode, [N, S, A]: sum_t weights_t * grad log pi(a_t|s_t); weights [T, N].

    What stands in the padding of `weights` does not count.
    """
    weights = torch.where(episodes.mask, weights, 0.0)
    return torch.einsum("tn,tnsa->nsa", weights, score(pi, episodes.states, episodes.actions))


def pair_moments(mdp: MDP, episodes: Episodes, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, both [S, A], of a quantity per step [T, N], given the state and the action of that step.

    A step counts with the probability of its episode; what stands in the padding does not count. NaN where a pair never occurs.
    """
    S, A = mdp.size
    weights = torch.where(episodes.mask, episodes.probabilities, 0.0)
    x = torch.where(episodes.mask, x, 0.0)
    pairs = (episodes.states * A + episodes.actions).flatten()

    def total(y: Tensor) -> Tensor:
        return torch.zeros(S * A, dtype=y.dtype).index_add_(0, pairs, (weights * y).flatten())

    mean = total(x) / total(torch.ones_like(x))
    variance = total((x - mean[pairs].view_as(x)).square()) / total(torch.ones_like(x))
    return mean.view(S, A), variance.sqrt().view(S, A)


def reinforce_weights(mdp: MDP, episodes: Episodes) -> Tensor:
    r"""Weights gamma^t G_t [T, N], with which `gradient_estimates` has the exact gradient as its mean.

        G_t = sum_{k >= t} gamma^(k - t) r_k

    The factor gamma^t belongs to the discounted objective; practice drops it. Nothing stands in for what a truncation cut off.
    Source: Sutton & Barto 2018, section 13.3 (REINFORCE, with the factor).
    """
    returns = discounted_return(episodes.rewards, episodes.terminated, episodes.truncated, gamma=mdp.gamma)
    steps = torch.arange(len(returns), dtype=torch.float64)[:, None]
    return mdp.gamma**steps * returns


# As Gymnasium environments --------------------------------------------------------------------------------------------

PROBLEMS: dict[str, Callable[[], MDP]] = {"Bandit": bandit, "Chain": chain, "Maze": maze, "Language": language}
ENV_IDS = {make().name: f"ppo-edu/{title}-v0" for title, make in PROBLEMS.items()}
MAZE_TIME_LIMIT = 50


class TabularEnv(gym.Env):
    """An MDP as a Gymnasium environment: the observation is the number of the state."""

    def __init__(self, mdp: MDP) -> None:
        self.mdp = mdp
        S, A = mdp.size
        self.observation_space = gym.spaces.Discrete(S)
        self.action_space = gym.spaces.Discrete(A)
        self._outcomes = np.concatenate([mdp.transition.numpy(), 1 - mdp.transition.sum(-1, keepdim=True).numpy()], axis=-1).clip(0)
        self._state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = int(self.np_random.choice(self.mdp.size[0], p=self.mdp.start.numpy()))
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        S, _ = self.mdp.size
        reward = float(self.mdp.reward[self._state, action])
        following = int(self.np_random.choice(S + 1, p=self._outcomes[self._state, action]))
        terminated = following == S
        if not terminated:
            self._state = following
        return self._state, reward, terminated, False, {}


def _register() -> None:
    for title, make in PROBLEMS.items():
        limit = MAZE_TIME_LIMIT if make is maze else None
        gym.register(f"ppo-edu/{title}-v0", entry_point=lambda make=make: TabularEnv(make()), max_episode_steps=limit)


_register()


def kl_regularised_optimum(reference: Tensor, rewards: Tensor, kl_coef: float) -> Tensor:
    r"""The distribution p over outcomes that maximises E_p[r] - kl_coef * KL(p || reference).

        p(x) proportional to reference(x) * exp(r(x) / kl_coef)

    `reference` and `rewards` [outcomes]. Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.
    """
    if not kl_coef > 0 or math.isinf(kl_coef):
        raise ValueError(f"kl_coef must be a finite number above 0, got {kl_coef}")
    return torch.softmax(reference.log() + rewards / kl_coef, dim=-1)
