"""PPOConfig: frozen, and every bad value is refused with a message that names its field."""

import ast
import dataclasses
import inspect
from itertools import pairwise

import pytest
from control_helpers import tiny

from ppo_edu.control import PPOConfig

NAN, INF = float("nan"), float("inf")
COUNTS = ["total_steps", "num_envs", "num_steps", "epochs", "minibatch_size"]
SWITCHES = ["anneal_learning_rate", "anneal_clip_range", "normalize_advantages", "normalize_observations", "normalize_rewards"]
SWITCHES += ["orthogonal_init", "shared_network", "squash_actions"]
POSITIVE, OPTIONAL = ["clip_range", "adam_eps"], ["value_clip_range", "max_grad_norm", "target_kl"]
UNIT, NOT_NEGATIVE = ["gamma", "lam"], ["learning_rate", "value_coef", "entropy_coef", "output_gain"]
BAD = [
    (COUNTS, [0, -1, 2.0, "2", True, None, NAN, INF]),
    (SWITCHES, [0, 1, "False", None]),
    (UNIT, [-0.1, 1.1, NAN, INF, "1", None, True]),
    (POSITIVE, [0, 0.0, -0.1, NAN, INF, "1", None, True]),
    (OPTIONAL, [0, 0.0, -0.1, NAN, INF, "1", True]),
    (NOT_NEGATIVE, [-0.1, NAN, INF, -INF, "1", None, True]),
    (["log_std_init"], [NAN, INF, -INF, "0", None, True]),
    (["hidden_sizes"], [64, [64, 64], "64", None, (0,), (64, -1), (64, 2.0), (True,)]),
]
GOOD = [
    (UNIT, [0, 0.0, 1, 1.0]),
    (OPTIONAL, [None, 0.1, 1]),
    (NOT_NEGATIVE, [0, 0.0, 1.0]),
    (["log_std_init"], [-3, 0, 0.5]),
    (["hidden_sizes"], [(), (1,), (8, 4, 2)]),
    (["minibatch_size"], [2, 64]),  # two rows; the whole rollout
]


def pairs(table):
    return [(name, value) for names, values in table for name in names for value in values]


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_a_bad_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name}(\[\d\])? must be "):
        PPOConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_the_ends_of_each_range_are_allowed(name, value):
    assert getattr(tiny(**{name: value}), name) == value


@pytest.mark.parametrize("minibatch_size", [1, 65])
def test_a_minibatch_of_one_row_or_of_more_than_the_rollout_is_refused(minibatch_size):
    with pytest.raises(ValueError, match=r"minibatch_size must be from 2 to num_envs \* num_steps = 64"):
        tiny(minibatch_size=minibatch_size)


@pytest.mark.parametrize(("num_envs", "num_steps"), [(1, 1), (1, 2), (1, 3), (100, 1)])
def test_a_rollout_that_could_hold_fewer_than_two_valid_rows_is_refused(num_envs, num_steps):
    with pytest.raises(ValueError, match=r"num_envs \* \(num_steps // 2\) must be at least 2"):
        tiny(num_envs=num_envs, num_steps=num_steps, minibatch_size=2)


def test_a_config_is_frozen_and_equal_to_its_copy():
    config = tiny()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gamma = 0.5
    assert config == dataclasses.replace(config)
    assert hash(config) == hash(dataclasses.replace(config))


def test_every_field_says_what_it_is():
    """The command line shows these texts; a field without one would show none."""
    body = ast.parse(inspect.getsource(PPOConfig)).body[0].body
    fields = {field.name for field in dataclasses.fields(PPOConfig)}
    documented = {
        node.target.id
        for node, following in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
    }
    assert documented == fields
