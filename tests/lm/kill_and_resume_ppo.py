"""Train in processes that kill themselves at known moments, and resume each. Run by test_ppo_runs.py in a process of its own.

    python kill_and_resume_ppo.py DIRECTORY

DIRECTORY/whole is a run that nothing interrupts; DIRECTORY/<moment> one that received SIGKILL then, and was resumed with
another policy, whose weights must play no part. Forking saves importing torch for each of them.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from ppo_helpers import count_a, make_policy, run, small

from ppo_edu import runs
from ppo_edu.runs import CHECKPOINT_NAME

CONFIG = small(value_clip_range=0.2, kl_target=1.0, kl_horizon=50.0, anneal_learning_rate=True)
EVERY = 2  # os.replace is called for the reference, then for the checkpoints of update 0, 2, 4 and 6

# name: what is called, at which of its calls to die, and whether before or after it did its work
MOMENTS = {
    "before-the-reference": ("replace", 1, "before"),
    "before-the-first-checkpoint": ("replace", 2, "before"),
    "after-the-first-checkpoint": ("replace", 2, "after"),
    "in-the-first-update": ("reward_fn", 1, "before"),
    "before-any-row-reaches-a-checkpoint": ("append", 1, "after"),
    "some-updates-after-a-checkpoint": ("reward_fn", 4, "before"),
    "between-row-and-checkpoint": ("append", 4, "after"),
    "while-a-checkpoint-is-written": ("replace", 4, "before"),
    "after-a-checkpoint": ("replace", 4, "after"),
    "before-the-last-row": ("append", 6, "before"),
    "before-the-last-checkpoint": ("replace", 5, "before"),
}


def dying(fn: Callable, call: int, when: str) -> Callable:
    """`fn`, but the process dies at its `call`-th call."""
    calls = 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = fn(*args, **kwargs)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapper


def child(directory: Path, moment: tuple[str, int, str] | None = None) -> int:
    """The exit status of a process that starts the run or, where a checkpoint is, resumes it."""
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    reward_fn = count_a
    if moment is not None:
        name, call, when = moment
        if name == "replace":
            runs.os.replace = dying(os.replace, call, when)
        elif name == "append":
            runs.Run.append = dying(runs.Run.append, call, when)
        else:
            reward_fn = dying(count_a, call, when)
    resumable = (directory / CHECKPOINT_NAME).exists()
    policy = make_policy(value="separate", seed=9 if resumable else 0)
    run(policy, CONFIG, reward_fn=reward_fn, seed=3, checkpoint_every=EVERY, **{"resume" if resumable else "log_dir": directory})
    os._exit(0)


def main(parent: Path) -> None:
    run(config=small(updates=1))  # imports what torch and transformers import late, once for all children
    assert child(parent / "whole") == 0
    for name, moment in MOMENTS.items():
        status = child(parent / name, moment)
        assert os.WIFSIGNALED(status), f"{name}: the process was to be killed"
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert child(parent / name) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
