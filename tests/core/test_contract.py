"""What the design promises of every public function alike: dtype, device, autograd, purity, torch.compile, documentation."""

import inspect
import shutil
import typing

import pytest
import torch
from core_helpers import DEVICES, DTYPES, FUNCTIONS, LEARNED, MASKED, arguments
from torch.testing import assert_close

import ppo_edu
from ppo_edu import core
from ppo_edu.core import value_checks

every_function = pytest.mark.parametrize("name", FUNCTIONS)


def tensors(kwargs):
    return {key: x for key, x in kwargs.items() if isinstance(x, torch.Tensor)}


def with_gradients(name, kwargs, function=None):
    """The result, and the gradient of every floating-point argument after a backward pass (None where none flows)."""
    leaves = {key: x.detach().clone().requires_grad_() for key, x in tensors(kwargs).items() if x.is_floating_point()}
    result = (function or getattr(core, name))(**{**kwargs, **leaves})
    if result.requires_grad:
        weights = torch.linspace(1, 2, result.numel(), dtype=result.dtype, device=result.device).reshape(result.shape)
        (result * weights).sum().backward()
    return result, {key: leaf.grad for key, leaf in leaves.items()}


def test_the_groups_of_the_helpers_are_complete():
    assert set(LEARNED) == set(FUNCTIONS)
    assert set(MASKED) == {name for name in FUNCTIONS if "mask" in inspect.signature(getattr(core, name)).parameters}


@every_function
def test_only_what_is_learned_receives_gradient(name):
    result, gradients = with_gradients(name, arguments(name))
    assert result.requires_grad == bool(LEARNED[name])
    for key, gradient in gradients.items():
        if key in LEARNED[name]:
            assert gradient.any(), f"{key} is learned and got no gradient"
            assert torch.isfinite(gradient).all()
        else:
            assert gradient is None, f"{key} is data and got gradient"


@every_function
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_dtype_and_device_are_those_of_the_input(name, dtype, device):
    result, gradients = with_gradients(name, arguments(name, dtype=dtype, device=device))
    for x in (result, *(g for g in gradients.values() if g is not None)):
        assert x.dtype == dtype
        assert x.device.type == device


@every_function
@pytest.mark.parametrize("device", DEVICES)
def test_float32_on_any_device_agrees_with_float64(name, device):
    wide, wide_gradients = with_gradients(name, arguments(name))
    narrow, gradients = with_gradients(name, arguments(name, dtype=torch.float32, device=device))
    assert_close(narrow.cpu().double(), wide, atol=1e-5, rtol=1e-4)
    for key in LEARNED[name]:
        assert_close(gradients[key].cpu().double(), wide_gradients[key], atol=1e-5, rtol=1e-4)


@every_function
def test_bfloat16_goes_in_and_comes_out(name):
    result = getattr(core, name)(**arguments(name, dtype=torch.bfloat16))
    assert result.dtype == torch.bfloat16
    assert torch.isfinite(result).all()


@every_function
@pytest.mark.parametrize("seed", range(3))
def test_inputs_are_never_modified_and_a_second_call_gives_the_same(name, seed):
    kwargs = arguments(name, seed=seed)
    before = {key: x.clone() for key, x in tensors(kwargs).items()}
    first = getattr(core, name)(**kwargs)
    kept = first.clone()
    second = getattr(core, name)(**kwargs)
    assert torch.equal(first, kept)
    assert torch.equal(first, second)
    for key, x in before.items():
        assert torch.equal(kwargs[key], x), key


@every_function
def test_the_result_shares_no_memory_with_an_input(name):
    kwargs = arguments(name) | ({"mask": None} if name in MASKED else {})
    result = getattr(core, name)(**kwargs)
    before = {key: x.clone() for key, x in tensors(kwargs).items()}
    result.zero_()
    for key, x in before.items():
        assert torch.equal(kwargs[key], x), key


