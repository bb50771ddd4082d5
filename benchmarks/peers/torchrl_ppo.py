"""The torchrl side of `cartpole_vs_peers`: its collector, GAE and clipped loss in the loop that its tutorials write.

    python -m benchmarks.peers.torchrl_ppo --seed 0 --max-steps 100000

Environments: Gymnasium's vector environment under torchrl's wrapper, with the reset mode that the wrapper prefers (four thirds
of the speed of torchrl's own serial environment). What is timed: the loop; building the parts is not.
"""

import gymnasium as gym
import numpy as np
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from benchmarks import cartpole_race as zoo
from benchmarks.cartpole_race import Outcome, Race, main, orthogonal


def run(seed: int, max_steps: int) -> Outcome:
    """One training with torchrl's parts."""
    torch.manual_seed(seed)
    no_autoreset = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}
    vector_env = gym.make_vec("CartPole-v1", num_envs=zoo.NUM_ENVS, vectorization_mode="sync", vector_kwargs=no_autoreset)
    envs = GymWrapper(vector_env, categorical_action_encoding=True)
    envs.set_seed(seed)

    def network(outputs: int, output_gain: float) -> nn.Module:
        return orthogonal(MLP(in_features=4, out_features=outputs, num_cells=zoo.HIDDEN_SIZES, activation_class=nn.Tanh), output_gain)

    logits = network(2, 0.01)
    actor = ProbabilisticActor(
        TensorDictModule(logits, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(network(1, 1.0), in_keys=["observation"])
    estimate = GAE(gamma=zoo.GAMMA, lmbda=zoo.LAM, value_network=critic)
    loss_module = ClipPPOLoss(
        actor,
        critic,
        clip_epsilon=zoo.CLIP_RANGE,
        entropy_bonus=zoo.ENTROPY_COEF > 0.0,
        critic_coeff=zoo.VALUE_COEF,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=zoo.LEARNING_RATE, eps=zoo.ADAM_EPS)
    collector = Collector(envs, actor, frames_per_batch=zoo.NUM_ENVS * zoo.NUM_STEPS, total_frames=max_steps)

    @torch.no_grad()
    def act(observations: np.ndarray) -> np.ndarray:
        return logits(torch.from_numpy(observations)).argmax(-1).numpy()

    race, env_steps = Race(seed, max_steps), 0
    for rollout in collector:
        remaining = 1.0 - env_steps / max_steps
        optimizer.param_groups[0]["lr"] = zoo.LEARNING_RATE * remaining
        loss_module.clip_epsilon.fill_(zoo.CLIP_RANGE * remaining)
        with torch.no_grad():
            batch = estimate(rollout).reshape(-1)
        for _ in range(zoo.EPOCHS):
            losses = loss_module(batch)
            optimizer.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"]).backward()
            nn.utils.clip_grad_norm_(loss_module.parameters(), zoo.MAX_GRAD_NORM)
            optimizer.step()
        env_steps += len(batch)
        if race.over(env_steps, act):
            break
    collector.shutdown()
    return race.outcome()


if __name__ == "__main__":
    main(run, "torchrl", "torch")
