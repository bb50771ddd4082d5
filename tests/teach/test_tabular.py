"""Many runs at once learn as one would: their first steps average to the exact gradient, and no run knows of another."""

import pytest
import torch

from ppo_edu.teach import exact
from ppo_edu.teach.tabular import actor_critic

PROBLEMS = [exact.bandit(), exact.chain(), exact.language()]

each_problem = pytest.mark.parametrize("mdp", PROBLEMS, ids=lambda mdp: mdp.name)


@each_problem
def test_the_first_step_is_the_policy_gradient_on_average(mdp):
    after = actor_critic(mdp, runs=4000, batch_size=4, updates=1, learning_rate=1.0, seed=1)
    steps = after.logits - mdp.uniform_logits()
    error = (steps.mean(0) - exact.policy_gradient(mdp, mdp.uniform_logits())).abs()
    assert (error <= 4.5 * steps.std(0) / 4000**0.5 + 1e-12).all()
    assert steps.std(0).max() > 0.01


@each_problem
def test_the_first_step_has_the_variance_of_one_episode_over_the_batch(mdp):
    pi = exact.softmax_policy(mdp.uniform_logits())
    e = exact.enumerate_episodes(mdp, pi)
    exactly = float(e.variance(exact.gradient_estimates(pi, e, exact.reinforce_weights(mdp, e))).sum())
    for batch_size in (1, 4):
        steps = actor_critic(mdp, runs=4000, batch_size=batch_size, updates=1, learning_rate=1.0, seed=2).logits
        assert float(steps.var(0).sum()) == pytest.approx(exactly / batch_size, rel=0.1)


@each_problem
def test_the_critic_finds_the_state_values(mdp):
    runs = actor_critic(mdp, runs=200, batch_size=32, updates=300, learning_rate=0.0, critic_rate=0.3)
    v = exact.state_values(mdp, exact.softmax_policy(mdp.uniform_logits()))
    torch.testing.assert_close(runs.values.mean(0), v, rtol=0, atol=0.03)


def test_the_bonus_alone_moves_towards_the_uniform_policy():
    mdp = exact.bandit((1.0, 1.0))
    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    options = {"runs": 3, "batch_size": 8, "updates": 300, "learning_rate": 0.5, "critic_rate": 1.0, "warm_up": 5, "logits": start}
    pi = exact.softmax_policy(actor_critic(mdp, entropy_coef=1.0, **options).logits)
    torch.testing.assert_close(pi, torch.full_like(pi, 0.5), rtol=0, atol=1e-3)


def test_the_warm_up_moves_the_critic_alone():
    runs = actor_critic(exact.chain(), runs=3, batch_size=8, updates=5, learning_rate=1.0, critic_rate=1.0, warm_up=5)
    assert not runs.logits.any()
    assert runs.values.all()


def test_runs_differ_and_are_repeated_by_the_seed():
    options = {"runs": 3, "batch_size": 8, "updates": 5, "learning_rate": 1.0, "critic_rate": 1.0}
    a, b, c = (actor_critic(exact.language(), seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(a.logits, b.logits)
    assert not torch.equal(a.logits, c.logits)
    assert not torch.equal(a.logits[0], a.logits[1])


def test_what_is_recorded_is_the_exact_objective():
    mdp = exact.chain()
    runs = actor_critic(mdp, runs=2, batch_size=8, updates=7, learning_rate=1.0, record_every=3)
    assert runs.updates.tolist() == [0, 3, 6, 7]
    assert float(runs.objective[0, 0]) == pytest.approx(float(exact.objective(mdp, exact.softmax_policy(mdp.uniform_logits()))))
    for r in range(2):
        assert float(runs.objective[-1, r]) == pytest.approx(float(exact.objective(mdp, exact.softmax_policy(runs.logits[r]))))
