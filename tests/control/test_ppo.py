"""The update: what enters it, its loss against an independent computation, the direction in which it moves the policy."""

import copy
import math

import numpy as np
import pytest
import torch
from control_helpers import KnownPolicy, same_weights, scripted_envs, tiny
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ppo_edu.control import CategoricalPolicy, Collector, PPOConfig, Rollout, TrainState, make_policy
from ppo_edu.control.envs import make_envs
from ppo_edu.control.ppo import Batch, diagnose, improve, kl_from_old, make_batch, minibatches, ppo_loss
from ppo_edu.core import clipped_surrogate_loss, gae

FLOATS = ("observations", "log_probs", "rewards", "values", "next_values")


def cartpole_rollout(seed: int = 0, T: int = 64, N: int = 4) -> tuple[CategoricalPolicy, Rollout]:
    """A policy and its second rollout, whose first row holds a reset."""
    torch.manual_seed(seed)
    envs = make_envs("CartPole-v1", N)
    policy = make_policy(envs.single_observation_space, envs.single_action_space, (8,))
    collector = Collector(envs, seed)
    for _ in range(100):
        if collector.done.any():
            break
        collector.collect(policy, 1)
    rollout = collector.collect(policy, T)
    assert not rollout.valid[0].all()
    return policy, rollout


def state_of(policy: CategoricalPolicy, learning_rate: float = 1e-2, sgd: bool = False) -> TrainState:
    optimizer = (torch.optim.SGD if sgd else torch.optim.Adam)(policy.parameters(), lr=learning_rate)
    return TrainState(policy, optimizer, collector=None)


def update(policy: CategoricalPolicy, rollout: Rollout, config: PPOConfig, *, remaining: float = 1.0, sgd: bool = False, **functions):
    """One update of a copy of `policy`, always with the same minibatches: (new policy, log row)."""
    torch.manual_seed(5)
    state = state_of(copy.deepcopy(policy), sgd=sgd)
    functions = {"advantage_fn": gae, "policy_loss_fn": clipped_surrogate_loss} | functions
    row = improve(state, rollout, config, remaining, **functions)
    return state.policy, row


# Minibatches ------------------------------------------------------------------------------------------------------------


