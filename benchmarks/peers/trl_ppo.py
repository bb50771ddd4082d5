"""The trl side of `lm_vs_peers`: its own PPO trainer, its own loop, timed from inside. Runs in trl's own environment.

    python3 -m venv /tmp/trl-env
    /tmp/trl-env/bin/pip install torch==2.13.0 trl==1.12.0 transformers==5.23.0 accelerate peft datasets
    /tmp/trl-env/bin/python benchmarks/peers/trl_ppo.py --workload FOLDER --updates 6

Imports nothing of this project: FOLDER holds the model, the tokenizer, `prompts.json` and `workload.json`. The last line
printed is JSON; `benchmarks/lm_vs_peers.py` documents it.

What is timed: one turn of the trainer's loop, from `on_step_end` to `on_step_end`. Generation is its `batch_generation`;
scoring is everything from there to the first minibatch (reference, values, reward, advantages); the update ends at
`on_step_end`. What lies between two turns (garbage collection, the data loader) is in the total alone.
What is not: start-up, saving, evaluation, printing, samples. The reward model that trl wants is a stub that counts words in
the token ids, so its cost is nil. Gradient checkpointing and bfloat16, which trl switches on by default, are off.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import AutoTokenizer, GPT2ForSequenceClassification, GPT2LMHeadModel, PrinterCallback, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


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


class Clock(TrainerCallback):
    """Time stamps of one turn of the trainer's loop after the other."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.stamps: dict[str, float] = {}
        self.collecting = self.begun_collecting = 0.0
        gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, info: dict) -> None:
        if info["generation"] < 2:  # the small ones come by themselves
            return
        if phase == "start":
            self.begun_collecting = time.perf_counter()
        else:
            self.collecting += time.perf_counter() - self.begun_collecting

    def stamp(self, name: str) -> None:
        self.stamps.setdefault(name, time.perf_counter())  # the first of its kind in this turn

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.stamps, self.collecting = {"begin": time.perf_counter()}, 0.0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        s, end = self.stamps, time.perf_counter()
        self.rows.append(
            {
                "total": end - s["begin"],
                "generation": s["generated"] - s["generate"],
                "scoring": s["update"] - s["generated"],
                "update": end - s["update"],
                "garbage_collection": self.collecting,
            }
        )
        self.stamps, self.collecting = {"begin": end}, 0.0


def run(folder: Path, updates: int) -> dict:
    """Train `updates` updates on the workload in `folder`; seconds per update and memory."""
    before = peak_memory_mib()
    work = json.loads((folder / "workload.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = tokenizer(json.loads((folder / "prompts.json").read_text()))["input_ids"]
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder) for _ in range(2))
    value_model = GPT2ForSequenceClassification.from_pretrained(folder, num_labels=1)
    special_ids = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    reward_model = WordShare(tokenizer.convert_tokens_to_ids("w05"), work["prompt_tokens"], special_ids)
    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        config = PPOConfig(
            output_dir=output,
            per_device_train_batch_size=work["sequences"],
            gradient_accumulation_steps=1,
            num_mini_batches=work["minibatches"],
            num_ppo_epochs=work["epochs"],
            total_episodes=work["sequences"] * updates,
            response_length=work["new_tokens"],
            local_rollout_forward_batch_size=work["sequences"],
            temperature=work["temperature"],
            learning_rate=work["learning_rate"],
            lr_scheduler_type="constant",
            kl_coef=work["kl_coef"],
            cliprange=work["clip_range"],
            cliprange_value=work["value_clip_range"],
            vf_coef=work["value_coef"],
            gamma=work["gamma"],
            lam=work["lam"],
            missing_eos_penalty=None,
            num_sample_generations=0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=work["seed"],
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward_model,
            value_model=value_model,
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            eval_dataset=Dataset.from_dict({"input_ids": prompts[: work["sequences"]]}),  # demanded, never used
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        batch_generation, accumulate = ppo_trainer.batch_generation, trainer.accelerator.accumulate

        def timed_generation(*args, **kwargs):
            clock.stamp("generate")
            answer = batch_generation(*args, **kwargs)
            clock.stamp("generated")
            return answer

        def timed_accumulate(*models):
            clock.stamp("update")
            return accumulate(*models)

        ppo_trainer.batch_generation, trainer.accelerator.accumulate = timed_generation, timed_accumulate
        trainer.train()
    expected = updates * work["sequences"] * work["new_tokens"]
    if reward_model.real_tokens != expected:
        raise RuntimeError(f"new tokens must be {expected}, none of them special, got {reward_model.real_tokens}")
    return {
        "updates": clock.rows,
        "memory_before_mib": before,
        "memory_peak_mib": peak_memory_mib(),
        "versions": {name: version(name) for name in ("trl", "torch", "transformers", "accelerate")},
    }


def peak_memory_mib() -> float:
    """Largest resident size of this process so far (Linux). Not `ru_maxrss`: that starts at the parent's size."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status must have a line VmHWM, it has none")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(arguments.workload, arguments.updates)))
