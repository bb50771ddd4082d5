"""Every function, every argument: what is wrong is a ValueError that names the argument.

`BAD` lists wrong values by the kind of argument; `KINDS` says which argument is of which kind. The test is their product.
"""

import inspect
import math

import numpy as np
import pytest
import torch
from core_helpers import FUNCTIONS, T, arguments, flags, row

from ppo_edu import core
from ppo_edu.core import AdaptiveKLCoefficient, FixedKLCoefficient, value_checks
from ppo_edu.core.validation import reads_values

NAN, INF = float("nan"), float("inf")

TENSORS = ["rewards", "values", "next_values", "bootstrap", "returns", "advantages", "old_values", "x"]
LOG_PROBS = ["log_probs", "old_log_probs", "ref_log_probs"]
LOGITS = ["logits", "logits_p", "logits_q"]

KINDS = {
    **dict.fromkeys(TENSORS + LOG_PROBS, "tensor"),
    **dict.fromkeys(LOGITS, "logits"),
    **dict.fromkeys(["terminated", "truncated"], "flag"),
    **dict.fromkeys(["gamma", "lam"], "unit interval"),
    "mask": "mask",
    "clip_range": "positive",
    "n": "count",
    "kind": "kind",
    "shift_mean": "bool",
}

# Wrong whatever the values in it: always found, also with value_checks(False). Each entry makes a wrong value of a right one.
NOT_A_TENSOR = {
    "a list": lambda x: x.tolist(),
    "a number": lambda x: 1.0,
    "an array": lambda x: x.numpy(),
    "a string": lambda x: "advantages",
}
WRONG_SHAPE = {
    "another dimension": lambda x: x[None],
    "one that would broadcast": lambda x: x[:, :1],
    "transposed": lambda x: x.transpose(0, 1),
    "one row less": lambda x: x[1:],
}
NOT_FLOAT = {
    "integers": lambda x: x.long(),
    "bools": lambda x: x > 0,
    "complex numbers": lambda x: x.to(torch.complex64),
}
ALONE = {  # for an argument with no other to compare with
    "empty": lambda x: x[:0],
    "None": lambda x: None,
}
BESIDE_OTHERS = {
    "another precision": lambda x: x.float(),
    "another device": lambda x: x.to("meta"),
}
NOT_BOOL = {
    "ones and zeros": lambda x: x.long(),
    "floats": lambda x: x.double(),
    "another device": lambda x: x.to("meta"),
}
NOT_A_NUMBER = {
    "a bool": lambda x: True,
    "a string": lambda x: "0.9",
    "None": lambda x: None,
    "a list": lambda x: [0.9],
    "a tensor": lambda x: torch.tensor(0.9),
    "NaN": lambda x: NAN,
    "infinity": lambda x: INF,
    "minus infinity": lambda x: -INF,
    "negative": lambda x: -0.1,
}


def with_entry(value, index=(1, 1)):
    def spoil(x):
        x = x.clone()
        x[index] = value
        return x

    return spoil


STRUCTURE = {
    "tensor": NOT_A_TENSOR | NOT_FLOAT | ALONE | BESIDE_OTHERS | WRONG_SHAPE,
    "logits": NOT_A_TENSOR
    | NOT_FLOAT
    | ALONE
    | BESIDE_OTHERS
    | {"a single number": lambda x: x[0, 0, 0], "no actions": lambda x: x[..., :0]},
    "flag": NOT_A_TENSOR | NOT_BOOL | WRONG_SHAPE | {"None": lambda x: None},
    "mask": NOT_A_TENSOR | NOT_BOOL | WRONG_SHAPE,
    "unit interval": NOT_A_NUMBER | {"above 1": lambda x: 1.001},
    "positive": {key: bad for key, bad in NOT_A_NUMBER.items() if key != "None"} | {"zero": lambda x: 0.0},
    "count": NOT_A_NUMBER | {"zero": lambda x: 0, "a float": lambda x: 2.0},
    "kind": {"k4": lambda x: "k4", "None": lambda x: None, "a number": lambda x: 3, "a list": lambda x: ["k1"]},
    "bool": {
        "a mask": lambda x: torch.ones(2, dtype=torch.bool),
        "a number": lambda x: 1,
        "None": lambda x: None,
        "a string": lambda x: "no",
    },
}
# Wrong because of the values in it: costs a look at them.
VALUES = {
    "tensor": {"NaN": with_entry(NAN), "infinity": with_entry(INF), "minus infinity": with_entry(-INF)},
    "logits": {"NaN": with_entry(NAN, (1, 1, 2)), "infinity": with_entry(INF, (1, 1, 2)), "a row of minus infinity": with_entry(-INF)},
    "mask": {"all False": torch.zeros_like},
}

TWO_ARE_NEEDED = ["masked_var", "whiten", "explained_variance"]

