"""Configs that solve one task each; what they reach and how long they take is tested and, over several seeds, verified."""

from ppo_edu.control.ppo import PPOConfig

CARTPOLE = PPOConfig()

ACROBOT = PPOConfig(
    env_id="Acrobot-v1",
    total_steps=100_000,
    num_envs=16,
    num_steps=128,
    learning_rate=3e-3,
)

PENDULUM = PPOConfig(
    env_id="Pendulum-v1",
    total_steps=150_000,
    num_envs=32,
    num_steps=64,
    epochs=10,
    minibatch_size=256,
    learning_rate=2e-3,
    lam=0.9,
    normalize_rewards=True,
)

TEXT = PPOConfig(env_id="ppo_edu/Text-v0", gamma=1.0)
