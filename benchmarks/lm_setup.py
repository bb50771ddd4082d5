"""What `roofline`, `scaling` and `gpu_session` share: a policy made from a `Workload`, its PPO config, and updates with their clock."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from benchmarks.lm_workload import WordShare, Workload, load_workload, save_workload
from benchmarks.metadata import now
from ppo_edu.lm import LMPPOConfig, PolicyWithValue, ppo
from ppo_edu.runs import Row, Run


def make_policy(workload: Workload) -> tuple[PolicyWithValue, PreTrainedTokenizerBase, list[str]]:
    """A fresh policy with a value head on its trunk, on the workload's device; its tokenizer and prompts."""
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_workload(workload, Path(folder))
        _, tokenizer, prompts = load_workload(Path(folder))
        lm = GPT2LMHeadModel.from_pretrained(folder)
    return PolicyWithValue(lm).to(workload.device).eval(), tokenizer, prompts


def ppo_config(workload: Workload, updates: int, **settings: Any) -> LMPPOConfig:
    """The workload's PPO settings; `settings` are further fields, or other values, of `LMPPOConfig`."""
    names = (
        "epochs",
        "minibatches",
        "learning_rate",
        "temperature",
        "kl_coef",
        "clip_range",
        "value_clip_range",
        "value_coef",
        "gamma",
        "lam",
    )
    fields = {name: getattr(workload, name) for name in names}
    fields |= {"updates": updates, "batch_size": workload.sequences, "max_new_tokens": workload.new_tokens}
    return LMPPOConfig(**(fields | settings))


class Training:
    """A training that goes on update by update, so that several can take turns on a noisy machine."""

    def __init__(
        self, policy: PolicyWithValue, tokenizer: PreTrainedTokenizerBase, prompts: list[str], config: LMPPOConfig, *, seed: int = 0
    ) -> None:
        self.prompts, self.config, self.reward_fn = prompts, config, WordShare()
        self.state = ppo.start(policy, tokenizer, config, None, seed, Run("lm-ppo", {}))

    def update(self) -> Row:
        """One update: what `train_ppo` would log, and the seconds of it all, `seconds_total`.

        On a GPU the phases need no more synchronisation than they have: each ends by reading a number.
        """
        begun = now(self.device)
        row = ppo.train_update(self.state, self.prompts, self.reward_fn, self.config)
        self.state.update += 1
        return row | {"seconds_total": now(self.device) - begun}

    @property
    def device(self) -> str:
        """Where the policy is."""
        return self.state.policy.device.type


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """`--device`: a GPU where there is one."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")


def prepare(device: str) -> None:
    """One thread on a CPU, as in the other benchmarks; on a GPU, float32 that is float32."""
    if device == "cpu":
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
