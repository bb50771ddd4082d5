"""Policies over boxes: their densities against torch.distributions and by integration, and what the environment gets."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from control_helpers import ACTIONS_SEEN, tiny
from gymnasium import spaces
from scipy.integrate import quad
from torch.distributions import AffineTransform, MultivariateNormal, Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

from ppo_edu.control import (
    CategoricalPolicy,
    Collector,
    GaussianPolicy,
    SquashedGaussianPolicy,
    SquashedNormal,
    evaluate,
    load_policy,
    make_policy,
    train,
)
from ppo_edu.control.envs import make_envs
from ppo_edu.control.networks import greedy_or_sampled, log_tanh_derivative
from ppo_edu.control.ppo import Batch, make_batch, ppo_loss
from ppo_edu.core import clipped_surrogate_loss, gae, policy_gradient_loss

INF = float("inf")
BOX = spaces.Box(np.array([-2.0, 0.0], dtype=np.float32), np.array([2.0, 5.0], dtype=np.float32))
KINDS = {"gaussian": GaussianPolicy, "squashed": SquashedGaussianPolicy}


def policy_of(kind: str, box: spaces.Box = BOX, seed: int = 0, **options):
    """A policy whose mean depends on the observation and whose standard deviations differ."""
    torch.manual_seed(seed)
    policy = KINDS[kind](3, box, (8,), output_gain=1.0, **options)
    torch.nn.init.normal_(policy.log_std, std=0.5)
    return policy


# Densities --------------------------------------------------------------------------------------------------------------


def test_the_gaussian_is_a_multivariate_normal_with_a_diagonal_covariance():
    policy = policy_of("gaussian")
    observations, actions = torch.randn(20, 3), 2 * torch.randn(20, 2)
    oracle = MultivariateNormal(policy.actor(observations), torch.diag(policy.log_std.exp().square()))
    distribution = policy.distribution(observations)
    assert_close(distribution.log_prob(actions), oracle.log_prob(actions), rtol=1e-5, atol=1e-5)
    assert_close(distribution.entropy(), oracle.entropy(), rtol=1e-5, atol=1e-5)


def squashed(mean: float, std: float, half_width: float) -> SquashedNormal:
    return SquashedNormal(*(torch.tensor([x], dtype=torch.float64) for x in (mean, std, half_width)))


def test_the_squashed_log_prob_is_that_of_torchs_transformed_distribution():
    policy = policy_of("squashed").double()
    observations, u = torch.randn(50, 3, dtype=torch.float64), 2 * torch.randn(50, 2, dtype=torch.float64)
    half, centre = torch.tensor([2.0, 2.5]).double(), torch.tensor([0.0, 2.5]).double()
    transforms = [TanhTransform(), AffineTransform(centre, half)]
    oracle = TransformedDistribution(Normal(policy.actor(observations), policy.log_std.exp()), transforms)
    actions = torch.from_numpy(policy.to_environment(u))
    assert_close(policy.distribution(observations).log_prob(u), oracle.log_prob(actions).sum(-1).detach(), rtol=1e-6, atol=1e-6)


CASES = [(0.0, 1.0, 2.0), (0.7, 0.3, 2.0), (-1.5, 0.8, 0.25), (0.0, 0.05, 1.0), (2.0, 1.5, 3.0)]


def over_the_box(mean, std, half_width, function):
    """Integral of function(density of a, log density of a) over the actions, which are given in their own units."""
    distribution = squashed(mean, std, half_width)

    def integrand(a):
        log_p = float(distribution.log_prob(torch.tensor([math.atanh(a / half_width)], dtype=torch.float64)))
        return function(math.exp(log_p), log_p)

    peak = half_width * math.tanh(mean)
    return quad(integrand, -half_width, half_width, points=[peak], limit=400)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_squashed_density_integrates_to_one_over_the_box(case):
    assert over_the_box(*case, lambda p, log_p: p) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_squashed_entropy_is_the_integral_of_minus_p_log_p(case):
    want = over_the_box(*case, lambda p, log_p: -p * log_p)
    assert float(squashed(*case).entropy()) == pytest.approx(want, abs=2e-4)


def test_the_squashed_entropy_of_two_components_is_the_mean_of_minus_log_prob():
    policy = policy_of("squashed")
    with torch.no_grad():
        distribution = policy.distribution(torch.randn(3))
    log_probs = distribution.log_prob(distribution.sample((200_000,)))
    assert float(distribution.entropy()) == pytest.approx(float(-log_probs.mean()), abs=5 * float(log_probs.std()) / math.sqrt(200_000))


def test_the_squashed_entropy_can_be_raised_by_its_gradient():
    mean, log_std = torch.tensor([1.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    half_width = torch.ones(1)
    entropy = SquashedNormal(mean, log_std.exp(), half_width).entropy()
    entropy.backward()
    assert mean.grad < 0, "towards the middle of the box"
    assert log_std.grad < 0, "a very wide Gaussian, squashed, sits on the two edges: less entropy, not more"
    with torch.no_grad():
        better = SquashedNormal(mean + 0.1 * mean.grad, (log_std + 0.1 * log_std.grad).exp(), half_width)
    assert better.entropy() > entropy


@pytest.mark.parametrize("u", [0.0, 0.5, -3.0, 5.0])
def test_the_log_derivative_of_tanh_is_the_logarithm_of_its_derivative(u):
    x = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(torch.tanh(x), x)
    assert log_tanh_derivative(x).item() == pytest.approx(math.log(derivative), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("u", [10.0, -10.0, 40.0, -40.0, 1e4])
def test_the_log_derivative_of_tanh_stays_exact_where_tanh_is_one(u):
    """In float32, 1 - tanh(10)^2 is 0; its logarithm is -18.61."""
    x = torch.tensor(u, requires_grad=True)
    value = log_tanh_derivative(x)
    value.backward()
    assert torch.tanh(x).abs() == 1.0
    assert value.item() == pytest.approx(2 * math.log(2) - 2 * abs(u), rel=1e-6)
    assert float(x.grad) == pytest.approx(-2 * math.copysign(1, u), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [(), (7,), (5, 2)])
def test_shapes(kind, batch):
    policy = policy_of(kind)
    observations = torch.randn(*batch, 3)
    distribution = policy.distribution(observations)
    actions = distribution.sample()
    assert actions.shape == policy.mode(observations).shape == policy.to_environment(actions).shape == (*batch, 2)
    assert distribution.log_prob(actions).shape == distribution.entropy().shape == policy.value(observations).shape == batch


@pytest.mark.parametrize("kind", KINDS)
def test_the_standard_deviation_starts_as_told_and_does_not_depend_on_the_observation(kind):
    policy = KINDS[kind](3, BOX, (8,), log_std_init=-0.5)
    distribution = policy.distribution(10 * torch.randn(6, 3))
    assert_close(distribution.stddev, torch.full((6, 2), math.exp(-0.5)))
    assert dict(policy.named_parameters())["log_std"].shape == (2,)


def test_the_jacobian_cancels_in_the_ratio_and_not_in_the_log_prob():
    new, old = (policy_of("squashed", seed=s) for s in (0, 1))
    observations, u = torch.randn(30, 3), torch.randn(30, 2)
    before_squashing = [super(SquashedNormal, p.distribution(observations)).log_prob(u) for p in (new, old)]
    log_probs = [p.distribution(observations).log_prob(u) for p in (new, old)]
    assert_close(log_probs[0] - log_probs[1], before_squashing[0] - before_squashing[1], rtol=1e-4, atol=1e-4)
    assert (log_probs[0] - before_squashing[0]).abs().min() > 1e-3


# The gradient -----------------------------------------------------------------------------------------------------------


def numpy_log_prob(policy, observations, u, kind):
    """Sample by sample, from the definition."""
    out = []
    for i in range(len(u)):
        mean = policy.actor(observations[i]).detach().double().numpy()
        total = 0.0
        for j, x in enumerate(u[i].double().tolist()):
            std = math.exp(float(policy.log_std[j].detach()))
            total += -0.5 * ((x - mean[j]) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
            if kind == "squashed":
                total -= math.log((BOX.high[j] - BOX.low[j]) / 2 * (1 - math.tanh(x) ** 2))
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_equals_one_computed_sample_by_sample(kind):
    policy = policy_of(kind)
    observations, u, advantages, returns = torch.randn(40, 3), torch.randn(40, 2), torch.randn(40), torch.randn(40)
    log_probs = numpy_log_prob(policy, observations, u, kind)
    old = log_probs + 0.3 * np.random.default_rng(0).normal(size=40)
    ratios, a = np.exp(log_probs - old), advantages.double().numpy()
    values = policy.value(observations).detach().double().numpy()
    want = -np.minimum(ratios * a, np.clip(ratios, 0.8, 1.2) * a).mean() + 0.5 * 0.5 * np.square(values - returns.numpy()).mean()
    batch = Batch(observations, u, torch.from_numpy(old).float(), torch.zeros(40), advantages, returns)
    loss, _ = ppo_loss(policy, batch, tiny(), 0.2, clipped_surrogate_loss)
    assert loss.item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_step_the_gradient_is_the_policy_gradient(kind):
    """At ratio 1 the clipped surrogate's gradient is that of -mean(A log pi), for log_std as well."""
    torch.manual_seed(0)
    envs = make_envs("Pendulum-v1", 4)
    policy = make_policy(envs.single_observation_space, envs.single_action_space, (8,), squash_actions=kind == "squashed")
    batch = make_batch(Collector(envs, 0).collect(policy, 64), tiny(), gae)
    gradients = []
    for loss_fn in (clipped_surrogate_loss, lambda new, old, advantages, *, clip_range: policy_gradient_loss(new, advantages)):
        policy.zero_grad()
        ppo_loss(policy, batch, tiny(value_coef=0.0), 0.2, loss_fn)[0].backward()
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()})
    assert gradients[0].keys() == gradients[1].keys() >= {"log_std", "actor.0.weight", "actor.2.bias"}
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