@every_function
def test_inputs_need_not_be_contiguous(name):
    kwargs = arguments(name)
    strided = {key: x.transpose(0, 1).contiguous().transpose(0, 1) for key, x in tensors(kwargs).items()}
    assert not any(x.is_contiguous() for x in strided.values())
    assert_close(getattr(core, name)(**{**kwargs, **strided}), getattr(core, name)(**kwargs))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "rewards" not in inspect.signature(getattr(core, name)).parameters])
def test_losses_and_statistics_take_any_shape(name):
    """[T, N], [B] or [B, T]: only the order of the entries may change."""
    kwargs = arguments(name)
    flat = {key: x.flatten(0, 1) for key, x in tensors(kwargs).items()}
    assert_close(getattr(core, name)(**{**kwargs, **flat}).flatten(), getattr(core, name)(**kwargs).flatten())


# --- torch.compile


@every_function
def test_compiled_in_one_graph_the_numbers_are_the_same(name):
    torch.compiler.reset()
    compiled = torch.compile(getattr(core, name), backend="aot_eager", fullgraph=True, dynamic=False)
    kwargs = arguments(name, dtype=torch.float32)
    (a, a_gradients), (b, b_gradients) = with_gradients(name, kwargs), with_gradients(name, kwargs, compiled)
    assert_close(a, b)
    for key in LEARNED[name]:
        assert_close(a_gradients[key], b_gradients[key])


def test_compiled_code_skips_the_checks_of_values_but_not_those_of_shapes():
    torch.compiler.reset()
    compiled = torch.compile(core.clipped_surrogate_loss, backend="eager", fullgraph=True)
    kwargs = arguments("clipped_surrogate_loss")
    kwargs["log_probs"][kwargs["mask"]] = float("nan")
    assert compiled(**kwargs).isnan()
    compiled = torch.compile(core.clipped_surrogate_loss, backend="eager")
    with pytest.raises(ValueError, match="advantages"):
        compiled(**{**kwargs, "advantages": kwargs["advantages"][:1]})


@pytest.mark.verify  # half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_the_default_compiler_too():
    torch.compiler.reset()
    compiled = torch.compile(core.clipped_surrogate_loss, fullgraph=True)
    kwargs = arguments("clipped_surrogate_loss", dtype=torch.float32)
    (a, a_gradients), (b, b_gradients) = (with_gradients("clipped_surrogate_loss", kwargs, f) for f in (None, compiled))
    assert_close(a, b)
    assert_close(a_gradients["log_probs"], b_gradients["log_probs"])


@every_function
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_without_value_checks_nothing_waits_for_the_gpu(name):
    kwargs = arguments(name, device="cuda")
    getattr(core, name)(**kwargs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with value_checks(False):
            getattr(core, name)(**kwargs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- documentation

PLAIN = {"clip_fraction", "explained_variance", "masked_mean", "masked_var", "whiten"}  # everyday statistics: no paper to cite


@every_function
def test_the_docstring_says_what_comes_back_what_is_refused_and_where_it_is_from(name):
    documentation = inspect.getdoc(getattr(core, name))
    assert "Returns:" in documentation
    assert "Raises: ValueError" in documentation
    assert ("Source:" in documentation) or name in PLAIN


@pytest.mark.parametrize("name", core.__all__)
def test_everything_public_is_documented_typed_and_exported(name):
    thing = getattr(core, name)
    assert inspect.getdoc(thing)
    assert getattr(ppo_edu, name) is thing
    functions = [thing] if inspect.isfunction(thing) else [thing.__init__, thing.updated]
    for function in functions:
        hints = typing.get_type_hints(function)
        parameters = [p for p in inspect.signature(function).parameters if p != "self"]
        assert set(parameters) | {"return"} == set(hints)


@every_function
def test_constants_are_passed_by_name(name):
    """gae(r, v, nv, d, t, 0.95, 0.99) would be accepted and wrong; only tensors and `mask`, `kind` may stand without a name."""
    for key, parameter in inspect.signature(getattr(core, name)).parameters.items():
        if key in ("gamma", "lam", "n", "clip_range", "shift_mean", "bootstrap", "old_values"):
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
