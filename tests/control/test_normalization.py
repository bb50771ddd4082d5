"""Running statistics against NumPy on all the data at once, where they are used, and where they are saved."""

import warnings

import numpy as np
import pytest
import torch
from control_helpers import same_tensors, same_weights, tiny, without_seconds

from ppo_edu.control import Collector, ObservationNormalizer, RewardNormalizer, RunningMoments, evaluate, load_policy, train
from ppo_edu.control.envs import make_envs
from ppo_edu.control.ppo import start
from ppo_edu.core import clipped_surrogate_loss
from ppo_edu.runs import CHECKPOINT_NAME, Checkpoint, Run, column, load_checkpoint, save_checkpoint

NAN, INF = float("nan"), float("inf")
BOTH = {"normalize_observations": True, "normalize_rewards": True}


def run(config, **options):
    return train(config, **({"progress": False} | options))


def batches(seed: int, scale: float = 1.0, shift: float = 0.0) -> list[torch.Tensor]:
    """Batches of 1 to 40 rows of three numbers, each batch around a mean of its own."""
    rng = np.random.default_rng(seed)
    sizes = [1, *rng.integers(1, 41, size=8), 1]
    return [torch.from_numpy(shift + scale * (rng.normal(size=(n, 3)) + rng.normal(size=3))) for n in sizes]


# Moments ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 1.0), (1.0, 1e6), (1e4, -50.0)])
@pytest.mark.parametrize("seed", range(5))
def test_moments_over_batches_are_those_of_all_rows_at_once(seed, scale, shift):
    data = batches(seed, scale, shift)
    moments = RunningMoments(3)
    for i, batch in enumerate(data, start=1):
        moments.update(batch)
        seen = np.concatenate(data[:i])
        np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-12, atol=1e-12 * scale)
        np.testing.assert_allclose(moments.variance, seen.var(0), rtol=1e-8, atol=1e-12 * scale**2)
        assert moments.count == len(seen)


def test_moments_do_not_depend_on_how_the_rows_are_divided():
    rows = torch.cat(batches(0))
    whole, one_by_one, single = RunningMoments(3), RunningMoments(3), rows.float()
    whole.update(single)
    for row in single:
        one_by_one.update(row[None])
    assert torch.allclose(whole.mean, one_by_one.mean, rtol=1e-12)
    assert torch.allclose(whole.variance, one_by_one.variance, rtol=1e-12)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(3), r"rows must have shape \[B, 3\]"),
        (torch.zeros(2, 4), r"rows must have shape \[B, 3\]"),
        (torch.zeros(2, 1, 3), r"rows must have shape \[B, 3\]"),
        (torch.zeros(0, 3), "rows must"),
        (torch.zeros(2, 3, dtype=torch.long), "rows must be a floating-point tensor"),
        (np.zeros((2, 3)), "rows must be a floating-point tensor"),
        (torch.tensor([[0.0, NAN, 0.0]]), "rows must be finite"),
        (torch.tensor([[0.0, INF, 0.0]]), "rows must be finite"),
    ],
)
def test_bad_rows_are_refused_and_change_nothing(rows, message):
    moments = RunningMoments(3)
    moments.update(torch.randn(5, 3))
    before = {name: x.clone() for name, x in moments.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        moments.update(rows)
    assert same_tensors(moments.state_dict(), before)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_a_bad_size_is_refused(size):
    with pytest.raises(ValueError, match="size must be an int of at least 1"):
        RunningMoments(size)


# Observations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (7,), (5, 2)])
def test_observations_are_standardised_and_clipped_at_ten(batch):
    seen = torch.cat(batches(1, scale=5.0, shift=30.0)).float()
    normalizer = ObservationNormalizer(3)
    normalizer.update(seen)
    observations = 30 + 60 * torch.randn(*batch, 3)
    original = observations.clone()
    got = normalizer(observations)
    want = (original.double().numpy() - seen.double().numpy().mean(0)) / seen.double().numpy().std(0)
    np.testing.assert_allclose(got, np.clip(want, -10, 10), rtol=1e-6, atol=1e-6)
    assert got.dtype == torch.float32
    assert torch.equal(observations, original)


def test_an_observation_far_out_is_clipped_on_both_sides():
    normalizer = ObservationNormalizer(1)
    normalizer.update(torch.tensor([[-1.0], [1.0]]))
    got = normalizer(torch.tensor([[-1e9], [-10.1], [-9.9], [9.9], [10.1], [1e9]]))
    torch.testing.assert_close(got[:, 0], torch.tensor([-10.0, -10.0, -9.9, 9.9, 10.0, 10.0]))


def test_before_the_first_row_observations_stay_as_they_are():
    observations = torch.randn(6, 4)
    torch.testing.assert_close(ObservationNormalizer(4)(observations), observations, rtol=1e-6, atol=1e-6)


def test_what_never_varied_becomes_zero_and_not_nan():
    normalizer = ObservationNormalizer(2)
    normalizer.update(torch.tensor([[3.0, 0.0], [3.0, 1.0]]))
    got = normalizer(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.0, -1.0], [10.0, -1.0]]))