# What the environment gets ----------------------------------------------------------------------------------------------


def rollout_of(squash_actions: bool, T: int = 30):
    torch.manual_seed(0)
    ACTIONS_SEEN.clear()
    envs = make_envs("Box-v0", 3)
    policy = make_policy(envs.single_observation_space, envs.single_action_space, (8,), log_std_init=1.0, squash_actions=squash_actions)
    rollout = Collector(envs, 0).collect(policy, T)
    return policy, rollout, np.array(ACTIONS_SEEN).reshape(T, 3, 2)


@pytest.mark.parametrize("squash_actions", [False, True])
def test_the_environment_gets_actions_of_its_box_and_the_rollout_keeps_what_was_sampled(squash_actions):
    policy, rollout, seen = rollout_of(squash_actions)
    box = policy.box
    sampled = rollout.actions.numpy()
    if squash_actions:
        want = box.low + (box.high - box.low) * (np.tanh(sampled) + 1) / 2
    else:
        outside = (sampled < box.low) | (sampled > box.high)
        assert 0.2 < outside.mean() < 0.8, "the case must occur"
        want = np.clip(sampled, box.low, box.high)
    np.testing.assert_allclose(seen, want, rtol=1e-5, atol=1e-6)
    assert all(box.contains(action) for action in seen.reshape(-1, 2))
    with torch.no_grad():
        assert_close(rollout.log_probs, policy.distribution(rollout.observations).log_prob(rollout.actions))


