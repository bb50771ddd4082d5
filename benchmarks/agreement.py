"""Whether a GPU computes what the CPU computes, and whether sampling and training agree there.

    python -m benchmarks.agreement [--device cuda|cpu] [--sizes 3m 30m 124m] [--output FILE]

For each size of `lm_workload.py`, 16 sequences of 16 + 24 tokens:

CPU against GPU, float32, TF32 off, the same weights and tokens: the largest difference of a log-probability, of a value and of the
loss, and the distance of all gradients together, relative to their length on the CPU.

Learning rate 0, where every ratio should be 1: the mean of |ratio - 1| between sampling and the pass that training differentiates,
and the largest against the old log-probabilities: in float32; in bfloat16; and as `GPU_SETTINGS` has it, old log-probabilities
recomputed (without sorting by length, which gives a part another shape in training than in scoring; on a CPU nothing is compiled,
since that takes minutes there).

Each number has its limit in `LIMITS`; the program ends with status 1 where one is above it. The JSON, `gpu_agreement.json`:

    question, command, metadata, limits
    sizes     {name: {"difference": {"log_probs", "values", "loss", "gradients"},
              "drift": {"float32" | "bfloat16" | "bfloat16_recomputed": {"sampling_mismatch", "largest_ratio_deviation"}}}}
    failed    what is above its limit, in words
"""

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lm_setup import Training, add_device_option, make_policy, ppo_config, prepare
from benchmarks.lm_workload import SIZES, Workload
from benchmarks.metadata import machine_metadata
from benchmarks.report import data_path, write_json
from ppo_edu.lm import GPU_SETTINGS, LMPPOConfig, PolicyWithValue, Responses, generate, ppo
from ppo_edu.lm.models import log_probs_and_values

NAME = "gpu_agreement"
LIMITS = {
    "log_probs": 1e-4,
    "values": 1e-3,
    "loss": 1e-4,
    "gradients": 1e-3,  # relative
    "float32 sampling_mismatch": 1e-5,
    "bfloat16 sampling_mismatch": 1e-2,
    "bfloat16_recomputed sampling_mismatch": 1e-2,
    "bfloat16_recomputed largest_ratio_deviation": 0.0,
}
LOW = {"precision": "bfloat16", "decoding": "static", "finish_test_every": 8}
RECOMPUTED = {"cuda": GPU_SETTINGS | {"sort_by_length": False}, "cpu": LOW | {"recompute_log_probs": True}}


def on(device: str, batch: ppo.Batch) -> ppo.Batch:
    """A batch with all its tensors on another device."""
    responses = replace(batch.responses, **{f.name: getattr(batch.responses, f.name).to(device) for f in fields(Responses)})
    tensors = {f.name: getattr(batch, f.name).to(device) for f in fields(ppo.Batch) if f.name != "responses"}
    return ppo.Batch(responses, **tensors)


def some_batch(policy: PolicyWithValue, responses: Responses) -> ppo.Batch:
    """Sampled responses with old log-probabilities a little off, so that ratios differ from 1, and random advantages and returns."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        log_probs, values, _ = log_probs_and_values(policy, responses)
    noise, advantages, returns = torch.randn(3, *log_probs.shape, generator=generator)
    old = torch.where(responses.mask, log_probs + 0.1 * noise, 0.0)
    return ppo.Batch(responses, old, old, torch.where(responses.mask, values, 0.0), advantages, returns)


def computed(policy: PolicyWithValue, batch: ppo.Batch, config: LMPPOConfig) -> dict[str, Tensor]:
    """Log-probabilities, values, loss and all gradients in one vector; on the CPU."""
    policy.zero_grad()
    log_probs, values, _ = log_probs_and_values(policy, batch.responses, temperature=config.temperature)
    loss, *_ = ppo.ppo_loss(policy, batch, config, 0.0)
    loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    found = {"log_probs": log_probs, "values": values, "loss": loss, "gradients": gradients}
    return {name: x.detach().cpu() for name, x in found.items()}


def difference(work: Workload, device: str) -> dict[str, float]:
    """What CPU and device compute differently."""
    policy, tokenizer, prompts = make_policy(replace(work, device="cpu"))
    nn.init.normal_(policy.value_head.weight, std=0.02, generator=torch.Generator().manual_seed(work.seed))
    config = ppo_config(work, 1)
    generator = torch.Generator().manual_seed(work.seed)
    chosen = prompts[: work.sequences]
    responses = generate(policy, tokenizer, chosen, max_new_tokens=work.new_tokens, temperature=work.temperature, generator=generator)
    batch = some_batch(policy, responses)
    here = computed(policy, batch, config)
    there = computed(policy.to(device), on(device, batch), config)
    found = {name: float((here[name] - there[name]).abs().max()) for name in ("log_probs", "values", "loss")}
    return found | {"gradients": float((here["gradients"] - there["gradients"]).norm() / here["gradients"].norm())}


def drift(work: Workload, settings: dict[str, Any]) -> dict[str, float]:
    """Ratios at learning rate 0."""
    torch.compiler.reset()
    policy, tokenizer, prompts = make_policy(work)
    row = Training(policy, tokenizer, prompts, ppo_config(work, 1, learning_rate=0.0, **settings), seed=work.seed).update()
    return {name: row[name] for name in ("sampling_mismatch", "largest_ratio_deviation")}


def above(sizes: dict[str, Any]) -> list[str]:
    """The numbers above their limits, in words."""
    failed = []
    for size, found in sizes.items():
        numbers = found["difference"] | {f"{kind} {name}": x for kind, row in found["drift"].items() for name, x in row.items()}
        failed += [f"{size}: {name} {numbers[name]:.3g} above {limit:g}" for name, limit in LIMITS.items() if not numbers[name] <= limit]
    return failed


def run(device: str, sizes: list[str], *, command: str, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All sizes. `save` is given the result after each."""
    prepare(device)
    result = {
        "question": "does the device compute what the CPU computes, and do sampling and training agree on it",
        "command": command,
        "metadata": machine_metadata("transformers"),
        "limits": LIMITS,
        "sizes": {},
    }
    drifts = {"float32": {}, "bfloat16": LOW, "bfloat16_recomputed": RECOMPUTED[device]}
    for name in sizes:
        work = replace(SIZES[name], device=device, sequences=16, prompt_tokens=16, new_tokens=24, minibatches=2, epochs=1)
        drifted = {kind: drift(work, settings) for kind, settings in drifts.items()}
        result["sizes"][name] = found = {"difference": difference(work, device), "drift": drifted}
        result["failed"] = above(result["sizes"])
        save(result)
        print(name, found, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_option(parser)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["3m", "30m", "124m"])
    parser.add_argument("--output", type=Path, default=data_path(NAME))
    args = parser.parse_args()
    command = f"python -m benchmarks.agreement --device {args.device} --sizes {' '.join(args.sizes)}"
    result = run(args.device, args.sizes, command=command, save=lambda result: write_json(result, args.output))
    if result["failed"]:
        raise SystemExit("\n".join(result["failed"]))


if __name__ == "__main__":
    main()
