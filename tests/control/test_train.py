"""The loop around the update: what is logged, what a callback sees, determinism, a reader's own functions, bad environments."""

import inspect
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from control_helpers import CLOSED, same_weights, tiny, without_seconds

from ppo_edu.control import CategoricalPolicy, PPOConfig, evaluate, load_policy, train
from ppo_edu.control import ppo as ppo_module
from ppo_edu.core import clipped_surrogate_loss, gae
from ppo_edu.runs import column

QUIET = {"progress": False}
COLUMNS = {"update", "env_steps", "seconds", "policy_loss", "value_loss", "grad_norm", "approx_kl", "clip_fraction"}
COLUMNS |= {"explained_variance", "entropy", "epochs", "learning_rate", "clip_range", "episode_return", "episode_length"}


def run(config=None, **options):
    return train(config or tiny(), **(QUIET | options))


# The log ----------------------------------------------------------------------------------------------------------------


def test_one_row_of_floats_per_update():
    result = run()
    assert column(result.log, "update").tolist() == list(range(1, len(result.log) + 1))
    for row in result.log:
        assert row.keys() == COLUMNS
        assert all(isinstance(x, int | float) for x in row.values())
        assert all(np.isfinite(x) for name, x in row.items() if not name.startswith("episode_"))
    assert result.log[-1]["env_steps"] == result.env_steps
    assert result.log[-1]["seconds"] == result.seconds > 0.0


def test_env_steps_counts_valid_rows_only(monkeypatch):
    rollouts = []
    collect = ppo_module.Collector.collect

    def recording(self, *args):
        rollouts.append(collect(self, *args))
        return rollouts[-1]

    monkeypatch.setattr(ppo_module.Collector, "collect", recording)
    result = run()
    counts = np.cumsum([int(r.valid.sum()) for r in rollouts])
    assert column(result.log, "env_steps").tolist() == counts.tolist()
    assert result.env_steps < 64 * len(rollouts), "some rows must have been resets"


def test_the_run_ends_with_the_update_that_reaches_total_steps():
    steps = column(run(tiny(total_steps=200)).log, "env_steps")
    assert steps[-1] >= 200 > steps[-2]


def test_episode_statistics_are_nan_while_no_episode_has_ended_and_numbers_later():
    returns = column(run(tiny(num_steps=4, minibatch_size=16, total_steps=400)).log, "episode_return")
    assert np.isnan(returns[0])
    assert np.isfinite(returns).any()


def test_annealing_is_linear_in_the_steps_done():
    config = tiny(learning_rate=0.02, clip_range=0.3, anneal_clip_range=True)
    log = run(config).log
    done = np.array([0, *column(log, "env_steps")[:-1]])
    remaining = 1 - done / config.total_steps
    np.testing.assert_allclose(column(log, "learning_rate"), 0.02 * remaining)
    np.testing.assert_allclose(column(log, "clip_range"), 0.3 * remaining)


def test_without_annealing_both_stay():
    log = run(tiny(learning_rate=0.02, clip_range=0.3, anneal_learning_rate=False)).log
    assert set(column(log, "learning_rate")) == {0.02}
    assert set(column(log, "clip_range")) == {0.3}


# Determinism ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others():
    torch.manual_seed(1)
    first = run(seed=3)
    torch.manual_seed(2)  # what the caller does with the global state plays no part
    second = run(seed=3)
    assert same_weights(first.policy, second.policy)
    assert without_seconds(first.log) == without_seconds(second.log)
    assert not same_weights(first.policy, run(seed=4).policy)


def test_the_seed_reaches_the_environments_too():
    """The scripted environment shows the seed of its first reset in its observations; copies get consecutive ones."""
    seen = []
    run(tiny(env_id="Scripted-v0", total_steps=60), seed=7, callback=lambda state: seen.append(state.collector.observations[:, 0]))
    assert seen[0].tolist() == [7, 8, 9, 10]


def test_a_second_training_leaves_the_first_result_alone():
    first = run()
    weights, log = {k: v.clone() for k, v in first.policy.state_dict().items()}, [dict(row) for row in first.log]
    run()
    assert all(torch.equal(x, weights[name]) for name, x in first.policy.state_dict().items())
    assert str(first.log) == str(log)


def test_the_callers_random_state_stays_also_when_training_fails():
    def fail(state):
        raise RuntimeError("from the callback")

    state = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="from the callback"):
        run(callback=fail)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None, "0"])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an int"):
        run(seed=seed)


