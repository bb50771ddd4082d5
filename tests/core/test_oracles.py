"""Independent implementations: an O(T^2) double sum, stable-baselines3, torchrl and torch.distributions must agree with ours.

Each oracle is the real thing, called as its users call it. None of these tests may be skipped.
"""

import copy

import gymnasium as gym
import pytest
import torch
from core_helpers import floats, random_rollout
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from ppo_edu.core import (
    approx_kl,
    clip_fraction,
    clipped_surrogate_loss,
    effective_sample_size,
    entropy_bonus,
    explained_variance,
    gae,
    kl_categorical,
    lambda_return,
    value_loss,
    whiten,
)

SEEDS = range(10)
GAMMA, LAM = 0.97, 0.9

# --- generalised advantage estimation


def gae_as_a_double_sum(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    """A_t = sum over k of (gamma lam)^k delta_{t+k}, up to and including the first step that is done. No recursion; O(T^2)."""
    steps, environments = rewards.shape
    rewards, values, next_values = (x.tolist() for x in (rewards, values, next_values))
    advantages = torch.zeros(steps, environments, dtype=torch.float64)
    for i in range(environments):
        for t in range(steps):
            for k in range(t, steps):
                future = 0.0 if terminated[k, i] else next_values[k][i]
                advantages[t, i] += (gamma * lam) ** (k - t) * (rewards[k][i] + gamma * future - values[k][i])
                if terminated[k, i] or truncated[k, i]:
                    break
    return advantages


@given(seed=st.integers(0, 10**6), T=st.integers(1, 12), N=st.integers(1, 3), gamma=st.floats(0, 1), lam=st.floats(0, 1))
@settings(max_examples=50)
def test_gae_equals_the_double_sum(seed, T, N, gamma, lam):
    r = random_rollout(seed, T, N)
    assert_close(gae(**r, gamma=gamma, lam=lam), gae_as_a_double_sum(**r, gamma=gamma, lam=lam))


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_equals_the_rollout_buffer_of_stable_baselines3(seed):
    """Its convention: at a truncation gamma * V(final observation) has been added to the reward, then every end is an end."""
    r = random_rollout(seed, T=32, N=4, dtype=torch.float32)
    cut = r["truncated"] & ~r["terminated"]
    rewards = torch.where(cut, r["rewards"] + GAMMA * r["next_values"], r["rewards"])
    done = r["terminated"] | r["truncated"]
    space = gym.spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(32, space, space, gamma=GAMMA, gae_lambda=LAM, n_envs=4)
    for t in range(32):
        buffer.rewards[t], buffer.values[t] = rewards[t].numpy(), r["values"][t].numpy()
        buffer.episode_starts[t] = done[t - 1].numpy() if t else True
    buffer.compute_returns_and_advantage(last_values=r["next_values"][-1], dones=done[-1].numpy())
    assert_close(gae(**r, gamma=GAMMA, lam=LAM), torch.from_numpy(buffer.advantages), atol=2e-6, rtol=1e-5)
    assert_close(lambda_return(**r, gamma=GAMMA, lam=LAM), torch.from_numpy(buffer.returns), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_equals_torchrl(seed):
    """Which multiplies gamma by an int tensor and so rounds it to float32: its double precision ends at the seventh digit."""
    r = random_rollout(seed, T=32, N=4)
    batch_first = {name: x.T[..., None] for name, x in r.items()}  # [N, T, 1]
    advantages, returns = generalized_advantage_estimate(
        GAMMA,
        LAM,
        state_value=batch_first["values"],
        next_state_value=batch_first["next_values"],
        reward=batch_first["rewards"],
        done=batch_first["terminated"] | batch_first["truncated"],
        terminated=batch_first["terminated"],
    )
    assert_close(gae(**r, gamma=GAMMA, lam=LAM), advantages[..., 0].T, atol=1e-6, rtol=1e-6)
    assert_close(lambda_return(**r, gamma=GAMMA, lam=LAM), returns[..., 0].T, atol=1e-6, rtol=1e-6)


def test_the_rollouts_of_this_file_have_ends_of_all_kinds():
    r = random_rollout(0, T=32, N=4)
    assert (r["terminated"] & ~r["truncated"]).any()
    assert (r["truncated"] & ~r["terminated"]).any()
    assert (r["truncated"] & r["terminated"]).any()


# --- the loss


class PretendThePolicyHasMoved(BaseCallback):
    """Before stable-baselines3 updates: disturb the stored log-probabilities, or every ratio would be 1, and keep what it starts from."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        noise = torch.randn(buffer.log_probs.shape, generator=torch.Generator().manual_seed(0))
        buffer.log_probs = buffer.log_probs + 0.3 * noise.numpy()
        self.buffer, self.policy = copy.deepcopy(buffer), copy.deepcopy(self.model.policy)


def test_one_update_of_stable_baselines3_has_our_losses_our_gradient_and_our_diagnostics():
    model = PPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=64,
        batch_size=64,  # the whole rollout: one gradient
        n_epochs=1,
        clip_range=0.2,
        clip_range_vf=None,  # its value clipping has no max
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=1e9,
        policy_kwargs={"ortho_init": False},  # else the policy starts so uniform that its entropy has no gradient
        device="cpu",
        seed=0,
    )
    start = PretendThePolicyHasMoved()
    model.learn(total_timesteps=64, callback=start)  # one rollout, one call of PPO.train
    logged = model.logger.name_to_value
    buffer, policy = start.buffer, start.policy
    flat = {name: torch.from_numpy(getattr(buffer, name)).flatten() for name in ("values", "returns", "log_probs", "advantages", "actions")}

    observations = torch.from_numpy(buffer.observations)[:, 0]
    logits = policy.get_distribution(observations).distribution.logits
    log_probs = torch.log_softmax(logits, -1).gather(-1, flat["actions"].long()[:, None])[:, 0]
    values = policy.predict_values(observations)[:, 0]
    policy_loss = clipped_surrogate_loss(log_probs, flat["log_probs"], whiten(flat["advantages"]), clip_range=0.2)
    critic_loss = value_loss(values, flat["returns"])
    entropy = entropy_bonus(logits)
    policy.zero_grad()
    (policy_loss + 0.5 * (2 * critic_loss) - 0.01 * entropy).backward()  # theirs is the squared error without the half

    ours = {
        "policy_gradient_loss": policy_loss,
        "value_loss": 2 * critic_loss,
        "entropy_loss": -entropy,
        "approx_kl": approx_kl(log_probs, flat["log_probs"]),
        "clip_fraction": clip_fraction(log_probs, flat["log_probs"], clip_range=0.2),
        "explained_variance": explained_variance(flat["values"], flat["returns"]),
    }
    assert 0.1 < ours["clip_fraction"] < 0.9  # the clip is at work
    for name, number in ours.items():
        assert_close(number.item(), float(logged[f"train/{name}"]), atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    for (name, mine), theirs in zip(policy.named_parameters(), model.policy.parameters(), strict=True):
        assert mine.grad.any()
        assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("clip_value", [None, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_torchrls_clip_ppo_loss_has_our_losses_and_our_gradient(seed, clip_value):
    torch.manual_seed(seed)
    actor, critic = nn.Linear(3, 4).double(), nn.Linear(3, 1).double()
    policy = ProbabilisticTensorDictSequential(
        TensorDictModule(actor, in_keys=["observation"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(in_keys=["logits"], out_keys=["action"], distribution_class=Categorical, return_log_prob=True),
    )
    loss = ClipPPOLoss(
        policy,
        TensorDictModule(critic, in_keys=["observation"], out_keys=["state_value"]),
        clip_epsilon=0.2,
        loss_critic_type="l2",
        critic_coeff=0.5,
        entropy_coeff=0.01,
        clip_value=clip_value,
    )
    size = 40
    observations, actions = torch.randn(size, 3).double(), torch.randint(4, (size,))
    advantages, old_values, returns = (torch.randn(size).double() for _ in range(3))
    log_probs = torch.log_softmax(actor(observations), -1).gather(-1, actions[:, None])[:, 0]
    old_log_probs = log_probs.detach() + 0.3 * torch.randn(size)
    data = {
        "observation": observations,
        "action": actions,
        "action_log_prob": old_log_probs,
        "advantage": advantages[:, None],
        "state_value": old_values[:, None],
        "value_target": returns[:, None],
    }
    theirs = loss(TensorDict(data, batch_size=[size]))
    (theirs["loss_objective"] + theirs["loss_critic"] + theirs["loss_entropy"]).backward()
    their_gradients = [parameter.grad for parameter in loss.parameters()]

    logits, values = actor(observations), critic(observations)[:, 0]
    policy_loss = clipped_surrogate_loss(log_probs, old_log_probs, advantages, clip_range=0.2)
    clipping = {} if clip_value is None else {"old_values": old_values, "clip_range": clip_value}
    critic_loss = value_loss(values, returns, **clipping)
    entropy = entropy_bonus(logits)
    our_gradients = torch.autograd.grad(policy_loss + critic_loss - 0.01 * entropy, [*actor.parameters(), *critic.parameters()])

    assert_close(policy_loss, theirs["loss_objective"])
    assert_close(critic_loss, theirs["loss_critic"])
    assert_close(-0.01 * entropy, theirs["loss_entropy"])
    assert_close(clip_fraction(log_probs, old_log_probs, clip_range=0.2), theirs["clip_fraction"].double())
    assert_close(effective_sample_size(log_probs, old_log_probs) / size, theirs["ESS"].double())  # theirs is a share
    for ours, reference in zip(our_gradients, their_gradients, strict=True):
        assert ours.any()
        assert_close(ours, reference)


# --- entropy and KL


@pytest.mark.parametrize("seed", SEEDS)
def test_entropy_and_kl_equal_torch_distributions(seed):
    p, q = 2 * torch.randn(2, 5, 3, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert_close(entropy_bonus(p), Categorical(logits=p).entropy().mean())
    assert_close(kl_categorical(p, q), kl_divergence(Categorical(logits=p), Categorical(logits=q)))


def test_entropy_and_kl_equal_torch_distributions_without_the_forbidden_actions():
    minus_infinity = float("-inf")
    p, q = floats(1, 2, minus_infinity, 0), floats(0, 1, minus_infinity, 3)
    allowed = torch.tensor([True, True, False, True])
    small_p, small_q = Categorical(logits=p[allowed]), Categorical(logits=q[allowed])
    assert_close(entropy_bonus(p), small_p.entropy())
    assert_close(kl_categorical(p, q), kl_divergence(small_p, small_q))
