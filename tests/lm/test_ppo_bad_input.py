"""Whatever is wrong with what comes in: one ValueError that names it, and the last checkpoint as it was."""

import ast
import dataclasses
import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch
from lm_helpers import PROMPTS, WORDS, make_lm, make_tokenizer
from ppo_helpers import assert_same_run, contents, count_a, make_policy, run, same, saved, small, weights

from ppo_edu.lm import LMPPOConfig, PolicyWithValue
from ppo_edu.runs import column

NAN, INF = float("nan"), float("inf")

# The config ---------------------------------------------------------------------------------------------------------------

COUNTS = ["updates", "batch_size", "max_new_tokens", "epochs", "minibatches", "accumulation", "finish_test_every"]
SWITCHES = ["anneal_learning_rate", "whiten_rewards", "whiten_advantages", "recompute_log_probs"]
SWITCHES += ["compiled_update", "gradient_checkpointing", "sort_by_length"]
POSITIVE, OPTIONAL = ["temperature", "clip_range", "adam_eps", "kl_horizon"], ["value_clip_range", "max_grad_norm", "kl_target"]
UNIT, NOT_NEGATIVE = ["gamma", "lam"], ["learning_rate", "kl_coef", "value_coef", "missing_eos_penalty"]
BAD = [
    (COUNTS, [0, -1, 2.0, "2", True, None, NAN, INF]),
    (SWITCHES, [0, 1, "False", None]),
    (UNIT, [-0.1, 1.1, NAN, INF, "1", None, True]),
    (POSITIVE, [0, 0.0, -0.1, NAN, INF, "1", None, True]),
    (OPTIONAL, [0, 0.0, -0.1, NAN, INF, "1", True]),
    (NOT_NEGATIVE, [-0.1, NAN, INF, -INF, "1", None, True]),
    (["kl_in"], ["penalty", "Reward", "", None, 1, ["reward"]]),
    (["kl_loss"], ["k1", "K2", "", None, 2]),
    (["precision"], ["float16", "bf16", "", None, torch.bfloat16, 16]),
    (["decoding"], ["fast", "Static", "", None, True]),
]
GOOD = [
    (UNIT, [0, 0.0, 1, 1.0]),
    (OPTIONAL, [None, 0.1, 1]),
    (NOT_NEGATIVE, [0, 0.0, 1.0]),
    (COUNTS[2:4], [1]),
    (["kl_in"], ["reward", "loss"]),
    (["kl_loss"], ["k2", "k3"]),
    (["precision"], ["float32", "bfloat16"]),
    (["decoding"], ["dynamic", "static", "compiled"]),
    (SWITCHES, [True, False]),
    (["finish_test_every"], [1, 99]),
    (["batch_size"], [4, 5]),
]


def pairs(table):
    return [(name, value) for names, values in table for name in names for value in values]


def test_the_table_covers_every_field():
    assert {name for names, _ in BAD for name in names} == {field.name for field in dataclasses.fields(LMPPOConfig)}


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_a_bad_config_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be "):
        LMPPOConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_the_ends_of_each_range_are_allowed(name, value):
    assert getattr(small(**{name: value}), name) == value


@pytest.mark.parametrize("changes", [{"batch_size": 1, "minibatches": 1}, {"batch_size": 7, "minibatches": 4, "accumulation": 2}])
def test_a_batch_too_small_for_its_split_is_refused(changes):
    with pytest.raises(ValueError, match=r"^batch_size must be at least 2 and minibatches \* accumulation \(\d\), got"):
        small(**changes)


def test_steering_needs_a_horizon_of_a_batch_at_least_and_something_to_multiply():
    with pytest.raises(ValueError, match=r"^kl_horizon must be at least batch_size \(8\), got 7"):
        small(kl_target=1.0, kl_horizon=7)
    with pytest.raises(ValueError, match=r"^kl_coef must be above 0 with a kl_target"):
        small(kl_target=1.0, kl_coef=0)
    assert small(kl_target=1.0, kl_horizon=8, kl_coef=0.1).kl_horizon == 8
    assert small(kl_horizon=7, kl_coef=0).kl_target is None


def test_compiling_and_checkpointing_exclude_each_other():
    with pytest.raises(ValueError, match=r"^gradient_checkpointing must be False with compiled_update: use accumulation"):
        small(compiled_update=True, gradient_checkpointing=True)


def test_a_config_is_frozen_and_every_field_says_what_it_is():
    config = small()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gamma = 0.5
    assert hash(config) == hash(dataclasses.replace(config))
    body = ast.parse(inspect.getsource(LMPPOConfig)).body[0].body
    documented = {
        node.target.id
        for node, following in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
    }
    assert documented == {field.name for field in dataclasses.fields(LMPPOConfig)}


# Arguments: refused before anything is touched ----------------------------------------------------------------------------


