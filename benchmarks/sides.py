"""The sides of a comparison: each is a program that prints JSON, in a process and perhaps an environment of its own."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from benchmarks.report import ROOT

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def add_interpreters(parser: argparse.ArgumentParser, **needs: str) -> None:
    """For each side that has an environment of its own, the option --SIDE-python, by default the variable SIDE_PYTHON."""
    for side, what in needs.items():
        default = os.environ.get(f"{side.upper()}_PYTHON")
        parser.add_argument(f"--{side}-python", default=default, help=f"interpreter of an environment with {what}")


def interpreters(parser: argparse.ArgumentParser, args: argparse.Namespace, sides: Iterable[str]) -> dict[str, str]:
    """{side: its interpreter}; a side whose own was not named is left out, and said to be."""
    found = {}
    for side in sides:
        python = getattr(args, f"{side}_python", sys.executable)
        if python is None:
            print(f"{side} is skipped: name an interpreter that has it by --{side}-python or {side.upper()}_PYTHON")
        elif shutil.which(python) is None:
            parser.error(f"--{side}-python must be an executable file, got {python}")
        else:
            found[side] = python
    return found


def run_program(side: str, python: str, program: list[str], *options: str, one_thread: bool = True) -> dict[str, Any]:
    """Run the module `program[0]` with the rest of `program` and `options`; what its last line says.

    Raises: RuntimeError with what it said if it failed.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | (ONE_THREAD if one_thread else {})
    done = subprocess.run([python, "-m", *program, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"side {side} must end with exit status 0, got {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
