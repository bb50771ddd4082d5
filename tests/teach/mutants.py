"""Runs the ordinary tests of a function with each of its known mistakes planted, and says which test noticed.

    python -m tests.teach.mutants NAME ...

prints as JSON, under "noticed", the first test that failed with each pitfall and the kind of its error (null where all passed);
under "content", for each function, the same of those tests with the right function in that place. The tests run in one child
process per pitfall, forked after the imports: quick, and nothing that a mistake spoils outlives it.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from torch import Tensor

from ppo_edu.teach.pitfalls import PITFALLS, Pitfall, planted
from ppo_edu.teach.pitfalls.planting import right_function

REPOSITORY = Path(__file__).parents[2]
SECONDS_ALLOWED = 300  # per pitfall, however busy the machine; alone it takes one or two

# The tests mirror the package, so the tests of ppo_edu.core.kl are in tests/core/test_kl.py; here, which others concern it.
CONTRACT = "tests/core/test_contract.py::test_only_what_is_learned_receives_gradient"
UNCHANGED = "tests/core/test_contract.py::test_inputs_are_never_modified_and_a_second_call_gives_the_same"
OTHER_TESTS = {
    "ppo_edu.core.advantages": ("tests/core/test_returns.py", UNCHANGED, CONTRACT),
    "ppo_edu.core.objectives": (
        "tests/core/test_masking.py",
        CONTRACT,
        "tests/core/test_validation.py::test_a_wrong_shape_type_or_range_names_the_argument",
    ),
    "ppo_edu.core.diagnostics": ("tests/core/test_kl.py", "tests/core/test_masking.py"),
    "ppo_edu.control.networks": ("tests/control/test_ppo.py", "tests/control/test_continuous.py"),
    "ppo_edu.control.ppo": ("tests/control/test_pitfalls_gaps.py", "tests/control/test_normalization.py"),
    "ppo_edu.control.rollout": ("tests/control/test_continuous.py",),
}

# Modules whose functions act: on environments, random generators, weights.
ACTING = ("ppo_edu.control.", "ppo_edu.lm.generation", "ppo_edu.lm.ppo")

# Mistakes that consist in what `careful` would put right: missing checks, a graph that is not cut.
BARE = {"ratio-over-the-whole-distribution", "advantages-carry-gradient"}

# Errors that say that a variant cannot even be called: no mistake of the kind that is meant.
BROKEN = {"AttributeError", "ImportError", "KeyError", "ModuleNotFoundError", "NameError", "RecursionError", "TypeError"}

IMPORTED_BEFOREHAND = {
    "core": ("ppo_edu.core",),
    "control": ("ppo_edu.control",),
    "teach": ("ppo_edu.teach.exact", "ppo_edu.teach.kl_penalty"),
    "lm": ("ppo_edu.lm", *(f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "llama", "qwen2", "qwen3", "gpt_neox"))),
}


def tests_of(entry: Pitfall) -> list[str]:
    """The test files (or single tests) of the function that the entry gets wrong."""
    package, area, module, *_ = entry.replaces.split(".")
    return [f"tests/{area}/test_{module}.py", *OTHER_TESTS.get(f"{package}.{area}.{module}", ())]


def careful(entry: Pitfall) -> Pitfall:
    """The entry with a variant that refuses what the right function refuses, and gives no gradient where that gives none.

    Else every variant would be caught by the tests of bad input, and nothing would be said of its numbers.
    """
    if entry.name in BARE or entry.replaces.startswith(ACTING):
        return entry
    right = right_function(entry)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = right(*args, **kwargs)
        with torch.set_grad_enabled(isinstance(result, Tensor) and result.requires_grad):
            return entry.wrong(*args, **kwargs)

    return replace(entry, wrong=wrong)


class FirstFailure:
    """A pytest plugin that keeps the first test that failed, and the kind of its error."""

    def __init__(self) -> None:
        self.test: str | None = None
        self.error: str | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Any:
        report = yield
        if report.failed and self.test is None:
            self.test, self.error = item.nodeid, call.excinfo.type.__name__
        return report


def run_tests(entry: Pitfall, tests: list[str]) -> dict[str, Any]:
    """In a child process: the tests with the mistake planted. Who noticed it first, with which error; None where nobody did."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(SECONDS_ALLOWED)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        seen = FirstFailure()
        options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "--hypothesis-profile=mutants"]
        with planted(entry):
            status = int(pytest.main([*options, *tests], plugins=[seen]))
        with open(writing, "w") as pipe:
            json.dump({"test": seen.test, "error": seen.error, "status": status}, pipe)
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said or (result := json.loads(said))["status"] not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"the tests {tests} could not be run with {entry.name} planted: {said or 'no answer in time'}")
    return {"test": result["test"], "error": result["error"]}


