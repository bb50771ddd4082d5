"""How the cost of a PPO update grows with the work, what each throughput lever is worth, and how far precision moves the ratios.

    python -m benchmarks.scaling [--device cpu|cuda] [--sections growth levers drift] [--updates 5] [--output FILE]

The models, prompts and reward are those of `lm_workload.py`; the critic is a head on the policy's trunk. Seconds are medians over the
updates after a warm-up, those that `train_ppo` logs; where memory does not forbid it, what is compared takes turns, update by
update, so that all meet the same weather on a noisy machine. On a CPU one thread, float32 but for the levers; four minutes.

growth   One size at a time leaves the base point: sequences, new tokens, width (heads are 32 wide, on a GPU 64), layers. One epoch; on a
         GPU with `GPU_SETTINGS`, the update not compiled. Memory: on a CPU what autograd keeps of one part (torch's saved tensors,
         parameters excluded), on a GPU `torch.cuda.max_memory_allocated` from the model's making on; beside it what
         `memory_estimate` says.
levers   Settings of `LMPPOConfig`, each switched on alone, and all of `GPU_SETTINGS` together. Here responses end: their lengths vary
         (the end token has probability 1 / new tokens at each step) and so do the prompts', or sorting by length would have
         nothing to cut. Tokens per second are new, real ones. `first_update_seconds` has the compilation in it.
drift    Learning rate 0, so that every ratio should be 1: the mean of |ratio - 1| between sampling and the pass that training
         differentiates (`sampling_mismatch`), and the largest against the old log-probabilities (`largest_ratio_deviation`),
         by width and precision, with old log-probabilities from sampling and recomputed. Random weights, two layers.

The JSON, `ppo_edu/teach/data/scaling.json` (of a GPU: `gpu_scaling.json`):

    question, command, metadata   what was asked, how, on which machine (`load_average`: of the last minute, as it began)
    growth    {"base": the Workload, "settings", "points": [{"varied": field, "value", "parameters", "token_step_seconds":
              generation / new tokens, "generation_seconds", "scoring_seconds", "update_seconds",
              "memory_bytes", "estimated_bytes", "memory_kind": "saved tensors of a part" | "peak"}]}
    levers    {"workload", "rows": [{"name", "settings", "tokens_per_second", "generation_seconds", "scoring_seconds",
              "update_seconds", "total_seconds", "first_update_seconds", "response_length": mean, "relative": tokens per second
              over the first row's}]}
    drift     {"workload", "rows": [{"width", "precision", "recompute_log_probs", "sampling_mismatch", "largest_ratio_deviation"}]}
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.lm_setup import Training, add_device_option, make_policy, ppo_config, prepare
from benchmarks.lm_workload import EOS, PHASES, SIZES, Workload
from benchmarks.metadata import machine_metadata
from benchmarks.report import data_path, write_json
from ppo_edu.lm import GPU_SETTINGS, PolicyWithValue, memory_estimate
from ppo_edu.lm.memory import LOGIT_COPIES
from ppo_edu.lm.models import log_probs_and_values
from ppo_edu.lm.sequences import Sequences
from ppo_edu.runs import Row

NAME = "scaling"
SECTIONS = ("drift", "levers", "growth")  # what is soon done first
BASE = {
    "cpu": Workload(sequences=32, prompt_tokens=16, new_tokens=32, layers=2, width=128, heads=4, vocabulary=512, epochs=1),
    "cuda": replace(SIZES["30m"], device="cuda", epochs=1),
}
GROWTH = {
    "cpu": {"sequences": (8, 16, 32, 64), "new_tokens": (16, 32, 64, 128), "width": (64, 128, 256, 384), "layers": (1, 2, 4, 8)},
    "cuda": {"sequences": (64, 256, 1024), "new_tokens": (64, 128, 256), "width": (256, 512, 1024), "layers": (4, 8, 16)},
}
GROWTH_SETTINGS = {"cpu": {}, "cuda": GPU_SETTINGS | {"compiled_update": False}}  # compiling that for each width takes minutes
HEAD_SIZE = {"cpu": 32, "cuda": 64}
LEVERS = {
    "plain": {},
    "precision": {"precision": "bfloat16"},
    "static cache": {"decoding": "static"},
    "compiled decoding": {"decoding": "compiled"},
    "compiled update": {"compiled_update": True},
    "sort by length": {"sort_by_length": True},
    "finish test every 8": {"finish_test_every": 8},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "recomputed log-probs": {"recompute_log_probs": True},
    "all of GPU_SETTINGS": GPU_SETTINGS,
}
LEVER_WORK = {
    "cpu": Workload(sequences=32, prompt_tokens=16, new_tokens=48, layers=2, width=128, heads=4, vocabulary=512, epochs=2, temperature=1.0),
    "cuda": replace(SIZES["30m"], device="cuda", temperature=1.0),
}
DRIFT_WIDTHS = (128, 256, 512, 768)
DRIFT_WORK = Workload(sequences=16, prompt_tokens=8, new_tokens=24, layers=2, vocabulary=512, epochs=1, minibatches=2, temperature=1.0)
WARM_UP = {"cpu": 1, "cuda": 3}
LEVER_WARM_UP = 3  # compiled graphs are made in the first updates


def saved_bytes(policy: PolicyWithValue, work: Workload) -> int:
    """Memory that autograd keeps of one part of a batch, parameters excluded, in bytes."""
    part = math.ceil(work.sequences / work.minibatches)
    prompts, tokens = (torch.full((part, n), 2, device=policy.device) for n in (work.prompt_tokens, work.new_tokens))
    masks = [torch.ones_like(x, dtype=torch.bool) for x in (prompts, tokens)]
    masks[0][0, 0] = False  # one pad: without any, transformers leaves the mask away
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        log_probs_and_values(policy, Sequences(prompts, masks[0], tokens, masks[1]))
    for parameter in policy.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def grown(works: list[Workload], settings: dict[str, Any], updates: int) -> list[dict[str, Any]]:
    """Seconds and memory of some workloads; they take turns, update by update. On a GPU one alone, since the peak is of all."""
    on_gpu = works[0].device == "cuda"
    torch.compiler.reset()  # it compiles one function eight times, then no more: other points must not use that up
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    warm_up, trainings, estimates = WARM_UP[works[0].device], [], []
    for work in works:
        policy, tokenizer, prompts = make_policy(work)
        config = ppo_config(work, warm_up + updates, **settings)
        trainings.append(Training(policy, tokenizer, prompts, config, seed=work.seed))
        estimates.append(memory_estimate(policy.lm.config, config, prompt_tokens=work.prompt_tokens))
    rows = [[training.update() for training in trainings] for _ in range(warm_up + updates)][warm_up:]
    points = []
    for work, training, estimate, of_this in zip(works, trainings, estimates, zip(*rows, strict=True), strict=True):
        seconds = {f"{phase}_seconds": statistics.median(row[f"seconds_{phase}"] for row in of_this) for phase in PHASES}
        policy = training.state.policy
        point = {
            "parameters": sum(x.numel() for x in policy.parameters()),
            "token_step_seconds": seconds["generation_seconds"] / work.new_tokens,
            **seconds,
            "memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else saved_bytes(policy, work),
            "estimated_bytes": estimate.peak if on_gpu else estimate.activations + estimate.logits // LOGIT_COPIES,
            "memory_kind": "peak" if on_gpu else "saved tensors of a part",
        }
        points.append(point)
        print(point, flush=True)
    return points


def measure_growth(device: str, updates: int) -> dict[str, Any]:
    """Every point; the base is measured once in each series, so that each can be read by itself."""
    base, settings = BASE[device], GROWTH_SETTINGS[device]
    names, works = [], []
    for field, values in GROWTH[device].items():
        for value in values:
            heads = {"heads": value // HEAD_SIZE[device]} if field == "width" else {}
            names.append({"varied": field, "value": value})
            works.append(replace(base, **{field: value}, **heads))
    groups = [works] if device == "cpu" else [[work] for work in works]
    points = [point for group in groups for point in grown(group, settings, updates)]
    return {"base": asdict(base), "settings": settings, "points": [name | point for name, point in zip(names, points, strict=True)]}


def let_responses_end(policy: PolicyWithValue, tokenizer: PreTrainedTokenizerBase, new_tokens: int) -> None:
    """Make the end token as likely as 1 / new_tokens at each step; in `lm_workload` it cannot be sampled.

    There the last layer norm answers -10 in coordinate 0, where the words have the embedding 0; their logits are all near 0.
    """
    embedding = policy.lm.get_input_embeddings().weight
    words = len(embedding) - 2
    with torch.no_grad():
        embedding[tokenizer.convert_tokens_to_ids(EOS), 0] = math.log(words / (new_tokens - 1)) / -10.0


def measure_levers(device: str, updates: int) -> dict[str, Any]:
    """The same training with each lever switched on alone, then with all. They take turns, update by update."""
    work = LEVER_WORK[device]
    trainings: dict[str, Training] = {}
    rows: dict[str, list[Row]] = {name: [] for name in LEVERS}
    for turn in range(LEVER_WARM_UP + updates):
        for name, settings in LEVERS.items():
            if turn == 0:
                policy, tokenizer, prompts = make_policy(work)
                let_responses_end(policy, tokenizer, work.new_tokens)
                config = ppo_config(work, LEVER_WARM_UP + updates, **settings)
                trainings[name] = Training(policy, tokenizer, shortened(prompts, work.seed), config, seed=work.seed)
            rows[name].append(trainings[name].update())
            print(f"turn {turn}, {name}: {rows[name][-1]['seconds_total']:.2f} s", flush=True)
    table = []
    for name, settings in LEVERS.items():
        counted = rows[name][LEVER_WARM_UP:]
        row = {"name": name, "settings": settings}
        row["tokens_per_second"] = statistics.median(x["response_length"] * work.sequences / x["seconds_total"] for x in counted)
        for phase in (*PHASES, "total"):
            row[f"{phase}_seconds"] = statistics.median(x[f"seconds_{phase}"] for x in counted)
        row["first_update_seconds"] = rows[name][0]["seconds_total"]
        row["response_length"] = statistics.mean(x["response_length"] for x in counted)
        table.append(row | {"relative": row["tokens_per_second"] / (table or [row])[0]["tokens_per_second"]})
    return {"workload": asdict(work), "rows": table}


def shortened(prompts: list[str], seed: int) -> list[str]:
    """The prompts cut to lengths between one word and all."""
    longest = len(prompts[0].split())
    lengths = torch.randint(1, longest + 1, (len(prompts),), generator=torch.Generator().manual_seed(seed)).tolist()
    return [" ".join(prompt.split()[:length]) for prompt, length in zip(prompts, lengths, strict=True)]


def measure_drift(device: str) -> dict[str, Any]:
    """Ratios at learning rate 0, where they should be 1."""
    rows = []
    for width in DRIFT_WIDTHS:
        policy, tokenizer, prompts = make_policy(replace(DRIFT_WORK, device=device, width=width, heads=width // 64))
        for precision in ("float32", "bfloat16"):
            for recompute in (False, True):
                settings = {"learning_rate": 0.0, "precision": precision, "recompute_log_probs": recompute}
                log = Training(policy, tokenizer, prompts, ppo_config(DRIFT_WORK, 1, **settings)).update()
                found = {name: log[name] for name in ("sampling_mismatch", "largest_ratio_deviation")}
                rows.append({"width": width, "precision": precision, "recompute_log_probs": recompute, **found})
                print(rows[-1], flush=True)
    return {"workload": asdict(replace(DRIFT_WORK, device=device)), "rows": rows}


def run(device: str, sections: list[str], updates: int, *, command: str, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The sections that were asked for. `save` is given the result whenever it has grown."""
    prepare(device)
    result = {
        "question": "how cost and memory of a PPO update grow, what each lever is worth, how far precision moves the ratios",
        "command": command,
        "metadata": machine_metadata("transformers") | {"load_average": os.getloadavg()[0]},
    }
    measures = {"growth": measure_growth, "levers": measure_levers, "drift": lambda device, updates: measure_drift(device)}
    for section in SECTIONS:
        if section in sections:
            result[section] = measures[section](device, updates)
            save(result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_option(parser)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--updates", type=int, default=5, help="that count; the first ones warm up")
    parser.add_argument("--output", type=Path, help="default: the package's data, if all sections are measured")
    args = parser.parse_args()
    if args.output is None and set(args.sections) != set(SECTIONS):
        parser.error("--output must be given where only some sections are measured: they must not replace all")
    output = args.output or data_path(NAME if args.device == "cpu" else f"gpu_{NAME}")
    options = f"--device {args.device} --sections {' '.join(args.sections)} --updates {args.updates}"
    begun = time.perf_counter()
    run(
        args.device,
        args.sections,
        args.updates,
        command=f"python -m benchmarks.scaling {options}",
        save=lambda result: write_json(result, output),
    )
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