# Rewards ----------------------------------------------------------------------------------------------------------------


def reward_rollouts(seed: int, T: int = 11, N: int = 3, rollouts: int = 4) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(rewards, done, valid) of consecutive rollouts, with a reset row after each end, across rollouts too."""
    rng = np.random.default_rng(seed)
    done = rng.random((rollouts * T, N)) < 0.25
    valid = np.ones_like(done)
    for t in range(1, len(done)):
        valid[t] = ~done[t - 1]
        done[t] &= valid[t]
    rewards = np.where(valid, 2.0 + rng.normal(size=done.shape), 0.0).astype(np.float32)
    return [tuple(torch.from_numpy(x[i : i + T].copy()) for x in (rewards, done, valid)) for i in range(0, len(done), T)]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_rewards_are_divided_by_the_standard_deviation_of_the_discounted_returns_so_far(gamma):
    normalizer = RewardNormalizer(3, gamma)
    running, returns = [0.0] * 3, []
    for rewards, done, valid in reward_rollouts(0):
        got = normalizer(rewards, done, valid)
        for t in range(len(rewards)):  # one number at a time, without a normaliser
            for n in range(3):
                if valid[t, n]:
                    running[n] = gamma * running[n] + float(rewards[t, n])
                    returns.append(running[n])
                if done[t, n]:
                    running[n] = 0.0
        np.testing.assert_allclose(got, rewards.numpy() / np.std(returns), rtol=1e-5)
        assert got.dtype == torch.float32


def test_the_scale_of_the_rewards_plays_no_part():
    small, large = RewardNormalizer(3, 0.9), RewardNormalizer(3, 0.9)
    for rewards, done, valid in reward_rollouts(1):
        torch.testing.assert_close(small(rewards, done, valid), large(1000 * rewards, done, valid), rtol=1e-5, atol=1e-6)


def test_rewards_are_never_shifted():
    """Zero stays zero, and signs stay: less the mean, a task that pays 2 per step would pay nothing for staying alive."""
    rewards, done, valid = reward_rollouts(2)[0]
    rewards[0] = 0.0
    got = RewardNormalizer(3, 0.9)(rewards, done, valid)
    assert not got[0].any()
    assert torch.equal(got.sign(), rewards.sign())


def test_rewards_that_are_always_zero_stay_zero():
    rewards, done, valid = reward_rollouts(3)[0]
    assert not RewardNormalizer(3, 0.9)(0 * rewards, done, valid).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": torch.zeros(4, 2)}, r"rewards must have shape \[T, 3\]"),
        ({"rewards": torch.zeros(4)}, r"rewards must have shape \[T, 3\]"),
        ({"rewards": torch.zeros(4, 3, dtype=torch.long)}, "rewards must be a floating-point tensor"),
        ({"done": torch.zeros(4, 3)}, "done must"),
        ({"valid": torch.ones(3, 3, dtype=torch.bool)}, "valid must"),
    ],
)
def test_bad_rollouts_are_refused(changes, message):
    good = {"rewards": torch.zeros(4, 3), "done": torch.zeros(4, 3, dtype=torch.bool), "valid": torch.ones(4, 3, dtype=torch.bool)}
    with pytest.raises(ValueError, match=message):
        RewardNormalizer(3, 0.9)(**(good | changes))


@pytest.mark.parametrize(
    ("num_envs", "gamma", "name"), [(0, 0.9, "num_envs"), (True, 0.9, "num_envs"), (2, 1.1, "gamma"), (2, NAN, "gamma")]
)
def test_bad_arguments_are_refused(num_envs, gamma, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        RewardNormalizer(num_envs, gamma)


# In training ------------------------------------------------------------------------------------------------------------

TASKS = {
    "categorical": {"env_id": "CartPole-v1"},
    "gaussian": {"env_id": "Pendulum-v1"},
    "squashed": {"env_id": "Pendulum-v1", "squash_actions": True},
}


def log_ratios(config) -> list[torch.Tensor]:
    """What every minibatch of a run asks the loss about."""
    seen = []

    def record(log_probs, old_log_probs, advantages, *, clip_range):
        seen.append((log_probs - old_log_probs).detach())
        return clipped_surrogate_loss(log_probs, old_log_probs, advantages, clip_range=clip_range)

    run(config, policy_loss_fn=record)
    return seen


@pytest.mark.parametrize("task", TASKS)
def test_each_update_starts_with_the_policy_that_acted(task):
    """Every ratio of an update's first minibatch is 1: statistics move only between an update and the next rollout."""
    config = tiny(**TASKS[task], **BOTH, learning_rate=0.02, minibatch_size=64, epochs=2)  # one minibatch per epoch
    ratios = log_ratios(config)
    assert len(ratios) >= 16
    for first, second in zip(ratios[::2], ratios[1::2], strict=True):
        assert first.abs().max() < 1e-5
        assert second.abs().max() > 1e-3, "the optimiser's step must show"


