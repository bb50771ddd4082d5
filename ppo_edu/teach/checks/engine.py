"""The engine of the exercise checkers: compare a function with the right one, case by case, and name a known mistake."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppo_edu.teach.pitfalls.catalogue import Pitfall

SECONDS_ALLOWED = 10.0


@dataclass(frozen=True)
class Case:
    """One call of the function under test."""

    title: str
    arguments: dict[str, Any]  # in the order of the signature


@dataclass(frozen=True)
class CheckResult:
    """What a checker found. True when every case passed; prints as a report."""

    exercise: str
    passed: bool
    cases_passed: int
    cases: int
    report: str
    pitfall: Pitfall | None = None

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        if self.passed:
            return f"{self.exercise}: {'the one case passes' if self.cases == 1 else f'all {self.cases} cases pass'}."
        return f"{self.exercise}: {self.cases_passed} of {self.cases} cases pass.\n{self.report}"


Call = Callable[[Callable, dict[str, Any]], Any]  # how to call a function on a case's arguments


def call_by_position(fn: Callable, arguments: dict[str, Any]) -> Any:
    """fn(*arguments): the reader may name the parameters as they like."""
    return fn(*arguments.values())


def column(x: Sequence[float]) -> Tensor:
    """[T, 1]: the numbers of one environment over time."""
    return torch.tensor([float(entry) for entry in x])[:, None]


def keyword_only(*names: str) -> Call:
    """A call that passes the named arguments by keyword, all others by position."""

    def call(fn: Callable, arguments: dict[str, Any]) -> Any:
        positional = [x for name, x in arguments.items() if name not in names]
        return fn(*positional, **{name: x for name, x in arguments.items() if name in names})

    return call


def with_gradients(call: Call = call_by_position, *, of: Sequence[str] | None = None, result_name: str = "loss") -> Call:
    """A call that also returns the gradient of the result with respect to the arguments `of` (None: every tensor); 0 where none flows.

    Reports call the result itself `result_name`.
    """

    def call_and_differentiate(fn: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
        tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor) and x.is_floating_point()}
        leaves = {name: x.requires_grad_() for name, x in tensors.items() if of is None or name in of}
        try:
            result = call(fn, arguments)
            gradients = [torch.zeros_like(leaf) for leaf in leaves.values()]
            if isinstance(result, Tensor) and result.requires_grad:
                gradients = torch.autograd.grad(result.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        finally:
            for leaf in leaves.values():
                leaf.requires_grad_(False)
        return {result_name: result} | {f"the gradient with respect to {name}": g for name, g in zip(leaves, gradients, strict=True)}

    return call_and_differentiate


def run_check(
    exercise: str,
    fn: Callable,
    *,
    reference: Callable,
    cases: Sequence[Case],
    pitfalls: Sequence[Pitfall] = (),
    call: Call = call_by_position,
    tolerance: float = 1e-5,
) -> CheckResult:
    """Compare `fn` with `reference` on all cases, smallest first; match a wrong `fn` with the known mistakes.

    `call(function, arguments)` makes the call; a checker of a loss passes one that returns the gradient as well.
    """
    if not callable(fn):
        return CheckResult(exercise, False, 0, len(cases), f"A function is needed, got {type(fn).__name__} {fn!r}.")
    failures: dict[int, str] = {}
    outputs: dict[int, tuple[Any, str | None]] = {}  # with what went wrong in the call itself
    started = time.monotonic()
    for number, case in enumerate(cases):
        expected = call(reference, copy.deepcopy(case.arguments))
        output, problem = outputs[number] = _call_safely(fn, case, call)
        problem = problem or _difference(output, expected, tolerance)
        if problem:
            failures[number] = problem
        if time.monotonic() - started > SECONDS_ALLOWED and number + 1 < len(cases):
            failures[number + 1] = f"Stopped before this case: the ones before it took over {SECONDS_ALLOWED:.0f} s together."
            break
    if not failures:
        return CheckResult(exercise, True, len(cases), len(cases), "")
    first = min(failures)
    wrong = failures.keys() & outputs.keys()  # empty where all that ran was right and the clock ran out
    known = next((entry for entry in pitfalls if wrong and _same_everywhere(entry, cases, outputs, call, tolerance)), None)
    report = f"The smallest case that fails: {cases[first].title}.\n{_show_arguments(cases[first])}\n{failures[first]}"
    if known is not None:
        report += f"\nYour result equals {known.mistake}.\n(Pitfall {known.name}. In a run: {known.symptom}.)"
    return CheckResult(exercise, False, len(outputs) - len(wrong), len(cases), report, known)


def _call_safely(fn: Callable, case: Case, call: Call) -> tuple[Any, str | None]:
    """The output of `fn`, and what went wrong in calling it (an exception, or arguments changed in place)."""
    arguments = copy.deepcopy(case.arguments)
    try:
        output = call(fn, arguments)
    except (Exception, SystemExit) as error:
        return None, f"It raised {type(error).__name__}: {error}"
    for name, x in arguments.items():
        if _difference(x, case.arguments[name], 0.0):
            return output, f"It changed its argument {name} in place; a caller would see its data altered. Work on a copy."
    return output, None


def _same_everywhere(
    entry: Pitfall, cases: Sequence[Case], outputs: dict[int, tuple[Any, str | None]], call: Call, tolerance: float
) -> bool:
    """Whether the wrong variant gives the reader's outputs, and changes the same arguments in place, on every case that was run."""
    for number, (output, problem) in outputs.items():
        wrong, same_problem = _call_safely(entry.wrong, cases[number], call)
        if problem != same_problem or _difference(output, wrong, tolerance):
            return False
    return True


