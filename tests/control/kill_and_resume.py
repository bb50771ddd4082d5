"""Train in a process that is killed again and again, and resumed each time. Run by test_runs.py in a process of its own.

    python kill_and_resume.py DIRECTORY

DIRECTORY/whole is a run that nothing interrupts, DIRECTORY/killed one that receives SIGKILL at many different moments.
Prints how many kills met a living process. Forking saves importing torch for each of them.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from control_helpers import tiny

from ppo_edu.control import train
from ppo_edu.runs import CHECKPOINT_NAME, LOG_NAME

# about 65 updates
CONFIG = tiny(total_steps=4000, learning_rate=0.01, entropy_coef=0.01, normalize_observations=True, normalize_rewards=True)


def child(directory: Path) -> int:
    """Fork a process that starts the run or, where a checkpoint is, resumes it."""
    pid = os.fork()
    if pid:
        return pid
    resumable = (directory / CHECKPOINT_NAME).exists()
    train(CONFIG, seed=3, progress=False, **{"resume" if resumable else "log_dir": directory})
    os._exit(0)


def wait_until(condition: Callable[[], bool], pid: int) -> bool:
    """Poll; False when the process ended first, or nothing happened for 20 s."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return True
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return False
    return False


def rows(directory: Path) -> int:
    log = directory / LOG_NAME
    return log.read_bytes().count(b"\n") if log.exists() else 0


def main(parent: Path) -> None:
    whole, killed = parent / "whole", parent / "killed"
    assert os.waitpid(child(whole), 0)[1] == 0

    torch.optim.Adam([torch.zeros(1)], fused=True).step()  # imports what torch imports late, once for all children
    moments = random.Random(0)
    kills = 0
    for attempt in range(14):
        pid, before = child(killed), rows(killed)
        delay = moments.uniform(0.0, 0.02)
        if attempt < 2:  # before the first update, perhaps before the first checkpoint
            reached = True
        elif attempt % 3 == 0:  # while a checkpoint is being written
            reached = wait_until((killed / (CHECKPOINT_NAME + ".part")).exists, pid)
            delay = 0.0
        else:  # some updates later, anywhere in one; or at once, between the log's row and its checkpoint
            reached = wait_until(lambda at=before + attempt % 4: rows(killed) > at, pid)
            delay = delay if attempt % 2 else 0.0
        if not reached:
            break
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert os.waitpid(child(killed), 0)[1] == 0
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
