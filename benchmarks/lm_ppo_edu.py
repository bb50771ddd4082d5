"""This package's side of `lm_vs_peers`: `train_ppo`, with a value model of its own or with a value head on the policy's trunk.

python -m benchmarks.lm_ppo_edu separate|shared --workload FOLDER --updates 6
"""

import sys
from functools import partial
from pathlib import Path

from transformers import GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.lm_setup import ppo_config
from benchmarks.lm_workload import PHASES, WordShare, load_workload, main
from benchmarks.metadata import peak_memory_mib, versions
from ppo_edu.lm import GPU_SETTINGS, PolicyWithValue, train_ppo


def run(folder: Path, updates: int, *, shared_trunk: bool) -> dict:
    """Train `updates` updates on the workload in `folder`; seconds per update and memory. On a GPU with `GPU_SETTINGS`."""
    work, tokenizer, prompts = load_workload(folder)
    before = peak_memory_mib(work.device)
    value_model = None if shared_trunk else GPT2LMHeadModel.from_pretrained(folder)
    policy = PolicyWithValue(GPT2LMHeadModel.from_pretrained(folder), value_model=value_model).to(work.device)
    config = ppo_config(work, updates, **(GPU_SETTINGS if work.device == "cuda" else {}))
    reward_fn = WordShare()
    log = train_ppo(policy, tokenizer, prompts, reward_fn, config, seed=work.seed, progress=False).log
    reward_fn.check(work, updates)
    ends = [0.0, *(row["seconds"] for row in log)]
    return {
        "updates": [
            {"total": end - begin, **{phase: row[f"seconds_{phase}"] for phase in PHASES}}
            for row, begin, end in zip(log, ends, ends[1:], strict=False)
        ],
        "memory_before_mib": before,
        "memory_peak_mib": peak_memory_mib(work.device),
        "versions": versions("torch", "transformers"),
    }


if __name__ == "__main__":
    disable_progress_bar()
    value_model, *arguments = sys.argv[1:]
    if value_model not in ("separate", "shared"):
        raise SystemExit(f"the value model must be separate or shared, got {value_model}")
    main(partial(run, shared_trunk=value_model == "shared"), __doc__, argv=arguments)