def _difference(got: Any, expected: Any, tolerance: float) -> str | None:
    """None where `got` equals `expected` within the tolerance, else a sentence that says how they differ."""
    if isinstance(expected, dict):
        if not isinstance(got, dict) or got.keys() != expected.keys():
            return f"It must return a dict with {sorted(expected)}, got {_show(got)}."
        for name in expected:
            if problem := _difference(got[name], expected[name], tolerance):
                return f"In {name}:\n{problem}" if problem.startswith("  ") else f"In {name}: {problem}"
        return None
    if not isinstance(expected, Tensor | float | int):
        return None if got == expected else f"Expected {expected!r}, got {got!r}."
    got_tensor = _as_tensor(got)
    expected_tensor = _as_tensor(expected)
    if got_tensor is None:
        return f"It must return {_kind(expected_tensor)}, got {type(got).__name__} {got!r}."
    if got_tensor.shape != expected_tensor.shape:
        return f"The result must have shape {list(expected_tensor.shape)}, got {list(got_tensor.shape)}."
    if expected_tensor.dtype == torch.bool and got_tensor.dtype != torch.bool:
        return f"The result must be bool, got {got_tensor.dtype}."
    a, b = got_tensor.double(), expected_tensor.double()
    if torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
        return None
    return f"  expected = {_show(expected_tensor)}\n  got      = {_show(got_tensor)}"


def _as_tensor(x: Any) -> Tensor | None:
    """`x` as a real tensor; None where it is not one."""
    if isinstance(x, bool | int | float | np.ndarray | np.generic):
        try:
            x = torch.from_numpy(np.array(x))  # a copy: reversed and read-only arrays are welcome
        except (TypeError, ValueError):  # strings, objects, integers beyond 64 bits
            return None
    if not isinstance(x, Tensor) or x.is_complex() or x.layout != torch.strided:
        return None
    return x.detach().cpu()


def _kind(x: Tensor) -> str:
    return "a number" if x.ndim == 0 else f"a tensor of shape {list(x.shape)}"


def _show_arguments(case: Case) -> str:
    width = max(map(len, case.arguments), default=0)
    return "\n".join(f"  {name:{width}} = {_show(x)}" for name, x in case.arguments.items())


def _show(x: Any) -> str:
    """A tensor as nested lists with four significant digits, bools as 0 and 1."""
    if isinstance(x, Tensor):
        if x.numel() > 64:
            return f"a tensor of shape {list(x.shape)}"
        return _nested(x.detach().to(torch.int64 if x.dtype == torch.bool else x.dtype).tolist())
    return repr(x)


def _nested(x: Any) -> str:
    if isinstance(x, list):
        return "[" + ", ".join(map(_nested, x)) + "]"
    return f"{x:.4g}" if isinstance(x, float) else str(x)
