"""The update's optimiser: what it must remember from step to step, and what it must forget."""

import pytest
import torch
from control_helpers import tiny
from torch import Tensor
from torch.testing import assert_close

from ppo_edu.control import Collector, PPOConfig, Rollout, TrainState, make_policy
from ppo_edu.control.envs import make_envs
from ppo_edu.control.ppo import improve
from ppo_edu.core import clipped_surrogate_loss, gae


def fresh(seed: int = 0) -> tuple[TrainState, Rollout]:
    """A policy with its optimiser, and a rollout of it."""
    torch.manual_seed(seed)
    envs = make_envs("CartPole-v1", 4)
    policy = make_policy(envs.single_observation_space, envs.single_action_space, (8,))
    state = TrainState(policy, torch.optim.Adam(policy.parameters(), lr=1e-2), Collector(envs, seed))
    return state, state.collector.collect(policy, 16)


def update(state: TrainState, rollout: Rollout, config: PPOConfig) -> dict[str, float]:
    return improve(state, rollout, config, 1.0, gae, clipped_surrogate_loss)


def test_the_weights_move_as_adam_moves_them_with_all_that_it_remembers():
    """Adam by hand, in float64, on the gradients of every step of two updates. Made anew, its first step is repeated for ever."""
    state, rollout = fresh()
    parameters = list(state.policy.parameters())

    def flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([x.detach().double().flatten() for x in tensors])

    gradients, weights = [], flat(parameters)
    state.optimizer.register_step_pre_hook(lambda *_: gradients.append(flat([p.grad for p in parameters])))
    for _ in range(2):
        update(state, rollout, tiny(learning_rate=1e-2, epochs=3))
    assert len(gradients) == 2 * 3 * 2

    mean = square = torch.zeros_like(weights)
    for step, gradient in enumerate(gradients, start=1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        weights = weights - 1e-2 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    assert_close(flat(parameters), weights, rtol=0, atol=1e-5)


def test_each_step_starts_from_a_gradient_of_zero():
    """At learning rate 0 every epoch has the gradient of the first; piled up, the last would be many times as long."""
    norms = []
    for epochs in (1, 4):
        state, rollout = fresh()
        norms.append(update(state, rollout, tiny(learning_rate=0.0, epochs=epochs, minibatch_size=64, max_grad_norm=None))["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
