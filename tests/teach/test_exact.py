"""Exact quantities agree when they are computed in independent ways: linear solve, finite differences, enumeration, sampling."""

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
    columns = zip(everything.actions.T.tolist(), everything.mask.sum(0).tolist(), strict=True)
    texts = ["".join("ab"[a] for a in column[:length] if a < 2) for column, length in columns]
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
def test_fisher_matrix_is_the_hessian_of_the_mean_kl(mdp):
    logits = random_logits(mdp)
    old = exact.softmax_policy(logits)
    visits = exact.state_distribution(mdp, old)

    def mean_kl(flat):
        return visits / visits.sum() @ exact.state_kl(old, exact.softmax_policy(flat.view_as(logits)))

    hessian = torch.autograd.functional.hessian(mean_kl, logits.flatten())
    torch.testing.assert_close(exact.fisher_matrix(mdp, logits), hessian, rtol=1e-8, atol=1e-10)


def test_kl_regularised_optimum_beats_its_neighbours():
    reference, rewards = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)

    def value(p):
        return (p * rewards).sum() - 0.7 * (p * (p / reference).log()).sum()

    best = exact.kl_regularised_optimum(reference, rewards, 0.7)
    for seed in range(20):
        other = torch.softmax(best.log() + 0.1 * torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), -1)
        assert value(other) < value(best)


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
