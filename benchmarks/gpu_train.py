"""PPO on both tasks of the course with a model of about 30 million parameters, recorded: numbers of every update, samples over time.

    python -m benchmarks.gpu_train reviews|addition [--device cuda|cpu] [--seconds 240] [--seed 0] [--tiny] [--output FILE]

From nothing, as `run_pipeline` does it: supervised start, for reviews comparisons and a reward model, PPO with `GPU_SETTINGS`,
evaluation on held-out prompts before and after. Larger than the pipeline's: the model (`SIZE`), the batches; smaller: the steps.
PPO stops early when `--seconds`, counted from the start of the program, are over. `--tiny` is a smoke run of seconds.

Beside FILE (in the package's data `gpu_train_reviews.json`, `gpu_train_addition.json`) grows FILE with the ending .jsonl: first
command, metadata, model and settings, then one line per update, so that a killed run loses nothing. The JSON:

    question, command, metadata, model: {"parameters", "layers", "width", "heads", "context"}, settings: the fields of the PPO config
    seconds   {stage: seconds}
    before, after  {"score", "positive", "kl", "perplexity", "distinct_2", "response_length", "ended"} on held-out prompts
    reward_model   {"accuracy", "best_accuracy"}; reviews only
    log       the rows that `train_ppo` logs
    samples   [{"update", "prompt", "response", "score", "kl"}]: `SAMPLES` of every `SAMPLE_EVERY`-th update's batch
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lm_setup import add_device_option, prepare
from benchmarks.metadata import machine_metadata
from benchmarks.report import data_path, write_json
from ppo_edu.lm import (
    GPU_SETTINGS,
    Evaluation,
    LMPPOConfig,
    PolicyWithValue,
    RewardModel,
    SupervisedConfig,
    TrainState,
    addition_reward,
    evaluate_policy,
    evaluate_reward_model,
    gold_score,
    make_gpt2,
    make_review_comparisons,
    make_reviews,
    make_sums,
    pipeline,
    review_prompts,
    sum_prompts,
    train_ppo,
    train_reward_model,
    train_sft,
    train_tokenizer,
)

SIZE = {"layers": 10, "width": 512, "heads": 8, "context": 128}  # 32 million parameters
TINY = {"layers": 1, "width": 32, "heads": 2, "context": 128}
SAMPLES, SAMPLE_EVERY = 4, 5


@dataclass(frozen=True)
class Plan:
    """How much of everything, and with which steps."""

    size: dict[str, int]
    examples: int
    comparisons: int
    prompts: int
    held_out: int
    sft: SupervisedConfig
    reward_model: SupervisedConfig
    ppo: LMPPOConfig


def plan(task: str, device: str, tiny: bool) -> Plan:
    """The settings of a task. A larger model learns with smaller steps; a GPU computes larger batches in the same time."""
    base = pipeline.REVIEW_PPO if task == "reviews" else pipeline.SUM_PPO
    if tiny:
        few = SupervisedConfig(batch_size=32, learning_rate=3e-3)
        settings = {"precision": "bfloat16", "recompute_log_probs": True, "sort_by_length": True, "decoding": "static"}
        return Plan(TINY, 200, 60, 64, 32, few, few, replace(base, updates=6, batch_size=32, **settings))
    steps = {"batch_size": 512, "learning_rate": 1e-5}
    ppo = replace(base, updates=300, **steps, **(GPU_SETTINGS if device == "cuda" else {}))
    return Plan(
        SIZE,
        examples=pipeline.REVIEW_EXAMPLES if task == "reviews" else 100_000,
        comparisons=pipeline.REVIEW_COMPARISONS,
        prompts=pipeline.REVIEW_PROMPTS if task == "reviews" else pipeline.SUM_PROMPTS,
        held_out=pipeline.EVALUATION_PROMPTS,
        sft=SupervisedConfig(batch_size=32 if task == "reviews" else 64, learning_rate=5e-4),
        reward_model=SupervisedConfig(batch_size=32, learning_rate=1e-4),
        ppo=ppo,
    )


class Recorder:
    """The callback of `train_ppo`: appends every update to a file of JSON lines, keeps samples, and stops at the deadline."""

    def __init__(self, path: Path, deadline: float, header: dict[str, Any]) -> None:
        self.path, self.deadline = path, deadline
        self.samples: list[dict[str, Any]] = []
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def __call__(self, state: TrainState) -> bool:
        row: dict[str, Any] = dict(state.log[-1])
        if state.update % SAMPLE_EVERY == 1:
            shown = [{"update": state.update, **asdict(sample)} for sample in state.samples[:SAMPLES]]
            self.samples += shown
            row["samples"] = shown
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return time.perf_counter() > self.deadline


def numbers(evaluation: Evaluation) -> dict[str, float]:
    """What is stored of an evaluation."""
    names = ("score", "positive", "kl", "perplexity", "distinct_2", "response_length", "ended")
    return {name: float(getattr(evaluation, name)) for name in names}


def reward_for_reviews(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chosen: Plan, seed: int
) -> tuple[Callable, dict[str, float]]:
    """A reward model trained on comparisons of reviews, as a reward function, and how well it predicts held-out ones."""
    comparisons, _ = make_review_comparisons(lm, tokenizer, chosen.comparisons, seed=seed)
    held_out, best = make_review_comparisons(lm, tokenizer, chosen.held_out, seed=seed, held_out=True)
    model = RewardModel(copy.deepcopy(lm))
    train_reward_model(model, tokenizer, comparisons, chosen.reward_model, seed=seed, progress=False)
    report = evaluate_reward_model(model, tokenizer, held_out)
    return model.reward_fn(tokenizer), {"accuracy": report.accuracy, "best_accuracy": best}


def run(task: str, device: str, *, tiny: bool, seconds: float, seed: int, output: Path, command: str) -> dict[str, Any]:
    """The whole road. The result is written at the end, the updates as they come."""
    begun = time.perf_counter()
    prepare(device)
    chosen = plan(task, device, tiny)
    clock, marks = {}, [begun]

    def stop(stage: str) -> None:
        marks.append(time.perf_counter())
        clock[stage] = marks[-1] - marks[-2]
        print(f"{task}: {stage} {clock[stage]:.0f} s", flush=True)

    reviews = task == "reviews"
    examples = (make_reviews if reviews else make_sums)(chosen.examples, seed=seed)
    tokenizer = train_tokenizer(example.text for example in examples)
    lm = make_gpt2(tokenizer, **chosen.size, seed=seed).to(device)
    callback = None if reviews else pipeline.stop_at(pipeline.SUM_START, lm, tokenizer, seed)
    train_sft(lm, tokenizer, examples, chosen.sft, seed=seed, callback=callback, progress=False)
    stop("supervised start")

    gold, found = addition_reward, {}
    reward_fn = addition_reward
    if reviews:
        gold = gold_score
        reward_fn, found["reward_model"] = reward_for_reviews(lm, tokenizer, chosen, seed)
        stop("reward model")

    make_prompts = review_prompts if reviews else sum_prompts
    header = {
        "question": f"the {task} task with a larger model: PPO update by update, and held-out prompts before and after",
        "command": command,
        "metadata": machine_metadata("transformers"),
        "model": {"parameters": sum(x.numel() for x in lm.parameters()), **chosen.size},
        "settings": asdict(chosen.ppo),
    }
    policy, recorder = PolicyWithValue(copy.deepcopy(lm)), Recorder(output.with_suffix(".jsonl"), begun + seconds, header)
    prompts = make_prompts(chosen.prompts, seed=seed)
    log = train_ppo(policy, tokenizer, prompts, reward_fn, chosen.ppo, reference=lm, seed=seed, callback=recorder, progress=False).log
    stop("PPO")
    prompts = make_prompts(chosen.held_out, seed=seed, held_out=True)
    before, after = (
        evaluate_policy(model, tokenizer, prompts, gold, reference=lm, max_new_tokens=chosen.ppo.max_new_tokens, seed=seed)
        for model in (lm, policy)
    )
    stop("evaluation")
    result = {
        **header,
        "seconds": clock,
        "before": numbers(before),
        "after": numbers(after),
        **found,
        "log": log,
        "samples": recorder.samples,
    }
    write_json(result, output)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("reviews", "addition"))
    add_device_option(parser)
    parser.add_argument("--seconds", type=float, default=240.0, help="PPO stops when so many are over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a smoke run of seconds")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    output = args.output or data_path(f"gpu_train_{args.task}")
    options = f"{args.task} --device {args.device} --seconds {args.seconds:g} --seed {args.seed}{' --tiny' if args.tiny else ''}"
    command = f"python -m benchmarks.gpu_train {options}"
    result = run(args.task, args.device, tiny=args.tiny, seconds=args.seconds, seed=args.seed, output=output, command=command)
    print(json.dumps({"before": result["before"], "after": result["after"]}))


if __name__ == "__main__":
    main()
