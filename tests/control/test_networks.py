"""The two networks: how they start, what they share (nothing), which spaces they fit."""

import math

import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

from ppo_edu.control import CategoricalPolicy, Policy, make_policy
from ppo_edu.control.networks import greedy_or_sampled, mlp


@pytest.mark.parametrize("sizes", [(5, 3), (4, 64, 64, 2), (6, 2, 8)])
def test_orthogonal_layers_have_orthogonal_rows_or_columns_of_the_stated_length_and_no_bias(sizes):
    torch.manual_seed(0)
    linears = [layer for layer in mlp(sizes, output_gain=0.01) if isinstance(layer, torch.nn.Linear)]
    assert [(x.in_features, x.out_features) for x in linears] == [(sizes[i], sizes[i + 1]) for i in range(len(sizes) - 1)]
    for layer in linears:
        gain = 0.01 if layer is linears[-1] else math.sqrt(2)
        w = layer.weight.detach()
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=1e-4, atol=1e-5 * gain**2)
        assert not layer.bias.any()


def test_a_tanh_follows_every_layer_but_the_last():
    kinds = [type(layer).__name__ for layer in mlp((3, 4, 4, 2), output_gain=1.0)]
    assert kinds == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    assert [type(layer).__name__ for layer in mlp((3, 2), output_gain=1.0)] == ["Linear"]


def test_without_orthogonal_initialisation_torchs_default_stands():
    torch.manual_seed(0)
    network = mlp((3, 2), output_gain=0.01, orthogonal=False)
    torch.manual_seed(0)
    default = torch.nn.Linear(3, 2)
    assert torch.equal(network[0].weight, default.weight)
    assert torch.equal(network[0].bias, default.bias)
    torch.manual_seed(0)
    policy = make_policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), (), orthogonal=False)
    assert torch.equal(policy.actor[0].weight, default.weight)


def test_the_first_policy_is_nearly_uniform_and_the_first_critic_is_not_nearly_zero():
    torch.manual_seed(0)
    policy = CategoricalPolicy(4, 3, (64, 64))
    observations = 10 * torch.randn(100, 4)
    assert_close(policy.distribution(observations).probs, torch.full((100, 3), 1 / 3), rtol=0, atol=0.01)
    assert policy.value(observations).std() > 0.1


def test_actor_and_critic_share_no_weight():
    policy = CategoricalPolicy(4, 3, (8,))
    assert not {id(p) for p in policy.actor.parameters()} & {id(p) for p in policy.critic.parameters()}
    assert len(list(policy.parameters())) == len(list(policy.actor.parameters())) + len(list(policy.critic.parameters()))


@pytest.mark.parametrize("batch", [(), (7,), (5, 2)])
def test_shapes(batch):
    policy = CategoricalPolicy(4, 3, (8,))
    observations = torch.randn(*batch, 4)
    distribution = policy.distribution(observations)
    assert policy.value(observations).shape == policy.mode(observations).shape == distribution.entropy().shape == batch
    assert distribution.log_prob(distribution.sample()).shape == batch


def test_the_mode_is_the_most_probable_action():
    torch.manual_seed(0)
    policy = CategoricalPolicy(4, 3, (8,), orthogonal=False)
    observations = torch.randn(50, 4)
    assert torch.equal(policy.mode(observations), policy.distribution(observations).probs.argmax(-1))
    assert torch.equal(greedy_or_sampled(policy, observations, True), policy.mode(observations))
    assert not torch.equal(greedy_or_sampled(policy, observations, False), policy.mode(observations))


def test_the_base_class_leaves_the_distribution_to_its_subclasses():
    with pytest.raises(TypeError, match="subclasses"):
        Policy(4, 2, ()).distribution(torch.zeros(4))