@pytest.mark.parametrize("config", ["CartPole-v1", {"env_id": "CartPole-v1"}, PPOConfig])
def test_a_config_that_is_none_is_refused(config):
    with pytest.raises(ValueError, match=r"^config must be a PPOConfig or None, got "):
        run(config)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
def test_a_bad_checkpoint_interval_is_refused(every):
    with pytest.raises(ValueError, match="checkpoint_every must be an int of at least 1"):
        run(checkpoint_every=every)


# A reader's own functions -----------------------------------------------------------------------------------------------


def recorder(fn):
    """`fn`, and the list of (args, kwargs) it was called with."""
    calls = []

    def recording(*args, **kwargs):
        calls.append((args, kwargs))
        return fn(*args, **kwargs)

    return recording, calls


def test_a_readers_gae_is_called_once_per_update_with_the_arguments_of_the_default():
    mine, calls = recorder(gae)
    config = tiny(gamma=0.9, lam=0.8)
    result = run(config, advantage_fn=mine)
    assert len(calls) == len(result.log)
    for args, kwargs in calls:
        assert kwargs == {"gamma": 0.9, "lam": 0.8}
        assert [x.shape for x in args] == [(16, 4)] * 5
        assert [x.dtype for x in args] == [torch.float32] * 3 + [torch.bool] * 2
        assert list(inspect.signature(gae).bind(*args, **kwargs).arguments) == list(inspect.signature(gae).parameters)
        assert not any(x.requires_grad for x in args)
    assert same_weights(result.policy, run(config).policy)


def test_a_readers_loss_is_called_once_per_minibatch_with_the_arguments_of_the_default():
    mine, calls = recorder(clipped_surrogate_loss)
    config = tiny(clip_range=0.15)
    result = run(config, policy_loss_fn=mine)
    assert len(calls) == len(result.log) * 2 * 2  # 2 epochs of about 60 / 32 minibatches
    for (log_probs, old_log_probs, advantages), kwargs in calls:
        assert kwargs == {"clip_range": 0.15}
        assert log_probs.shape == old_log_probs.shape == advantages.shape == (len(log_probs),)
        assert log_probs.requires_grad
        assert not old_log_probs.requires_grad
        assert not advantages.requires_grad
    assert same_weights(result.policy, run(config).policy)


def test_a_different_loss_trains_a_different_policy():
    other = run(policy_loss_fn=lambda log_probs, old_log_probs, advantages, *, clip_range: -(log_probs * advantages).mean())
    assert not same_weights(other.policy, run().policy)


# Callbacks --------------------------------------------------------------------------------------------------------------


def test_a_callback_sees_the_state_after_each_update():
    seen = []

    def look(state):
        assert isinstance(state.policy, CategoricalPolicy)
        assert state.log[-1]["update"] == state.update == len(state.log)
        assert state.log[-1]["env_steps"] == state.env_steps
        seen.append(state.update)

    result = run(callback=look)
    assert seen == list(range(1, len(result.log) + 1))


def test_a_callback_that_returns_true_stops_the_training_and_any_other_value_does_not():
    assert len(run(callback=lambda state: state.update == 3).log) == 3
    assert len(run(callback=lambda state: None).log) == len(run().log)


def test_the_time_of_callbacks_is_not_counted():
    started = time.perf_counter()
    result = run(tiny(total_steps=120), callback=lambda state: time.sleep(0.2))
    assert len(result.log) == 2
    assert result.seconds < time.perf_counter() - started - 0.35
    assert result.log[0]["seconds"] < result.log[1]["seconds"]


def test_evaluating_in_a_callback_changes_nothing():
    assert same_weights(run().policy, run(callback=lambda s: evaluate(s.policy, "CartPole-v1", episodes=2, greedy=False) is None).policy)


# Environments -----------------------------------------------------------------------------------------------------------


def test_discrete_observations_become_one_hot():
    observations = []
    run(
        tiny(env_id="FrozenLake-v1", total_steps=60),
        callback=lambda state: observations.append(state.collector.observations.copy()),
    )
    assert observations[0].shape == (4, 16)
    assert all((x.sum(1) == 1).all() and set(np.unique(x)) == {0, 1} for x in observations)


