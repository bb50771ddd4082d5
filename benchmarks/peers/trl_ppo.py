"""The trl side of `lm_vs_peers`: its own PPO trainer, its own loop, timed from inside. Runs in trl's own environment.

    python3 -m venv /tmp/trl-env
    /tmp/trl-env/bin/pip install torch==2.13.0 trl==1.12.0 transformers==5.23.0 accelerate peft datasets
    /tmp/trl-env/bin/python -m benchmarks.peers.trl_ppo --workload FOLDER --updates 6

The last line printed is JSON; `benchmarks/lm_vs_peers.py` documents it.

What is timed: one turn of the trainer's loop, from `on_step_end` to `on_step_end`. Generation is its `batch_generation`;
scoring is everything from there to the first minibatch (reference, values, reward, advantages); the update ends at
`on_step_end`. What lies between two turns (garbage collection, the data loader) is in the total alone.
What is not: start-up, saving, evaluation, printing, samples. The reward model that trl wants is a stub that counts words in
the token ids, so its cost is nil. Gradient checkpointing, which trl switches on by default, is off; bfloat16 is on on a GPU alone.
"""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, PrinterCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.lm_workload import REWARDED, load_workload, main
from benchmarks.metadata import peak_memory_mib, versions
from benchmarks.peers.trl_shared import Clock, training_arguments


class WordShare(torch.nn.Module):
    """The cheapest thing that trl takes for a reward model: the share of one word among the new tokens."""

    base_model_prefix = "backbone"

    def __init__(self, word_id: int, prompt_tokens: int, special_ids: list[int]) -> None:
        super().__init__()
        self.word_id, self.prompt_tokens = word_id, prompt_tokens
        self.register_buffer("special_ids", torch.tensor(special_ids))
        self.real_tokens = 0

    def backbone(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=(input_ids,))

    def score(self, input_ids: torch.Tensor) -> torch.Tensor:  # [B, T] -> [B, T, 1], of which trl reads the last real position
        responses = input_ids[:, self.prompt_tokens :]
        self.real_tokens += int((~torch.isin(responses, self.special_ids)).sum())
        share = (responses == self.word_id).float().mean(dim=1)
        return share[:, None, None].expand(*input_ids.shape, 1)


def run(folder: Path, updates: int) -> dict:
    """Train `updates` updates on the workload in `folder`; seconds per update and memory."""
    work, tokenizer, texts = load_workload(folder)
    before = peak_memory_mib(work.device)
    prompts = tokenizer(texts)["input_ids"]
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder) for _ in range(2))
    value_model = GPT2ForSequenceClassification.from_pretrained(folder, num_labels=1)
    special_ids = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    reward_model = WordShare(tokenizer.convert_tokens_to_ids(REWARDED), work.prompt_tokens, special_ids)
    clock = Clock(work.device)
    with tempfile.TemporaryDirectory() as output:
        config = PPOConfig(
            **training_arguments(work, output),
            per_device_train_batch_size=work.sequences,
            gradient_accumulation_steps=1,
            num_mini_batches=work.minibatches,
            num_ppo_epochs=work.epochs,
            total_episodes=work.sequences * updates,
            response_length=work.new_tokens,
            local_rollout_forward_batch_size=work.sequences,
            temperature=work.temperature,
            kl_coef=work.kl_coef,
            cliprange=work.clip_range,
            cliprange_value=work.value_clip_range,
            vf_coef=work.value_coef,
            gamma=work.gamma,
            lam=work.lam,
            missing_eos_penalty=None,
            num_sample_generations=0,
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward_model,
            value_model=value_model,
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            eval_dataset=Dataset.from_dict({"input_ids": prompts[: work.sequences]}),  # demanded, never used
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        ppo_trainer.batch_generation = clock.stamped(ppo_trainer.batch_generation, before="generate", after="generated")
        trainer.accelerator.accumulate = clock.stamped(trainer.accelerator.accumulate, before="update")
        trainer.train()
    expected = updates * work.sequences * work.new_tokens
    if reward_model.real_tokens != expected:
        raise RuntimeError(f"new tokens must be {expected}, none of them special, got {reward_model.real_tokens}")
    return {
        "updates": clock.rows,
        "memory_before_mib": before,
        "memory_peak_mib": peak_memory_mib(work.device),
        "versions": versions("trl", "torch", "transformers", "accelerate"),
    }


if __name__ == "__main__":
    main(run, __doc__)