# The first tensor of a function sets shape, precision and device; alone it cannot differ from anything.
FIRST = {name: next(iter(inspect.signature(getattr(core, name)).parameters)) for name in FUNCTIONS}
OPTIONAL = {("discounted_return", "bootstrap"), ("value_loss", "old_values")}


def wrong_calls(table):
    """(function, argument, what makes it wrong) for all of them."""
    calls = []
    for name in FUNCTIONS:
        for argument in inspect.signature(getattr(core, name)).parameters:
            kind = KINDS[argument]
            for description, spoil in table.get(kind, {}).items():
                first = argument == FIRST[name]
                if first and (description in BESIDE_OTHERS or description in WRONG_SHAPE):
                    continue
                if description == "None" and (name, argument) in OPTIONAL:
                    continue
                calls.append(pytest.param(name, argument, spoil, id=f"{name}-{argument}-{description}"))
    return calls


def valid(name):
    """Valid arguments in which nothing ends or is masked at [1, 1], where the tests put their wrong entries, and no mask hides it."""
    kwargs = arguments(name)
    for key in ("terminated", "truncated"):
        if key in kwargs:
            kwargs[key] = torch.zeros_like(kwargs[key])
    if "bootstrap" in kwargs:
        kwargs["truncated"][1, 1] = True  # a bootstrap is read at a truncation only
    if "mask" in kwargs:
        kwargs["mask"][1, 1] = True
    return kwargs


def assert_names(argument, name, kwargs):
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        getattr(core, name)(**kwargs)


def test_every_function_accepts_the_valid_arguments():
    for name in FUNCTIONS:
        getattr(core, name)(**valid(name))


@pytest.mark.parametrize(("name", "argument", "spoil"), wrong_calls(STRUCTURE))
def test_a_wrong_shape_type_or_range_names_the_argument(name, argument, spoil):
    kwargs = valid(name)
    kwargs[argument] = spoil(kwargs[argument])
    assert_names(argument, name, kwargs)
    with value_checks(False):  # these checks cost nothing and always run
        assert_names(argument, name, kwargs)


@pytest.mark.parametrize(("name", "argument", "spoil"), wrong_calls(VALUES))
def test_a_wrong_value_names_the_argument_unless_value_checks_are_off(name, argument, spoil):
    kwargs = valid(name)
    kwargs[argument] = spoil(kwargs[argument])
    assert_names(argument, name, kwargs)
    with value_checks(False):
        getattr(core, name)(**kwargs)


@pytest.mark.parametrize("name", ["discounted_return", "td_residual", "n_step_return", "lambda_return", "gae"])
@pytest.mark.parametrize("shape", [(T,), (T, 3, 1), ()])
def test_rollouts_must_have_two_dimensions(name, shape):
    kwargs = {key: x.new_ones(shape) if isinstance(x, torch.Tensor) else x for key, x in arguments(name).items()}
    with pytest.raises(ValueError, match=r"rewards must have shape \[T, N\]"):
        getattr(core, name)(**kwargs)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("spoil", NOT_A_TENSOR.values(), ids=NOT_A_TENSOR)
def test_the_first_argument_is_checked_also_when_the_optional_ones_are_left_out(name, spoil):
    parameters = inspect.signature(getattr(core, name)).parameters.values()
    kwargs = {p.name: valid(name)[p.name] for p in parameters if p.default is inspect.Parameter.empty}
    getattr(core, name)(**kwargs)
    assert_names(FIRST[name], name, {**kwargs, FIRST[name]: spoil(kwargs[FIRST[name]])})


@pytest.mark.parametrize("name", TWO_ARE_NEEDED)
def test_a_spread_needs_two_entries(name):
    kwargs = arguments(name)
    mask = torch.zeros_like(kwargs["mask"])
    mask[0, 0] = True
    assert_names("mask", name, {**kwargs, "mask": mask})
    single = {key: x[:1, :1] if isinstance(x, torch.Tensor) else x for key, x in kwargs.items()} | {"mask": None}
    assert_names(FIRST[name], name, single)


def test_value_clipping_needs_both_of_its_arguments():
    kwargs = arguments("value_loss")
    for missing in ("old_values", "clip_range"):
        assert_names("old_values", "value_loss", {**kwargs, missing: None})
        assert_names("clip_range", "value_loss", {**kwargs, missing: None})


def test_a_ratio_that_overflows_names_what_it_is_made_of():
    """exp(100) is infinite in float32. Clipped or not, its gradient would be NaN."""
    new, old, advantage = torch.tensor([0.0]), torch.tensor([-100.0]), torch.tensor([1.0])
    with pytest.raises(ValueError, match=r"exp\(log_probs - old_log_probs\) must be finite, got inf at index \[0\]"):
        core.clipped_surrogate_loss(new, old, advantage, clip_range=0.2)


# --- messages


