"""Supervised trainings that kill themselves at known moments and are resumed. Run by test_supervised.py in a process of its own.

    python kill_and_resume_supervised.py DIRECTORY

DIRECTORY/<kind>/whole is a run that nothing interrupts; DIRECTORY/<kind>/<moment> one that received SIGKILL then, and was
resumed with another model and another seed, which must play no part. Each `weights.safetensors` is what training left.
"""

import os
import signal
import sys
from pathlib import Path

import safetensors.torch
import torch
from lm_helpers import make_lm, make_tokenizer

from ppo_edu import runs
from ppo_edu.lm import Comparison, Example, RewardModel, SupervisedConfig, train_reward_model, train_sft
from ppo_edu.runs import CHECKPOINT_NAME, module_tensors

TEXTS = ("a", "b c", "c d e", "d", "e f g a", "f")
EXAMPLES = [Example(prompt, f"{prompt} a") for prompt in TEXTS]
COMPARISONS = [Comparison(x, "a a", "b", "first" if "a" in x else "tie") for x in TEXTS]
CONFIG = SupervisedConfig(epochs=3, batch_size=3, learning_rate=1e-2)  # 6 steps
EVERY = 2  # checkpoints at steps 0, 2, 4 and 6
# name: which call of os.replace, or of Run.append, kills the process instead of doing its work
MOMENTS = {
    "before-the-first-checkpoint": ("replace", 1),
    "in-the-first-step": ("append", 1),
    "later": ("append", 4),
    "last": ("replace", 4),
}


def train(kind: str, seed: int, **options) -> torch.nn.Module:
    lm = make_lm("gpt2", seed=seed, attn_pdrop=0.3)  # dropout: the random state must go on, too
    options |= {"config": CONFIG, "seed": seed, "progress": False, "checkpoint_every": EVERY}
    if kind == "sft":
        return train_sft(lm, make_tokenizer(), EXAMPLES, **options).model
    return train_reward_model(RewardModel(lm), make_tokenizer(), COMPARISONS, **options).model


def child(kind: str, directory: Path, moment: tuple[str, int] | None = None) -> int:
    """The exit status of a process that starts the run or, where a checkpoint is, resumes it."""
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    if moment is not None:
        place = runs.os if moment[0] == "replace" else runs.Run
        left, original = [moment[1]], getattr(place, moment[0])

        def dying(*args):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        setattr(place, moment[0], dying)
    resumable = (directory / CHECKPOINT_NAME).exists()
    model = train(kind, 9 if resumable else 3, **{"resume" if resumable else "log_dir": directory})
    safetensors.torch.save_file({name: x.contiguous() for name, x in module_tensors(model, "").items()}, directory / "weights.safetensors")
    os._exit(0)


def main(parent: Path) -> None:
    for kind in ("sft", "reward-model"):
        train(kind, 0)  # imports what torch and transformers import late, once for all children
        assert child(kind, parent / kind / "whole") == 0
        for name, moment in MOMENTS.items():
            status = child(kind, parent / kind / name, moment)
            assert os.WIFSIGNALED(status), f"{name}: the process was to be killed"
            assert os.WTERMSIG(status) == signal.SIGKILL
            assert child(kind, parent / kind / name) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
