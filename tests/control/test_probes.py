"""Probes: their answers by dynamic programming, a healthy trainer, and trainers with one planted fault each."""

import contextlib
import math
from dataclasses import replace
from unittest import mock

import gymnasium as gym
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from ppo_edu.control import PPOConfig, probe, probes, rollout, train
from ppo_edu.control import ppo as trainer
from ppo_edu.control.probes import ENVIRONMENTS, GAMMA, environment_id
from ppo_edu.core import clipped_surrogate_loss, gae

# Planted faults: the part that is to be suspected, and the trainer's function that is replaced ------------------------------


def bootstraps_at_the_end(rewards, values, next_values, terminated, truncated, **k):
    return gae(rewards, values, next_values, torch.zeros_like(terminated), torch.zeros_like(truncated), **k)


def trace_crosses_the_end(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    delta = rewards + gamma * torch.where(terminated, 0.0, next_values) - values
    advantages, trace = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        trace = delta[t] + gamma * lam * trace
        advantages[t] = trace
    return advantages


def time_limit_is_an_end(rewards, values, next_values, terminated, truncated, **k):
    return gae(rewards, values, next_values, terminated | truncated, torch.zeros_like(truncated), **k)


def no_discount(*args, gamma, lam):
    return gae(*args, gamma=1.0, lam=lam)


def reward_less_value(rewards, values, next_values, terminated, truncated, **k):
    return rewards - values


def one_step_late(*args, **k):
    return torch.cat([gae(*args, **k)[1:], torch.zeros_like(args[0][:1])])


def sign_reversed(*args, **k):
    return -clipped_surrogate_loss(*args, **k)


def no_gradient(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
    return clipped_surrogate_loss(old_log_probs.requires_grad_(), old_log_probs, advantages, clip_range=clip_range)


def target_carries_gradient(values, returns, **k):
    return 0.5 * (values - (returns - returns.detach() + values)).square().mean()


def keeps_reset_rows(self, policy, num_steps, collect=rollout.Collector.collect):
    rows = collect(self, policy, num_steps)
    return replace(rows, valid=torch.ones_like(rows.valid))


def always_the_mode(policy, observations):
    return policy.mode(torch.from_numpy(observations))


def target_is_the_reward(rows, config, advantage_fn, make_batch=trainer.make_batch):
    return make_batch(rows, config, advantage_fn)._replace(returns=rows.rewards[rows.valid])


def observations_shifted(self, index, rows=trainer.Batch.rows):
    batch = rows(self, index)
    return batch._replace(observations=batch.observations.roll(1, 0))


FAULTS = {
    "bootstraps at the end": ("episode ends", {"advantage_fn": bootstraps_at_the_end}, None),
    "trace crosses the end": ("episode ends", {"advantage_fn": trace_crosses_the_end}, None),
    "time limit is an end": ("time limits", {"advantage_fn": time_limit_is_an_end}, None),
    "no discount": ("discount", {"advantage_fn": no_discount}, None),
    "reward less value": ("advantage", {"advantage_fn": reward_less_value}, None),
    "one step late": ("advantage", {"advantage_fn": one_step_late}, None),
    "sign reversed": ("policy loss", {"policy_loss_fn": sign_reversed}, None),
    "no gradient": ("policy loss", {"policy_loss_fn": no_gradient}, None),
    "target carries gradient": ("critic", {}, (trainer, "value_loss", target_carries_gradient)),
    "target is the reward": ("critic", {}, (trainer, "make_batch", target_is_the_reward)),
    "keeps reset rows": ("reset rows", {}, (rollout.Collector, "collect", keeps_reset_rows)),
    "always the mode": ("exploration", {}, (rollout, "sample_actions", always_the_mode)),
    "observations shifted": ("rows", {}, (trainer.Batch, "rows", observations_shifted)),
}


def suspect_of(name: str, seed: int) -> str | None:
    """What the probes say of a trainer with this fault."""
    _, functions, patch = FAULTS[name]
    with mock.patch.object(*patch) if patch else contextlib.nullcontext():
        return probe(seed=seed, **functions).suspect


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name):
    assert suspect_of(name, seed=0) == FAULTS[name][0]


def test_a_healthy_trainer_is_not_suspected():
    report = probe(seed=0)
    assert report.suspect is None
    assert all(m.ok for m in report.measurements)
    assert str(report).count("\n") == len(report.measurements) == 10
    assert "FAIL" not in str(report)


@pytest.mark.verify
@pytest.mark.parametrize("seed", range(20))
def test_over_seeds_nine_of_ten_faults_are_found_and_the_healthy_trainer_is_cleared(seed):
    found = [suspect_of(name, seed) == part for name, (part, *_) in FAULTS.items()]
    assert sum(found) >= math.ceil(0.9 * len(found))
    assert probe(seed=seed).suspect is None


# What else is promised ------------------------------------------------------------------------------------------------------


def test_the_known_answers_by_dynamic_programming():
    """V of each state, by iterating Bellman's equation over what the environment itself does under the best action."""
    assert values_of("ppo_edu/ConstantReward-v0") == {0.0: 1.0}
    assert values_of("ppo_edu/ObservationReward-v0") == {1.0: 1.0, -1.0: -1.0}
    assert values_of("ppo_edu/DelayedReward-v0") == {-1.0: GAMMA, 1.0: 1.0}
    assert values_of("ppo_edu/EndlessReward-v0") == {0.0: pytest.approx(1 / (1 - GAMMA))}
    assert values_of("ppo_edu/ActionReward-v0") == {0.0: 1.0}
    assert values_of("ppo_edu/MatchingAction-v0") == {1.0: 1.0, -1.0: 1.0}
    assert values_of("ppo_edu/EarlyAction-v0")[0.0] == GAMMA


def values_of(env_id: str, sweeps: int = 60) -> dict[float, float]:
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    states = {float(env.reset()[0][0]) for _ in range(50)}
    model, frontier = {}, list(states)
    while frontier:
        state = frontier.pop()
        for action in (0, 1):
            env.observation = state
            observation, reward, ended, _, _ = env.step(action)
            model[state, action] = reward, float(observation[0]), ended
            if not ended and (float(observation[0]), 0) not in model and float(observation[0]) not in frontier:
                frontier.append(float(observation[0]))
    values = {state: 0.0 for state, _ in model}
    for _ in range(sweeps):
        values = {s: max(r + (0 if end else GAMMA * values[n]) for a in (0, 1) for r, n, end in [model[s, a]]) for s in values}
    return values


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_each_probe_is_a_sound_gymnasium_environment(kind):
    check_env(gym.make(environment_id(kind)).unwrapped, skip_render_check=True)


def test_a_readers_own_trainer_is_called_as_train_is():
    calls = []

    def my_train(config, *, seed, progress, **functions):
        calls.append((config.env_id, seed, progress, functions))
        return train(replace(config, total_steps=100, num_envs=4, num_steps=8, minibatch_size=32), seed=seed, progress=progress)

    report = probe(PPOConfig(learning_rate=1e-3), seed=7, train_fn=my_train, policy_loss_fn=clipped_surrogate_loss)
    assert [env_id for env_id, *_ in calls] == [environment_id(kind) for kind in ENVIRONMENTS]
    assert {(seed, progress) for _, seed, progress, _ in calls} == {(7, False)}
    assert all(functions == {"policy_loss_fn": clipped_surrogate_loss} for *_, functions in calls)
    assert report.suspect is not None  # a hundred steps teach nothing
    assert "FAIL" in str(report)


def test_divergence_is_a_finding():
    def explodes(log_probs, old_log_probs, advantages, *, clip_range, mask=None):
        return (log_probs * torch.inf).mean()

    report = probe(policy_loss_fn=explodes)
    assert report.suspect == "the numbers"
    assert "finite" in str(report)


@pytest.mark.parametrize("switch", ["normalize_rewards", "squash_actions"])
def test_what_would_change_the_units_of_a_probe_is_off(switch):
    """Known values are in units of the reward, and actions are two: a healthy trainer is not to be suspected for its other tasks."""
    asked = []

    def my_train(config, **options):
        asked.append(getattr(config, switch))
        return train(config, **options)

    report = probe(PPOConfig(**{switch: True}), train_fn=my_train)
    assert asked == [False] * len(ENVIRONMENTS)
    assert report.suspect is None


def test_bad_config_is_named():
    with pytest.raises(ValueError, match=r"^config must be a PPOConfig"):
        probe("CartPole-v1")


def test_steps_are_few_enough():
    assert probes.STEPS * len(ENVIRONMENTS) <= 50_000