def test_the_log_prob_is_that_of_the_unclipped_action():
    """The pitfall: at the clipped action the density is higher, and the ratio's gradient points elsewhere."""
    policy, rollout, _ = rollout_of(False)
    clipped = torch.from_numpy(policy.to_environment(rollout.actions))
    moved = (clipped != rollout.actions).any(-1)
    with torch.no_grad():
        of_clipped = policy.distribution(rollout.observations).log_prob(clipped)
    assert (of_clipped[moved] > rollout.log_probs[moved]).all()
    assert_close(of_clipped[~moved], rollout.log_probs[~moved])


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        ((-1.0, -1.0), (1.0, 1.0), ((1.0, -1.0), (0.5, 1.0))),
        ((-INF, -INF), (INF, INF), ((3.0, -3.0), (0.5, 1.0))),
        ((-INF, -1.0), (2.0, INF), ((2.0, -1.0), (0.5, 1.0))),
    ],
)
def test_actions_are_clipped_at_the_bounds_that_there_are(low, high, want):
    box = spaces.Box(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))
    got = GaussianPolicy(3, box, ()).to_environment(torch.tensor([[3.0, -3.0], [0.5, 1.0]]))
    np.testing.assert_array_equal(got, np.array(want, dtype=np.float32))
    assert got.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_squashed_actions_never_leave_the_box_by_rounding(dtype):
    low, high = np.array([-0.1, 1e3], dtype=dtype), np.array([0.3, 1e3 + 0.7], dtype=dtype)
    box = spaces.Box(low, high, dtype=dtype)
    got = SquashedGaussianPolicy(3, box, ()).to_environment(torch.tensor([[-1e3, -1e3], [1e3, 1e3], [0.0, 0.0]]))
    assert all(box.contains(action) for action in got)
    np.testing.assert_allclose(got, [low, high, (low + high) / 2], rtol=1e-6)