def test_an_environment_without_a_vectorised_form_trains():
    result = run(tiny(env_id="Acrobot-v1", num_envs=2, total_steps=100))
    assert result.policy.actor[0].in_features == 6
    assert result.policy.distribution(torch.zeros(3, 6)).logits.shape == (3, 3)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("NoSuchEnvironment-v0", "env_id must name an environment that Gymnasium can make, got 'NoSuchEnvironment-v0'"),
        ("CartPole-v99", "env_id must name .*'CartPole-v99'"),
        ("not an id", "env_id must name .*'not an id'"),
        ("", "env_id must name .*''"),
        ("no_such_module:Env-v0", "env_id must name .*no_such_module"),
        (None, "env_id must name .*None"),
        ("TwoActions-v0", "actions must be Discrete, .* or a Box of floats .* has MultiDiscrete"),
        ("ActionsFromOne-v0", r"actions must be Discrete, counted from 0, .* Discrete\(2, start=1\)"),
        ("Image-v0", r"observations must be vectors .* got Box\(0, 255, \(8, 8, 3\)"),
        ("Blackjack-v1", r"observations must be vectors .* got Tuple"),
        ("NaNReward-v0", "reward must be finite, got nan from environment 0"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused_with_its_reason(env_id, message):
    with pytest.raises(ValueError, match=message):
        run(tiny(env_id=env_id))


def test_environments_are_closed_at_the_end_and_after_a_failure():
    CLOSED.clear()
    config = tiny(env_id="Closing-v0", total_steps=40)
    run(config)
    assert len(CLOSED) == 4
    with pytest.raises(ZeroDivisionError):
        run(config, callback=lambda state: 1 / 0)
    assert len(CLOSED) == 8


def test_the_progress_bar_is_shown_and_closed_also_after_a_failure(capsys):
    with pytest.raises(ZeroDivisionError):
        train(tiny(), callback=lambda state: 1 / 0, progress=True)
    text = capsys.readouterr().err
    assert "steps" in text
    assert text.endswith("\n")
    run()
    assert capsys.readouterr() == ("", "")


# Divergence -------------------------------------------------------------------------------------------------------------


def nan_from(call: int):
    """The default loss until its `call`-th call, NaN from there on."""
    calls = itertools.count(1)
    return lambda *args, clip_range: clipped_surrogate_loss(*args, clip_range=clip_range) * (float("nan") if next(calls) >= call else 1.0)


def test_a_huge_learning_rate_ends_with_one_clear_error():
    with pytest.raises(FloatingPointError, match=r"training diverged at update \d: \w+ is (nan|inf)"):
        run(tiny(learning_rate=1e30))


def test_divergence_leaves_the_last_good_checkpoint_from_which_training_continues(tmp_path):
    config = tiny()
    with pytest.raises(FloatingPointError, match="training diverged at update 3: policy_loss is nan"):
        run(config, log_dir=tmp_path, policy_loss_fn=nan_from(call=2 * 4 + 2))
    policy, saved = load_policy(tmp_path)
    assert saved == config
    assert same_weights(policy, run(config, callback=lambda state: state.update == 2).policy)
    assert same_weights(run(config, resume=tmp_path).policy, run(config).policy)


def test_load_policy_leaves_the_callers_random_state_alone(tmp_path):
    result = run(log_dir=tmp_path)
    state = torch.get_rng_state()
    assert same_weights(load_policy(tmp_path)[0], result.policy)
    assert same_weights(load_policy(tmp_path / "checkpoint.safetensors")[0], result.policy)
    assert torch.equal(torch.get_rng_state(), state)


# Does it learn? ---------------------------------------------------------------------------------------------------------


def test_the_default_config_solves_cartpole():
    result = train(progress=False)
    assert evaluate(result.policy, "CartPole-v1", episodes=100, seed=1).mean() >= 475


@pytest.mark.verify
def test_the_default_config_solves_cartpole_with_ten_seeds_of_ten():
    rows = []
    for seed in range(10):
        result = train(PPOConfig(), seed=seed, progress=False)
        mean = float(evaluate(result.policy, "CartPole-v1", episodes=100, seed=1000 + seed).mean())
        rows.append({"seed": seed, "mean_return": mean, "env_steps": result.env_steps, "seconds": round(result.seconds, 2)})
    path = Path(__file__).parents[2] / "_build" / "verify" / "cartpole.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"what": "greedy return over 100 fresh episodes, default config", "runs": rows}, indent=2) + "\n")
    assert [row for row in rows if row["mean_return"] < 475] == []
