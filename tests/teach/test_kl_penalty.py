"""PPO with a KL penalty on a table: its rule, its loss, its runs."""

import pytest
import torch

from ppo_edu.core import kl_categorical, probability_ratio
from ppo_edu.teach import exact
from ppo_edu.teach.kl_penalty import collect, improve, kl_penalty_ppo, kl_penalty_update

CHAIN = exact.chain()


def keep(coefficient, kl):
    return coefficient


def random_logits(runs, seed=0):
    return torch.randn(runs, *CHAIN.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.0, 0.5), (0.0066, 0.5), (0.0067, 1.0), (0.01, 1.0), (0.0149, 1.0), (0.0151, 2.0), (1.0, 2.0)]
)
def test_rule(kl, expected):
    assert kl_penalty_update(1.0, kl, 0.01) == expected


def test_batches_hold_the_episodes_of_their_own_policy():
    """A policy that always stops has episodes of one step, one that always goes has four; advantages are those of the samples."""
    stop, go = torch.tensor([[[0.0, 40.0]] * 4, [[40.0, 0.0]] * 4], dtype=torch.float64)
    batch = collect(CHAIN, exact.softmax_policy(torch.stack([stop, go])), 5, seed=0)
    assert batch.states.shape == (4, 2, 5)
    assert batch.mask.sum((0, 2)).tolist() == [5, 20]
    assert batch.states[:, 1, 0].tolist() == [0, 1, 2, 3]
    assert batch.advantages[batch.mask].abs().max() < 1e-9


def test_one_small_step_follows_the_loss_of_each_run():
    """The first step of Adam is learning_rate times the sign of the gradient: compare with a gradient written out run by run."""
    logits = random_logits(3)
    batch = collect(CHAIN, exact.softmax_policy(logits), 8, seed=0)
    after, kl = improve(logits, batch, torch.tensor([0.0, 1.0, 100.0]), steps=1, learning_rate=1e-3)
    for r in range(3):
        theta = logits[r].clone().requires_grad_()
        old, new = logits[r].log_softmax(-1), theta.log_softmax(-1)
        states, actions, advantages = (x[:, r][batch.mask[:, r]] for x in (batch.states, batch.actions, batch.advantages))
        objective = (probability_ratio(new[states, actions], old[states, actions]) * advantages).sum()
        (gradient,) = torch.autograd.grad(objective, theta)
        moved = gradient.abs() > 1e-6
        assert moved.any()
        assert torch.equal((after[r] - logits[r])[moved].sign(), gradient[moved].sign())
        exact_kl = kl_categorical(old[states], after[r].log_softmax(-1)[states]).mean()
        torch.testing.assert_close(kl[r], exact_kl)


def test_runs_do_not_know_of_each_other():
    logits = random_logits(2)
    batch = collect(CHAIN, exact.softmax_policy(logits), 8, seed=0)
    a, _ = improve(logits, batch, torch.tensor([1.0, 0.0]), steps=10, learning_rate=0.1)
    b, _ = improve(logits, batch, torch.tensor([1.0, 50.0]), steps=10, learning_rate=0.1)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])


def test_a_larger_coefficient_moves_less():
    logits = random_logits(1).expand(3, -1, -1)
    batch = collect(CHAIN, exact.softmax_policy(logits[:1]), 64, seed=0)
    kls = [improve(logits[:1], batch, torch.tensor([c]), steps=50, learning_rate=0.05)[1].item() for c in (0.0, 0.3, 10.0)]
    assert kls[0] > 2 * kls[1] > 4 * kls[2] > 0


def test_shapes_and_seeds():
    start = CHAIN.uniform_logits()
    options = {"coefficient": 1.0, "update_coefficient": lambda c, kl: kl_penalty_update(c, kl, 0.01), "runs": 3, "updates": 4, "steps": 5}
    a, b, c = (kl_penalty_ppo(CHAIN, start, seed=seed, **options) for seed in (0, 0, 1))
    assert a.objective.shape == a.kl.shape == a.coefficient.shape == (4, 3)
    assert torch.equal(a.objective, b.objective)
    assert not torch.equal(a.objective, c.objective)
    assert not torch.equal(a.objective[:, 0], a.objective[:, 1])
    expected = [[kl_penalty_update(x, y, 0.01) for x, y in zip(*rows, strict=True)] for rows in zip(a.coefficient, a.kl, strict=True)]
    assert a.coefficient[1:].tolist() == [[float(x) for x in row] for row in expected[:-1]]


def test_it_learns():
    runs = kl_penalty_ppo(CHAIN, CHAIN.uniform_logits(), coefficient=0.5, update_coefficient=keep, runs=4, updates=30)
    assert (runs.objective[-1] > 0.7).all()