def test_a_categorical_action_reaches_the_environment_as_it_is():
    actions = torch.tensor([2, 0, 1])
    assert CategoricalPolicy(3, 3, ()).to_environment(actions).tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_greedy_evaluation_plays_the_mean(kind):
    policy = policy_of(kind)
    observations = torch.randn(9, 3)
    mean = policy.actor(observations).detach().numpy()
    np.testing.assert_allclose(greedy_or_sampled(policy, observations, True), mean, rtol=1e-6)
    played = policy.to_environment(greedy_or_sampled(policy, observations, True))
    want = np.clip(mean, BOX.low, BOX.high) if kind == "gaussian" else BOX.low + (BOX.high - BOX.low) * (np.tanh(mean) + 1) / 2
    np.testing.assert_allclose(played, want, rtol=1e-5, atol=1e-6)
    assert not np.allclose(greedy_or_sampled(policy, observations, False), mean)


@pytest.mark.parametrize("squash_actions", [False, True])
def test_evaluation_plays_actions_of_the_box_greedy_or_not(squash_actions):
    env = gym.make("Box-v0")
    policy = make_policy(env.observation_space, env.action_space, (), log_std_init=1.0, squash_actions=squash_actions)
    for greedy in (True, False):
        ACTIONS_SEEN.clear()
        evaluate(policy, "Box-v0", episodes=20, greedy=greedy)
        assert all(policy.box.contains(action) for action in ACTIONS_SEEN)
        assert (len({tuple(action) for action in ACTIONS_SEEN}) == 1) is greedy


# Training ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squash_actions", [False, True])
def test_a_trained_policy_comes_back_from_its_checkpoint(tmp_path, squash_actions):
    config = tiny(env_id="Pendulum-v1", squash_actions=squash_actions, log_std_init=-0.5, shared_network=True, entropy_coef=0.01)
    result = train(config, log_dir=tmp_path, progress=False)
    assert float(result.policy.log_std.detach()) != -0.5
    policy, saved = load_policy(tmp_path)
    assert saved == config
    assert type(policy) is type(result.policy)
    assert np.array_equal(*(evaluate(p, "Pendulum-v1", episodes=3) for p in (policy, result.policy)))


@pytest.mark.parametrize("squash_actions", [False, True])
@pytest.mark.parametrize("target", [-1.0, 1.5])
def test_the_mean_moves_to_the_action_that_pays(squash_actions, target):
    """One step, reward -(a - target)^2, in a box from -2 to 2."""
    name = f"Target{'Minus' if target < 0 else 'Plus'}-v0"
    config = tiny(env_id=name, total_steps=6000, learning_rate=0.02, squash_actions=squash_actions, num_steps=32, minibatch_size=64)
    policy = train(config, progress=False).policy
    action = policy.to_environment(greedy_or_sampled(policy, torch.zeros(1, 1), True))
    assert float(action[0, 0]) == pytest.approx(target, abs=0.25)


@pytest.mark.parametrize(
    ("action_space", "squash_actions", "message"),
    [
        (spaces.Discrete(2), True, r"squash_actions needs a Box with finite bounds, the environment's actions are Discrete\(2\)"),
        (spaces.Box(-INF, INF, (2,)), True, r"squash_actions needs a Box with finite bounds, .* Box\(-inf, inf"),
        (spaces.Box(0.0, INF, (2,)), True, r"squash_actions needs a Box with finite bounds, .* Box\(0.0, inf"),
        (spaces.Box(-1, 1, (2, 2)), False, r"actions must be Discrete, counted from 0, or a Box of floats with one axis, .* \(2, 2\)"),
        (spaces.Box(-1, 1, ()), False, "actions must be Discrete"),
        (spaces.Box(0, 9, (2,), dtype=np.int64), False, r"Box of floats with one axis, .* int64"),
        (spaces.MultiBinary(3), False, r"Box of floats with one axis, the environment has MultiBinary\(3\)"),
        (spaces.Discrete(2, start=1), False, r"counted from 0, .* Discrete\(2, start=1\)"),
    ],
)
def test_an_action_space_that_does_not_fit_is_named(action_space, squash_actions, message):
    with pytest.raises(ValueError, match=message):
        make_policy(spaces.Box(-1, 1, (3,)), action_space, (4,), squash_actions=squash_actions)


def test_an_unbounded_box_trains_without_squashing():
    space = spaces.Box(-INF, INF, (2,))
    assert type(make_policy(spaces.Box(-1, 1, (3,)), space, (4,))) is GaussianPolicy