def run(entries: list[Pitfall]) -> dict[str, Any]:
    """What became of each entry, and for each function whether those who noticed are content with the right one."""
    # Fewer examples than the tests themselves try: what is noticed here is noticed there.
    settings.register_profile("mutants", derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate), max_examples=20)
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main(["--version", "-p", "_hypothesis_pytestplugin"])  # the first call imports pytest's own plugins
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # and this one a second's worth of modules
    gc.freeze()  # what is imported stays: children need not look through it
    noticed = {entry.name: run_tests(careful(entry), tests_of(entry)) for entry in entries}
    content = {}
    for path in dict.fromkeys(entry.replaces for entry in entries):
        mine = [entry for entry in entries if entry.replaces == path]
        tests = sorted({noticed[entry.name]["test"] for entry in mine} - {None})
        control = careful(replace(mine[0], wrong=right_function(mine[0])))
        content[path] = run_tests(control, tests) if tests else {"test": None, "error": None}
    return {"noticed": noticed, "content": content}


def gae_by_a_triangle(rewards, values, next_values, terminated, truncated, *, gamma, lam):
    """The right advantages written another way: a matrix of weights that are 0 beyond an episode's end."""
    T = len(rewards)
    ends = (terminated | truncated).long().cumsum(0)
    ended_before = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])  # [T, N] ends in the rows before
    steps = torch.arange(T)
    distance = steps[None, :, None] - steps[:, None, None]  # [T, T, 1] from row t to row k
    same_episode = (distance >= 0) & (ended_before[None] == ended_before[:, None])
    weights = torch.where(same_episode, (gamma * lam) ** distance.clamp(min=0), 0.0).to(rewards.dtype)
    deltas = rewards + gamma * torch.where(terminated, 0.0, next_values) - values
    return torch.einsum("tkn,kn->tn", weights, deltas)


HARMLESS = Pitfall("harmless", "gae", "the right advantages", "none", "nothing", gae_by_a_triangle)


def outcome(names: Iterable[str]) -> dict[str, Any]:
    """What `main` prints for these pitfalls (or "harmless"), in a process of its own."""
    clean = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_")}
    environment = clean | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.teach.mutants", *names]
    process = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stderr[-2000:])
    return json.loads(process.stdout)


def entries_of(*areas: str) -> list[Pitfall]:
    """The pitfalls that can be planted in these parts of the package."""
    return [entry for entry in PITFALLS.values() if entry.replaces and entry.replaces.split(".")[1] in areas]


def check_noticed(entry: Pitfall, noticed: dict[str, Any]) -> None:
    """Some test failed, and for what the variant computes."""
    assert noticed[entry.name]["test"], f"a hole in the tests of {entry.replaces}: none fails with {entry.name} planted"
    assert noticed[entry.name]["error"] not in BROKEN, f"the variant itself is broken: {noticed[entry.name]}"


def main(names: list[str]) -> None:
    catalogue = PITFALLS | {HARMLESS.name: HARMLESS}
    entries = [catalogue[name] for name in names]
    for area in {entry.replaces.split(".")[1] for entry in entries}:
        for module in IMPORTED_BEFOREHAND[area]:
            importlib.import_module(module)
    print(json.dumps(run(entries)))


if __name__ == "__main__":
    main(sys.argv[1:])