def own_model():
    lm = make_lm("gpt2")
    return {"policy": PolicyWithValue(lm), "reference": lm}


def own_policy():
    policy = make_policy()
    return {"policy": policy, "reference": policy}


def own_critic():
    critic = make_lm("gpt2", seed=2)
    return {"policy": PolicyWithValue(make_lm("gpt2"), critic), "reference": critic}


ARGUMENTS = {  # what replaces the good ones, and the message
    "policy: a language model": (
        lambda: {"policy": make_lm("gpt2")},
        "policy must be a PolicyWithValue, got GPT2LMHeadModel; wrap",
    ),
    "policy: text": (lambda: {"policy": "gpt2"}, "policy must be a PolicyWithValue, got str"),
    "prompts: none": (lambda: {"prompts": []}, "prompts must be a non-empty list of strings, got list"),
    "prompts: text": (lambda: {"prompts": "a b"}, "prompts must be a non-empty list of strings, got str 'a b'"),
    "prompts: an iterator": (lambda: {"prompts": iter(PROMPTS)}, "prompts must be a non-empty list of strings"),
    "prompts: an empty one": (lambda: {"prompts": ["a", ""]}, r"prompts\[1\] must be a non-empty string, got str ''"),
    "prompts: one without tokens": (lambda: {"prompts": ["a", "b", "  "]}, r"prompts\[2\] must have at least one token, got '  '"),
    "prompts: a number": (lambda: {"prompts": ["a", 3]}, r"prompts\[1\] must be a non-empty string, got int 3"),
    "prompts: one too long": (
        lambda: {"prompts": ["a", "b " * 28]},
        "prompts must leave room for max_new_tokens .* context of 32 tokens, got a prompt of 28 tokens and max_new_tokens 5",
    ),
    "prompts: one longer than the context": (lambda: {"prompts": ["b " * 99]}, "prompts must leave room .* got a prompt of 99 tokens"),
    "tokenizer: no pad token": (lambda: {"tokenizer": make_tokenizer(pad_token=None)}, "tokenizer must have its pad_token set"),
    "tokenizer: no end token": (lambda: {"tokenizer": make_tokenizer(eos_token=None)}, "tokenizer must have its eos_token set"),
    "tokenizer: fewer words": (lambda: {"tokenizer": make_tokenizer(WORDS[:-1])}, "tokenizer must have the model's vocabulary .* got 9"),
    "tokenizer: more words": (lambda: {"tokenizer": make_tokenizer((*WORDS, "h"))}, "tokenizer must have the model's vocabulary .* got 11"),
    "reference: the policy's own model": (own_model, "reference must share no parameters with the policy, which moves"),
    "reference: the policy itself": (own_policy, "reference must share no parameters with the policy"),
    "reference: the critic's model": (own_critic, "reference must share no parameters with the policy"),
    "reference: another vocabulary": (lambda: {"reference": make_lm("gpt2", vocab_size=20)}, "the model's vocabulary of 20 tokens"),
    "reference: a name": (lambda: {"reference": "gpt2"}, "reference must be a causal LM of transformers, got str"),
    "seed: negative": (lambda: {"seed": -1}, "seed must be an int"),
    "seed: a float": (lambda: {"seed": 1.0}, "seed must be an int"),
    "checkpoint_every: 0": (lambda: {"checkpoint_every": 0}, "checkpoint_every must be an int of at least 1"),
    "tensorboard: no directory": (lambda: {"tensorboard": True, "resume": None}, "tensorboard needs log_dir"),
    "resume: nothing there": (lambda: {"resume": "nowhere"}, "no checkpoint at nowhere"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The directory of a run stopped after two updates, which every refused call leaves as it is."""
    directory = tmp_path_factory.mktemp("stopped")
    run(log_dir=directory, callback=lambda state: state.update == 2)
    return directory


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_bad_argument_is_named_and_nothing_is_touched(case, stopped):
    before = contents(stopped)
    make_changes, message = ARGUMENTS[case]
    changes = {"policy": make_policy()} | make_changes()
    modules = [x for x in changes.values() if isinstance(x, torch.nn.Module)]
    start, calls = [weights(module) for module in modules], []
    with pytest.raises(ValueError, match=message):
        run(**({"resume": stopped, "reward_fn": lambda *args: calls.append(args)} | changes))
    assert contents(stopped) == before
    assert not calls
    for module, state in zip(modules, start, strict=True):
        assert same(weights(module), state)
        assert all(p.requires_grad for p in module.parameters())


def test_a_few_unused_rows_of_the_models_vocabulary_are_let_pass():
    words = tuple(f"w{i}" for i in range(97))
    policy = PolicyWithValue(make_lm("gpt2", vocab_size=102))
    run(policy, small(updates=1), tokenizer=make_tokenizer(words), prompts=["w1 w2", "w3"], reward_fn=lambda p, r: torch.zeros(len(r)))


# Rewards: refused in the middle of a run ----------------------------------------------------------------------------------


class OwnError(Exception):
    pass


def raises(prompts, responses):
    raise OwnError("no such judge")


REWARDS = {
    "too few": (lambda p, r: torch.zeros(7), r"reward_fn must return a tensor of shape \[8\], one score per response, got shape \[7\]"),
    "too many": (lambda p, r: torch.zeros(9), r"must return a tensor of shape \[8\].* got shape \[9\]"),
    "one for all": (lambda p, r: torch.tensor(1.0), r"must return a tensor of shape \[8\].* got shape \[\]"),
    "a column": (lambda p, r: torch.zeros(8, 1), r"must return a tensor of shape \[8\].* got shape \[8, 1\]"),
    "per token": (lambda p, r: torch.zeros(8, 5), r"must return a tensor of shape \[8\].* got shape \[8, 5\]"),
    "NaN": (lambda p, r: torch.full((8,), NAN), "reward_fn must return finite scores, got nan for the response '"),
    "one NaN": (lambda p, r: torch.tensor([0.0] * 7 + [NAN]), "reward_fn must return finite scores, got nan for the response '"),
    "infinity": (lambda p, r: torch.full((8,), -INF), "reward_fn must return finite scores, got -inf"),
    "too large for float32": (lambda p, r: torch.full((8,), 1e300, dtype=torch.float64), "reward_fn must return finite scores, got inf"),
    "a list": (lambda p, r: [0.0] * 8, r"must return a tensor of shape \[8\].* got list \[0.0, 0.0"),
    "an array": (lambda p, r: np.zeros(8), r"must return a tensor of shape \[8\].* got ndarray"),
    "nothing": (lambda p, r: None, r"must return a tensor of shape \[8\].* got NoneType None"),
    "raises": (raises, "reward_fn must not fail, it raised OwnError: no such judge"),
    "takes other arguments": (lambda prompts: torch.zeros(8), "reward_fn must not fail, it raised TypeError"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    run(log_dir=directory)
    return directory


@pytest.mark.parametrize("case", REWARDS)
def test_a_bad_reward_is_named_and_the_last_checkpoint_continues_the_run(case, tmp_path, whole):
    bad, message = REWARDS[case]
    calls = []

    def scorer(prompts, responses):
        calls.append(len(responses))
        return bad(prompts, responses) if len(calls) == 3 else count_a(prompts, responses)

    with pytest.raises(ValueError, match=message) as caught:
        run(log_dir=tmp_path / "parts", reward_fn=scorer, checkpoint_every=1)
    if case == "raises":
        assert isinstance(caught.value.__cause__, OwnError)
    assert saved(tmp_path / "parts")[0] == 2
    run(resume=tmp_path / "parts")
    assert_same_run(tmp_path / "parts", whole)


def test_scores_of_any_number_type_will_do():
    floats = weights(run(reward_fn=lambda p, r: count_a(p, r).round()).policy)
    assert same(weights(run(reward_fn=lambda p, r: count_a(p, r).round().long()).policy), floats)
    assert same(weights(run(reward_fn=lambda p, r: count_a(p, r).round().double().requires_grad_()).policy), floats)


# Divergence ---------------------------------------------------------------------------------------------------------------


def test_a_huge_learning_rate_ends_with_one_clear_error_and_the_last_checkpoint_stays(tmp_path):
    with pytest.raises(FloatingPointError, match=r"training diverged at update \d: \w+ is (nan|inf)"):
        run(config=small(learning_rate=1e30, max_grad_norm=None), log_dir=tmp_path, checkpoint_every=1)
    _, tensors = saved(tmp_path)
    assert all(x.isfinite().all() for name, x in tensors.items() if name.startswith("policy."))


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
@pytest.mark.parametrize("max_new_tokens", [1, 5])
def test_equal_scores_do_no_harm(kl_in, max_new_tokens):
    """Whitening has nothing to divide by: advantages without spread are 0, and the KL keeps the policy where it is."""
    config = small(kl_in=kl_in, max_new_tokens=max_new_tokens, whiten_rewards=True, updates=20, learning_rate=1e-3, lam=1.0)
    log = run(config=config, reward_fn=lambda prompts, responses: torch.ones(8)).log
    assert np.abs(column(log, "kl")).max() < 2.0
    assert column(log, "value_loss").max() < 5.0


def test_responses_of_one_token_will_do():
    """The smallest batch there is: two responses of one token."""
    config = small(batch_size=2, minibatches=2, max_new_tokens=1, whiten_rewards=True)
    assert len(run(config=config).log) == 6
    log = run(config=small(batch_size=2, minibatches=1, max_new_tokens=1, kl_in="loss", kl_loss="k3"), prompts=["a"]).log
    assert set(column(log, "response_length")) == {1.0}