def check_minibatches(num_rows, minibatch_size):
    parts = list(minibatches(num_rows, minibatch_size))
    assert sorted(torch.cat(parts).tolist()) == list(range(num_rows))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    assert abs(len(parts) - num_rows / minibatch_size) <= 0.5 or len(parts) in (1, num_rows // 2), "sizes near what was asked for"


@given(num_rows=st.integers(2, 5000), minibatch_size=st.integers(2, 600))
def test_minibatches_cover_all_rows_once_in_even_sizes_and_never_hold_a_single_row(num_rows, minibatch_size):
    check_minibatches(num_rows, minibatch_size)


@pytest.mark.parametrize("minibatch_size", range(2, 12))
def test_minibatches_of_every_small_number_of_rows(minibatch_size):
    for num_rows in range(2, 50):
        check_minibatches(num_rows, minibatch_size)


def test_minibatches_are_drawn_anew_each_time():
    torch.manual_seed(0)
    first, second = (torch.cat(list(minibatches(100, 30))) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(100))


# What enters an update --------------------------------------------------------------------------------------------------


def test_the_batch_holds_the_valid_rows_alone_each_with_its_own_numbers():
    rollout = cartpole_rollout()[1]
    assert not rollout.valid.all()
    batch = make_batch(rollout, tiny(normalize_advantages=False), gae)
    rows = [(t, n) for t in range(64) for n in range(4) if rollout.valid[t, n]]
    flags = rollout.terminated, rollout.truncated
    advantages = gae(rollout.rewards, rollout.values, rollout.next_values, *flags, gamma=0.99, lam=0.95)
    for i, (t, n) in enumerate(rows):
        assert torch.equal(batch.observations[i], rollout.observations[t, n])
        assert batch.actions[i] == rollout.actions[t, n]
        assert batch.log_probs[i] == rollout.log_probs[t, n]
        assert batch.values[i] == rollout.values[t, n]
        assert batch.advantages[i] == advantages[t, n]
        assert batch.returns[i] == advantages[t, n] + rollout.values[t, n]
    assert len(batch.returns) == len(rows) < rollout.valid.numel()


def test_reset_rows_influence_nothing():
    policy, rollout = cartpole_rollout()
    poisoned = copy.deepcopy(rollout)
    assert (~rollout.valid).sum() >= 3
    for name in (*FLOATS, "actions"):
        getattr(poisoned, name)[~rollout.valid] = 1 if name == "actions" else 1e3
    config = tiny(value_clip_range=0.2, entropy_coef=0.01)
    assert all(torch.equal(a, b) for a, b in zip(make_batch(rollout, config, gae), make_batch(poisoned, config, gae), strict=True))
    (a, row_a), (b, row_b) = (update(policy, r, config) for r in (rollout, poisoned))
    assert same_weights(a, b)
    assert str(row_a) == str(row_b)


def test_every_valid_row_influences_its_batch():
    rollout = cartpole_rollout()[1]
    changed = copy.deepcopy(rollout)
    t, n = rollout.valid.nonzero()[7].tolist()
    changed.rewards[t, n] += 1.0
    a, b = (make_batch(r, tiny(), gae) for r in (rollout, changed))
    assert not torch.equal(a.advantages, b.advantages)


def test_a_truncated_episode_is_bootstrapped_and_a_terminated_one_is_not():
    torch.manual_seed(0)
    rollout = Collector(scripted_envs(5), seed=0).collect(KnownPolicy(), 60)
    batch = make_batch(rollout, tiny(normalize_advantages=False, gamma=0.5, lam=0.0), gae)
    terminated, truncated = rollout.terminated[rollout.valid], rollout.truncated[rollout.valid]
    rewards, next_values = rollout.rewards[rollout.valid], rollout.next_values[rollout.valid]
    cut = truncated & ~terminated
    assert terminated.any()
    assert cut.any()
    assert_close(batch.returns[terminated], rewards[terminated])
    assert_close(batch.returns[cut], rewards[cut] + 0.5 * next_values[cut])


def test_normalised_advantages_are_whitened_over_the_valid_rows_and_returns_are_not():
    rollout = cartpole_rollout()[1]
    on, off = (make_batch(rollout, tiny(normalize_advantages=x), gae) for x in (True, False))
    raw = off.advantages.double().numpy()
    np.testing.assert_allclose(on.advantages, (raw - raw.mean()) / raw.std(ddof=1), rtol=1e-4, atol=1e-5)
    assert torch.equal(on.returns, off.returns)


@pytest.mark.parametrize("wrong", [lambda a: a[:-1], lambda a: a.flatten(), lambda a: a.mean(), lambda a: a.tolist(), lambda a: None])
def test_an_advantage_function_of_the_wrong_shape_is_refused(wrong):
    rollout = cartpole_rollout()[1]
    with pytest.raises(ValueError, match=r"advantage_fn must return a tensor of shape \[64, 4\]"):
        make_batch(rollout, tiny(), lambda *args, **kwargs: wrong(gae(*args, **kwargs)))


@pytest.mark.parametrize("wrong", [lambda loss: loss.expand(3), lambda loss: loss.item(), lambda loss: None])
def test_a_policy_loss_that_is_no_scalar_tensor_is_refused(wrong):
    policy, rollout = cartpole_rollout()
    with pytest.raises(ValueError, match="policy_loss_fn must return a scalar tensor"):
        update(policy, rollout, tiny(), policy_loss_fn=lambda *args, **kwargs: wrong(clipped_surrogate_loss(*args, **kwargs)))


# The loss ---------------------------------------------------------------------------------------------------------------


def forward(network: torch.nn.Sequential, x: np.ndarray) -> np.ndarray:
    """A tanh perceptron in float64 NumPy."""
    layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        x = x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        x = x if layer is layers[-1] else np.tanh(x)
    return x


def loss_in_numpy(policy, batch: Batch, config: PPOConfig, clip_range: float) -> float:
    """Equation 9 of the paper, as a loss, sample by sample."""
    b = [x.double().numpy() for x in batch]
    observations, actions, old_log_probs, old_values, advantages, returns = b
    logits = forward(policy.actor, observations)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    values = forward(policy.critic, observations)[:, 0]
    total = 0.0
    for i in range(len(returns)):
        ratio = math.exp(log_probs[i, int(actions[i])] - old_log_probs[i])
        surrogate = min(ratio * advantages[i], min(max(ratio, 1 - clip_range), 1 + clip_range) * advantages[i])
        squared = (values[i] - returns[i]) ** 2
        if config.value_clip_range is not None:
            low, high = old_values[i] - config.value_clip_range, old_values[i] + config.value_clip_range
            squared = max(squared, (min(max(values[i], low), high) - returns[i]) ** 2)
        entropy = -(np.exp(log_probs[i]) * log_probs[i]).sum()
        total += -surrogate + config.value_coef * 0.5 * squared - config.entropy_coef * entropy
    return total / len(returns)


@pytest.mark.parametrize("value_clip_range", [None, 0.1, 0.5])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_one_computed_sample_by_sample_in_float64(value_clip_range, entropy_coef, seed):
    torch.manual_seed(seed)
    policy = CategoricalPolicy(4, 3, (8, 8))
    torch.nn.init.normal_(policy.actor[-1].weight)
    observations, actions = torch.randn(50, 4), torch.randint(3, (50,))
    with torch.no_grad():  # old numbers near and far: ratios on both sides of the clip range, values inside and outside theirs
        old_log_probs = policy.distribution(observations).log_prob(actions) + 0.3 * torch.randn(50)
        old_values = policy.value(observations) + 0.5 * torch.randn(50)
    batch = Batch(observations, actions, old_log_probs, old_values, torch.randn(50), torch.randn(50))
    config = tiny(value_clip_range=value_clip_range, entropy_coef=entropy_coef, value_coef=0.7)
    loss, (policy_loss, critic_loss) = ppo_loss(policy, batch, config, 0.15, clipped_surrogate_loss)
    want = loss_in_numpy(policy, batch, config, 0.15)
    assert loss.item() == pytest.approx(want, rel=2e-5)
    without_entropy = loss_in_numpy(policy, batch, tiny(value_clip_range=value_clip_range, value_coef=0.7), 0.15)
    assert float(policy_loss + 0.7 * critic_loss) == pytest.approx(without_entropy, rel=2e-5)
    assert not policy_loss.requires_grad


def test_the_policy_loss_does_not_train_the_critic_nor_the_value_loss_the_actor():
    policy, rollout = cartpole_rollout()
    batch = make_batch(rollout, tiny(), gae)
    ppo_loss(policy, batch, tiny(value_coef=0.0), 0.2, clipped_surrogate_loss)[0].backward()
    assert all((p.grad is None) or not p.grad.any() for p in policy.critic.parameters())
    assert any(p.grad.any() for p in policy.actor.parameters())
    policy.zero_grad()
    ppo_loss(policy, batch, tiny(), 0.2, lambda log_probs, *_, clip_range: 0.0 * log_probs.mean())[0].backward()
    assert all(not p.grad.any() for p in policy.actor.parameters())
    assert any(p.grad.any() for p in policy.critic.parameters())


# The update -------------------------------------------------------------------------------------------------------------


def test_with_learning_rate_zero_no_weight_moves_and_every_ratio_is_one():
    policy, rollout = cartpole_rollout()
    after, row = update(policy, rollout, tiny(learning_rate=0.0, entropy_coef=0.01))
    assert same_weights(policy, after)
    assert row["approx_kl"] == pytest.approx(0.0, abs=1e-7)
    assert row["clip_fraction"] == 0.0


def mean_log_prob(policy, rollout: Rollout, action: int) -> float:
    with torch.no_grad():
        actions = torch.full_like(rollout.actions, action)
        return float(policy.distribution(rollout.observations).log_prob(actions)[rollout.valid].mean())


@pytest.mark.parametrize("favoured", [0, 1])
def test_an_action_with_positive_advantage_gets_likelier_and_one_with_negative_advantage_less_likely(favoured):
    policy, rollout = cartpole_rollout()
    signs = torch.where(rollout.actions == favoured, 1.0, -1.0)
    after, _ = update(policy, rollout, tiny(normalize_advantages=False, epochs=1), advantage_fn=lambda *args, **kwargs: signs)
    assert mean_log_prob(after, rollout, favoured) > mean_log_prob(policy, rollout, favoured) + 1e-3
    assert mean_log_prob(after, rollout, 1 - favoured) < mean_log_prob(policy, rollout, 1 - favoured) - 1e-3


@pytest.mark.parametrize(("sign", "rises"), [(1.0, True), (-1.0, False)])
def test_advantage_of_one_sign_alone_moves_the_actions_taken_that_way(sign, rises):
    policy, rollout = cartpole_rollout()
    advantages = torch.full_like(rollout.rewards, sign)
    config = tiny(normalize_advantages=False, epochs=1, minibatch_size=64)
    after, _ = update(policy, rollout, config, advantage_fn=lambda *args, **kwargs: advantages)
    with torch.no_grad():
        gain = after.distribution(rollout.observations).log_prob(rollout.actions) - rollout.log_probs
    assert (float(gain[rollout.valid].mean()) > 0) is rises


def test_the_entropy_bonus_alone_raises_entropy():
    policy, rollout = cartpole_rollout()
    torch.nn.init.normal_(policy.actor[-1].weight)
    with torch.no_grad():
        before = float(policy.distribution(rollout.observations).entropy()[rollout.valid].mean())
    nothing = {"advantage_fn": lambda rewards, *args, **kwargs: torch.zeros_like(rewards)}
    _, row = update(policy, rollout, tiny(entropy_coef=0.1, value_coef=0.0, normalize_advantages=False), **nothing)
    assert row["entropy"] > before + 1e-3


def test_the_critic_moves_towards_the_returns():
    policy, rollout = cartpole_rollout()
    batch = make_batch(rollout, tiny(), gae)
    after, _ = update(policy, rollout, tiny(learning_rate=1e-2))
    with torch.no_grad():
        before, now = (float((p.value(batch.observations) - batch.returns).square().mean()) for p in (policy, after))
    assert now < before


def moved(a: torch.nn.Module, b: torch.nn.Module) -> float:
    """Euclidean distance of two sets of weights."""
    return math.sqrt(sum(float((x - y).detach().double().square().sum()) for x, y in zip(a.parameters(), b.parameters(), strict=True)))


ONE_STEP = {"epochs": 1, "minibatch_size": 64, "num_envs": 4, "num_steps": 16, "learning_rate": 0.01}


def test_max_grad_norm_bounds_the_gradient_of_the_step_and_none_leaves_it():
    policy, rollout = cartpole_rollout(T=16)
    clipped, row = update(policy, rollout, tiny(**ONE_STEP, max_grad_norm=0.05), sgd=True)
    free, free_row = update(policy, rollout, tiny(**ONE_STEP, max_grad_norm=None), sgd=True)
    assert row["grad_norm"] == free_row["grad_norm"] > 1.0, "the log shows the norm before clipping"
    assert moved(policy, clipped) == pytest.approx(0.01 * 0.05, rel=1e-3)
    assert moved(policy, free) == pytest.approx(0.01 * free_row["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("anneal", [True, False])
def test_the_annealed_learning_rate_is_the_one_that_moves_the_weights(anneal):
    policy, rollout = cartpole_rollout(T=16)
    config = tiny(**ONE_STEP, max_grad_norm=None, anneal_learning_rate=anneal)
    after, row = update(policy, rollout, config, remaining=0.25, sgd=True)
    rate = 0.01 * (0.25 if anneal else 1.0)
    assert row["learning_rate"] == pytest.approx(rate)
    assert moved(policy, after) == pytest.approx(rate * row["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("anneal", [True, False])
def test_the_annealed_clip_range_is_the_one_the_loss_gets(anneal):
    policy, rollout = cartpole_rollout()
    seen = []

    def record(*args, clip_range):
        seen.append(clip_range)
        return clipped_surrogate_loss(*args, clip_range=clip_range)

    _, row = update(policy, rollout, tiny(clip_range=0.2, anneal_clip_range=anneal), remaining=0.25, policy_loss_fn=record)
    assert set(seen) == {row["clip_range"]}
    assert row["clip_range"] == pytest.approx(0.05 if anneal else 0.2)


def test_target_kl_stops_after_the_first_epoch_that_exceeds_it():
    policy, rollout = cartpole_rollout()
    large_steps = {"learning_rate": 0.003, "minibatch_size": 16, "max_grad_norm": None}
    stopped, row = update(policy, rollout, tiny(epochs=12, target_kl=0.01, **large_steps))
    assert 1 < row["epochs"] < 12
    same, same_row = update(policy, rollout, tiny(epochs=row["epochs"], **large_steps))
    _, one_less = update(policy, rollout, tiny(epochs=row["epochs"] - 1, **large_steps))
    assert same_weights(stopped, same)
    assert one_less["approx_kl"] <= 0.01 < same_row["approx_kl"]
    assert update(policy, rollout, tiny(epochs=12, **large_steps))[1]["epochs"] == 12


def test_diagnostics_are_those_of_the_valid_rows_after_the_last_epoch():
    policy, rollout = cartpole_rollout()
    after, row = update(policy, rollout, tiny(learning_rate=0.05, epochs=4))
    valid = rollout.valid
    with torch.no_grad():
        logits = after.actor(rollout.observations[valid]).double().numpy()
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = log_probs[np.arange(len(logits)), rollout.actions[valid].numpy()]
    log_ratio = picked - rollout.log_probs[valid].double().numpy()
    assert row["approx_kl"] == pytest.approx(np.mean(np.exp(log_ratio) - 1 - log_ratio), rel=1e-3)
    assert row["clip_fraction"] == pytest.approx(np.mean(np.abs(np.exp(log_ratio) - 1) > 0.2), abs=1e-6)
    assert row["clip_fraction"] > 0.0
    assert row["entropy"] == pytest.approx(-(np.exp(log_probs) * log_probs).sum(-1).mean(), rel=1e-4)
    batch = make_batch(rollout, tiny(), gae)
    returns, values = batch.returns.double().numpy(), batch.values.double().numpy()
    assert row["explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns), rel=1e-3)
    assert kl_from_old(after, batch) == pytest.approx(row["approx_kl"], rel=1e-5)
    assert diagnose(after, batch, 0.2)["approx_kl"] == row["approx_kl"]


@pytest.mark.parametrize(
    ("quantity", "functions"),
    [
        ("policy_loss", {"policy_loss_fn": lambda log_probs, *_, clip_range: log_probs.mean() * float("nan")}),
        ("policy_loss", {"advantage_fn": lambda rewards, *_, gamma, lam: rewards * float("inf")}),
    ],
)
def test_an_update_that_is_not_finite_names_the_first_quantity(quantity, functions):
    policy, rollout = cartpole_rollout()
    with pytest.raises(FloatingPointError, match=rf"training diverged at update 1: {quantity} is"):
        update(policy, rollout, tiny(), **functions)