def test_a_message_says_what_came_and_what_is_needed():
    rewards, none = row(1, 2, 3), flags(of=3)
    with pytest.raises(ValueError) as error:
        core.gae(rewards, rewards, rewards[:2].float(), none, none, gamma=0.9, lam=0.9)
    assert str(error.value) == (
        "next_values must match rewards in shape, dtype and device (shape [3, 1], dtype float64 on cpu), "
        "got shape [2, 1], dtype float32 on cpu"
    )


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"rewards": row(1, NAN, INF)}, r"rewards must be finite, got nan at index \[1, 0\] \(2 such\)"),
        ({"gamma": 1.5}, r"gamma must be a number in \[0, 1\], got float 1.5"),
        ({"lam": "high"}, r"lam must be a number in \[0, 1\], got str 'high'"),
        ({"terminated": flags(of=3).long()}, r"terminated must be a bool tensor of shape \[3, 1\] on cpu, got shape \[3, 1\], dtype int64"),
        ({"values": [1, 2, 3]}, r"values must be a floating-point tensor, got list \[1, 2, 3\]"),
        ({"rewards": torch.ones(3)}, r"x\[:, None\] for one environment"),
    ],
)
def test_messages_of_gae(spoilt, message):
    good = {
        "rewards": row(1, 2, 3),
        "values": row(1, 2, 3),
        "next_values": row(1, 2, 3),
        "terminated": flags(of=3),
        "truncated": flags(of=3),
    }
    with pytest.raises(ValueError, match=message):
        core.gae(**({"gamma": 0.9, "lam": 0.9} | good | spoilt))


@pytest.mark.parametrize("garbage", [NAN, INF])
def test_a_bad_value_that_counts_is_found_beside_one_that_is_masked(garbage):
    x, mask = torch.tensor([garbage, 1.0, 2.0, garbage]), torch.tensor([False, True, True, True])
    with pytest.raises(ValueError, match=r"x must be finite, got \w+ at index \[3\] \(1 such\)"):
        core.masked_mean(x, mask)


@pytest.mark.parametrize("number", [0, 1, 0.5, np.float64(0.5)])
def test_the_ends_of_the_unit_interval_and_plain_integers_are_fine(number):
    core.gae(**{**arguments("gae"), "gamma": number, "lam": number})


# --- switching the checks of values off and on


def test_value_checks_nest_and_are_restored():
    assert reads_values()
    with value_checks(False):
        assert not reads_values()
        with value_checks(True):
            assert reads_values()
        assert not reads_values()
    assert reads_values()


def test_value_checks_are_restored_after_an_error():
    with pytest.raises(ValueError, match="gamma"), value_checks(False):
        core.gae(**{**arguments("gae"), "gamma": 2.0})
    assert reads_values()


@pytest.mark.parametrize("enabled", [None, 0, "no", torch.tensor(True)])
def test_value_checks_takes_a_bool(enabled):
    with pytest.raises(ValueError, match=r"\benabled\b"), value_checks(enabled):
        pass


def test_value_checks_change_no_result():
    for name in FUNCTIONS:
        function, kwargs = getattr(core, name), arguments(name)
        with value_checks(False):
            unchecked = function(**kwargs)
        assert torch.equal(unchecked, function(**kwargs))


# --- coefficients

BAD_NUMBERS = [-0.1, NAN, INF, -INF, True, "0.1", None, [0.1], torch.tensor(0.1)]


@pytest.mark.parametrize("bad", BAD_NUMBERS)
def test_coefficients_name_a_bad_value(bad):
    with pytest.raises(ValueError, match=r"^value must"):
        FixedKLCoefficient(bad)
    with pytest.raises(ValueError, match=r"^value must"):
        AdaptiveKLCoefficient(value=bad, target=6.0, horizon=100)


@pytest.mark.parametrize("field", ["target", "horizon"])
@pytest.mark.parametrize("bad", [0, 0.0, *BAD_NUMBERS])
def test_the_adaptive_coefficient_names_a_bad_field(field, bad):
    with pytest.raises(ValueError, match=rf"^{field} must"):
        AdaptiveKLCoefficient(**({"value": 0.1, "target": 6.0, "horizon": 100} | {field: bad}))


@pytest.mark.parametrize("bad", [NAN, INF, -INF, True, "6", None, torch.tensor(6.0)])
def test_updating_names_a_bad_kl(bad):
    with pytest.raises(ValueError, match=r"^kl_per_sequence must"):
        AdaptiveKLCoefficient(value=0.1, target=6.0, horizon=100).updated(bad, n=10)


@pytest.mark.parametrize("bad", [0, -1, 101, 2.0, True, None, "10", math.nan, torch.tensor(10)])
def test_updating_names_a_bad_number_of_sequences(bad):
    with pytest.raises(ValueError, match=r"^n must"):
        AdaptiveKLCoefficient(value=0.1, target=6.0, horizon=100).updated(6.0, n=bad)


def test_the_table_covers_every_argument_of_every_function():
    every = {(name, argument) for name in FUNCTIONS for argument in inspect.signature(getattr(core, name)).parameters}
    assert {tuple(call.values[:2]) for call in wrong_calls(STRUCTURE)} == every
