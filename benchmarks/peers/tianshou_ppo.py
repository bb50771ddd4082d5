"""The tianshou side of `cartpole_vs_peers`: its own PPO, collector and trainer. Runs in tianshou's own environment.

    python3 -m venv /tmp/tianshou-env
    /tmp/tianshou-env/bin/pip install torch==2.13.0 tianshou
    /tmp/tianshou-env/bin/python -m benchmarks.peers.tianshou_ppo --seed 0 --max-steps 100000

What is timed: the trainer's epochs, of 2,048 steps each. What is not: building the model and compiling (numba, in the warm-up).
"""

import math

import gymnasium as gym
import numpy as np
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainer, OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from torch import nn

from benchmarks import cartpole_race as zoo
from benchmarks.cartpole_race import CHECK_EVERY, Outcome, Race, main, orthogonal


def run(seed: int, max_steps: int) -> Outcome:
    """One training with tianshou's PPO."""
    np.random.seed(seed)  # noqa: NPY002 (tianshou shuffles with the global generator)
    torch.manual_seed(seed)
    envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")] * zoo.NUM_ENVS)
    envs.seed(seed)
    trunk = {"state_shape": 4, "hidden_sizes": zoo.HIDDEN_SIZES, "activation": nn.Tanh}
    actor = orthogonal(DiscreteActor(preprocess_net=Net(**trunk), action_shape=2, softmax_output=False), output_gain=0.01)
    critic = orthogonal(DiscreteCritic(preprocess_net=Net(**trunk)), output_gain=1.0)
    rollout, epochs = zoo.NUM_ENVS * zoo.NUM_STEPS, math.ceil(max_steps / CHECK_EVERY)
    optimizer = AdamOptimizerFactory(lr=zoo.LEARNING_RATE, eps=zoo.ADAM_EPS)
    algorithm = PPO(
        policy=DiscreteActorPolicy(actor=actor, action_space=gym.spaces.Discrete(2)),
        critic=critic,
        optim=optimizer.with_lr_scheduler_factory(LRSchedulerFactoryLinear(epochs, CHECK_EVERY, rollout)),
        eps_clip=zoo.CLIP_RANGE,
        vf_coef=zoo.VALUE_COEF,
        ent_coef=zoo.ENTROPY_COEF,
        max_grad_norm=zoo.MAX_GRAD_NORM,
        gamma=zoo.GAMMA,
        gae_lambda=zoo.LAM,
    )

    def anneal_clip_range(epoch: int, env_steps: int) -> None:
        algorithm.eps_clip = zoo.CLIP_RANGE * (1.0 - env_steps / max_steps)

    trainer = OnPolicyTrainer(
        algorithm,
        OnPolicyTrainerParams(
            training_collector=Collector(algorithm, envs, VectorReplayBuffer(rollout, zoo.NUM_ENVS)),
            max_epochs=epochs,
            epoch_num_steps=CHECK_EVERY,
            collection_step_num_env_steps=rollout,
            batch_size=rollout,
            update_step_num_repetitions=zoo.EPOCHS,
            training_fn=anneal_clip_range,
            verbose=False,
            show_progress=False,
        ),
    )
    trainer.reset()

    @torch.no_grad()
    def act(observations: np.ndarray) -> np.ndarray:
        return actor(observations)[0].argmax(-1).numpy()

    race, env_steps, over = Race(seed, max_steps), 0, False
    while not over:
        trainer.execute_epoch()
        env_steps += CHECK_EVERY
        over = race.over(env_steps, act)
    return race.outcome()


if __name__ == "__main__":
    main(run, "tianshou", "torch")
