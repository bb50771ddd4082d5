"""Exact quantities agree when they are computed in independent ways: linear solve, finite differences, enumeration, sampling."""

import dataclasses
import math

import gymnasium as gym
import pytest
import torch

from ppo_edu.control import PPOConfig, train
from ppo_edu.core import discounted_return
from ppo_edu.teach import exact

PROBLEMS = [exact.bandit(), exact.chain(), exact.maze(), exact.language()]
FINITE = [mdp for mdp in PROBLEMS if mdp.name != "maze"]

each_problem = pytest.mark.parametrize("mdp", PROBLEMS, ids=lambda mdp: mdp.name)
each_finite = pytest.mark.parametrize("mdp", FINITE, ids=lambda mdp: mdp.name)


def random_logits(mdp, seed=0):
    return torch.randn(mdp.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_maze_by_hand():
    """Four steps to the exit, discounted by 0.9: 10, 9, 8.1, 7.29 backwards from the exit."""
    best = exact.optimal_action_values(exact.maze()).max(-1).values
    assert best.tolist() == pytest.approx([7.29, 8.1, 9.0, 8.1, 9.0, 10.0, 9.0, 10.0])


def test_bandit_gradient_by_hand():
    """Rewards 1 and 2, both arms even: J = 1.5 and the gradient is pi(a) (r(a) - J) = -0.25, +0.25."""
    mdp = exact.bandit()
    assert exact.policy_gradient(mdp, mdp.uniform_logits()).tolist() == [[-0.25, 0.25]]


def test_chain_by_hand():
    """Always going wins 0.9^3 * 1; always stopping takes 0.2."""
    mdp = exact.chain()
    go = torch.tensor([[1.0, 0.0]] * 4, dtype=torch.float64)
    assert float(exact.objective(mdp, go)) == pytest.approx(0.729)
    assert float(exact.objective(mdp, go.flip(-1))) == pytest.approx(0.2)


def test_language_rewards_by_hand():
    mdp = exact.language()
    everything = exact.enumerate_episodes(mdp, exact.softmax_policy(mdp.uniform_logits()))
    assert len(everything.probabilities) == 15
    texts = exact.response_texts(everything)
    assert sorted(set(texts)) == sorted(["", "a", "b", "aa", "ab", "ba", "bb", "aaa", "aab", "aba", "abb", "baa", "bab", "bba", "bbb"])
    for text, total in zip(texts, everything.rewards.sum(0).tolist(), strict=True):
        assert total == pytest.approx(("ab" in text) - 0.1 * len(text)), text


@each_problem
@pytest.mark.parametrize("seed", range(3))
def test_bellman_equation(mdp, seed):
    pi = exact.softmax_policy(random_logits(mdp, seed))
    v, q = exact.state_values(mdp, pi), exact.action_values(mdp, pi)
    torch.testing.assert_close(v, (pi * q).sum(-1))
    torch.testing.assert_close((pi * exact.advantages(mdp, pi)).sum(-1), torch.zeros_like(v))


@each_problem
@pytest.mark.parametrize("seed", range(3))
def test_three_gradients_agree(mdp, seed):
    logits = random_logits(mdp, seed)
    autograd = exact.policy_gradient(mdp, logits)
    torch.testing.assert_close(autograd, exact.policy_gradient_theorem(mdp, logits), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(autograd, exact.finite_difference_gradient(mdp, logits), rtol=1e-6, atol=1e-8)


@each_finite
@pytest.mark.parametrize("seed", range(3))
def test_enumeration_gives_the_same_objective_and_gradient(mdp, seed):
    logits = random_logits(mdp, seed)
    pi = exact.softmax_policy(logits)
    e = exact.enumerate_episodes(mdp, pi)
    assert float(e.probabilities.sum()) == pytest.approx(1.0)
    returns = discounted_return(e.rewards, e.terminated, e.truncated, gamma=mdp.gamma)
    torch.testing.assert_close(e.mean(returns[0]), exact.objective(mdp, pi))
    discount = mdp.gamma ** torch.arange(len(returns), dtype=torch.float64)[:, None]
    estimates = exact.gradient_estimates(pi, e, discount * returns)
    torch.testing.assert_close(e.mean(estimates), exact.policy_gradient(mdp, logits))


@each_finite
@pytest.mark.parametrize("seed", range(3))
def test_reinforce_weights_are_unbiased_and_need_gamma_to_the_t(mdp, seed):
    logits = random_logits(mdp, seed)
    pi = exact.softmax_policy(logits)
    e = exact.enumerate_episodes(mdp, pi)
    weights = exact.reinforce_weights(mdp, e)
    gradient = exact.policy_gradient(mdp, logits)
    torch.testing.assert_close(e.mean(exact.gradient_estimates(pi, e, weights)), gradient)
    undiscounted = discounted_return(e.rewards, e.terminated, e.truncated, gamma=mdp.gamma)
    without = e.mean(exact.gradient_estimates(pi, e, undiscounted))
    assert torch.allclose(without, gradient) == (mdp.name in ("bandit", "language"))  # one step, or gamma = 1


@each_finite
@pytest.mark.parametrize("seed", range(3))
def test_return_variances_by_enumeration(mdp, seed):
    pi = exact.softmax_policy(random_logits(mdp, seed))
    e = exact.enumerate_episodes(mdp, pi)
    returns = discounted_return(e.rewards, e.terminated, e.truncated, gamma=mdp.gamma)[0]
    torch.testing.assert_close(e.variance(returns), exact.return_variances(mdp, pi)[0])  # all start in state 0


def test_return_variances_of_the_maze_by_sampling():
    mdp = exact.maze()
    pi = exact.softmax_policy(random_logits(mdp))
    e = exact.sample_episodes(mdp, pi, 4000, seed=2, max_steps=400)
    returns = discounted_return(e.rewards, e.terminated, e.truncated, gamma=mdp.gamma)[0]
    torch.testing.assert_close(e.variance(returns), exact.return_variances(mdp, pi)[0], rtol=0.1, atol=0)


@each_problem
def test_sampling_agrees_with_the_solve(mdp):
    pi = exact.softmax_policy(random_logits(mdp))
    e = exact.sample_episodes(mdp, pi, 4000, seed=1, max_steps=400)
    returns = discounted_return(e.rewards, e.terminated, e.truncated, gamma=mdp.gamma)[0]
    standard_error = (e.variance(returns) / 4000).sqrt()
    assert abs(e.mean(returns) - exact.objective(mdp, pi)) < 4 * standard_error + 1e-12
    discount = mdp.gamma ** torch.arange(len(e.mask), dtype=torch.float64)[:, None]
    visits = torch.zeros(mdp.size[0], dtype=torch.float64)
    visits.index_put_((e.states.flatten(),), (discount * e.mask / 4000).flatten(), accumulate=True)
    torch.testing.assert_close(visits, exact.state_distribution(mdp, pi), rtol=0.1, atol=0.05)


@each_problem
@pytest.mark.parametrize("seed", range(5))
def test_performance_difference_lemma(mdp, seed):
    old, new = (exact.softmax_policy(random_logits(mdp, s)) for s in (seed, seed + 100))
    gain = exact.objective(mdp, new) - exact.objective(mdp, old)
    torch.testing.assert_close(exact.performance_difference(mdp, new, old), gain, rtol=0, atol=1e-10)


@each_problem
def test_surrogate_touches_the_objective(mdp):
    """Same value and same gradient at the old policy."""
    logits = random_logits(mdp).requires_grad_()
    pi = exact.softmax_policy(logits)
    local = exact.surrogate(mdp, pi, pi.detach())
    torch.testing.assert_close(local, exact.objective(mdp, pi))
    torch.testing.assert_close(torch.autograd.grad(local, logits)[0], exact.policy_gradient(mdp, logits))


@each_problem
def test_clipped_surrogate_touches_the_objective_too(mdp):
    logits = random_logits(mdp).requires_grad_()
    pi = exact.softmax_policy(logits)
    local = exact.clipped_surrogate(mdp, pi, pi.detach(), clip_range=0.2)
    torch.testing.assert_close(local, exact.objective(mdp, pi))
    torch.testing.assert_close(torch.autograd.grad(local, logits)[0], exact.policy_gradient(mdp, logits))


@each_finite
@pytest.mark.parametrize("seed", range(3))
def test_clipped_surrogate_by_enumeration(mdp, seed):
    """Over all episodes of the old policy, with the clip written one-sidedly: min(rho, 1.2) where A >= 0, max(rho, 0.8) where A < 0."""
    old, new = (exact.softmax_policy(random_logits(mdp, s)) for s in (seed, seed + 100))
    e = exact.enumerate_episodes(mdp, old)
    ratio, advantage = (new / old)[e.states, e.actions], exact.advantages(mdp, old)[e.states, e.actions]
    held = torch.where(advantage >= 0, ratio.clamp(max=1.2), ratio.clamp(min=0.8))
    discount = mdp.gamma ** torch.arange(len(ratio), dtype=torch.float64)[:, None]
    by_enumeration = exact.objective(mdp, old) + e.mean((discount * e.mask * held * advantage).sum(0))
    clipped = exact.clipped_surrogate(mdp, new, old, clip_range=0.2)
    torch.testing.assert_close(clipped, by_enumeration)
    assert clipped <= exact.surrogate(mdp, new, old)


@each_problem
def test_fisher_matrix_is_the_hessian_of_the_mean_kl(mdp):
    logits = random_logits(mdp)
    old = exact.softmax_policy(logits)
    visits = exact.state_distribution(mdp, old)

    def mean_kl(flat):
        return visits / visits.sum() @ exact.state_kl(old, exact.softmax_policy(flat.view_as(logits)))

    hessian = torch.autograd.functional.hessian(mean_kl, logits.flatten())
    torch.testing.assert_close(exact.fisher_matrix(mdp, logits), hessian, rtol=1e-8, atol=1e-10)


@each_problem
def test_mean_kl_by_hand(mdp):
    old, new = (exact.softmax_policy(random_logits(mdp, seed)) for seed in (0, 1))
    visits = exact.state_distribution(mdp, old).tolist()
    S, A = mdp.size
    by_hand = sum(visits[s] * float(old[s, a]) * math.log(old[s, a] / new[s, a]) for s in range(S) for a in range(A)) / sum(visits)
    assert float(exact.mean_kl(mdp, old, new)) == pytest.approx(by_hand)
    assert float(exact.mean_kl(mdp, new, old)) != pytest.approx(by_hand)


def test_total_variation_is_the_largest_difference_of_any_event():
    p, q = (torch.tensor([x], dtype=torch.float64) for x in ([0.5, 0.3, 0.2], [0.1, 0.5, 0.4]))
    events = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    assert float(exact.total_variation(p, q)) == pytest.approx(float((events @ (p - q)[0]).abs().max())) == pytest.approx(0.4)


@each_problem
def test_natural_step_is_the_best_within_its_ball(mdp):
    logits = random_logits(mdp)
    fisher, gradient = exact.fisher_matrix(mdp, logits), exact.policy_gradient(mdp, logits).flatten()
    step = exact.natural_step(gradient, fisher, 0.01)
    assert float(0.5 * step @ fisher @ step) == pytest.approx(0.01)
    for seed in range(20):
        other = torch.randn(len(step), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        other = step + 0.3 * step.norm() * other / other.norm()
        other = other * (0.01 / (0.5 * other @ fisher @ other)).sqrt()  # back onto the boundary
        assert gradient @ other <= gradient @ step * (1 + 1e-9)


@each_problem
def test_natural_step_of_a_table_follows_the_advantages(mdp):
    """F^+ g is |d| A up to a constant in each state: the visits and the probabilities drop out."""
    logits = random_logits(mdp)
    step = exact.natural_step(exact.policy_gradient(mdp, logits).flatten(), exact.fisher_matrix(mdp, logits), 0.01).view_as(logits)
    advantages = exact.advantages(mdp, exact.softmax_policy(logits))
    advantages = advantages - advantages.mean(-1, keepdim=True)
    torch.testing.assert_close(step / step.norm(), advantages / advantages.norm())


def test_natural_step_without_a_gradient_is_zero():
    assert not exact.natural_step(torch.zeros(3), torch.eye(3), 0.01).any()


def test_kl_regularised_optimum_beats_its_neighbours():
    reference, rewards = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)

    def value(p):
        return (p * rewards).sum() - 0.7 * (p * (p / reference).log()).sum()

    best = exact.kl_regularised_optimum(reference, rewards, 0.7)
    for seed in range(20):
        other = torch.softmax(best.log() + 0.1 * torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), -1)
        assert value(other) < value(best)


@each_finite
def test_moments_by_pair(mdp):
    """The one-step target with the true values has mean Q; a quantity that the pair fixes has no spread; padding counts for nothing."""
    pi = exact.softmax_policy(random_logits(mdp))
    e = exact.enumerate_episodes(mdp, pi)
    _, following = e.look_up(exact.state_values(mdp, pi))
    target = e.rewards + mdp.gamma * torch.where(e.terminated, 0.0, following)
    mean, spread = exact.pair_moments(mdp, e, torch.where(e.mask, target, torch.nan))
    torch.testing.assert_close(mean, exact.action_values(mdp, pi))
    torch.testing.assert_close(spread, torch.zeros_like(spread), rtol=0, atol=1e-12)  # nothing here is random after the action


def test_spread_by_pair_by_hand():
    """After `go` in the first of two states the return is 0.5 * 1 or 0.5 * 0.2, each with probability one half: spread 0.2."""
    mdp = exact.chain(length=2, gamma=0.5)
    e = exact.enumerate_episodes(mdp, exact.softmax_policy(mdp.uniform_logits()))
    returns = discounted_return(e.rewards, e.terminated, e.truncated, gamma=mdp.gamma)
    mean, spread = exact.pair_moments(mdp, e, returns)
    assert mean.flatten().tolist() == pytest.approx([0.3, 0.2, 1.0, 0.2])
    assert spread.flatten().tolist() == pytest.approx([0.2, 0.0, 0.0, 0.0], abs=1e-12)


@each_problem
def test_environment_is_the_mdp(mdp):
    """The Gymnasium environment pays and moves as the table says."""
    env = gym.make(exact.ENV_IDS[mdp.name])
    state, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(200):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        assert reward == pytest.approx(float(mdp.reward[state, action]))
        onward = mdp.transition[state, action]
        assert terminated == (float(onward.sum()) == 0)
        if not terminated:
            assert onward[following] > 0
        state = following
        if terminated or truncated:
            state, _ = env.reset()


def test_ppo_learns_the_chain_exactly():
    """Trained by the CartPole trainer, judged by the exact objective: from 0.24 or so to near 0.729."""
    mdp = exact.chain()
    config = PPOConfig(env_id=exact.ENV_IDS["chain"], total_steps=4_000, num_envs=8, num_steps=32, minibatch_size=128, gamma=mdp.gamma)
    result = train(config, progress=False)
    assert float(exact.objective(mdp, exact.tabulate(result.policy, mdp))) > 0.7


def test_bad_tables_are_refused():
    good = exact.bandit()
    with pytest.raises(ValueError, match="transition"):
        exact.MDP("x", torch.zeros(1, 3, 1), good.reward, good.start, 1.0, ("s",), ("a", "b"))
    with pytest.raises(ValueError, match="gamma"):
        exact.MDP("x", good.transition, good.reward, good.start, 1.5, good.states, good.actions)
    with pytest.raises(ValueError, match="max_steps"):
        exact.enumerate_episodes(exact.maze(), exact.softmax_policy(exact.maze().uniform_logits()))
    with pytest.raises(ValueError, match="kl_coef"):
        exact.kl_regularised_optimum(torch.ones(1), torch.ones(1), 0.0)


@each_finite
@pytest.mark.parametrize("seed", range(3))
def test_no_baseline_beats_the_optimal_one(mdp, seed):
    """The total variance rises by E||score||^2 (b - b*)^2, weighted by the squared discount, whichever way a state's baseline moves."""
    pi = exact.softmax_policy(random_logits(mdp, seed))
    e = exact.enumerate_episodes(mdp, pi)
    discount = mdp.gamma ** torch.arange(len(e.rewards), dtype=torch.float64)[:, None]

    def total_variance(baseline):
        weights = exact.reinforce_weights(mdp, e) - discount * baseline[e.states]
        return float(e.variance(exact.gradient_estimates(pi, e, weights)).sum())

    best = exact.optimal_baseline(mdp, pi)
    visits = exact.state_distribution(dataclasses.replace(mdp, gamma=mdp.gamma**2), pi)
    curvature = visits * (pi * exact.squared_scores(pi)).sum(-1)
    for s in range(mdp.size[0]):
        for step in (-0.3, 0.3):
            moved = best.clone()
            moved[s] += step
            assert total_variance(moved) - total_variance(best) == pytest.approx(float(curvature[s]) * step**2)


def test_squared_scores_are_the_norms_of_the_scores():
    pi = exact.softmax_policy(random_logits(exact.language()))
    S, A = pi.shape
    states, actions = torch.arange(S).repeat_interleave(A), torch.arange(A).repeat(S)
    norms = exact.score(pi, states, actions).square().sum((-2, -1)).reshape(S, A)
    torch.testing.assert_close(exact.squared_scores(pi), norms)