@pytest.mark.parametrize("task", TASKS)
def test_with_learning_rate_zero_every_ratio_of_every_minibatch_is_one(task):
    ratios = log_ratios(tiny(**TASKS[task], **BOTH, learning_rate=0.0))
    assert max(float(x.abs().max()) for x in ratios) < 1e-5


def test_the_statistics_are_those_of_the_valid_rows_that_the_policy_saw(monkeypatch):
    rollouts = []
    collect = Collector.collect
    monkeypatch.setattr(Collector, "collect", lambda *args: rollouts.append(collect(*args)) or rollouts[-1])
    result = run(tiny(normalize_observations=True))
    assert not all(r.valid.all() for r in rollouts)
    seen = torch.cat([r.observations[r.valid] for r in rollouts]).double().numpy()
    normalizer = result.policy.normalizer
    assert normalizer.count == len(seen) == result.env_steps
    np.testing.assert_allclose(normalizer.mean, seen.mean(0), rtol=1e-10)
    np.testing.assert_allclose(normalizer.variance, seen.var(0), rtol=1e-10)


def test_actor_and_critic_learn_from_normalised_observations():
    """A task in other units is the same task: only the first update, before any statistics, may differ."""
    policy = run(tiny(normalize_observations=True)).policy
    observations = torch.randn(9, 4)
    before = policy.distribution(observations).logits, policy.value(observations)
    with torch.no_grad():
        policy.normalizer.mean += 5.0
        policy.normalizer.squares *= 4.0
    mean = policy.normalizer.mean - 5.0
    moved = ((observations - mean) * 2 + mean + 5.0).float()
    torch.testing.assert_close(policy.distribution(moved).logits, before[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(policy.value(moved), before[1], rtol=1e-4, atol=1e-5)


def test_the_logged_return_is_in_the_environments_units():
    log = run(tiny(normalize_rewards=True)).log
    returns = column(log, "episode_return")
    assert np.isfinite(returns).any()
    np.testing.assert_array_equal(returns, column(log, "episode_length"))  # CartPole pays 1 per step


def test_the_critic_learns_normalised_rewards():
    plain, scaled = (run(tiny(total_steps=2000, normalize_rewards=x)) for x in (False, True))
    assert scaled.log[-1]["value_loss"] < 0.2 * plain.log[-1]["value_loss"]


@pytest.mark.parametrize("name", ["normalize_observations", "normalize_rewards"])
def test_each_switch_trains_another_policy(name):
    plain, changed = run(tiny()).policy, run(tiny(**{name: True})).policy
    assert not torch.equal(plain.actor[0].weight, changed.actor[0].weight)


# Saved and restored -----------------------------------------------------------------------------------------------------


def tensors(directory):
    saved = load_checkpoint(directory / CHECKPOINT_NAME, kind="control").tensors
    return {name: x for name, x in saved.items() if name != "seconds"}


def having(saved, prefix):
    return {name.removeprefix(prefix): x for name, x in saved.items() if name.startswith(prefix)}


@pytest.mark.parametrize("update", [1, 5])
@pytest.mark.parametrize("shared_network", [False, True])
def test_a_stopped_run_continues_bit_for_bit_with_its_statistics(tmp_path, update, shared_network):
    config = tiny(**BOTH, shared_network=shared_network)
    whole = run(config, log_dir=tmp_path / "whole")
    run(config, log_dir=tmp_path / "parts", callback=lambda state: state.update == update)
    resumed = run(config, resume=tmp_path / "parts", seed=77)
    assert same_tensors(tensors(tmp_path / "parts"), tensors(tmp_path / "whole"))
    assert without_seconds(resumed.log) == without_seconds(whole.log)
    assert resumed.policy.normalizer.count == whole.env_steps
    names = {"reward_normalizer.moments.mean", "reward_normalizer.discounted", "policy.normalizer.mean"}
    assert names <= tensors(tmp_path / "whole").keys()


@pytest.mark.parametrize("squash_actions", [False, True])
def test_a_resumed_pendulum_keeps_its_statistics_and_starts_its_episodes_afresh(tmp_path, squash_actions):
    config = tiny(env_id="Pendulum-v1", squash_actions=squash_actions, **BOTH)
    run(config, log_dir=tmp_path, callback=lambda state: state.update == 3)
    saved = tensors(tmp_path)
    assert saved["reward_normalizer.discounted"].all()
    with pytest.warns(UserWarning, match="the resumed run starts fresh episodes"), Run("control", config, resume=tmp_path) as resumed:
        state = start(config, 0, make_envs("Pendulum-v1", config.num_envs), resumed)
    assert not state.reward_normalizer.discounted.any()
    assert same_tensors(state.reward_normalizer.moments.state_dict(), having(saved, "reward_normalizer.moments."))
    assert same_tensors(state.policy.state_dict(), having(saved, "policy."))


def test_a_loaded_policy_has_the_statistics_and_plays_as_the_trained_one(tmp_path):
    config = tiny(total_steps=3000, **BOTH)
    result = run(config, log_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy, saved = load_policy(tmp_path)
    assert saved == config
    assert same_weights(policy, result.policy)
    assert policy.normalizer.count == result.env_steps
    a, b = (evaluate(p, "CartPole-v1", episodes=20, seed=3) for p in (policy, result.policy))
    assert np.array_equal(a, b)


def test_a_checkpoint_without_the_statistics_is_refused(tmp_path):
    config = tiny(**BOTH)
    run(config, log_dir=tmp_path, callback=lambda state: True)
    whole = load_checkpoint(tmp_path / CHECKPOINT_NAME, kind="control")
    for prefix in ("reward_normalizer.", "policy.normalizer."):
        kept = {name: x for name, x in whole.tensors.items() if not name.startswith(prefix)}
        save_checkpoint(tmp_path / CHECKPOINT_NAME, Checkpoint(kept, whole.kind, whole.config, whole.update))
        with pytest.raises(ValueError, match=rf"the checkpoint must be complete, it lacks \['{prefix}"):
            run(config, resume=tmp_path)
