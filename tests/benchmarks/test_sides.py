"""A side is a program of its own: which interpreter runs it, what it may import, what happens when it fails."""

import argparse
import ast
import subprocess
import sys

import pytest

from benchmarks import cartpole_vs_peers, lm_vs_peers, sides
from benchmarks.report import ROOT
from benchmarks.sides import add_interpreters, interpreters, run_program

PEERS = sorted((ROOT / "benchmarks" / "peers").glob("*.py"))


@pytest.fixture
def parser(monkeypatch):
    monkeypatch.delenv("SBX_PYTHON", raising=False)
    monkeypatch.setenv("TIANSHOU_PYTHON", sys.executable)
    parser = argparse.ArgumentParser()
    add_interpreters(parser, sbx="sbx-rl", tianshou="tianshou")
    return parser


def test_a_side_without_its_interpreter_is_left_out(parser, capsys):
    found = interpreters(parser, parser.parse_args([]), ["ours", "sbx", "tianshou"])
    assert found == {"ours": sys.executable, "tianshou": sys.executable}
    assert "sbx is skipped: name an interpreter that has it by --sbx-python or SBX_PYTHON" in capsys.readouterr().out


def test_an_interpreter_that_is_none_is_an_error(parser, capsys):
    with pytest.raises(SystemExit):
        interpreters(parser, parser.parse_args(["--sbx-python", "/nowhere/python"]), ["ours", "sbx"])
    assert "--sbx-python must be an executable file, got /nowhere/python" in capsys.readouterr().err


@pytest.mark.parametrize("one_thread", [True, False])
def test_a_program_runs_in_its_interpreter_and_its_last_line_counts(monkeypatch, one_thread):
    calls = []

    def run(line, **options):
        calls.append((line, options["env"]))
        return subprocess.CompletedProcess(line, 0, 'noise\n{"seconds": 1.5}\n', "")

    monkeypatch.setattr(sides.os, "environ", {"PATH": "/bin"})
    monkeypatch.setattr(sides.subprocess, "run", run)
    assert run_program("sbx", "/elsewhere/python", ["module", "sbx"], "--seed", "2", one_thread=one_thread) == {"seconds": 1.5}
    ((line, environment),) = calls
    assert line == ["/elsewhere/python", "-m", "module", "sbx", "--seed", "2"]
    assert environment["PATH"] == "/bin"
    assert ("OMP_NUM_THREADS" in environment) == ("XLA_FLAGS" in environment) == one_thread


def test_a_program_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"side ours must end with exit status 0, got 1:(.|\n)*No module named benchmarks\.nothing"):
        run_program("ours", sys.executable, ["benchmarks.nothing"])


def imports(path):
    """The modules that a file imports, directly or through modules of `benchmarks`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("benchmarks.")]
    return names.union(*(imports(file) for file in ours if file.exists()))


@pytest.mark.parametrize("path", PEERS, ids=lambda path: path.stem)
def test_peers_import_nothing_of_the_package(path):
    """They run in environments that do not have it."""
    assert not {name for name in imports(path) if name.split(".")[0] == "ppo_edu"}


def test_imports_are_followed():
    """The check above sees through `benchmarks`: our own sides do import the package."""
    assert "ppo_edu.control" in imports(ROOT / "benchmarks" / "cartpole_ppo_edu.py")
    assert "benchmarks.metadata" in imports(ROOT / "benchmarks" / "peers" / "trl_grpo.py")


@pytest.mark.parametrize("module", [cartpole_vs_peers, lm_vs_peers], ids=lambda module: module.NAME)
def test_every_side_has_a_program(module):
    for name, *_ in module.PROGRAMS.values():
        assert (ROOT / f"{name.replace('.', '/')}.py").exists()
