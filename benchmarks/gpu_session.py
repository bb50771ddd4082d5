"""A whole batch of runs on one GPU, stage by stage, in 25 minutes at most.

    python -m benchmarks.gpu_session [--stages agreement,roofline,speed,train,tests,scaling] [--time-limit 1500] [--output DIR]

Run it from the repository's root; the package need not be installed, gymnasium and a network are not needed. Every stage is a program
of its own and writes its results as soon as it has them, so that a session that is cut short keeps what it has:

    agreement  gpu_agreement.json     CPU and GPU compute the same; ratios at learning rate 0 (`agreement.py`)
    roofline   gpu_roofline.json      3m, 30m and 124m (`roofline.py`)
    speed      gpu_lm_vs_peers_SIZE.json   the same sizes (`lm_vs_peers.py`), with trl's PPO where an interpreter that has it is
                                      named by TRL_PYTHON, else against the plain loop alone
    train      gpu_train_TASK.json    both tasks with 32 million parameters (`gpu_train.py`); .jsonl while they run
    tests      in gpu_session.json    tests/core and tests/lm, those for CUDA among them, without files whose packages are not here
    scaling    gpu_scaling.json       growth, levers, drift (`scaling.py`)

A program that is still running when its share of the time is over is stopped. `gpu_session.json` says of each: command, seconds,
exit status and the end of what it printed. The session's exit status is 1 where a program's was not 0.
`--device cpu --tiny` runs the same programs on the smallest work there is: a smoke test, whose results mean nothing.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.lm_setup import add_device_option
from benchmarks.metadata import machine_metadata
from benchmarks.report import ROOT, data_path, write_json

NAME = "gpu_session"
STAGES = ("agreement", "roofline", "speed", "train", "tests", "scaling")
SIZES = ("3m", "30m", "124m")
TAIL = 3_000  # characters of what a program printed
NEEDED = {"tests/core/test_oracles.py": ("gymnasium", "stable_baselines3", "tensordict", "torchrl")}  # packages of a test file
TRAIN_MARGIN = 60.0  # seconds between the end of PPO and the end of its program: evaluation, writing


@dataclass(frozen=True)
class Program:
    """One program of a stage."""

    stage: str
    arguments: list[str]  # of the Python interpreter
    seconds: float  # it may take


@dataclass(frozen=True)
class Outcome:
    """What came of a program."""

    stage: str
    command: str
    seconds: float
    status: int | None  # None: stopped, because its time was over
    output: str  # the end of it


def programs(stages: list[str], device: str, folder: Path, *, tiny: bool) -> list[Program]:
    """What the stages run, in order."""

    def benchmark(stage: str, seconds: float, module: str, *options: str, output: str) -> Program:
        return Program(stage, ["-m", f"benchmarks.{module}", *options, "--device", device, "--output", str(folder / output)], seconds)

    absent = [file for file, packages in NEEDED.items() if not all(map(find_spec, packages))]
    pytest = ["-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *(f"--ignore={file}" for file in absent)]
    sizes = ("small",) if tiny else SIZES
    if tiny:
        roofline, speed, scaling = ["--decoding", "small", "--updates", "1"], ["--rounds", "1", "--updates", "2"], ["--sections", "drift"]
        tests, train, train_seconds = ["tests/core/test_masking.py"], ["--tiny"], 60.0
    else:
        roofline, speed, scaling = [], ["--rounds", "1", "--updates", "8"], []
        tests, train, train_seconds = ["tests/core", "tests/lm", *(["-n", "8"] if find_spec("xdist") else [])], [], 150.0
    planned = {
        "agreement": [benchmark("agreement", 240, "agreement", "--sizes", *sizes, output="gpu_agreement.json")],
        "tests": [Program("tests", [*pytest, *tests], 420)],
        "roofline": [benchmark("roofline", 420, "roofline", "--sizes", *sizes, *roofline, output="gpu_roofline.json")],
        "speed": [benchmark("speed", 300, "lm_vs_peers", "--size", size, *speed, output=f"gpu_lm_vs_peers_{size}.json") for size in sizes],
        "train": [
            benchmark(
                "train",
                train_seconds + TRAIN_MARGIN,
                "gpu_train",
                *(task, "--seconds", f"{train_seconds:g}", *train),
                output=f"gpu_train_{task}.json",
            )
            for task in ("addition", "reviews")
        ],
        "scaling": [benchmark("scaling", 420, "scaling", *scaling, output="gpu_scaling.json")],
    }
    return [program for stage in STAGES if stage in stages for program in planned[stage]]


def run_program(program: Program, seconds: float) -> Outcome:
    """Run it from the repository's root for at most so many seconds; what it has started by then is stopped with it."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, *program.arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    begun = time.perf_counter()
    stopped = False
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        stopped = True
        os.killpg(process.pid, signal.SIGKILL)  # its own session: nothing else is in it
        output, _ = process.communicate()
    command = " ".join(["python", *program.arguments])
    return Outcome(program.stage, command, time.perf_counter() - begun, None if stopped else process.returncode, output[-TAIL:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_option(parser)
    parser.add_argument("--stages", default=",".join(STAGES), help="separated by commas; they run in the order above")
    parser.add_argument("--time-limit", type=float, default=1_500.0, help="seconds for all of it")
    parser.add_argument("--output", type=Path, default=data_path(NAME).parent, help="folder of the results; default: the package's data")
    parser.add_argument("--tiny", action="store_true", help="the smallest work there is; needs --output")
    args = parser.parse_args()
    stages = args.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        parser.error(f"--stages must be some of {','.join(STAGES)}, got {unknown[0]!r}")
    if args.output.resolve() == data_path(NAME).parent and (args.tiny or args.device == "cpu"):
        parser.error("--output must be given for a run that measures no GPU: its results must not stand among the real ones")
    begun = time.perf_counter()
    folder = args.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for program in programs(stages, args.device, folder, tiny=args.tiny):
        left = args.time_limit - (time.perf_counter() - begun)
        if left <= 0:
            print(f"no time is left for {program.stage}: {' '.join(program.arguments)}")
            continue
        outcomes.append(run_program(program, min(program.seconds, left)))
        last = outcomes[-1]
        print(f"{last.stage}: status {last.status} after {last.seconds:.0f} s: {last.command}\n{last.output[-600:]}", flush=True)
        result = {
            "question": "which programs ran on this machine, and how they ended",
            "command": f"python -m benchmarks.gpu_session --device {args.device} --stages {args.stages} --time-limit {args.time_limit:g}",
            "metadata": machine_metadata("transformers"),
            "programs": [asdict(outcome) | {"command": outcome.command.replace(str(folder), "DIR")} for outcome in outcomes],
        }
        write_json(result, folder / f"{NAME}.json")
    if any(outcome.status != 0 for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
