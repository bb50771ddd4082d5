"""The newest trl's side of `lm_vs_peers`: its GRPO trainer, the nearest it maintains to PPO. Runs in an environment of its own.

    python3 -m venv /tmp/grpo-env
    /tmp/grpo-env/bin/pip install torch==2.13.0 trl transformers==5.23.0 accelerate peft datasets
    /tmp/grpo-env/bin/python -m benchmarks.peers.trl_grpo --workload FOLDER --updates 6

The last line printed is JSON; `benchmarks/lm_vs_peers.py` documents it.

GRPO does less: it has no value model, and therefore no values, no GAE and no value loss. It samples several responses to each
prompt, here `GROUP`, so that the same number of sequences starts from fewer prompts. The rest is alike: `num_iterations` times
`steps_per_generation` are the epochs and minibatches (minibatches are drawn once and repeated, not shuffled anew), `beta`
prices the KL to the reference, in the loss instead of in the reward. Gradient checkpointing, on by default, is off.

What is timed: one turn of generation and its optimiser steps, from `on_step_end` to `on_step_end`. Generation is its `_generate`;
scoring is the rest of `_generate_and_score_completions` (log-probs, reference, reward, advantages); the update is what follows.
What is not: start-up, saving, evaluation, logging.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset
from transformers import GPT2LMHeadModel, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.lm_workload import WordShare, load_workload, main
from benchmarks.metadata import peak_memory_mib, versions
from benchmarks.peers.trl_shared import Clock, training_arguments

GROUP = 8  # responses to each prompt, trl's default


def run(folder: Path, updates: int) -> dict:
    """Train `updates` updates on the workload in `folder`; seconds per update and memory."""
    work, tokenizer, prompts = load_workload(folder)
    before = peak_memory_mib(work.device)
    steps = work.epochs * work.minibatches
    clock, reward_fn = Clock(work.device, steps), WordShare()
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            **training_arguments(work, output),
            per_device_train_batch_size=work.sequences // work.minibatches,
            steps_per_generation=work.minibatches,
            num_iterations=work.epochs,
            num_generations=GROUP,
            max_steps=steps * updates,
            max_completion_length=work.new_tokens,
            temperature=work.temperature,
            beta=work.kl_coef,
            epsilon=work.clip_range,
            logging_strategy="no",
        )
        trainer = GRPOTrainer(
            model=GPT2LMHeadModel.from_pretrained(folder),  # the reference is loaded from the same folder
            reward_funcs=lambda prompts, completions, **_: reward_fn(prompts, completions).tolist(),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer._generate = clock.stamped(trainer._generate, before="generate", after="generated")
        trainer._generate_and_score_completions = clock.stamped(trainer._generate_and_score_completions, after="update")
        trainer.train()
    reward_fn.check(work, updates)
    return {
        "updates": clock.rows,
        "memory_before_mib": before,
        "memory_peak_mib": peak_memory_mib(work.device),
        "versions": versions("trl", "torch", "transformers", "accelerate"),
    }


if __name__ == "__main__":
    main(run, __doc__)
