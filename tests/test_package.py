"""The package as a whole: what importing it costs, which part may import which, and that every public function is documented."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ppo_edu

PACKAGE = Path(ppo_edu.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(PACKAGE)], "ppo_edu.") if not m.name.endswith("__main__"))

IMPORTS = """
import json, sys, time
import torch
before, started = set(sys.modules), time.perf_counter()
import {module}
seconds = time.perf_counter() - started
print(json.dumps([sorted(set(sys.modules) - before), seconds]))
"""


def added_by(module: str) -> tuple[set[str], float]:
    """In a fresh process with torch imported: the modules that importing `module` adds, and the seconds it takes."""
    process = subprocess.run([sys.executable, "-c", IMPORTS.format(module=module)], capture_output=True, text=True, check=True)
    added, seconds = json.loads(process.stdout)
    return set(added), seconds


@pytest.mark.parametrize("module", ["ppo_edu", "ppo_edu.core"])
def test_importing_the_mathematics_adds_nothing_but_itself_to_torch_and_is_quick(module):
    added, seconds = added_by(module)
    packages = {name.split(".")[0] for name in added}
    assert packages - sys.stdlib_module_names <= {"ppo_edu", "torch"}
    parts = {".".join(name.split(".")[:2]) for name in added if name.startswith("ppo_edu.")}
    assert parts == {"ppo_edu.core", "ppo_edu.version"}
    assert seconds < 0.5


def test_importing_the_trainer_brings_in_no_plots_no_command_line_and_no_language_models():
    added, _ = added_by("ppo_edu.control")
    assert "gymnasium" in added
    assert not added & {"transformers", "matplotlib", "scipy", "tyro", "IPython", "ppo_edu.teach", "ppo_edu.lm"}


def test_importing_the_language_models_brings_in_no_environments_and_no_plots():
    added, _ = added_by("ppo_edu.lm")
    assert "transformers" in added
    assert not added & {"gymnasium", "matplotlib", "tyro", "IPython", "ppo_edu.teach", "ppo_edu.control", "ppo_edu.lm.cli"}


def test_the_checkers_work_in_plain_python_without_a_notebook():
    added, _ = added_by("ppo_edu.teach.checks")
    assert not added & {"IPython", "matplotlib", "transformers", "tyro"}


# Arrows -----------------------------------------------------------------------------------------------------------------


def imported_by(source: str) -> set[str]:
    """Full names of the modules (or members) that a source file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the package imports by full names"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


TRAINERS, ABOVE = ["ppo_edu.control", "ppo_edu.lm"], ["ppo_edu.teach", "ppo_edu.cli"]
FORBIDDEN = {  # who: what it must not import (design, section 2)
    "core": [*TRAINERS, *ABOVE, "ppo_edu.runs", "gymnasium", "transformers", "numpy", "matplotlib"],
    "control": [*ABOVE, "ppo_edu.lm", "transformers", "matplotlib"],
    "lm": [*ABOVE, "ppo_edu.control", "gymnasium", "matplotlib"],
    "runs.py": [*TRAINERS, *ABOVE, "gymnasium", "transformers"],
    "teach": ["ppo_edu.cli"],
    "": ["book", "benchmarks", "tests"],
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def broken_arrows(files: dict[str, str]) -> list[str]:
    """Forbidden imports in source texts, by path inside the package."""
    return [
        f"{path} imports {name}"
        for path, source in files.items()
        for part, forbidden in FORBIDDEN.items()
        if part in ("", path.split("/")[0])
        for name in sorted(imported_by(source))
        if any(within(name, package) for package in forbidden)
    ]


def test_arrows_run_one_way():
    files = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert len(files) > 15
    assert broken_arrows(files) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/kl.py", "import numpy as np"),
        ("core/kl.py", "from ppo_edu import control"),
        ("control/ppo.py", "def f():\n    from ppo_edu.lm import generate"),
        ("lm/ppo.py", "import gymnasium.spaces"),
        ("runs.py", "from ppo_edu.control.ppo import train"),
        ("cli.py", "from book import tools"),
    ],
)
def test_a_wrong_arrow_is_seen(path, source):
    assert len(broken_arrows({path: source})) >= 1


def test_nothing_in_the_package_reads_from_the_book():
    for path in PACKAGE.rglob("*.py"):
        constants = [n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)]
        paths = [x for x in constants if isinstance(x, str) and " " not in x]
        assert not [x for x in paths if re.search(r"(^|/)book(/|$)", x)], path


# Documentation ----------------------------------------------------------------------------------------------------------


def public_callables():
    """Public functions, classes and methods that the package defines itself: (name, object)."""
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, member in vars(module).items():
            if name.startswith("_") or getattr(member, "__module__", None) != module_name:
                continue
            if inspect.isfunction(member):
                yield f"{module_name}.{name}", member
            elif inspect.isclass(member):
                yield f"{module_name}.{name}", member
                for method_name, method in vars(member).items():
                    if inspect.isfunction(method) and not method_name.startswith("_"):
                        yield f"{module_name}.{name}.{method_name}", getattr(member, method_name)


PUBLIC = dict(public_callables())


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_and_class_has_a_docstring(name):
    assert (inspect.getdoc(PUBLIC[name]) or "").strip()
    assert not inspect.getdoc(PUBLIC[name]).startswith(PUBLIC[name].__name__ + "("), "a dataclass's generated text is no docstring"


@pytest.mark.parametrize("name", [name for name, x in PUBLIC.items() if inspect.isfunction(x)])
def test_every_public_function_is_fully_annotated(name):
    signature = inspect.signature(PUBLIC[name])
    missing = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
    assert missing == []
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("module", ["ppo_edu", "ppo_edu.core", "ppo_edu.control", "ppo_edu.lm", "ppo_edu.teach"])
def test_every_exported_name_exists_once(module):
    exported = importlib.import_module(module).__all__
    assert len(set(exported)) == len(exported)
    assert all(hasattr(importlib.import_module(module), name) for name in exported)


def test_the_version_is_one_number_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", ppo_edu.__version__)


# Tests ------------------------------------------------------------------------------------------------------------------


def test_no_test_names_a_directory_of_one_machine():
    places = "|".join(("work", "home", "root", "Users", "tmp"))
    pattern = re.compile(rf"[\"'(= ]/({places})/")
    assert pattern.search("open('/" + "tmp/x')")
    found = [f"{path.name}: {m.group()}" for path in TESTS.rglob("*.py") for m in pattern.finditer(path.read_text(encoding="utf-8"))]
    assert found == []
